"""What a site has finished stays finished: trained weights and optimiser states, by what they came from.

The same round asked again (a lost message, a restarted server) is answered from here, not trained again.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsan_model.protocol import BranchCounts, BranchTraining, branch_counts, counts_array
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights, Precision

ROUNDS_KEPT = 3  # the centre may come back to the round before, which needs the optimiser state before that


@dataclass(frozen=True)
class FinishedRound:
    """One branch of one round at this site."""

    training: BranchTraining
    validation: BranchCounts  # of the incoming weights
    update: PackedWeights


class FinishedWork:
    """The finished rounds of one branch of one study, in a folder of the site."""

    def __init__(self, folder: Path, study_digest: str, branch: Branch) -> None:
        self.folder = folder / study_digest[:16] / branch
        self.branch = branch

    def find(self, round_number: int, incoming: PackedWeights) -> FinishedRound | None:
        """The result of this round from these weights, if it was finished and its bytes are whole."""
        tensors = _load(self._path("result", round_number, incoming.digest))
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

    def keep(self, round_number: int, incoming: PackedWeights, finished: FinishedRound) -> None:
        """Store a finished round, whole or not at all, and drop what is too old to be needed."""
        update, training = finished.update, _TRAINING.dump_json(finished.training)
        tensors = {
            "training": torch.tensor(list(training), dtype=torch.uint8),
            "validation": torch.tensor(counts_array(finished.validation)),
            "exponents": torch.tensor(update.exponents, dtype=torch.int64),
            "floats": torch.tensor(update.floats),
            "integers": torch.tensor(update.integers),
        }
        _store(self._path("result", round_number, incoming.digest), tensors)
        self._forget_before(round_number - ROUNDS_KEPT + 1)

    def optimiser_state(self, before_round: int) -> dict[str, Tensor] | None:
        """The optimiser's tensors after the newest finished round before this one; None at the start."""
        return self._newest("optimiser", before_round)

    def carry(self, before_round: int) -> Tensor | None:
        """What the updates before this round lost to rounding; None at the start and in full precision."""
        tensors = self._newest("carry", before_round)
        return None if tensors is None else tensors["floats"]

    def keep_state(self, round_number: int, optimiser: dict[str, Tensor], carry: Tensor | None) -> None:
        """Store what the next round goes on with: the optimiser's tensors and the rounding error."""
        if carry is not None:
            _store(self._path("carry", round_number, ""), {"floats": carry})
        _store(self._path("optimiser", round_number, ""), optimiser)

    def _newest(self, kind: str, before_round: int) -> dict[str, Tensor] | None:
        for path in sorted(self.folder.glob(f"{kind}-*.safetensors"), reverse=True):
            if _round_of(path) < before_round and (tensors := _load(path)) is not None:
                return tensors
        return None

    def _path(self, kind: str, round_number: int, digest: str) -> Path:
        suffix = f"-{digest[:16]}" if digest else ""
        return self.folder / f"{kind}-{round_number:04d}{suffix}.safetensors"

    def _forget_before(self, round_number: int) -> None:
        for path in self.folder.glob("*.safetensors"):
            if _round_of(path) < round_number:
                path.unlink(missing_ok=True)
                path.with_suffix(".sha256").unlink(missing_ok=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: parameter number and quantity."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}/{quantity}": tensor.detach().cpu().contiguous()
        for number, quantities in state.items()
        for quantity, tensor in quantities.items()
    }


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor] | None) -> None:
    """Put back what `optimiser_tensors` took; None leaves a fresh optimiser."""
    if not tensors:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, quantity = name.split("/")
        state.setdefault(int(number), {})[quantity] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


_TRAINING = TypeAdapter(BranchTraining)


def _round_of(path: Path) -> int:
    return int(path.name.split("-")[1].split(".")[0])


def _store(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    content_digest = _sha256(partial)
    with partial.open("ab") as file:
        os.fsync(file.fileno())
    path.with_suffix(".sha256").write_text(content_digest)
    partial.rename(path)


def _load(path: Path) -> dict[str, Tensor] | None:
    try:
        if path.with_suffix(".sha256").read_text() != _sha256(path):
            return None
        return load_file(path)
    except (OSError, ValueError, SafetensorError):  # ValueError: a checksum that is not text
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
