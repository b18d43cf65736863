"""A healthy chest on a scanner's grid: trunk, lungs, vessels and airways put together."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation.phantom_anatomy import Anatomy, draw_anatomy, draw_trunk, surfaces_of
from simulation.phantom_grid import Floats, Grid, Noise, Points, scanner_grid, slabs, smooth_noise
from simulation.phantom_trees import paint_trees
from simulation.scanners import Scanner


@dataclass(frozen=True)
class Lungs:
    """The voxels of both lungs as lists."""

    voxel: tuple[npt.NDArray[np.intp], ...]  # plane, row, column
    position_mm_zyx: Points
    depth_mm_n: Floats  # below the pleura of the chest wall
    texture_n: Floats  # smooth noise of about unit variance
    parenchyma_hu_n: Floats  # of the tissue without vessels and airways; a lesion is painted into it

    def __len__(self) -> int:
        return len(self.depth_mm_n)


@dataclass(frozen=True)
class Chest:
    """A healthy chest on a grid; lungs, airways and the scanner's noise are not yet put in."""

    anatomy: Anatomy
    grid: Grid
    lung: Lungs
    trunk_hu_DHW: Floats
    lung_share_DHW: Floats  # how much of a voxel is lung
    vessel_share_DHW: Floats
    airway_share_DHW: Floats


def healthy_chest(
    scanner: Scanner, shape_DHW: tuple[int, int, int], anatomy_seed: int, rng: np.random.Generator
) -> Chest:
    """The chest of the patient of `anatomy_seed`; `rng` lays the patient on the table.

    ValueError if no voxel of the grid lies in a lung.
    """
    anatomy_rng = np.random.default_rng(anatomy_seed)
    anatomy, grid = draw_anatomy(anatomy_rng), scanner_grid(scanner, shape_DHW, rng)
    texture = smooth_noise(grid, 11.0, anatomy_rng)
    trunk_hu, lung_share, vessel, airway = (np.zeros(shape_DHW, np.float32) for _ in range(4))
    paint_trees(vessel, airway, anatomy, grid, anatomy_rng)
    wall_depth: list[Floats] = []
    for planes in slabs(shape_DHW):
        slab, slab_texture = grid.slab(planes), texture.slab(planes)
        surfaces = surfaces_of(anatomy, slab.mesh())
        draw_trunk(trunk_hu[planes], anatomy, slab, surfaces, slab_texture)
        lung_depth = surfaces.lung_depth_mm() + np.float32(0.8) * slab_texture  # no border is an ellipse
        lung_share[planes] = slab.inside(lung_depth)
        airway[planes] *= (surfaces.heart < 0) & (surfaces.diaphragm > 0)  # through neither heart nor liver
        wall_depth.append(surfaces.wall[lung_share[planes] > 0.5])
    lung = _lung(anatomy, grid, np.nonzero(lung_share > 0.5), np.concatenate(wall_depth), texture)
    return Chest(anatomy, grid, lung, trunk_hu, lung_share, vessel, airway)


def _lung(
    anatomy: Anatomy,
    grid: Grid,
    voxel: tuple[npt.NDArray[np.intp], ...],
    wall_depth_mm_n: Floats,
    texture: Noise,
) -> Lungs:
    plane, row, column = voxel
    if not len(plane):
        raise ValueError(f"no voxel of a {grid.shape_dhw} grid lies in a lung: ask for a finer grid")
    z, y, x = grid.z[plane], grid.y[row], grid.x[column]
    texture_n = texture.at(voxel)
    # The back of a lying patient is denser: blood and gravity.
    parenchyma_hu_n = np.float32(anatomy.parenchyma_hu) + np.float32(0.35) * y + np.float32(14) * texture_n
    return Lungs(voxel, (z, y, x), wall_depth_mm_n, texture_n, parenchyma_hu_n)
