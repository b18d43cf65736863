"""How a site trains a branch: by one process or several, and with less memory if it runs out."""

import logging

import torch
from torch import Tensor

from client.branch_training import BranchTask, Progress, TrainedBranch, train_alone
from client.processes import train_in_processes
from client.study_cases import CaseSamples
from dsan_model.training import Machine

log = logging.getLogger("dsan.client")


def train_branch(
    task: BranchTask,
    samples: CaseSamples,
    optimiser_state: dict[str, Tensor],
    machine: Machine,
    progress: Progress,
) -> TrainedBranch:
    """All local epochs of a round. If the GPU's memory runs out, once more with activation checkpointing.

    The batch stays the study's: smaller ones would change batch normalisation. RefusedError if it cannot be
    done; torch.OutOfMemoryError if even checkpointing does not suffice.
    """
    train = train_alone if machine.processes == 1 else train_in_processes
    try:
        return train(task, samples, optimiser_state, machine, progress)
    except torch.OutOfMemoryError:
        log.warning("%s: memory ran out; once more with activation checkpointing", task.branch)
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    return train(task, samples, optimiser_state, machine, progress, checkpointing=True)
