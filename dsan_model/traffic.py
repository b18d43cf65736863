"""Weights as they travel: in half precision, each tensor with a scale of its own (docs/decisions/0012).

Half precision has 11 bits for each value and 30 powers of two of range. One power of two for each tensor puts
its largest value near the upper end of that range, so that none overflows and hardly any underflows.
"""

import ctypes
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsan_model.weights import FlatWeights, Layout

HALF_EXPONENT = 15  # the largest value is scaled to between 2**14 and 2**15; float16 ends at 2**16
LARGEST_EXPONENT = 126  # of a scale that float32 can hold
SLAB_VALUES = 1 << 18  # converted at a time: stays in the cache
Values = npt.NDArray[Any]


class Precision(StrEnum):
    """How floats travel."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """The weights of a network, or the change of them, as they travel; the arrays may be read-only.

    A value of the i-th float tensor is its number in `floats` times 2**`exponents[i]`.
    """

    layout: Layout
    precision: Precision
    exponents: tuple[int, ...]  # one for each float tensor; zeros in full precision
    floats: Values  # 1-D float16 or float32
    integers: Values  # 1-D int64: counters

    @cached_property
    def digest(self) -> str:
        """SHA-256 of layout, precision and values as they travel, hex."""
        head = json.dumps([self.layout.digest, self.precision, self.exponents])
        sha = hashlib.sha256(head.encode())
        for values in (self.floats, self.integers):
            sha.update(np.ascontiguousarray(values).data)
        return sha.hexdigest()

    @cached_property
    def norm(self) -> float:
        """L2 norm of all floats; NaN or infinite if one of them is."""
        norms = (float(torch.linalg.vector_norm(values)) * scale for _, values, scale in self.slabs())
        return math.hypot(*norms)

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return self.floats.nbytes + self.integers.nbytes

    def slabs(self) -> Iterator[tuple[slice, Tensor, float]]:
        """Place, float32 values and the scale to multiply them by, a slab at a time.

        No second copy of all floats exists. The values are good until the next slab, and not to be written.
        """
        floats = _as_tensor(self.floats)
        converted = torch.empty(SLAB_VALUES)  # one buffer for all: new memory for each would cost as much
        for slab, exponent in _slabs(self.layout, self.exponents):
            values = floats[slab]
            if self.precision is Precision.FLOAT16:
                values = converted[: slab.stop - slab.start].copy_(values)
            yield slab, values, 2.0**exponent

    def count_not_finite(self) -> int:
        """How many of the floats are NaN or infinite once they are unpacked to float32."""
        return sum(int((~torch.isfinite(values * scale)).sum()) for _, values, scale in self.slabs())

    def unpack(self) -> FlatWeights:
        """The weights in float32: everybody who unpacks the same bytes has the same ones to the last bit."""
        floats = torch.empty(self.floats.size)
        for place, values, scale in self.slabs():
            torch.mul(values, scale, out=floats[place])
        return FlatWeights(self.layout, floats, torch.tensor(self.integers))


def pack(weights: FlatWeights, precision: Precision) -> PackedWeights:
    """Weights, or an update, as they travel. What is not finite stays so; packing twice changes nothing."""
    layout, integers = weights.layout, weights.integers.numpy()
    if precision is Precision.FLOAT32:
        exponents = (0,) * len(layout.float_slices)
        return PackedWeights(layout, precision, exponents, weights.floats.numpy(), integers)
    exponents = tuple(_exponent(weights.floats[place]) for place in layout.float_slices)
    halves = torch.empty(weights.floats.shape, dtype=torch.float16)
    scaled = torch.empty(SLAB_VALUES)
    for slab, exponent in _slabs(layout, exponents):
        values = scaled[: slab.stop - slab.start]
        halves[slab] = torch.mul(weights.floats[slab], 2.0**-exponent, out=values)
    return PackedWeights(layout, precision, exponents, halves.numpy(), integers)


def pack_with_carry(
    update: FlatWeights, precision: Precision, carry: Tensor | None
) -> tuple[PackedWeights, Tensor | None]:
    """The update as it travels, and its rounding error for the next round (error feedback); it is used up.

    `carry` is what the rounds before left over; it is added before rounding, so that nothing is lost for
    good. In full precision there is none.
    """
    if precision is Precision.FLOAT32:
        return pack(update, precision), None
    if carry is not None:
        update.floats.add_(carry)
    packed = pack(update, precision)
    for place, values, scale in packed.slabs():
        update.floats[place].sub_(values, alpha=scale)
    return packed, update.floats


def packed_layout_bytes(layout: Layout, precision: Precision) -> int:
    """Bytes that weights of this layout put on the wire."""
    float_bytes = 2 if precision is Precision.FLOAT16 else 4
    return layout.numel(is_float=True) * float_bytes + layout.numel(is_float=False) * 8


def _as_tensor(values: Values) -> Tensor:
    """A view of the array, for reading; torch warns of arrays that cannot be written, and this one is not."""
    if not values.size:
        return torch.empty(0, dtype=torch.float32)
    memory = (ctypes.c_byte * values.nbytes).from_address(values.ctypes.data)
    tensor = torch.frombuffer(memory, dtype=getattr(torch, values.dtype.name))
    memory._array = values  # type: ignore[attr-defined] # the view keeps the memory alive
    return tensor


def _slabs(layout: Layout, exponents: tuple[int, ...]) -> Iterator[tuple[slice, int]]:
    """Pieces of every float tensor that are small enough for the cache, and the tensor's exponent."""
    for place, exponent in zip(layout.float_slices, exponents, strict=True):
        for start in range(place.start, place.stop, SLAB_VALUES):
            yield slice(start, min(start + SLAB_VALUES, place.stop)), exponent


def _exponent(values: Tensor) -> int:
    """The power of two to divide a tensor by; 0 if its largest value is 0 or not finite."""
    lowest, highest = map(float, torch.aminmax(values)) if values.numel() else (0.0, 0.0)
    largest = max(-lowest, highest)  # both are NaN if a value is
    if largest == 0.0 or not math.isfinite(largest):
        return 0
    mantissa, exponent = math.frexp(largest)
    if mantissa >= 1 - 2.0**-12:  # rounds up to the next power of two: packed again, it must scale alike
        exponent += 1
    return max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, exponent - HALF_EXPONENT))
