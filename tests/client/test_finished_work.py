"""Finished rounds and optimiser states: found again whole, from the same weights only, or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from client.finished_work import (
    FinishedRound,
    FinishedWork,
    KeptState,
    load_optimiser_tensors,
    optimiser_tensors,
)
from client.study_cases import RefusedError
from dsan_model.cases import Case, Label, SizeGroup
from dsan_model.metrics import score_counts
from dsan_model.network import NetworkConfig, initial_state
from dsan_model.protocol import BranchTraining
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.training import TrainingConfig, build_network, make_optimiser
from dsan_model.weights import FlatWeights, flatten

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
STUDY = "ab" * 32


def packed(seed: int, precision: Precision = Precision.FLOAT16) -> PackedWeights:
    return pack(flatten(initial_state(TINY, seed)), precision)


INCOMING, OTHERS = packed(100), packed(101)


def a_finished_round(seed: int, precision: Precision = Precision.FLOAT16) -> FinishedRound:
    training = BranchTraining(
        cases=20,
        steps=1,
        seconds=1.25,
        learning_rate=2e-4,
        classification_loss=0.1 + seed,
        attention_loss=None if seed == 0 else 0.5,
        drawn=dict(zip(SizeGroup, (5, 5, 10, 0), strict=True)),
    )
    validation = score_counts([seed - 0.5], [Case("c", "p", Label.CAP, 0.01)])
    return FinishedRound(training, validation, packed(seed, precision))


def assert_same(found: FinishedRound | None, expected: FinishedRound) -> None:
    assert found is not None
    assert (found.training, found.validation) == (expected.training, expected.validation)
    assert found.update.layout == expected.update.layout
    assert found.update.digest == expected.update.digest


@pytest.fixture
def work(tmp_path: Path) -> FinishedWork:
    return FinishedWork(tmp_path, STUDY, Branch.US)


# ---- rounds ----


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_finished_round_is_found_again_as_it_was(
    work: FinishedWork, seed: int, precision: Precision
) -> None:
    work.keep(3, INCOMING, a_finished_round(seed, precision), went_on_from=2)
    assert_same(work.find(3, INCOMING), a_finished_round(seed, precision))


def test_what_was_not_finished_is_not_found(work: FinishedWork) -> None:
    assert work.find(1, INCOMING) is None
    work.keep(3, INCOMING, a_finished_round(0), went_on_from=2)
    assert work.find(2, INCOMING) is None
    assert work.find(3, OTHERS) is None  # the same round from other weights


def test_every_study_and_branch_has_its_own_work(work: FinishedWork, tmp_path: Path) -> None:
    work.keep(3, INCOMING, a_finished_round(0), went_on_from=2)
    assert FinishedWork(tmp_path, STUDY, Branch.SS).find(3, INCOMING) is None
    assert FinishedWork(tmp_path, "cd" * 32, Branch.US).find(3, INCOMING) is None
    assert_same(FinishedWork(tmp_path, STUDY, Branch.US).find(3, INCOMING), a_finished_round(0))


def test_the_same_round_from_two_incoming_weights_is_kept_twice(work: FinishedWork) -> None:
    work.keep(3, INCOMING, a_finished_round(0), went_on_from=2)
    work.keep(3, OTHERS, a_finished_round(1), went_on_from=2)
    assert_same(work.find(3, INCOMING), a_finished_round(0))
    assert_same(work.find(3, OTHERS), a_finished_round(1))


def test_a_round_kept_again_replaces_the_one_before(work: FinishedWork) -> None:
    work.keep(3, INCOMING, a_finished_round(0), went_on_from=2)
    work.keep(3, INCOMING, a_finished_round(1), went_on_from=2)
    assert_same(work.find(3, INCOMING), a_finished_round(1))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    "damage", [flip_a_bit, tear, empty, make_binary, Path.unlink], ids=lambda damage: damage.__name__
)
@pytest.mark.parametrize("suffix", [".safetensors", ".crc32"])
def test_a_damaged_round_is_not_found_and_can_be_kept_anew(
    work: FinishedWork, suffix: str, damage: Callable[[Path], None]
) -> None:
    work.keep(3, INCOMING, a_finished_round(0), went_on_from=2)
    (path,) = work.folder.glob(f"result-*{suffix}")
    damage(path)
    assert work.find(3, INCOMING) is None
    work.keep(3, INCOMING, a_finished_round(1), went_on_from=2)
    assert_same(work.find(3, INCOMING), a_finished_round(1))


def test_what_a_killed_writer_left_is_not_a_finished_round(work: FinishedWork) -> None:
    work.keep(3, INCOMING, a_finished_round(0), went_on_from=2)
    (path,) = work.folder.glob("result-*.safetensors")
    path.rename(path.with_suffix(".partial"))
    assert work.find(3, INCOMING) is None
    work.keep(3, INCOMING, a_finished_round(1), went_on_from=2)
    assert_same(work.find(3, INCOMING), a_finished_round(1))


def test_the_newest_three_rounds_are_kept_with_their_states(work: FinishedWork) -> None:
    for number in range(1, 7):
        work.keep_state(number, KeptState({"0/step": torch.tensor(float(number))}, torch.ones(2)))
        work.keep(number, INCOMING, a_finished_round(0), went_on_from=number - 1)
    kept = [number for number in range(1, 7) if work.find(number, INCOMING)]
    assert kept == [4, 5, 6]
    assert sorted({path.name.split("-")[1][:4] for path in work.folder.iterdir()}) == ["0004", "0005", "0006"]


def test_a_site_that_is_never_taken_in_time_keeps_the_state_that_it_goes_on_from(work: FinishedWork) -> None:
    for number in range(1, 9):
        work.keep_state(number, KeptState({"0/step": torch.tensor(float(number))}, None))
        work.keep(number, INCOMING, a_finished_round(0), went_on_from=min(number - 1, 2))
    assert work.state_after(2).optimiser["0/step"].item() == 2.0


# ---- states ----


def test_a_round_goes_on_with_the_state_of_the_round_that_it_is_told(work: FinishedWork) -> None:
    for number in (1, 2, 4):
        work.keep_state(
            number, KeptState({"0/step": torch.tensor(float(number))}, torch.full((3,), float(number)))
        )
    for number in (1, 2, 4):
        state = work.state_after(number)
        assert state.optimiser["0/step"].item() == number
        assert state.carry is not None
        assert state.carry.tolist() == [number] * 3


def test_after_no_round_there_is_a_fresh_start(work: FinishedWork) -> None:
    work.keep_state(1, KeptState({"0/step": torch.tensor(1.0)}, torch.ones(3)))
    assert work.state_after(0) == KeptState({}, None)


def test_a_state_without_optimiser_and_carry_is_a_state(work: FinishedWork) -> None:
    work.keep_state(1, KeptState({}, None))
    assert work.state_after(1) == KeptState({}, None)


@pytest.mark.parametrize(
    "damage", [flip_a_bit, tear, empty, make_binary, Path.unlink], ids=lambda damage: damage.__name__
)
@pytest.mark.parametrize("suffix", [".safetensors", ".crc32"])
def test_a_state_that_is_damaged_or_gone_is_a_refusal_and_never_an_older_one(
    work: FinishedWork, suffix: str, damage: Callable[[Path], None]
) -> None:
    for number in (1, 2):
        work.keep_state(number, KeptState({"0/step": torch.tensor(float(number))}, torch.ones(3)))
    damage(work.folder / f"state-0002{suffix}")
    with pytest.raises(RefusedError) as caught:
        work.state_after(2)
    assert caught.value.code == "WORK-STATE"
    assert work.state_after(1).optimiser["0/step"].item() == 1.0
    work.keep_state(2, KeptState({"0/step": torch.tensor(2.0)}, None))  # the round trained again heals it
    assert work.state_after(2).optimiser["0/step"].item() == 2.0


def step(network: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    """One step with a gradient that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.contiguous(
            memory_format=torch.channels_last_3d if gradient.dim() == 5 else torch.contiguous_format
        )
    optimiser.step()


def trained(work: FinishedWork | None, optimiser_kind: str) -> FlatWeights:
    """Six steps; with `work`, the process ends after three of them and another goes on."""
    config = TrainingConfig(optimiser=optimiser_kind, learning_rate=0.01)  # type: ignore[arg-type]
    network = build_network(TINY, initial_state(TINY, seed=0), torch.device("cpu"))
    optimiser = make_optimiser(network, config)
    for seed in range(6):
        if seed == 3 and work is not None:
            work.keep_state(1, KeptState(optimiser_tensors(optimiser), None))
            network = build_network(TINY, network.state_dict(), torch.device("cpu"))
            optimiser = make_optimiser(network, config)
            load_optimiser_tensors(optimiser, work.state_after(1).optimiser)
        step(network, optimiser, seed)
    return flatten(network.state_dict())


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_an_optimiser_goes_on_from_its_stored_state_bit_for_bit(work: FinishedWork, optimiser: str) -> None:
    assert trained(work, optimiser).digest == trained(None, optimiser).digest


def test_adam_without_its_state_would_go_on_otherwise(work: FinishedWork) -> None:
    class Forgetful(FinishedWork):
        def state_after(self, round_number: int) -> KeptState:
            return KeptState({}, None)

    forgetful = Forgetful(work.folder, STUDY, Branch.US)
    assert trained(forgetful, "adam").digest != trained(None, "adam").digest


def test_the_rate_of_the_new_optimiser_is_its_own_not_that_of_the_stored_state(work: FinishedWork) -> None:
    network = nn.Linear(2, 1)
    first = make_optimiser(network, TrainingConfig(learning_rate=0.5))
    step(network, first, 0)
    second = make_optimiser(network, TrainingConfig(learning_rate=0.25))
    load_optimiser_tensors(second, optimiser_tensors(first))
    assert second.param_groups[0]["lr"] == 0.25
    assert second.state_dict()["state"][0]["step"] == 1
