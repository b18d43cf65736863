"""A whole scan through a network that was trained on patches: overlapping windows, blended smoothly.

Axis letters: B batch, S structure (an output of the network), D H W the grid of the scan.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, int, int]
Network = Callable[[Tensor], Tensor]

OVERLAP = 0.125  # of neighbouring windows, of a window's side
AT_A_TIME = 2  # windows: one alone takes a CPU twice as long, by other convolutions; more take more memory
SIGMA = (
    0.125  # of a window's side: the border of a window, which sees half of its surroundings, counts little
)
SMALLEST_WEIGHT = 1e-3


def sliding_window(
    network: Network, volume_DHW: Tensor, patch_DHW: Shape, outside: float, overlap: float = OVERLAP
) -> Tensor:
    """What the network says of every voxel, (S, D, H, W) float32 on the volume's device.

    `network` maps (B, 1, *patch) to (B, S, *patch). Windows overlap by at least the share `overlap` of their
    side; where several see a voxel their weighted mean counts, by a Gaussian around the window's middle. A
    volume that is smaller than a window is padded with `outside`.
    """
    shape_DHW = tuple(volume_DHW.shape)
    padded = F.pad(volume_DHW, _padding(shape_DHW, patch_DHW), value=outside)
    starts = [_starts(size, window, overlap) for size, window in zip(padded.shape, patch_DHW, strict=True)]
    weights = [_weights(window).to(volume_DHW) for window in patch_DHW]
    weight_DHW = _outer(weights)
    total_SDHW: Tensor | None = None
    windows = list(_windows(starts, patch_DHW))
    for first in range(0, len(windows), AT_A_TIME):
        some = windows[first : first + AT_A_TIME]
        said_BSDHW = network(torch.stack([padded[window] for window in some])[:, None]).float() * weight_DHW
        if total_SDHW is None:
            total_SDHW = said_BSDHW.new_zeros(said_BSDHW.shape[1], *padded.shape)
        for window, said_SDHW in zip(some, said_BSDHW, strict=True):
            total_SDHW[:, *window] += said_SDHW
    assert total_SDHW is not None  # there is at least one window
    sums = [_sums(*axis) for axis in zip(padded.shape, starts, weights, strict=True)]
    for axis, along in enumerate(sums):  # the sum of products of Gaussians is the product of their sums
        total_SDHW /= along.view([-1 if i == axis else 1 for i in range(3)])
    depth, height, width = shape_DHW
    return total_SDHW[:, :depth, :height, :width]


def _padding(shape_DHW: tuple[int, ...], patch_DHW: Shape) -> list[int]:
    """As F.pad wants it: the last axis first, nothing before and what is missing after."""
    missing = [max(0, window - size) for size, window in zip(shape_DHW, patch_DHW, strict=True)]
    return [amount for after in reversed(missing) for amount in (0, after)]


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: evenly spread, the last one ends with the volume."""
    step = max(1, int(window * (1 - overlap)))
    n = -(-(size - window) // step) + 1
    return [round(i * (size - window) / max(1, n - 1)) for i in range(n)]


def _windows(starts: list[list[int]], patch_DHW: Shape) -> Iterator[tuple[slice, ...]]:
    for corner in product(*starts):
        yield tuple(slice(start, start + side) for start, side in zip(corner, patch_DHW, strict=True))


def _weights(window: int) -> Tensor:
    off_middle = (torch.arange(window) - (window - 1) / 2) / (SIGMA * window)
    return torch.exp(-off_middle.square() / 2).clamp(min=SMALLEST_WEIGHT)


def _outer(weights: list[Tensor]) -> Tensor:
    z, y, x = weights
    return z[:, None, None] * y[:, None] * x


def _sums(size: int, starts: list[int], weights: Tensor) -> Tensor:
    sums = weights.new_zeros(size)
    for start in starts:
        sums[start : start + len(weights)] += weights
    return sums
