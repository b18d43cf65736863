"""The attention loss against plain autograd: one case of 138x256x256, forward and backward, on one core.

Command: python benchmarks/attention_loss.py
Takes about 30 s. Expected: at most a fifth of the time and a quarter of the memory of the plain form.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dsan_model.losses import attention_loss
from dsan_model.network import attention_map

SIZE_DHW, CAM_DHW = (138, 256, 256), (9, 16, 16)
REPEATS = 9
Loss = Callable[[Tensor, Tensor], Tensor]


def plain_loss(cam_Bdhw: Tensor, infection_BDHW: Tensor) -> Tensor:
    """Eq. 3 written down for autograd, which keeps T and what led to it."""
    t = attention_map(cam_Bdhw, SIZE_DHW)
    mask = infection_BDHW.to(t.dtype)
    return (t - mask).square().sum(dim=(1, 2, 3)) / (t.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3)))


LOSSES: dict[str, Loss] = {"plain": plain_loss, "ours": attention_loss}


def step(loss: Loss, cam_Bdhw: Tensor, infection_BDHW: Tensor) -> None:
    """Forward and backward."""
    loss(cam_Bdhw.clone().requires_grad_(), infection_BDHW).sum().backward()


def inputs() -> tuple[Tensor, Tensor]:
    """A random map and mask of one case."""
    generator = torch.Generator().manual_seed(0)
    cam_Bdhw = torch.relu(torch.randn(1, *CAM_DHW, generator=generator))
    return cam_Bdhw, torch.rand(1, *SIZE_DHW, generator=generator) > 0.95


def peak_bytes(name: str) -> int:
    """Peak memory of a process of its own that makes the inputs and, unless `none`, takes two steps."""
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    """Print the time of both, in turn, and their memory above a process with the inputs alone."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        cam_Bdhw, infection_BDHW = inputs()
        step(attention_loss, cam_Bdhw[:, :2, :2, :2], infection_BDHW[:, :4, :4, :4])  # what torch loads late
        for _ in range(2 if sys.argv[1] != "none" else 0):
            step(LOSSES[sys.argv[1]], cam_Bdhw, infection_BDHW)
        sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return
    base = peak_bytes("none")  # first, because a process inherits the peak of the one that starts it
    memory = {name: peak_bytes(name) - base for name in LOSSES}
    cam_Bdhw, infection_BDHW = inputs()
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(REPEATS):
        for name, loss in LOSSES.items():
            started = time.perf_counter()
            step(loss, cam_Bdhw, infection_BDHW)
            seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(o / p for o, p in zip(seconds["ours"], seconds["plain"], strict=True))
    for name in LOSSES:
        sys.stdout.write(
            f"{name:6} {statistics.median(seconds[name]):.3f} s  {memory[name] / 2**20:6.0f} MiB\n"
        )
    sys.stdout.write(f"ratio  {ratio:.3f}    {memory['ours'] / memory['plain']:.3f}\n")


if __name__ == "__main__":
    main()
