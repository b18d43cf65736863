"""One branch of one round at a site (IV-C): the epochs, their draws, and what they came to."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor

from client.finished_work import load_optimiser_tensors, optimiser_tensors
from client.study_cases import CaseSamples, RefusedError
from dsan_model.cases import SizeGroup
from dsan_model.data_parallel import parallel
from dsan_model.protocol import BranchTraining, StudyTerms
from dsan_model.sampling import Branch, epoch_generator, group_counts, size_balanced_order, uniform_order
from dsan_model.training import (
    EpochResult,
    Machine,
    batches,
    build_network,
    incoming_parameters,
    learning_rate,
    make_optimiser,
    randomly_flipped,
    set_learning_rate,
    train_epoch,
)
from dsan_model.weights import FlatWeights, flatten

Progress = Callable[[int, int], None]  # steps done, steps


@dataclass(frozen=True)
class BranchTask:
    """What decides the outcome, beside the site's cases and the state of its optimiser."""

    terms: StudyTerms
    site: str
    branch: Branch
    round: int
    group_probabilities: dict[SizeGroup, float]
    incoming: FlatWeights


@dataclass(frozen=True)
class TrainedBranch:
    """The trained weights, and the optimiser's state after them."""

    training: BranchTraining
    weights: FlatWeights
    optimiser: dict[str, Tensor]


def train_alone(
    task: BranchTask,
    samples: CaseSamples,
    optimiser_state: dict[str, Tensor],
    machine: Machine,
    progress: Progress,
    *,
    checkpointing: bool = False,
) -> TrainedBranch:
    """All local epochs of a round, from the incoming weights; RefusedError if the loss diverges.

    One of several processes has its part of every batch (`machine.share`) and the same weights at the end.
    With `checkpointing`, activations are computed twice instead of kept.
    """
    started, config = time.monotonic(), task.terms.training
    network = build_network(task.terms.network, task.incoming.state_dict(), machine.device)
    network.checkpointing = checkpointing
    model = parallel(network, machine.share)
    optimiser = make_optimiser(network, config)
    load_optimiser_tensors(optimiser, optimiser_state)
    proximal = incoming_parameters(network) if config.proximal_mu > 0 else None
    results, drawn = [], Counter[int]()
    epochs = _epochs(task)
    for epoch in epochs:
        set_learning_rate(optimiser, learning_rate(config, epoch))
        generator = epoch_generator(task.terms.seed, task.site, task.branch, epoch)
        order = _order(task, samples, generator)
        drawn.update(order.tolist())
        sizes = [len(order[i : i + config.batch_size]) for i in range(0, len(order), config.batch_size)]
        drawn_batches = batches(samples, order, config.batch_size, machine)
        if config.flips:
            drawn_batches = randomly_flipped(drawn_batches, generator, sizes, machine.share)
        steps = len(sizes)
        results.append(
            train_epoch(
                model,
                optimiser,
                drawn_batches,
                config.attention_weight if task.branch.has_attention_loss else 0.0,
                machine,
                partial(_tell, progress, steps * (epoch - epochs.start), steps * len(epochs)),
                proximal=proximal,
                proximal_mu=config.proximal_mu,
            )
        )
    groups = group_counts([samples.cases[i].size_group for i in drawn.elements()])
    training = _summary(task, results, groups, time.monotonic() - started)
    optimiser.zero_grad()  # frees the gradients before the weights are copied
    return TrainedBranch(training, flatten(network.state_dict()), optimiser_tensors(optimiser))


def _tell(progress: Progress, done_before: int, steps: int, done: int) -> None:
    """The steps of all local epochs, not those of one: the ETA is that of the training."""
    progress(done_before + done, steps)


def _epochs(task: BranchTask) -> range:
    """The global epochs of the round, counted from 0."""
    local = task.terms.training.local_epochs
    return range((task.round - 1) * local, task.round * local)


def _order(task: BranchTask, samples: CaseSamples, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    if task.branch is not Branch.SS:
        return uniform_order(len(samples), generator)
    groups = [case.size_group for case in samples.cases]
    return size_balanced_order(groups, task.group_probabilities, generator)


def _summary(
    task: BranchTask, results: list[EpochResult], drawn: dict[SizeGroup, int], seconds: float
) -> BranchTraining:
    last = results[-1]
    if not np.isfinite(last.classification_loss):
        raise RefusedError("TRAINING-DIVERGED", f"{task.branch}: the loss is {last.classification_loss}")
    return BranchTraining(
        cases=sum(result.cases for result in results),
        steps=sum(result.steps for result in results),
        seconds=seconds,
        learning_rate=learning_rate(task.terms.training, _epochs(task)[-1]),
        classification_loss=last.classification_loss,
        attention_loss=last.attention_loss,
        drawn=drawn,
    )
