"""A network's weights as two flat vectors: what travels, what is averaged, what is stored.

A state dict of 218 tensors is slow to move and to average; one vector of floats and one of counters are not.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Name, kind and shape of every tensor, in order: what makes two flat vectors comparable."""

    names: tuple[str, ...]
    is_float: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the layout, hex."""
        text = json.dumps([self.names, self.is_float, self.shapes], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def numel(self, is_float: bool) -> int:
        """Number of floats, or of integers, in all tensors together."""
        kinds = zip(self.shapes, self.is_float, strict=True)
        return sum(math.prod(shape) for shape, kind in kinds if kind is is_float)

    @cached_property
    def float_slices(self) -> tuple[slice, ...]:
        """Where each float tensor lies in the flat vector, in order."""
        sizes = [math.prod(shape) for shape, kind in zip(self.shapes, self.is_float, strict=True) if kind]
        ends = list(itertools.accumulate(sizes))
        return tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))


@dataclass(frozen=True, eq=False)
class FlatWeights:
    """All parameters and running statistics as float32, all counters as int64."""

    layout: Layout
    floats: Tensor  # 1-D float32
    integers: Tensor  # 1-D int64

    @cached_property
    def digest(self) -> str:
        """SHA-256 of layout and values, hex."""
        sha = hashlib.sha256(self.layout.digest.encode())
        for values in (self.floats, self.integers):
            sha.update(values.contiguous().numpy().data)
        return sha.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return self.floats.numel() * 4 + self.integers.numel() * 8

    def state_dict(self) -> dict[str, Tensor]:
        """The named tensors, as views of the flat vectors."""
        tensors, offsets = {}, {True: 0, False: 0}
        for name, is_float, shape in zip(
            self.layout.names, self.layout.is_float, self.layout.shapes, strict=True
        ):
            start, size = offsets[is_float], math.prod(shape)
            flat = self.floats if is_float else self.integers
            tensors[name] = flat[start : start + size].view(shape)
            offsets[is_float] = start + size
        return tensors


def flatten(state: Mapping[str, Tensor]) -> FlatWeights:
    """A state dict as flat vectors on the CPU; float tensors become float32, the others int64.

    In the order of names: a safetensors file has an order of its own, and what is read back must compare.
    """
    ordered = dict(sorted(state.items()))
    is_float = tuple(tensor.is_floating_point() for tensor in ordered.values())
    layout = Layout(tuple(ordered), is_float, tuple(tuple(tensor.shape) for tensor in ordered.values()))
    flat = FlatWeights(
        layout,
        torch.empty(layout.numel(is_float=True), dtype=torch.float32, device="cpu"),
        torch.empty(layout.numel(is_float=False), dtype=torch.int64, device="cpu"),
    )
    for name, place in flat.state_dict().items():  # of whatever device, type and order in memory
        place.copy_(ordered[name].detach())
    return flat


def change(weights: FlatWeights, since: FlatWeights) -> FlatWeights:
    """The difference of the floats, and the counters as they are now: what a site sends of its training.

    `weights` is used up: at full size a vector of its own would cost 254 MB.
    """
    return FlatWeights(weights.layout, weights.floats.sub_(since.floats), weights.integers)


def save_weights(path: Path, weights: FlatWeights) -> None:
    """Write the named tensors as safetensors."""
    save_file(weights.state_dict(), path)


def load_weights(path: Path) -> FlatWeights:
    """Read what `save_weights` wrote; whether the bytes are the right ones, SHA256SUMS must say."""
    return flatten(load_file(path))
