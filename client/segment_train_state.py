"""What `dsan-client segment-train` keeps between epochs, so that a training that was ended goes on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.finished_work import load_tensors, store_tensors
from dsan_model.dice import DiceCounts
from dsan_model.weights import FlatWeights, flatten


@dataclass(frozen=True)
class Standing:
    """A training after some epochs; the optimiser's tensors are those of `optimiser_tensors`."""

    epochs: int
    weights: FlatWeights
    optimiser: dict[str, Tensor]
    best_epoch: int  # 0: none yet
    best_weights: FlatWeights
    best_counts: DiceCounts  # on the validation cases


def load_standing(folder: Path) -> Standing | None:
    """The last one that is whole; None if there is none."""
    for path in sorted(folder.glob("epoch-*.safetensors"), reverse=True):
        if (tensors := load_tensors(path)) is not None:
            epochs, best_epoch = tensors["epochs"].tolist()
            return Standing(
                epochs,
                flatten(_part(tensors, "weights/")),
                _part(tensors, "optimiser/"),
                best_epoch,
                flatten(_part(tensors, "best/")),
                DiceCounts(tensors["counts"].numpy()),
            )
    return None


def keep_standing(folder: Path, standing: Standing) -> None:
    """Store it, then drop the earlier ones."""
    parts = {
        "weights/": standing.weights.state_dict(),
        "optimiser/": standing.optimiser,
        "best/": standing.best_weights.state_dict(),
    }
    tensors = {
        prefix + name: tensor.clone()  # the best may be the last: safetensors takes no memory twice
        for prefix, part in parts.items()
        for name, tensor in part.items()
    }
    tensors["epochs"] = torch.tensor([standing.epochs, standing.best_epoch])
    tensors["counts"] = torch.tensor(standing.best_counts.counts_SGQ)
    kept = folder / f"epoch-{standing.epochs:05d}.safetensors"
    store_tensors(kept, tensors)
    for path in folder.glob("epoch-*"):
        if path.stem != kept.stem:
            path.unlink()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
