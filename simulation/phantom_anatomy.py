"""One patient's chest as analytic geometry in mm: rib cage, heart, diaphragm, lobes, the tissue around."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from simulation.phantom_grid import Floats, Grid, Points

AIR_HU, FAT_HU, MUSCLE_HU, BLOOD_HU, BONE_HU = -1000, -100, 50, 42, 350
LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")


@dataclass(frozen=True)
class Anatomy:
    """One patient, in mm."""

    half_width: float  # of the inside of the rib cage at its widest
    half_depth: float
    apex: float  # z of the tips of the lungs
    dome: float  # z of the right half of the diaphragm
    heart: float  # its half length
    heart_left: float  # how far it lies to the left
    muscle: float  # thickness of the chest wall
    fat: float  # thickness under the skin
    parenchyma_hu: float


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient, of the size and shape that adults have."""
    size = rng.normal(1.03, 0.03)
    return Anatomy(
        half_width=float(124 * size * rng.normal(1, 0.025)),
        half_depth=float(84 * size * rng.normal(1, 0.04)),
        apex=float(np.clip(118 * size + rng.normal(0, 5), 100, 132)),
        dome=float(rng.uniform(-56, -40)),
        heart=float(rng.uniform(49, 61)),
        heart_left=float(rng.uniform(16, 28)),
        muscle=float(rng.uniform(14, 20)),
        fat=float(rng.uniform(5, 22)),
        parenchyma_hu=float(rng.uniform(-890, -830)),
    )


def _wall_depth_mm(anatomy: Anatomy, position_mm_zyx: Points) -> Floats:
    """Depth below the inside of the rib cage, an ellipse that narrows towards the apex; negative outside."""
    z, y, x = position_mm_zyx
    up = np.clip((z + 30) / (anatomy.apex + 30), 0, 0.999)
    taper = np.sqrt(1 - up**2.6) * (1 + 0.05 * np.clip(-(z + 20) / 100, 0, 1))
    half_width, half_depth = anatomy.half_width * taper, anatomy.half_depth * (0.15 + 0.85 * taper)
    radius = np.sqrt((x / half_width) ** 2 + ((y - 0.1 * np.maximum(z, 0)) / half_depth) ** 2)
    return cast(Floats, (1 - radius) * np.sqrt(half_width * half_depth))


def _mediastinum_depth_mm(anatomy: Anatomy, position_mm_zyx: Points) -> tuple[Floats, Floats]:
    """Depth inside the heart, and inside spine, aorta and the space between the lungs."""
    z, y, x = position_mm_zyx
    heart_radius = np.sqrt(
        ((x - anatomy.heart_left) / (1.05 * anatomy.heart)) ** 2
        + ((y + 30) / (0.78 * anatomy.heart)) ** 2
        + ((z + 38 + 0.25 * (x - 20)) / (0.95 * anatomy.heart)) ** 2
    )
    hila = 17 * np.exp(-(((y - 5) / 26) ** 2) - ((z - 2) / 42) ** 2)
    neck = 14 * np.exp(-(((y - 5) / 40) ** 2) - ((z - 85) / 45) ** 2)
    half_width = 8 + 6 * np.clip((y + 55) / 50, 0, 1) + hila + neck  # narrow behind the breastbone
    spine = 26 - np.hypot(x, y - 0.86 * anatomy.half_depth)
    aorta = 13 - np.hypot(x - 25, y - 0.48 * anatomy.half_depth)
    between = np.maximum(half_width - np.abs(x - 3), np.maximum(spine, aorta))
    return cast(Floats, (1 - heart_radius) * (0.9 * anatomy.heart)), cast(Floats, between)


def _above_diaphragm_mm(anatomy: Anatomy, position_mm_zyx: Points) -> Floats:
    """Height above the two domes of the diaphragm, the left one lower."""
    z, y, x = position_mm_zyx
    to_side = (np.abs(x) - 0.55 * anatomy.half_width) / (0.6 * anatomy.half_width)
    to_back = (y + 14) / anatomy.half_depth
    top = anatomy.dome - np.where(x > 0, np.float32(13), np.float32(0))
    return cast(Floats, 0.75 * (z - top + 42 * to_side**2 + 52 * to_back**2))


@dataclass(frozen=True)
class Surfaces:
    """Signed distances to the surfaces of the chest, in mm."""

    wall: Floats  # depth below the inside of the rib cage
    heart: Floats  # depth inside the heart
    between: Floats  # depth inside spine, aorta or the space between the lungs
    diaphragm: Floats  # height above the diaphragm

    def lung_depth_mm(self) -> Floats:
        """Distance to the nearest border of a lung, positive inside."""
        depth = np.minimum(self.wall, self.diaphragm)
        np.minimum(depth, -self.heart, out=depth)
        return np.minimum(depth, -self.between, out=depth)


def surfaces_of(anatomy: Anatomy, position_mm_zyx: Points) -> Surfaces:
    """Distances to all surfaces at positions that broadcast."""
    return Surfaces(
        _wall_depth_mm(anatomy, position_mm_zyx),
        *_mediastinum_depth_mm(anatomy, position_mm_zyx),
        _above_diaphragm_mm(anatomy, position_mm_zyx),
    )


def lobe_of(position_mm_zyx: Points) -> npt.NDArray[np.intp]:
    """Index into LOBES; the oblique fissures rise to the back, the horizontal one is on the right only."""
    z, y, x = position_mm_zyx
    is_lower = z < 0.95 * y - 14
    right = np.where(is_lower, 2, np.where(z < -2, 1, 0))
    return np.where(x < 0, right, np.where(is_lower, 4, 3))


def lung_points(anatomy: Anatomy, n: int, rng: np.random.Generator) -> tuple[Points, Floats]:
    """Up to n random points in the lungs, z, y, x in mm on no grid, and their depth below the chest wall."""
    box_mm = np.array([130, anatomy.half_depth, anatomy.half_width], np.float32)[:, None]
    z, y, x = box_mm * rng.uniform(-1, 1, (3, n)).astype(np.float32)
    surfaces = surfaces_of(anatomy, (z, y, x))
    is_lung = surfaces.lung_depth_mm() > 4
    return (z[is_lung], y[is_lung], x[is_lung]), surfaces.wall[is_lung]


def draw_trunk(hu: Floats, anatomy: Anatomy, grid: Grid, surfaces: Surfaces, texture: Floats) -> None:
    """The trunk as if the patient had no lungs: air, table, fat, muscle, bones, mediastinum, abdomen."""
    z, y, x = grid.mesh()
    outer_x = anatomy.half_width + anatomy.muscle + anatomy.fat
    outer_y = anatomy.half_depth + anatomy.muscle + anatomy.fat
    shoulders = 1 + 0.12 * np.clip((z - 70) / 80, 0, 1)
    radius = np.sqrt((x / (outer_x * shoulders)) ** 2 + ((y - 6) / outer_y) ** 2)
    skin_depth = (1 - radius) * np.float32(outer_y)
    is_table = np.abs(y - outer_y - 14) < 3
    hu[:] = np.where(is_table, np.float32(-650), np.float32(AIR_HU))
    blend(hu, grid.inside(skin_depth), FAT_HU + 8 * texture)
    blend(hu, grid.inside(skin_depth - np.float32(anatomy.fat)), MUSCLE_HU + 6 * texture)
    blend(hu, grid.inside(surfaces.wall), _mediastinum_hu(grid, surfaces, texture))
    blend(hu, _bone_share(anatomy, grid, surfaces.wall), np.float32(BONE_HU))
    blend(hu, grid.inside(np.minimum(-surfaces.diaphragm, surfaces.wall)), 52 + 5 * texture)


def blend(hu: Floats, share: Floats, other_hu: Floats | np.float32) -> None:
    """Replace a share of every voxel, in place."""
    hu += share * (other_hu - hu)


def _mediastinum_hu(grid: Grid, surfaces: Surfaces, texture: Floats) -> Floats:
    """Fat with vessels in it; heart and great vessels are blood."""
    hu = np.where(texture > -0.2, np.float32(BLOOD_HU), np.float32(-85))
    blood_depth = np.maximum(surfaces.heart - 5, surfaces.between - 14)
    blend(hu, grid.inside(blood_depth), np.float32(BLOOD_HU))
    return hu


def _bone_share(anatomy: Anatomy, grid: Grid, wall: Floats) -> Floats:
    """Ribs that fall to the front, spine, breastbone and shoulder blades: share of bone in a voxel."""
    z, y, x = grid.mesh()
    in_shell = grid.inside(5 - np.abs(wall + 6))  # 1 to 11 mm outside of the pleura
    rib = np.clip(2.5 * np.cos((z - 0.55 * y) * np.float32(2 * np.pi / 27)) - 0.2, 0, 0.9)
    spine_y = 0.86 * anatomy.half_depth
    vertebra = grid.inside(19 - np.hypot(x, (y - spine_y) * 1.25)) * (0.45 + 0.15 * np.cos(z * 0.24))
    arch = grid.inside(7 - np.abs(np.hypot(x, y - spine_y - 26) - 13)) * 0.6
    sternum = grid.inside(7 - np.hypot(x * 0.4, y + anatomy.half_depth + 9)) * 0.5 * (z < 70)
    blade_x, blade_y = np.abs(x) - 0.86 * anatomy.half_width, y - 0.78 * anatomy.half_depth
    blade = grid.inside(4 - np.hypot(0.3 * (blade_x - blade_y), 1.4 * (blade_x + blade_y))) * 0.7 * (z > 5)
    bone = in_shell * rib
    for other in (vertebra, arch, sternum, blade):
        np.maximum(bone, other, out=bone)
    return cast(Floats, bone)
