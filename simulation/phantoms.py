"""Synthetic chest CT with COVID-19 or CAP, its masks known exactly, infection ratios as in Table III (IV-E).

Everything is analytic geometry in mm, so that a patient looks the same on every grid and scanner: x to the
patient's left, y to the back, z to the head (LPS), the origin in the middle of the chest. The infection
ratio is drawn first; the lesion is then as many voxels of lung as it takes, those with the highest score of
a smooth field.
"""
# Suffixes: _DHW an array over (z, y, x); _n a list of voxels or points; _mm_zyx coordinates in that order.

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter1d

from dsan_model.cases import LARGE_CAP_ABOVE, TABLE3_BOUNDS, Label

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Points = tuple[Floats, Floats, Floats]  # z, y, x in mm: an open mesh or three lists, whatever broadcasts

AIR_HU, FAT_HU, MUSCLE_HU, BLOOD_HU, BONE_HU = -1000, -100, 50, 42, 350
LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")
MIN_LESION_VOXELS = 4

# Infection ratio at cumulative frequencies, log-uniform in between. The frequencies at 0.005 and 0.030 are
# those of Table III, the one of CAP at 0.001 makes its weight in size-balanced sampling about 1.5 (III-C);
# the ends are ours.
RATIO_QUANTILES = {
    Label.COVID: ((0.0, 151 / 1094, 469 / 1094, 1.0), (0.0001, *TABLE3_BOUNDS, 0.30)),
    Label.CAP: ((0.0, 0.6, 838 / 1092, 1021 / 1092, 1.0), (0.0001, LARGE_CAP_ABOVE, *TABLE3_BOUNDS, 0.30)),
}


@dataclass(frozen=True)
class Scanner:
    """A CT scanner with its protocol.

    `orientation` names where the x, y and z index of its images run to, as ITK does: LPS is to the patient's
    left, back and head.
    """

    name: str
    field_of_view_mm_xyz: tuple[
        float, float, float
    ]  # left-right, front-back, feet-head; at most 500, 500, 380
    noise_hu: float
    smoothing_mm: float  # sd of the reconstruction kernel
    orientation: str = "LPS"
    offset_hu: float = 0.0  # error of calibration
    outside_circle_hu: int = -1024  # what it writes outside the circle of reconstruction
    manufacturer: str = ""


# The scanners of IV-A. The last one is the second LightSpeed 16, with a protocol that no other site has.
SCANNERS = (
    Scanner("uCT 780", (350, 350, 300), 16, 0.8, "LPS", 0, -1024, "UIH"),
    Scanner("Optima CT520", (340, 340, 290), 26, 0.7, "RAS", 4, -2000, "GE MEDICAL SYSTEMS"),
    Scanner("Discovery CT750", (360, 360, 300), 20, 1.0, "LAS", -3, -2000, "GE MEDICAL SYSTEMS"),
    Scanner("LightSpeed 16", (330, 330, 295), 30, 0.6, "LPI", -6, -2000, "GE MEDICAL SYSTEMS"),
    Scanner("Aquilion ONE", (345, 345, 305), 18, 1.1, "RAI", 3, -1024, "TOSHIBA"),
    Scanner("SOMATOM Force", (325, 325, 290), 14, 0.9, "LAI", 0, -1024, "SIEMENS"),
    Scanner("SCENARIA", (355, 355, 300), 24, 1.2, "RPS", 6, -1024, "Hitachi Medical Corporation"),
    Scanner("LightSpeed 16", (335, 335, 300), 34, 0.5, "RPI", 8, -2000, "GE MEDICAL SYSTEMS"),
)


@dataclass(frozen=True)
class PhantomPlan:
    """All that a phantom is a function of. Scans of one patient share `anatomy_seed`."""

    label: Label
    infection_ratio: float  # infection volume over lung volume, 0 to 1
    scanner: Scanner
    shape_DHW: tuple[int, int, int]  # before orientation: slices, rows, columns
    anatomy_seed: int
    lesion_seed: int

    @property
    def slice_thickness_mm(self) -> float:
        """The distance of slices."""
        return self.scanner.field_of_view_mm_xyz[2] / self.shape_DHW[0]


@dataclass(frozen=True)
class Phantom:
    """A chest CT (int16, HU) and its masks (uint8, 0 or 1) on one grid, in the scanner's orientation."""

    ct: sitk.Image
    lung: sitk.Image  # the infected part included, as VB-Net segments it
    infection: sitk.Image  # lies inside `lung`
    infection_ratio: float  # of these masks


def infection_ratio_at(label: Label, quantile: float) -> float:
    """The infection ratio of a class at a cumulative frequency from 0 to 1 (Table III, III-C)."""
    frequencies, ratios = RATIO_QUANTILES[label]
    return float(np.exp(np.interp(quantile, frequencies, np.log(ratios))))


def draw_infection_ratio(label: Label, rng: np.random.Generator) -> float:
    """An infection ratio, 0 to 1, with the frequencies of Table III's training-validation set."""
    return infection_ratio_at(label, rng.uniform())


def phantom(plan: PhantomPlan) -> Phantom:
    """A chest CT with the planned disease; a function of the plan alone.

    The infection ratio is the planned one to half a voxel, but a lesion has at least MIN_LESION_VOXELS.
    ValueError if the planned ratio is not above 0 and at most 0.5, or if the grid has no voxel of lung.
    """
    if not 0 < plan.infection_ratio <= 0.5:
        raise ValueError(f"infection_ratio {plan.infection_ratio}: expected above 0 and at most 0.5")
    rng = np.random.default_rng(plan.lesion_seed)
    chest = _chest(plan.scanner, plan.shape_DHW, plan.anatomy_seed, rng)
    infection_n = _infect(chest, plan.label, plan.infection_ratio, rng)
    return _scan(chest, infection_n, plan.scanner, rng)


def right_lung_mark(scanner: Scanner, shape_DHW: tuple[int, int, int], seed: int = 0) -> Phantom:
    """A healthy chest with a dense ball of 25 mm radius in the patient's right lung, marked as infection.

    For tests of orientation: read and resampled in any way, the mark has to lie in the right lung only.
    """
    rng = np.random.default_rng(seed)
    chest = _chest(scanner, shape_DHW, seed, rng)
    z, y, x = chest.lung.position_mm_zyx
    is_right = x < 0
    centre_zyx = tuple(float(np.median(axis[is_right])) for axis in (z, y, x))
    mark_n = is_right & (_distance_mm((z, y, x), centre_zyx) < 25)
    chest.lung.parenchyma_hu_n[mark_n] = MUSCLE_HU
    return _scan(chest, mark_n, scanner, rng)


# ---- anatomy ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Anatomy:
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


@dataclass(frozen=True)
class _Lung:
    """The voxels of both lungs as lists."""

    voxel: tuple[npt.NDArray[np.intp], ...]  # plane, row, column
    position_mm_zyx: Points
    depth_mm_n: Floats  # below the pleura of the chest wall
    texture_n: Floats  # smooth noise of about unit variance
    parenchyma_hu_n: Floats  # of the tissue without vessels and airways; a lesion is painted into it

    def __len__(self) -> int:
        return len(self.depth_mm_n)


@dataclass(frozen=True)
class _Grid:
    """Where the voxels are: coordinates of planes, rows and columns in mm, 0 in the middle of the chest."""

    z: Floats
    y: Floats
    x: Floats
    spacing_mm_zyx: tuple[float, float, float]
    blur_mm: float  # width of a sharp edge in the image

    @property
    def shape_dhw(self) -> tuple[int, int, int]:
        return len(self.z), len(self.y), len(self.x)

    def slab(self, planes: slice) -> "_Grid":
        return replace(self, z=self.z[planes])

    def mesh(self) -> Points:
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    def inside(self, depth_mm: Floats) -> Floats:
        """How much of a voxel is inside (0 to 1) where the surface is `depth_mm` away."""
        share = depth_mm * np.float32(1 / self.blur_mm)
        share += np.float32(0.5)
        return np.clip(share, 0, 1, out=share)


@dataclass(frozen=True)
class _Chest:
    """A healthy chest on a grid; lungs, airways and the scanner's noise are not yet put in."""

    anatomy: _Anatomy
    grid: _Grid
    lung: _Lung
    trunk_hu_DHW: Floats
    lung_share_DHW: Floats  # how much of a voxel is lung
    vessel_share_DHW: Floats
    airway_share_DHW: Floats


def _draw_anatomy(rng: np.random.Generator) -> _Anatomy:
    size = rng.normal(1.03, 0.03)
    return _Anatomy(
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


def _wall_depth_mm(anatomy: _Anatomy, position_mm_zyx: Points) -> Floats:
    """Depth below the inside of the rib cage, an ellipse that narrows towards the apex; negative outside."""
    z, y, x = position_mm_zyx
    up = np.clip((z + 30) / (anatomy.apex + 30), 0, 0.999)
    taper = np.sqrt(1 - up**2.6) * (1 + 0.05 * np.clip(-(z + 20) / 100, 0, 1))
    half_width, half_depth = anatomy.half_width * taper, anatomy.half_depth * (0.15 + 0.85 * taper)
    radius = np.sqrt((x / half_width) ** 2 + ((y - 0.1 * np.maximum(z, 0)) / half_depth) ** 2)
    return cast(Floats, (1 - radius) * np.sqrt(half_width * half_depth))


def _mediastinum_depth_mm(anatomy: _Anatomy, position_mm_zyx: Points) -> tuple[Floats, Floats]:
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


def _above_diaphragm_mm(anatomy: _Anatomy, position_mm_zyx: Points) -> Floats:
    """Height above the two domes of the diaphragm, the left one lower."""
    z, y, x = position_mm_zyx
    to_side = (np.abs(x) - 0.55 * anatomy.half_width) / (0.6 * anatomy.half_width)
    to_back = (y + 14) / anatomy.half_depth
    top = anatomy.dome - np.where(x > 0, np.float32(13), np.float32(0))
    return cast(Floats, 0.75 * (z - top + 42 * to_side**2 + 52 * to_back**2))


@dataclass(frozen=True)
class _Surfaces:
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


def _surfaces(anatomy: _Anatomy, position_mm_zyx: Points) -> _Surfaces:
    return _Surfaces(
        _wall_depth_mm(anatomy, position_mm_zyx),
        *_mediastinum_depth_mm(anatomy, position_mm_zyx),
        _above_diaphragm_mm(anatomy, position_mm_zyx),
    )


def _lobe(position_mm_zyx: Points) -> npt.NDArray[np.intp]:
    """Index into LOBES; the oblique fissures rise to the back, the horizontal one is on the right only."""
    z, y, x = position_mm_zyx
    is_lower = z < 0.95 * y - 14
    right = np.where(is_lower, 2, np.where(z < -2, 1, 0))
    return np.where(x < 0, right, np.where(is_lower, 4, 3))


def _lung_points(anatomy: _Anatomy, n: int, rng: np.random.Generator) -> tuple[Points, Floats]:
    """Up to n random points in the lungs, z, y, x in mm on no grid, and their depth below the chest wall."""
    box_mm = np.array([130, anatomy.half_depth, anatomy.half_width], np.float32)[:, None]
    z, y, x = box_mm * rng.uniform(-1, 1, (3, n)).astype(np.float32)
    surfaces = _surfaces(anatomy, (z, y, x))
    is_lung = surfaces.lung_depth_mm() > 4
    return (z[is_lung], y[is_lung], x[is_lung]), surfaces.wall[is_lung]


def _grid(scanner: Scanner, shape_DHW: tuple[int, int, int], rng: np.random.Generator) -> _Grid:
    """The scanner's grid; the patient lies a few mm off its middle."""
    fov_zyx = scanner.field_of_view_mm_xyz[::-1]
    spacing_zyx = tuple(round(fov / n, 4) for fov, n in zip(fov_zyx, shape_DHW, strict=True))
    shift_zyx = rng.uniform((-4, -8, -5), (4, 2, 5))
    z, y, x = (
        ((np.arange(n) - (n - 1) / 2) * spacing + shift).astype(np.float32)
        for n, spacing, shift in zip(shape_DHW, spacing_zyx, shift_zyx, strict=True)
    )
    blur_mm = float(np.hypot(spacing_zyx[2], 2 * scanner.smoothing_mm))
    return _Grid(z, y, x, (spacing_zyx[0], spacing_zyx[1], spacing_zyx[2]), blur_mm)


def _chest(
    scanner: Scanner, shape_DHW: tuple[int, int, int], anatomy_seed: int, rng: np.random.Generator
) -> _Chest:
    anatomy_rng = np.random.default_rng(anatomy_seed)
    anatomy, grid = _draw_anatomy(anatomy_rng), _grid(scanner, shape_DHW, rng)
    texture = _smooth_noise(grid, 11.0, anatomy_rng)
    trunk_hu, lung_share, vessel, airway = (np.zeros(shape_DHW, np.float32) for _ in range(4))
    _paint_trees(vessel, airway, anatomy, grid, anatomy_rng)
    wall_depth: list[Floats] = []
    for planes in _slabs(shape_DHW):
        slab, slab_texture = grid.slab(planes), texture.slab(planes)
        surfaces = _surfaces(anatomy, slab.mesh())
        _draw_trunk(trunk_hu[planes], anatomy, slab, surfaces, slab_texture)
        lung_depth = surfaces.lung_depth_mm() + np.float32(0.8) * slab_texture  # no border is an ellipse
        lung_share[planes] = slab.inside(lung_depth)
        airway[planes] *= (surfaces.heart < 0) & (surfaces.diaphragm > 0)  # through neither heart nor liver
        wall_depth.append(surfaces.wall[lung_share[planes] > 0.5])
    lung = _lung(anatomy, grid, np.nonzero(lung_share > 0.5), np.concatenate(wall_depth), texture)
    return _Chest(anatomy, grid, lung, trunk_hu, lung_share, vessel, airway)


def _slabs(shape_DHW: tuple[int, ...], voxels: int = 2**17) -> Iterator[slice]:
    """Runs of planes that fit a processor's cache: whole scans would need ten arrays of their size."""
    n = max(1, voxels // (shape_DHW[1] * shape_DHW[2]))
    return (slice(first, first + n) for first in range(0, shape_DHW[0], n))


def _lung(
    anatomy: _Anatomy,
    grid: _Grid,
    voxel: tuple[npt.NDArray[np.intp], ...],
    wall_depth_mm_n: Floats,
    texture: "_Noise",
) -> _Lung:
    plane, row, column = voxel
    if not len(plane):
        raise ValueError(f"no voxel of a {grid.shape_dhw} grid lies in a lung: ask for a finer grid")
    z, y, x = grid.z[plane], grid.y[row], grid.x[column]
    texture_n = texture.at(voxel)
    # The back of a lying patient is denser: blood and gravity.
    parenchyma_hu_n = np.float32(anatomy.parenchyma_hu) + np.float32(0.35) * y + np.float32(14) * texture_n
    return _Lung(voxel, (z, y, x), wall_depth_mm_n, texture_n, parenchyma_hu_n)


# ---- tissue around the lungs -----------------------------------------------------------------------------


def _draw_trunk(hu: Floats, anatomy: _Anatomy, grid: _Grid, surfaces: _Surfaces, texture: Floats) -> None:
    """The trunk as if the patient had no lungs: air, table, fat, muscle, bones, mediastinum, abdomen."""
    z, y, x = grid.mesh()
    outer_x = anatomy.half_width + anatomy.muscle + anatomy.fat
    outer_y = anatomy.half_depth + anatomy.muscle + anatomy.fat
    shoulders = 1 + 0.12 * np.clip((z - 70) / 80, 0, 1)
    radius = np.sqrt((x / (outer_x * shoulders)) ** 2 + ((y - 6) / outer_y) ** 2)
    skin_depth = (1 - radius) * np.float32(outer_y)
    is_table = np.abs(y - outer_y - 14) < 3
    hu[:] = np.where(is_table, np.float32(-650), np.float32(AIR_HU))
    _blend(hu, grid.inside(skin_depth), FAT_HU + 8 * texture)
    _blend(hu, grid.inside(skin_depth - np.float32(anatomy.fat)), MUSCLE_HU + 6 * texture)
    _blend(hu, grid.inside(surfaces.wall), _mediastinum_hu(grid, surfaces, texture))
    _blend(hu, _bone_share(anatomy, grid, surfaces.wall), np.float32(BONE_HU))
    _blend(hu, grid.inside(np.minimum(-surfaces.diaphragm, surfaces.wall)), 52 + 5 * texture)


def _blend(hu: Floats, share: Floats, other_hu: Floats | np.float32) -> None:
    """Replace a share of every voxel, in place."""
    hu += share * (other_hu - hu)


def _mediastinum_hu(grid: _Grid, surfaces: _Surfaces, texture: Floats) -> Floats:
    """Fat with vessels in it; heart and great vessels are blood."""
    hu = np.where(texture > -0.2, np.float32(BLOOD_HU), np.float32(-85))
    blood_depth = np.maximum(surfaces.heart - 5, surfaces.between - 14)
    _blend(hu, grid.inside(blood_depth), np.float32(BLOOD_HU))
    return hu


def _bone_share(anatomy: _Anatomy, grid: _Grid, wall: Floats) -> Floats:
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


# ---- vessels and airways ---------------------------------------------------------------------------------

CARINA_ZYX = np.array([22.0, 10.0, 2.0])
HILA_ZYX = {-1: np.array([0.0, 8.0, -34.0]), 1: np.array([4.0, 10.0, 36.0])}


class _Tube(NamedTuple):
    start_zyx: npt.NDArray[np.float64]
    end_zyx: npt.NDArray[np.float64]
    radius_mm: float


def _paint_trees(
    vessel: Floats, airway: Floats, anatomy: _Anatomy, grid: _Grid, rng: np.random.Generator
) -> None:
    (z, y, x), _ = _lung_points(anatomy, 1600, rng)
    airways = [_Tube(np.array([170.0, 4.0, 0.0]), CARINA_ZYX, 9.0)]
    vessels: list[_Tube] = []
    for side, hilum in HILA_ZYX.items():
        ends = np.stack([z, y, x], axis=1)[np.sign(x) == side].astype(np.float64)
        vessels += _tree(hilum, ends[:56], leaf_radius_mm=0.7)
        airways.append(_Tube(CARINA_ZYX, hilum, 6.5))
        airways += _tree(hilum, hilum + 0.75 * (ends[56:64] - hilum), leaf_radius_mm=1.3)
    walls = [tube._replace(radius_mm=tube.radius_mm * 1.15 + 0.4) for tube in airways]
    _paint(vessel, grid, vessels + walls)
    _paint(airway, grid, airways)


def _tree(
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


def _paint(share_DHW: Floats, grid: _Grid, tubes: list[_Tube]) -> None:
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


# ---- lesions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pattern:
    """How a pneumonia looks on CT; the two diseases differ in how these are drawn."""

    n_foci: int
    lobes: tuple[int, ...] | None  # indices into LOBES that it stays in as long as they have room; None: all
    pleural: float  # 0 to 1: how much it keeps to the periphery
    dependent: float  # 0 to 1: how much it prefers the back and the base
    roughness: float  # of its border, in radii
    consolidated: float  # share of its volume, the inner part
    ground_glass_hu: float
    consolidation_hu: float
    has_bronchograms: bool


def _draw_covid(infection_ratio: float, rng: np.random.Generator) -> _Pattern:
    """Multifocal, peripheral ground glass in several lobes; now and then single, or consolidated."""
    is_single, is_consolidated = rng.uniform() < 0.10, rng.uniform() < 0.04
    most = 2 + int(12 * np.sqrt(infection_ratio / 0.1))
    return _Pattern(
        n_foci=1 if is_single else int(rng.integers(2, min(most, 14) + 1)),
        lobes=None,
        pleural=float(rng.uniform(0.5, 1.0)),
        dependent=float(rng.uniform(0.3, 1.0)),
        roughness=float(rng.uniform(0.25, 0.5)),
        consolidated=float(rng.uniform(0.2, 0.7)) if is_consolidated else 0.0,
        ground_glass_hu=float(rng.uniform(-590, -450)),
        consolidation_hu=float(rng.uniform(-180, 0)),
        has_bronchograms=False,
    )


def _draw_cap(infection_ratio: float, rng: np.random.Generator) -> _Pattern:
    """Consolidation of one lobe or segment with air bronchograms, some with a halo; now and then patchy."""
    is_patchy, has_halo = rng.uniform() < 0.04, rng.uniform() < 0.1
    n_lobes = 2 if rng.uniform() < 0.12 else 1
    lobes = rng.choice(len(LOBES), n_lobes, replace=False, p=(0.18, 0.12, 0.30, 0.15, 0.25))
    return _Pattern(
        n_foci=int(rng.integers(2, 6)) if is_patchy else n_lobes,
        lobes=tuple(int(lobe) for lobe in lobes),
        pleural=float(rng.uniform(0.0, 0.4)),
        dependent=float(rng.uniform(0.0, 0.5)),
        roughness=float(rng.uniform(0.15, 0.4)),
        consolidated=(0.0 if is_patchy else 1.0) if not has_halo else float(rng.uniform(0.4, 0.8)),
        ground_glass_hu=float(rng.uniform(-600, -350)),
        consolidation_hu=float(rng.uniform(-60, 60)),
        has_bronchograms=infection_ratio > 0.003,
    )


def _infect(chest: _Chest, label: Label, infection_ratio: float, rng: np.random.Generator) -> Bools:
    """Paint a lesion of the wanted volume into the chest, in place; which voxels of the lung list it took."""
    pattern = (_draw_covid if label is Label.COVID else _draw_cap)(infection_ratio, rng)
    lung_voxels = len(chest.lung)
    wanted = min(max(round(infection_ratio * lung_voxels), MIN_LESION_VOXELS), lung_voxels)
    volume_mm3 = wanted * float(np.prod(chest.grid.spacing_mm_zyx))
    foci = _draw_foci(chest.anatomy, pattern, rng)
    score = _score(chest, pattern, foci, volume_mm3, rng)
    rank = np.argpartition(score, lung_voxels - wanted)[lung_voxels - wanted :]
    rank = rank[np.argsort(score[rank], kind="stable")]  # from the rim to the core
    _paint_lesion(chest, pattern, rank, volume_mm3)
    if pattern.has_bronchograms:
        _paint_bronchograms(chest, rank, min(2 + int(volume_mm3 / 10_000), 14), rng)
    infected_n = np.zeros(lung_voxels, bool)
    infected_n[rank] = True
    return infected_n


def _draw_foci(anatomy: _Anatomy, pattern: _Pattern, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Centres of the lesion, (n, 3) z, y, x in mm: in the pattern's lobes, where the pattern prefers."""
    (z, y, x), depth = _lung_points(anatomy, 6000, rng)
    weight = np.exp(-pattern.pleural * depth / 9 + pattern.dependent * (0.018 * y - 0.009 * z))
    if pattern.lobes is not None:
        weight *= np.isin(_lobe((z, y, x)), pattern.lobes)
    chosen = rng.choice(len(z), pattern.n_foci, p=weight / weight.sum())
    return np.stack([z, y, x], axis=1)[chosen]


def _score(
    chest: _Chest, pattern: _Pattern, foci: Floats, volume_mm3: float, rng: np.random.Generator
) -> Floats:
    """How early each voxel of the lung falls ill; smooth, in mm, higher is earlier."""
    lung = chest.lung
    radius_mm = np.float32((0.24 * volume_mm3 / len(foci)) ** (1 / 3))
    sizes = rng.lognormal(0, 0.35, len(foci)).astype(np.float32)
    distance = np.full(len(lung), np.inf, np.float32)
    for focus, size in zip(foci, sizes, strict=True):
        np.minimum(distance, _distance_mm(lung.position_mm_zyx, tuple(focus)) / size, out=distance)
    noise = _smooth_noise(chest.grid, float(np.clip(0.9 * radius_mm, 7, 30)), rng)
    score = np.float32(pattern.roughness) * radius_mm * noise.at(lung.voxel) - distance
    score -= np.float32(0.7 * pattern.pleural) * lung.depth_mm_n
    if pattern.lobes is not None:
        score[~np.isin(_lobe(lung.position_mm_zyx), pattern.lobes)] -= 1000
    return cast(Floats, score)


def _distance_mm(position_mm_zyx: Points, centre_zyx: tuple[float, ...]) -> Floats:
    z, y, x = (axis - np.float32(centre) for axis, centre in zip(position_mm_zyx, centre_zyx, strict=True))
    return cast(Floats, np.sqrt(z * z + y * y + x * x))


def _paint_lesion(chest: _Chest, pattern: _Pattern, rank: npt.NDArray[np.intp], volume_mm3: float) -> None:
    """Ground glass that fades to its rim, consolidation inside; small is fainter (partial volume)."""
    from_rim = np.linspace(0, 1, len(rank), dtype=np.float32)
    is_consolidated = from_rim >= 1 - pattern.consolidated
    texture = chest.lung.texture_n[rank]
    lesion = np.where(
        is_consolidated, pattern.consolidation_hu + 15 * texture, pattern.ground_glass_hu + 30 * texture
    )
    strength = np.where(is_consolidated, 1.0, 0.6 + 0.4 * np.minimum(3 * from_rim, 1))
    strength *= 0.5 + 0.5 * volume_mm3 / (volume_mm3 + 1500)
    hu = chest.lung.parenchyma_hu_n
    hu[rank] += (strength * (lesion - hu[rank])).astype(np.float32)


def _paint_bronchograms(
    chest: _Chest, rank: npt.NDArray[np.intp], n_ends: int, rng: np.random.Generator
) -> None:
    """Airways that stay open inside the consolidation."""
    z, y, x = chest.lung.position_mm_zyx
    ends = rank[rng.integers(0, len(rank), n_ends)]
    ends_zyx = np.stack([z[ends], y[ends], x[ends]], axis=1).astype(np.float64)
    for side, hilum in HILA_ZYX.items():
        of_side = ends_zyx[np.sign(ends_zyx[:, 2]) == side]
        _paint(chest.airway_share_DHW, chest.grid, list(_tree(hilum, of_side, leaf_radius_mm=1.2)))


# ---- the scanner -----------------------------------------------------------------------------------------


def _scan(chest: _Chest, infected_n: Bools, scanner: Scanner, rng: np.random.Generator) -> Phantom:
    lung, shape_DHW = chest.lung, chest.grid.shape_dhw
    ct_DHW = np.empty(shape_DHW, np.int16)
    lung_hu_DHW = np.full(shape_DHW, chest.anatomy.parenchyma_hu, np.float32)
    lung_hu_DHW[lung.voxel] = lung.parenchyma_hu_n
    for planes in _slabs(shape_DHW):
        hu = chest.trunk_hu_DHW[planes].copy()
        _blend(hu, chest.lung_share_DHW[planes], lung_hu_DHW[planes])
        _blend(hu, chest.vessel_share_DHW[planes], np.float32(BLOOD_HU))
        _blend(hu, chest.airway_share_DHW[planes], np.float32(AIR_HU))
        hu += _noise_hu(scanner, chest.grid.slab(planes), rng)
        hu += np.float32(scanner.offset_hu)
        ct_DHW[planes] = np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu)
    ct_DHW[:, _is_outside_circle(chest.grid)] = scanner.outside_circle_hu
    infected = tuple(index[infected_n] for index in lung.voxel)
    masks = (_mask(shape_DHW, lung.voxel), _mask(shape_DHW, infected))
    ct, lung_mask, infection = (_image(array, chest.grid, scanner) for array in (ct_DHW, *masks))
    return Phantom(ct, lung_mask, infection, int(infected_n.sum()) / len(lung))


def _noise_hu(scanner: Scanner, grid: _Grid, rng: np.random.Generator) -> Floats:
    """White noise through the reconstruction kernel, in the plane, with the scanner's standard deviation."""
    noise = rng.standard_normal(grid.shape_dhw, dtype=np.float32)
    noise *= np.float32(scanner.noise_hu)
    for axis in (1, 2):
        sigma_voxels = scanner.smoothing_mm / grid.spacing_mm_zyx[axis]
        if sigma_voxels > 0.3:  # below, a voxel's neighbours get nothing
            kernel = gaussian_filter1d(np.eye(1, 99, 49)[0], sigma_voxels)
            noise = gaussian_filter1d(noise, sigma_voxels, axis=axis)
            noise *= np.float32(1 / np.sqrt((kernel**2).sum()))
    return noise


def _is_outside_circle(grid: _Grid) -> Bools:
    """Rows and columns that the scanner does not reconstruct."""
    radius = np.hypot(grid.y[:, None] - grid.y.mean(), grid.x - grid.x.mean())
    return cast(Bools, radius > np.ptp(grid.x) / 2 + 1)


def _mask(shape_DHW: tuple[int, int, int], voxel: tuple[npt.NDArray[np.intp], ...]) -> npt.NDArray[np.uint8]:
    mask = np.zeros(shape_DHW, np.uint8)
    mask[voxel] = 1
    return mask


def _image(array_DHW: npt.NDArray[np.int16 | np.uint8], grid: _Grid, scanner: Scanner) -> sitk.Image:
    image = sitk.GetImageFromArray(array_DHW)
    image.SetSpacing(grid.spacing_mm_zyx[::-1])
    image.SetOrigin([round(float(axis[0]), 3) for axis in (grid.x, grid.y, grid.z)])
    oriented: sitk.Image = sitk.DICOMOrient(image, scanner.orientation)
    return oriented


# ---- smooth noise ----------------------------------------------------------------------------------------

# Half the sides of a fixed box around every grid, so that the noise does not depend on the grid.
NOISE_HALF_MM_ZYX = (200.0, 260.0, 260.0)


@dataclass(frozen=True)
class _Noise:
    """Band-limited noise of about unit variance, spread over rows and columns, not yet over planes."""

    knots_DHW: Floats  # D: the knots along z
    first_n: npt.NDArray[np.intp]  # for every plane the first of its four knots
    weights_4n: Floats

    def slab(self, planes: slice) -> Floats:
        return _spread(self.knots_DHW, self.first_n[planes], self.weights_4n[:, planes], axis=0)

    def at(self, voxel: tuple[npt.NDArray[np.intp], ...]) -> Floats:
        plane, row, column = voxel
        values = np.zeros(len(plane), np.float32)
        for k, weight_n in enumerate(self.weights_4n):
            values += weight_n[plane] * self.knots_DHW[self.first_n[plane] + k, row, column]
        return values


def _smooth_noise(grid: _Grid, pitch_mm: float, rng: np.random.Generator) -> _Noise:
    """Cubic B-splines on white noise with knots `pitch_mm` apart."""
    knots = [int(2 * half / pitch_mm) + 5 for half in NOISE_HALF_MM_ZYX]
    values = rng.standard_normal(knots, dtype=np.float32) * np.float32(3.0)
    (first_z, weights_z), (first_y, weights_y), (first_x, weights_x) = (
        _bspline((axis_mm + half) / np.float32(pitch_mm))
        for axis_mm, half in zip((grid.z, grid.y, grid.x), NOISE_HALF_MM_ZYX, strict=True)
    )
    values = _spread(_spread(values, first_x, weights_x, axis=2), first_y, weights_y, axis=1)
    return _Noise(values, first_z, weights_z)


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
