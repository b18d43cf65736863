"""Vessels and airways: tubes that branch from the hila to all parts of the lungs."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from simulation.phantom_anatomy import Anatomy, lung_points
from simulation.phantom_grid import Floats, Grid, Points

CARINA_ZYX = np.array([22.0, 10.0, 2.0])
HILA_ZYX = {-1: np.array([0.0, 8.0, -34.0]), 1: np.array([4.0, 10.0, 36.0])}


class _Tube(NamedTuple):
    start_zyx: npt.NDArray[np.float64]
    end_zyx: npt.NDArray[np.float64]
    radius_mm: float


def paint_trees(
    vessel: Floats, airway: Floats, anatomy: Anatomy, grid: Grid, rng: np.random.Generator
) -> None:
    """Raise the shares of vessels, with the walls of airways, and of airways, in place."""
    (z, y, x), _ = lung_points(anatomy, 1600, rng)
    airways = [_Tube(np.array([170.0, 4.0, 0.0]), CARINA_ZYX, 9.0)]
    vessels: list[_Tube] = []
    for side, hilum in HILA_ZYX.items():
        ends = np.stack([z, y, x], axis=1)[np.sign(x) == side].astype(np.float64)
        vessels += branching(hilum, ends[:56], leaf_radius_mm=0.7)
        airways.append(_Tube(CARINA_ZYX, hilum, 6.5))
        airways += branching(hilum, hilum + 0.75 * (ends[56:64] - hilum), leaf_radius_mm=1.3)
    walls = [tube._replace(radius_mm=tube.radius_mm * 1.15 + 0.4) for tube in airways]
    paint_tubes(vessel, grid, vessels + walls)
    paint_tubes(airway, grid, airways)


def branching(
    root_zyx: npt.NDArray[np.float64], ends_zyx: npt.NDArray[np.float64], leaf_radius_mm: float
) -> Iterator[_Tube]:
    """Tubes that branch from a root to all ends: go towards their middle, split the ends in two, repeat."""
    open_ends = [(root_zyx, ends_zyx)] if len(ends_zyx) else []
    while open_ends:
        start, ends = open_ends.pop()
        if len(ends) == 1:
            yield _Tube(start, ends[0], leaf_radius_mm)
            continue
        joint = start + 0.4 * (ends.mean(axis=0) - start)
        yield _Tube(start, joint, leaf_radius_mm * len(ends) ** 0.36)  # Murray's law: 1/3
        order = np.argsort(ends[:, np.ptp(ends, axis=0).argmax()])
        half = len(ends) // 2
        open_ends += [(joint, ends[order[:half]]), (joint, ends[order[half:]])]


def paint_tubes(share_DHW: Floats, grid: Grid, tubes: list[_Tube]) -> None:
    """Raise the share of every voxel that a tube passes; each tube touches its bounding box only.

    Distances are in voxels: a thick slice smears what crosses it, as it does in a scanner.
    """
    if not tubes:
        return
    first_mm = [grid.z[0], grid.y[0], grid.x[0]]
    start_n3 = (np.array([tube.start_zyx for tube in tubes]) - first_mm) / grid.spacing_mm_zyx
    end_n3 = (np.array([tube.end_zyx for tube in tubes]) - first_mm) / grid.spacing_mm_zyx
    radius_n = np.array([tube.radius_mm for tube in tubes]) / grid.spacing_mm_zyx[2]
    blur = grid.blur_mm / grid.spacing_mm_zyx[2]
    reach_n1 = radius_n[:, None] + blur
    low_n3 = np.maximum(np.minimum(start_n3, end_n3) - reach_n1, 0).astype(int)
    high_n3 = np.maximum(np.maximum(start_n3, end_n3) + reach_n1 + 2, 0).astype(int)
    lists = (array.tolist() for array in (start_n3, end_n3 - start_n3, radius_n, low_n3, high_n3))
    indices = [np.arange(n, dtype=np.float32) for n in share_DHW.shape]
    for start, step, radius, low, high in zip(*lists, strict=True):
        box = tuple(map(slice, low, high))
        z, y, x = (index[part] - origin for index, part, origin in zip(indices, box, start, strict=True))
        distance = _distance_to_line((z[:, None, None], y[:, None], x), step)
        share = np.minimum((radius - distance) / blur + 0.5, 1) * min(1.0, np.pi * (radius / blur) ** 2)
        np.maximum(share_DHW[box], share, out=share_DHW[box])


def _distance_to_line(position_zyx: Points, end_zyx: list[float]) -> Floats:
    """Distance of each position to the line from the origin to an end."""
    z, y, x = position_zyx
    dz, dy, dx = end_zyx
    scale = 1 / max(dz * dz + dy * dy + dx * dx, 1e-6)
    along = z * (dz * scale) + (y * (dy * scale) + x * (dx * scale))
    np.minimum(np.maximum(along, 0, out=along), 1, out=along)
    z, y, x = z - along * dz, y - along * dy, x - along * dx
    return cast(Floats, np.sqrt(z * z + y * y + x * x))
