"""What a site has finished stays finished: trained weights and optimiser states, by what they came from.

The same round asked again (a lost message, a restarted server) is answered from here, not trained again.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from zlib_ng import zlib_ng

from client.study_cases import RefusedError
from dsan_daemon.files import sync, write_atomically
from dsan_model.protocol import BranchCounts, BranchTraining, branch_counts, counts_array
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights, Precision

ROUNDS_KEPT = 3  # the centre may come back to the round before, which needs the optimiser state before that
SUM = ".crc32"  # a damaged disk is found out by it, at a tenth of the time that SHA-256 takes
SUM_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class FinishedRound:
    """One branch of one round at this site."""

    training: BranchTraining
    validation: BranchCounts  # of the incoming weights
    update: PackedWeights


@dataclass(frozen=True)
class KeptState:
    """What stays at the site between two rounds of a branch."""

    optimiser: dict[str, Tensor]  # as of `optimiser_tensors`; empty: a fresh one
    carry: Tensor | None  # what the updates lost to rounding; None at the start and in full precision


class FinishedWork:
    """The finished rounds of one branch of one study, in a folder of the site."""

    def __init__(self, folder: Path, study_digest: str, branch: Branch) -> None:
        self.folder = folder / study_digest[:16] / branch
        self.branch = branch

    def find(self, round_number: int, incoming: PackedWeights) -> FinishedRound | None:
        """The result of this round from these weights, if it was finished and its bytes are whole."""
        tensors = load_tensors(self._path("result", round_number, incoming.digest))
        if tensors is None:
            return None
        training = _TRAINING.validate_json(bytes(tensors["training"].tolist()))
        floats = tensors["floats"].numpy()
        update = PackedWeights(
            incoming.layout,
            Precision(floats.dtype.name),
            tuple(tensors["exponents"].tolist()),
            floats,
            tensors["integers"].numpy(),
        )
        validation = branch_counts(self.branch, tensors["validation"].numpy())
        return FinishedRound(training, validation, update)

    def keep(
        self, round_number: int, incoming: PackedWeights, finished: FinishedRound, went_on_from: int
    ) -> None:
        """Store a finished round, whole or not at all, and drop what is too old to be needed.

        went_on_from: the round whose state it began with, which a site that is never taken in time needs on.
        """
        update, training = finished.update, _TRAINING.dump_json(finished.training)
        tensors = {
            "training": torch.tensor(list(training), dtype=torch.uint8),
            "validation": torch.tensor(counts_array(finished.validation)),
            "exponents": torch.tensor(update.exponents, dtype=torch.int64),
            "floats": torch.tensor(update.floats),
            "integers": torch.tensor(update.integers),
        }
        store_tensors(self._path("result", round_number, incoming.digest), tensors, is_durable=False)
        self._forget_before(min(round_number - ROUNDS_KEPT + 1, went_on_from))

    def state_after(self, round_number: int) -> KeptState:
        """What a round goes on with, as it was after this one; a fresh start after round 0.

        RefusedError WORK-STATE if it is damaged or gone: another state would silently give other weights.
        """
        if round_number == 0:
            return KeptState({}, None)
        tensors = load_tensors(self._path("state", round_number, ""))
        if tensors is None:
            raise RefusedError(
                "WORK-STATE",
                f"what this site kept of {self.folder.name} after round {round_number} is damaged or gone",
            )
        carry = tensors.pop("carry", None)
        optimiser = {name.removeprefix("optimiser/"): tensor for name, tensor in tensors.items()}
        return KeptState(optimiser, None if carry is None else carry.float())

    def keep_state(self, round_number: int, state: KeptState) -> None:
        """Store what the next round goes on with; the carry in bfloat16, whose error is 1/512 of it."""
        tensors = {f"optimiser/{name}": tensor for name, tensor in state.optimiser.items()}
        carry = {} if state.carry is None else {"carry": state.carry.bfloat16()}
        store_tensors(self._path("state", round_number, ""), tensors | carry)

    def _path(self, kind: str, round_number: int, digest: str) -> Path:
        suffix = f"-{digest[:16]}" if digest else ""
        return self.folder / f"{kind}-{round_number:04d}{suffix}.safetensors"

    def _forget_before(self, round_number: int) -> None:
        for path in self.folder.glob("*.safetensors"):
            if _round_of(path) < round_number:
                path.unlink(missing_ok=True)
                path.with_suffix(SUM).unlink(missing_ok=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: parameter number and quantity."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}/{quantity}": tensor.detach().cpu().contiguous()
        for number, quantities in state.items()
        for quantity, tensor in quantities.items()
    }


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` took; nothing leaves a fresh optimiser."""
    if not tensors:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, quantity = name.split("/")
        state.setdefault(int(number), {})[quantity] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def store_tensors(path: Path, tensors: dict[str, Tensor], *, is_durable: bool = True) -> None:
    """Whole or not at all: a file that does not agree with its checksum is not there.

    What is not durable may be gone after a power cut: a result is then trained again, from the durable state.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, sums = path.with_suffix(".partial"), path.with_suffix(SUM)
    save_file(tensors, partial)
    if is_durable:
        sync(partial)
        write_atomically(sums, _sum(partial).encode())
    else:
        sums.write_text(_sum(partial))
    partial.rename(path)
    if is_durable:
        sync(path.parent)


def load_tensors(path: Path) -> dict[str, Tensor] | None:
    """What `store_tensors` wrote; None if it is not there or damaged."""
    try:
        if path.with_suffix(SUM).read_text() != _sum(path):
            return None
        return load_file(path)
    except (OSError, ValueError, SafetensorError):  # ValueError: a checksum that is not text
        return None


_TRAINING = TypeAdapter(BranchTraining)


def _round_of(path: Path) -> int:
    return int(path.name.split("-")[1].split(".")[0])


def _sum(path: Path) -> str:
    found, buffer = 0, bytearray(SUM_PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            found = zlib_ng.crc32(memoryview(buffer)[:size], found)
    return f"{found:08x}"
