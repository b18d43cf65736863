"""A step by several processes is the step of one: losses, gradients, running statistics."""

import multiprocessing
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from dsan_model.data_parallel import Share, SynchronisedBatchNorm3d, parallel, part_of_batches
from dsan_model.network import AttentionResNet, NetworkConfig, initial_state
from dsan_model.training import Machine, Sample, batches, build_network, train_epoch
from dsan_model.weights import FlatWeights, flatten

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
LABELS = (1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0)  # batches of 4 and 3: the shares differ, and so does COVID-19


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [
        Sample(
            torch.rand(16, 16, 16, generator=generator).half(),
            torch.rand(16, 16, 16, generator=generator) > 0.9,
            label,
        )
        for label in LABELS
    ]


@dataclass(frozen=True)
class Training:
    """What is trained; the attention loss of a tiny map is so steep that float32 itself errs by 0.3 %."""

    attention_weight: float
    rate: float
    batch_size: int
    epochs: int = 6


def trained(share: Share, training: Training) -> tuple[FlatWeights, list[tuple[float, float]]]:
    """SGD from the same weights; the losses of every epoch."""
    machine = Machine(torch.device("cpu"), processes=share.processes, share=share)
    network = build_network(TINY, initial_state(TINY, seed=0), machine.device)
    model = parallel(network, share)
    optimiser = torch.optim.SGD(network.parameters(), training.rate)
    curve = []
    for _ in range(training.epochs):
        drawn = batches(samples(), np.arange(len(LABELS)), training.batch_size, machine)
        result = train_epoch(model, optimiser, drawn, training.attention_weight, machine)
        assert result.cases == len(LABELS)
        curve.append((result.classification_loss, result.attention_loss or 0.0))
    return flatten(network.state_dict()), curve


def work(rank: int, processes: int, folder: str, training: Training) -> None:
    """A process of several; what came out is written."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of 1x1x1 kernels: a copy more, no error
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes
    )
    weights, curve = trained(Share(rank, processes), training)
    torch.save(
        {"floats": weights.floats, "integers": weights.integers, "curve": curve}, f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def together(folder: Path, processes: int, training: Training) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("fork")  # a test is no module that a spawned process could import
    started = [
        context.Process(target=work, args=(rank, processes, str(folder), training))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("processes", "training"),
    [
        (2, Training(attention_weight=0.0, rate=0.05, batch_size=4)),
        (2, Training(attention_weight=0.5, rate=0.005, batch_size=4, epochs=2)),
        (3, Training(attention_weight=0.5, rate=0.005, batch_size=2, epochs=2)),
    ],
    ids=["classification", "attention", "three, one idle at times"],
)
def test_several_processes_have_the_losses_and_weights_of_one(
    tmp_path: Path, processes: int, training: Training
) -> None:
    alone, curve = trained(Share(), training)
    first, *others = together(tmp_path, processes, training)
    np.testing.assert_allclose(first["curve"], curve, rtol=0, atol=1e-4)
    assert abs(curve[0][0] - curve[-1][0]) > 0.01  # it learns
    torch.testing.assert_close(first["floats"], alone.floats, rtol=0, atol=1e-4)
    assert torch.equal(first["integers"], alone.integers)
    for other in others:
        assert torch.equal(other["floats"], first["floats"])


def test_every_case_of_a_batch_is_in_one_part() -> None:
    order = np.array([7, 3, 5, 1, 9, 0, 2])
    parts = [[part.tolist() for part in part_of_batches(order, 3, Share(rank, 2))] for rank in range(2)]
    assert parts == [[[7, 5], [1, 0], [2]], [[3], [9], []]]


def test_one_process_trains_the_network_as_it_is() -> None:
    network = AttentionResNet(TINY)
    assert parallel(network, Share()) is network
    assert not any(isinstance(module, SynchronisedBatchNorm3d) for module in network.modules())
    assert any(isinstance(module, nn.BatchNorm3d) for module in network.modules())
