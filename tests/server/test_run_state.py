"""What a run remembers: whole rounds or none, verified, whatever moment the power went."""

import hashlib
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsan_model.cases import Case, Label, SizeGroup
from dsan_model.metrics import ScoreCounts, score_counts
from dsan_model.network import NetworkConfig, initial_state
from dsan_model.protocol import BranchTraining
from dsan_model.sampling import Branch
from dsan_model.weights import FlatWeights, flatten
from server.run_state import (
    SUMS,
    OnDemand,
    RoundRecord,
    RunState,
    finish_round,
    is_sealed,
    load_newest,
    load_round_weights,
    prune_rounds,
    save_round,
    seal,
    write_round,
)

US, SS = Branch.US, Branch.SS
TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
STUDY = "ab" * 32
CASES = [Case("c1", "p1", Label.COVID, 0.2), Case("c2", "p2", Label.CAP, 0.0)]


def scores(logit: float) -> ScoreCounts:
    return score_counts([logit, -logit], CASES)


def next_round(state: RunState, study_digest: str = STUDY) -> RunState:
    """One round later: other weights, other losses, other scores."""
    number = state.round + 1
    training = BranchTraining(
        cases=48,
        steps=3,
        seconds=0.1 * number,
        learning_rate=2e-4,
        classification_loss=1 / number,
        attention_loss=None if number == 2 else 0.3,
        drawn=dict(zip(SizeGroup, (20, 8, 20, 0), strict=True)),
    )
    record = RoundRecord(number, study_digest, {"north-1": {US: training, SS: training}}, 1.5, 1000, 900)
    weights = {branch: flatten(initial_state(TINY, 10 * number + i)) for i, branch in enumerate((US, SS))}
    velocity = {branch: weights[branch].floats * 0.5 for branch in weights}
    moved = replace(state, weights=weights, velocity=velocity)
    return moved.after_round(record, {"north-1": {US: scores(0.1 * number), SS: scores(-1.0)}})


UNTRAINED = RunState(0, dict.fromkeys((US, SS), flatten(initial_state(TINY, 0))))


def a_run(run_folder: Path, rounds: int) -> dict[int, RunState]:
    """A run of so many rounds, and the state after each of them."""
    states = {0: UNTRAINED}
    for number in range(1, rounds + 1):
        states[number] = next_round(states[number - 1])
        save_round(run_folder, states[number])
    return states


def assert_same(found: RunState | None, expected: RunState) -> None:
    assert found is not None
    assert (found.round, found.history, found.validation) == (
        expected.round,
        expected.history,
        expected.validation,
    )
    assert list(found.weights) == list(expected.weights)
    for branch, weights in expected.weights.items():
        assert found.weights[branch].layout == weights.layout
        assert found.weights[branch].digest == weights.digest
        assert torch.equal(found.velocity[branch], expected.velocity[branch])


def folder_of(run_folder: Path, number: int) -> Path:
    return run_folder / "rounds" / f"{number:04d}"


def weights_kept(run_folder: Path) -> list[int]:
    return sorted({int(path.parent.name) for path in run_folder.glob("rounds/*/*s.safetensors")})


# ---- there and back ----


def test_the_newest_round_comes_back_as_it_was_with_the_whole_history(tmp_path: Path) -> None:
    states = a_run(tmp_path, 3)
    assert_same(load_newest(tmp_path, STUDY), states[3])


def test_a_resumed_run_goes_on_like_the_one_that_was_not_disturbed(tmp_path: Path) -> None:
    states = a_run(tmp_path, 2)
    resumed = load_newest(tmp_path, STUDY)
    assert resumed is not None
    assert_same(next_round(resumed), next_round(states[2]))


def test_a_run_that_has_finished_no_round_has_no_state(tmp_path: Path) -> None:
    assert load_newest(tmp_path, STUDY) is None


def test_a_round_that_no_site_validated_is_kept_too(tmp_path: Path) -> None:
    first = next_round(UNTRAINED)
    state = replace(first, validation=({},))
    save_round(tmp_path, state)
    assert_same(load_newest(tmp_path, STUDY), state)


def test_the_newest_weights_may_be_validated_after_the_last_round() -> None:
    state = next_round(UNTRAINED)
    validated = state.validated({"north-1": {US: scores(2.0), SS: scores(3.0)}})
    assert validated.validation[:-1] == state.validation
    assert validated.validation[-1]["north-1"][SS] == scores(3.0)
    assert (validated.round, validated.weights) == (state.round, state.weights)


def test_a_round_saved_again_replaces_the_one_before(tmp_path: Path) -> None:
    states = a_run(tmp_path, 2)
    other = next_round(states[1].validated({}))
    save_round(tmp_path, other)
    found = load_newest(tmp_path, STUDY)
    assert found is not None
    assert found.round == 2


def test_the_weights_of_a_branch_are_forgotten_before_the_next_are_made(tmp_path: Path) -> None:
    made: list[weakref.ref[FlatWeights]] = []

    def make(branch: Branch) -> FlatWeights:
        assert [ref for ref in made if ref() is not None] == []
        weights = flatten(initial_state(TINY, 1))
        made.append(weakref.ref(weights))
        return weights

    state = replace(next_round(UNTRAINED), weights=OnDemand((US, SS), make), velocity={})
    written = write_round(tmp_path, state)
    assert len(made) == 2
    assert load_newest(tmp_path, STUDY) is None  # not yet a round
    finish_round(tmp_path, state)
    assert written.weights[SS].digest == flatten(initial_state(TINY, 1)).digest


# ---- damage ----


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, tear, empty, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "name", ["us.safetensors", "ss.safetensors", "state.json", "validation.safetensors", SUMS]
)
def test_a_damaged_newest_round_falls_back_to_the_one_before(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    states = a_run(tmp_path, 3)
    damage(folder_of(tmp_path, 3) / name)
    assert_same(load_newest(tmp_path, STUDY), states[2])


def test_sums_that_are_not_text_are_damage_too(tmp_path: Path) -> None:
    states = a_run(tmp_path, 2)
    (folder_of(tmp_path, 2) / SUMS).write_bytes(b"\xff\xfe  us.safetensors\n")
    assert_same(load_newest(tmp_path, STUDY), states[1])


def test_a_hole_in_the_history_leads_back_to_before_the_hole(tmp_path: Path) -> None:
    states = a_run(tmp_path, 4)
    flip_a_bit(folder_of(tmp_path, 2) / "state.json")
    assert_same(load_newest(tmp_path, STUDY), states[1])


def test_rounds_of_another_study_are_ignored(tmp_path: Path) -> None:
    states = a_run(tmp_path, 2)
    save_round(tmp_path, next_round(states[2], study_digest="cd" * 32))
    assert_same(load_newest(tmp_path, STUDY), states[2])
    assert load_newest(tmp_path, "cd" * 32) is None


def test_a_kill_while_a_round_is_written_leaves_the_round_before(tmp_path: Path) -> None:
    states = a_run(tmp_path, 2)
    folder = folder_of(tmp_path, 3)
    shutil.copytree(folder_of(tmp_path, 2), folder.with_name("0003.partial"))
    (folder.with_name("0003.partial") / "half-written").write_bytes(b"1")
    assert_same(load_newest(tmp_path, STUDY), states[2])
    states[3] = next_round(states[2])
    save_round(tmp_path, states[3])
    assert_same(load_newest(tmp_path, STUDY), states[3])
    assert not (folder / "half-written").exists()
    assert [path.name for path in sorted(folder.parent.iterdir())] == ["0001", "0002", "0003"]


# ---- pruning ----


def test_pruning_keeps_the_weights_of_the_newest_two_and_of_the_best_rounds(tmp_path: Path) -> None:
    states = a_run(tmp_path, 6)
    prune_rounds(tmp_path, states[6], best_rounds={2, 4})
    assert weights_kept(tmp_path) == [2, 4, 5, 6]
    assert_same(load_newest(tmp_path, STUDY), states[6])
    assert load_round_weights(tmp_path, 2, SS).digest == states[2].weights[SS].digest
    assert load_round_weights(tmp_path, 4, US).digest == states[4].weights[US].digest


def test_pruning_after_every_round_leaves_what_is_needed_and_no_more(tmp_path: Path) -> None:
    state = UNTRAINED
    for number in range(1, 8):
        state = next_round(state)
        save_round(tmp_path, state)
        prune_rounds(tmp_path, state, best_rounds={min(number, 3)})
        assert_same(load_newest(tmp_path, STUDY), state)
    assert weights_kept(tmp_path) == [3, 6, 7]


def test_the_history_of_a_pruned_round_is_still_vouched_for(tmp_path: Path) -> None:
    states = a_run(tmp_path, 4)
    prune_rounds(tmp_path, states[4], best_rounds=set())
    assert is_sealed(folder_of(tmp_path, 1))
    flip_a_bit(folder_of(tmp_path, 1) / "validation.safetensors")
    assert load_newest(tmp_path, STUDY) is None


def test_a_run_whose_newest_rounds_are_damaged_falls_back_over_the_pruned_ones(tmp_path: Path) -> None:
    states = a_run(tmp_path, 5)
    prune_rounds(tmp_path, states[5], best_rounds={2})
    for number in (4, 5):
        flip_a_bit(folder_of(tmp_path, number) / "us.safetensors")
    assert_same(load_newest(tmp_path, STUDY), states[2])


@pytest.mark.parametrize("n_deleted", [0, 1, 2])
def test_a_kill_in_the_middle_of_pruning_loses_nothing_and_the_next_pruning_ends_it(
    tmp_path: Path, n_deleted: int
) -> None:
    states = a_run(tmp_path, 4)
    folder = folder_of(tmp_path, 2)
    weights = [folder / "us.safetensors", folder / "ss.safetensors"]
    seal(folder, leaving_out=set(weights))
    for path in weights[:n_deleted]:
        path.unlink()
    assert_same(load_newest(tmp_path, STUDY), states[4])
    prune_rounds(tmp_path, states[4], best_rounds={1})
    assert weights_kept(tmp_path) == [1, 3, 4]
    assert_same(load_newest(tmp_path, STUDY), states[4])


@pytest.mark.parametrize("n_deleted", [0, 1])
def test_a_half_pruned_round_is_never_taken_for_a_state(tmp_path: Path, n_deleted: int) -> None:
    states = a_run(tmp_path, 3)
    folder = folder_of(tmp_path, 2)
    weights = [folder / "us.safetensors", folder / "ss.safetensors"]
    seal(folder, leaving_out=set(weights))
    for path in weights[:n_deleted]:
        path.unlink()
    flip_a_bit(folder_of(tmp_path, 3) / "us.safetensors")
    assert_same(load_newest(tmp_path, STUDY), states[1])


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink], ids=lambda damage: damage.__name__)
def test_weights_of_a_round_that_do_not_verify_are_refused(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    a_run(tmp_path, 1)
    damage(folder_of(tmp_path, 1) / "ss.safetensors")
    with pytest.raises(ValueError, match="missing or differs from SHA256SUMS"):
        load_round_weights(tmp_path, 1, SS)


def test_weights_of_a_pruned_round_are_refused(tmp_path: Path) -> None:
    states = a_run(tmp_path, 3)
    prune_rounds(tmp_path, states[3], best_rounds=set())
    with pytest.raises(ValueError, match="missing or differs from SHA256SUMS"):
        load_round_weights(tmp_path, 1, US)


# ---- sums and single files ----


def test_the_sums_name_every_file_of_the_folder_as_sha256sum_does(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "b.txt").write_bytes(b"b")
    (tmp_path / "inner" / "a.txt").write_bytes(b"a")
    seal(tmp_path)
    expected = [
        f"{hashlib.sha256(b'b').hexdigest()}  b.txt",
        f"{hashlib.sha256(b'a').hexdigest()}  inner/a.txt",
    ]
    assert (tmp_path / SUMS).read_text().splitlines() == expected
    assert is_sealed(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [SUMS, "b.txt", "inner"]


def test_sealing_again_takes_the_changed_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"b")
    seal(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"c")
    assert not is_sealed(tmp_path)
    seal(tmp_path)
    assert is_sealed(tmp_path)
