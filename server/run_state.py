"""What a run remembers: after every round the weights and what led to them, in a folder that verifies.

A round's folder is written under another name and renamed when every byte is on disk, so that it is whole
or absent. The newest folder whose SHA256SUMS agree is where a resumed study goes on.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from dsan_daemon.files import sync
from dsan_model.protocol import BranchCounts, BranchTraining, branch_counts, counts_array
from dsan_model.sampling import Branch
from dsan_model.weights import FlatWeights, load_weights, save_weights

SUMS = "SHA256SUMS"
VELOCITY = "velocity.safetensors"  # of server momentum, by branch
ROUNDS_KEPT = 2  # newest rounds whose weights stay beside those of the best rounds
SiteCounts = dict[str, dict[Branch, BranchCounts]]  # site, branch
Kept = TypeVar("Kept")


class OnDemand(Mapping[Branch, Kept]):
    """What every branch has, read or computed anew whenever it is asked for.

    The weights of one branch take 254 MB at full size: the centre has those of one in memory at a time.
    """

    def __init__(self, branches: Iterable[Branch], make: Callable[[Branch], Kept]) -> None:
        self._branches = tuple(branches)
        self._make = make

    def __getitem__(self, branch: Branch) -> Kept:
        if branch not in self._branches:
            raise KeyError(branch)
        return self._make(branch)

    def __iter__(self) -> Iterator[Branch]:
        return iter(self._branches)

    def __len__(self) -> int:
        return len(self._branches)


@dataclass(frozen=True)
class RoundRecord:
    """What a round did: the training of every accepted site, and the time it took."""

    round: int
    study_digest: str
    training: dict[str, dict[Branch, BranchTraining]]  # site, branch
    seconds: float
    bytes_to_sites: int
    bytes_from_sites: int


@dataclass(frozen=True)
class RunState:
    """The study after `round` rounds; round 0 is the untrained network."""

    round: int
    weights: Mapping[Branch, FlatWeights]  # exact; what travels of them may be rounded
    history: tuple[RoundRecord, ...] = ()
    validation: tuple[SiteCounts, ...] = ()  # [r] is how the weights after r rounds did; one a round
    velocity: Mapping[Branch, Tensor] = field(default_factory=dict)  # of server momentum: the last step
    resumed_after: int = 0  # the rounds up to here were made by earlier processes

    @property
    def earlier_sessions(self) -> tuple[RoundRecord, ...]:
        """The rounds that were not made by this process."""
        return self.history[: self.resumed_after]

    def after_round(self, record: RoundRecord, validation: SiteCounts) -> "RunState":
        """One round more on record; `validation` is how the weights that went into the round did."""
        return replace(
            self,
            round=record.round,
            history=(*self.history, record),
            validation=(*self.validation, validation),
        )

    def validated(self, validation: SiteCounts) -> "RunState":
        """The same state with the newest weights validated too."""
        return replace(self, validation=(*self.validation, validation))


def save_round(run_folder: Path, state: RunState) -> None:
    """Write the newest round of the state, whole or not at all."""
    write_round(run_folder, state)
    finish_round(run_folder, state)


def write_round(
    run_folder: Path, state: RunState, on_written: Callable[[Branch, FlatWeights], None] = lambda *_: None
) -> RunState:
    """Write the newest round, which is not there before `finish_round`; returns the state as it is then.

    The weights of a branch are made, written, given to `on_written` and forgotten before the next.
    """
    folder = _unfinished(run_folder, state)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for branch in state.weights:
        weights = state.weights[branch]
        save_weights(folder / f"{branch}.safetensors", weights)
        on_written(branch, weights)
        del weights  # before those of the next branch are made
    if state.velocity:
        save_tensors({b.value: values for b, values in state.velocity.items()}, folder / VELOCITY)
    counts = {
        f"{site}/{branch}": counts_array(of_branch)
        for site, by_branch in state.validation[-1].items()
        for branch, of_branch in by_branch.items()
    }
    save_file(counts or {"none": np.zeros(0)}, folder / "validation.safetensors")
    (folder / "state.json").write_bytes(_RECORD.dump_json(state.history[-1], indent=1))
    finished = _round_folder(run_folder, state.round)
    weights_there, velocity = _weights_in(finished, state.weights), _velocity_in(finished, state.velocity)
    return replace(state, weights=weights_there, velocity=velocity)


def finish_round(run_folder: Path, state: RunState) -> None:
    """Force what `write_round` wrote to disk, and let it be the round's folder."""
    unfinished, folder = _unfinished(run_folder, state), _round_folder(run_folder, state.round)
    seal(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    sync(folder.parent)


def load_newest(run_folder: Path, study_digest: str) -> RunState | None:
    """The newest state that verifies and belongs to the study; None if there is none."""
    for folder in sorted((run_folder / "rounds").glob("[0-9]" * 4), reverse=True):
        state = _load(run_folder, int(folder.name), study_digest)
        if state is not None:
            return state
    return None


def load_round_weights(run_folder: Path, round_number: int, branch: Branch) -> FlatWeights:
    """The weights of a branch after a round, verified."""
    path = _round_folder(run_folder, round_number) / f"{branch}.safetensors"
    if not is_sealed(path.parent) or path.name not in _sums(path.parent):
        raise ValueError(f"{path}: this or another file of the round is missing or differs from {SUMS}")
    return load_weights(path)


def prune_rounds(run_folder: Path, state: RunState, best_rounds: set[int]) -> None:
    """Drop the weights of rounds that are neither among the newest nor the best of a branch."""
    for record in state.history[:-ROUNDS_KEPT]:
        if record.round not in best_rounds:
            folder = _round_folder(run_folder, record.round)
            names = [f"{branch}.safetensors" for branch in state.weights] + [VELOCITY]
            tensors = {folder / name for name in names}
            if any(path.exists() for path in tensors):
                seal(folder, leaving_out=tensors)
                for path in tensors:
                    path.unlink(missing_ok=True)


def seal(folder: Path, leaving_out: Set[Path] = frozenset()) -> None:
    """Write SHA256SUMS over the files of a folder, but for those left out, and force everything to disk."""
    found = {path for path in folder.rglob("*") if path.is_file() and path.name != SUMS}
    paths = sorted(found - leaving_out)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    sums = folder / f"{SUMS}.partial"
    sums.write_text("".join(lines))
    for path in [*paths, sums]:
        sync(path)
    sums.rename(folder / SUMS)
    sync(folder)


def is_sealed(folder: Path) -> bool:
    """Whether every file that the folder's SHA256SUMS names is there with those bytes."""
    try:
        return all(_sha256(folder / name) == digest for name, digest in _sums(folder).items())
    except (OSError, ValueError):
        return False


_RECORD = TypeAdapter(RoundRecord)


def _load(run_folder: Path, newest: int, study_digest: str) -> RunState | None:
    history, validation = [], []
    for round_number in range(1, newest + 1):
        folder = _round_folder(run_folder, round_number)
        if not is_sealed(folder):
            return None
        try:
            record = _RECORD.validate_json((folder / "state.json").read_bytes())
        except (OSError, ValidationError):
            return None
        if record.study_digest != study_digest:
            return None
        history.append(record)
        validation.append(_load_validation(folder))
    folder = _round_folder(run_folder, newest)
    sealed = _sums(folder)
    branches = [branch for branch in Branch if f"{branch}.safetensors" in sealed]
    if not branches:
        return None
    return RunState(
        newest,
        _weights_in(folder, branches),
        tuple(history),
        tuple(validation),
        _velocity_in(folder, branches if VELOCITY in sealed else ()),
        resumed_after=newest,
    )


def _weights_in(folder: Path, branches: Iterable[Branch]) -> Mapping[Branch, FlatWeights]:
    return OnDemand(branches, lambda branch: load_weights(folder / f"{branch}.safetensors"))


def _velocity_in(folder: Path, branches: Iterable[Branch]) -> Mapping[Branch, Tensor]:
    return OnDemand(branches, lambda branch: load_tensors(folder / VELOCITY)[branch.value])


def _load_validation(folder: Path) -> SiteCounts:
    counts: SiteCounts = {}
    for name, values in load_file(folder / "validation.safetensors").items():
        if "/" in name:
            site, branch = name.rsplit("/", 1)
            counts.setdefault(site, {})[Branch(branch)] = branch_counts(Branch(branch), values)
    return counts


def _round_folder(run_folder: Path, round_number: int) -> Path:
    return run_folder / "rounds" / f"{round_number:04d}"


def _unfinished(run_folder: Path, state: RunState) -> Path:
    return run_folder / "rounds" / f"{state.round:04d}.partial"


def _sums(folder: Path) -> dict[str, str]:
    """Name and digest of every file that SHA256SUMS vouches for."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
