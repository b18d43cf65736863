"""VB-Net at a site: one round of training, local or federated, and the Dice of weights on whole scans."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from client.branch_training import TrainedBranch
from client.finished_work import load_optimiser_tensors, optimiser_tensors
from client.preparation import PreparedEntry
from client.segmentation_store import StoredScans
from client.study_cases import RefusedError
from dsan_model.dice import DiceCounts, dice_counts
from dsan_model.patches import (
    PatchEpoch,
    SegmentationConfig,
    draw_places,
    masks,
    patch_batches,
    probabilities,
    train_patches,
)
from dsan_model.protocol import BranchTraining
from dsan_model.sampling import Branch, epoch_generator, group_counts
from dsan_model.training import (
    Machine,
    TrainingConfig,
    incoming_parameters,
    learning_rate,
    make_optimiser,
    set_learning_rate,
)
from dsan_model.vbnet import build_vbnet
from dsan_model.weights import FlatWeights, flatten

Progress = Callable[[int, int], None]  # steps done, steps
Entries = Sequence[PreparedEntry]


@dataclass(frozen=True)
class VBNetTask:
    """What decides the outcome, beside the site's scans and the state of its optimiser."""

    segmentation: SegmentationConfig
    training: TrainingConfig
    seed: int
    site: str
    round: int
    incoming: FlatWeights


def train_vbnet(
    task: VBNetTask,
    entries: Entries,
    optimiser_state: dict[str, Tensor],
    machine: Machine,
    progress: Progress = lambda done, steps: None,
) -> TrainedBranch:
    """All local epochs of a round, from the incoming weights; RefusedError if the loss diverges."""
    started, config = time.monotonic(), task.training
    scans = StoredScans(tuple(entry.path for entry in entries))
    network = build_vbnet(task.segmentation.network, task.incoming.state_dict(), machine.device)
    optimiser = make_optimiser(network, config)
    load_optimiser_tensors(optimiser, optimiser_state)
    proximal = incoming_parameters(network) if config.proximal_mu > 0 else None
    results = []
    epochs = range((task.round - 1) * config.local_epochs, task.round * config.local_epochs)
    for epoch in epochs:
        set_learning_rate(optimiser, learning_rate(config, epoch))
        generator = epoch_generator(task.seed, task.site, Branch.VBNET, epoch)
        places = draw_places(scans, task.segmentation, generator)
        batches = patch_batches(scans, places, task.segmentation.patch_dhw, config.batch_size, machine)
        steps = -(-len(places) // config.batch_size)
        tell = partial(_tell, progress, steps)
        fixed = epoch >= config.decay_every_epochs  # from the first fall of the learning rate on
        results.append(
            train_patches(network, optimiser, batches, machine, tell, proximal, config.proximal_mu, fixed)
        )
    training = _summary(entries, results, learning_rate(config, epochs[-1]), time.monotonic() - started)
    return TrainedBranch(training, flatten(network.state_dict()), optimiser_tensors(optimiser))


def vbnet_counts(
    config: SegmentationConfig,
    weights: FlatWeights,
    entries: Entries,
    machine: Machine,
    progress: Progress = lambda done, of: None,
) -> DiceCounts:
    """Dice of the weights on every case, whole scans on the segmentation grid."""
    network = build_vbnet(config.network, weights.state_dict(), machine.device)
    scans = StoredScans(tuple(entry.path for entry in entries))
    total = DiceCounts.empty()
    for position, entry in enumerate(entries):
        progress(position, len(entries))
        scan = scans.whole(position)
        found = probabilities(network, scan.volume_DHW, config, machine)
        if not bool(found.isfinite().all()):
            raise RefusedError("MODEL-DIVERGED", "vbnet: the network's output is NaN on cases of this site")
        total += dice_counts(masks(found), scan.mask_SDHW.numpy(), entry.case.ratio_group)
    return total


def _tell(progress: Progress, steps: int, done: int) -> None:
    progress(done, steps)


def _summary(entries: Entries, results: list[PatchEpoch], rate: float, seconds: float) -> BranchTraining:
    loss = results[-1].dice_loss
    if not np.isfinite(loss):
        raise RefusedError("TRAINING-DIVERGED", f"{Branch.VBNET}: the loss is {loss}")
    groups = group_counts([entry.case.size_group for entry in entries])
    return BranchTraining(
        cases=len(entries) * len(results),
        steps=sum(result.steps for result in results),
        seconds=seconds,
        learning_rate=rate,
        classification_loss=loss,
        attention_loss=None,
        drawn={group: n * len(results) for group, n in groups.items()},
    )
