"""The voxels of a phantom in the patient's coordinates, and smooth noise that does not depend on them."""
# Suffixes: _DHW an array over (z, y, x); _n a list of voxels or points; _mm_zyx coordinates in that order.

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from simulation.scanners import Scanner

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Points = tuple[Floats, Floats, Floats]  # z, y, x in mm: an open mesh or three lists, whatever broadcasts

# Half the sides of a fixed box around every grid, so that the noise does not depend on the grid.
NOISE_HALF_MM_ZYX = (200.0, 260.0, 260.0)


@dataclass(frozen=True)
class Grid:
    """Where the voxels are: coordinates of planes, rows and columns in mm, 0 in the middle of the chest."""

    z: Floats
    y: Floats
    x: Floats
    spacing_mm_zyx: tuple[float, float, float]
    blur_mm: float  # width of a sharp edge in the image

    @property
    def shape_dhw(self) -> tuple[int, int, int]:
        """Planes, rows, columns."""
        return len(self.z), len(self.y), len(self.x)

    def slab(self, planes: slice) -> "Grid":
        """The grid of some planes."""
        return replace(self, z=self.z[planes])

    def mesh(self) -> Points:
        """Coordinates of all voxels, as an open mesh."""
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    def inside(self, depth_mm: Floats) -> Floats:
        """How much of a voxel is inside (0 to 1) where the surface is `depth_mm` away."""
        share = depth_mm * np.float32(1 / self.blur_mm)
        share += np.float32(0.5)
        return np.clip(share, 0, 1, out=share)


def scanner_grid(scanner: Scanner, shape_DHW: tuple[int, int, int], rng: np.random.Generator) -> Grid:
    """The scanner's grid; the patient lies a few mm off its middle."""
    fov_zyx = scanner.field_of_view_mm_xyz[::-1]
    spacing_zyx = tuple(round(fov / n, 4) for fov, n in zip(fov_zyx, shape_DHW, strict=True))
    shift_zyx = rng.uniform((-4, -8, -5), (4, 2, 5))
    z, y, x = (
        ((np.arange(n) - (n - 1) / 2) * spacing + shift).astype(np.float32)
        for n, spacing, shift in zip(shape_DHW, spacing_zyx, shift_zyx, strict=True)
    )
    blur_mm = float(np.hypot(spacing_zyx[2], 2 * scanner.smoothing_mm))
    return Grid(z, y, x, (spacing_zyx[0], spacing_zyx[1], spacing_zyx[2]), blur_mm)


def slabs(shape_DHW: tuple[int, ...], voxels: int = 2**17) -> Iterator[slice]:
    """Runs of planes that fit a processor's cache: whole scans would need ten arrays of their size."""
    n = max(1, voxels // (shape_DHW[1] * shape_DHW[2]))
    return (slice(first, first + n) for first in range(0, shape_DHW[0], n))


@dataclass(frozen=True)
class Noise:
    """Band-limited noise of about unit variance, spread over rows and columns, not yet over planes."""

    knots_DHW: Floats  # D: the knots along z
    first_n: npt.NDArray[np.intp]  # for every plane the first of its four knots
    weights_4n: Floats

    def slab(self, planes: slice) -> Floats:
        """The noise of some planes, (D, H, W)."""
        return _spread(self.knots_DHW, self.first_n[planes], self.weights_4n[:, planes], axis=0)

    def at(self, voxel: tuple[npt.NDArray[np.intp], ...]) -> Floats:
        """The noise of a list of voxels."""
        plane, row, column = voxel
        values = np.zeros(len(plane), np.float32)
        for k, weight_n in enumerate(self.weights_4n):
            values += weight_n[plane] * self.knots_DHW[self.first_n[plane] + k, row, column]
        return values


def smooth_noise(grid: Grid, pitch_mm: float, rng: np.random.Generator) -> Noise:
    """Cubic B-splines on white noise with knots `pitch_mm` apart."""
    knots = [int(2 * half / pitch_mm) + 5 for half in NOISE_HALF_MM_ZYX]
    values = rng.standard_normal(knots, dtype=np.float32) * np.float32(3.0)
    (first_z, weights_z), (first_y, weights_y), (first_x, weights_x) = (
        _bspline((axis_mm + half) / np.float32(pitch_mm))
        for axis_mm, half in zip((grid.z, grid.y, grid.x), NOISE_HALF_MM_ZYX, strict=True)
    )
    values = _spread(_spread(values, first_x, weights_x, axis=2), first_y, weights_y, axis=1)
    return Noise(values, first_z, weights_z)


def _spread(values: Floats, first_n: npt.NDArray[np.intp], weights_4n: Floats, axis: int) -> Floats:
    """Four shifted sums; no BLAS, whose threads would change last bits with the number of workers."""
    shape = [-1 if other == axis else 1 for other in (0, 1, 2)]
    total = values.take(first_n, axis=axis) * weights_4n[0].reshape(shape)
    for k in (1, 2, 3):
        term = values.take(first_n + k, axis=axis)
        term *= weights_4n[k].reshape(shape)
        total += term
    return cast(Floats, total)


def _bspline(position_n: Floats) -> tuple[npt.NDArray[np.intp], Floats]:
    """First of the four knots around each position, and the weights of the four."""
    first_n = np.floor(position_n)
    t = position_n - first_n
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * (t + t**2 - t**3), t**3
    return first_n.astype(np.intp), np.stack(weights).astype(np.float32) / np.float32(6)
