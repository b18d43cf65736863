"""Activation checkpointing changes the memory and nothing else."""

import numpy as np
import torch

from dsan_model.network import NetworkConfig, initial_state
from dsan_model.training import Machine, Sample, batches, build_network, train_epoch
from dsan_model.weights import FlatWeights, flatten

TINY = NetworkConfig(blocks=(1, 2, 1, 1), width=2, stem_kernel=3, stem_pool=False)
CPU = Machine(torch.device("cpu"))


def trained(*, checkpointing: bool) -> FlatWeights:
    generator = torch.Generator().manual_seed(0)
    volumes = [torch.rand(16, 16, 16, generator=generator).half() for _ in range(4)]
    samples = [Sample(v, v > 0.9, float(n % 2)) for n, v in enumerate(volumes)]
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device)
    network.checkpointing = checkpointing
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(3):
        train_epoch(network, optimiser, batches(samples, np.arange(4), 2, CPU), 0.5, CPU)
    return flatten(network.state_dict())


def test_weights_and_running_statistics_are_those_of_the_plain_pass_bit_for_bit() -> None:
    assert trained(checkpointing=True).digest == trained(checkpointing=False).digest
