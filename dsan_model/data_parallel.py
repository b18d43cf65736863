"""One training step spread over several processes, as if by one (IV-C: batches of 20 on four GPUs).

Each process has a part of every batch. Batch normalisation sees the whole batch, the losses are means over
the whole batch, and the gradients are added: only the last bits differ from one process that has all of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dsan_model.losses import Losses


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process has: each `processes`-th case, beginning with the `rank`-th."""

    rank: int = 0
    processes: int = 1

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """This process's part."""
        return values[self.rank :: self.processes]


WHOLE = Share()


def parallel(network: nn.Module, share: Share) -> nn.Module:
    """The network for a process of several: gradients are averaged, batch normalisation is synchronised."""
    if share.processes == 1:
        return network
    device = next(network.parameters()).device
    if device.type == "cuda":
        _become(network, nn.SyncBatchNorm)
        return DistributedDataParallel(network, device_ids=[device.index], forward_sync_buffers=False)
    _become(network, SynchronisedBatchNorm3d)
    return DistributedDataParallel(network, forward_sync_buffers=False)


def shared_loss(losses: Losses | None, label_B: Tensor, attention_weight: float, share: Share) -> Tensor:
    """This process's part of Eq. 4, scaled so that the average over the processes is the batch's.

    The classification loss is a mean over the cases of the batch, the attention loss over its COVID-19 cases;
    each process has its own number of both. `losses` is None where the process has no case of this batch.
    """
    n_cases, n_covid = len(label_B), float(label_B.sum())
    in_batch = torch.tensor([n_cases, n_covid], dtype=torch.float64, device=label_B.device)
    dist.all_reduce(in_batch)
    all_cases, all_covid = in_batch.tolist()
    if losses is None:
        return torch.zeros((), device=label_B.device)
    loss: Tensor = losses.classification * (n_cases * share.processes / all_cases)
    if losses.attention is not None:
        loss = loss + attention_weight * losses.attention * (n_covid * share.processes / all_covid)
    return loss


def summed(values: Tensor, share: Share) -> Tensor:
    """The sum over all processes."""
    if share.processes > 1:
        dist.all_reduce(values)
    return values


class SynchronisedBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation over the cases of all processes; torch has it for GPUs only (`SyncBatchNorm`)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, D, H, W) by mean and variance of the whole batch; B may be 0 here."""
        if not self.training:
            return super().forward(input)
        values = input.double()  # as torch's own, which adds in float64 on the CPU
        own = torch.cat([values.sum((0, 2, 3, 4)), values.new_full((1,), input.numel() / input.shape[1])])
        total = _SumOverProcesses.apply(own)  # type: ignore[no-untyped-call]
        count = total[-1].detach()
        centred = values - (total[:-1] / count)[:, None, None, None]
        squares = _SumOverProcesses.apply(centred.square().sum((0, 2, 3, 4)))  # type: ignore[no-untyped-call]
        variance = squares / count
        mean = total[:-1] / count
        self._follow(mean.detach(), variance.detach(), float(count))
        # from here on as torch's own rounds it
        scale = (1 / torch.sqrt(variance + self.eps)).to(input.dtype) * self.weight
        offset = self.bias - mean.to(input.dtype) * scale
        return torch.addcmul(offset[:, None, None, None], input, scale[:, None, None, None])

    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """The running statistics, as torch's own: with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (count / max(1.0, count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, values):  # type: ignore[no-untyped-def]
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _become(network: nn.Module, kind: type[nn.Module]) -> None:
    """Let every batch normalisation be of another class; parameters and statistics stay the same tensors."""
    for module in _norms(network):
        module.__class__ = kind
        if kind is nn.SyncBatchNorm:
            module.process_group = None  # type: ignore[assignment] # the default group; its __init__ sets it


def _norms(network: nn.Module) -> Iterator[nn.Module]:
    return (module for module in network.modules() if isinstance(module, nn.BatchNorm3d))


def part_of_batches(
    order: npt.NDArray[np.int64], batch_size: int, share: Share
) -> Iterator[npt.NDArray[np.int64]]:
    """This process's positions of every batch; none where the last batch is too small for all processes."""
    for start in range(0, len(order), batch_size):
        yield share.of(order[start : start + batch_size])
