"""COVID-19 and CAP in the lungs of a phantom: where they lie, how they look, as many voxels as asked for."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from dsan_model.cases import Label
from simulation.phantom_anatomy import LOBES, Anatomy, lobe_of, lung_points
from simulation.phantom_chest import Chest
from simulation.phantom_grid import Bools, Floats, Points, smooth_noise
from simulation.phantom_trees import HILA_ZYX, branching, paint_tubes

MIN_LESION_VOXELS = 4


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


def infect(chest: Chest, label: Label, infection_ratio: float, rng: np.random.Generator) -> Bools:
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


def _draw_foci(anatomy: Anatomy, pattern: _Pattern, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Centres of the lesion, (n, 3) z, y, x in mm: in the pattern's lobes, where the pattern prefers."""
    (z, y, x), depth = lung_points(anatomy, 6000, rng)
    weight = np.exp(-pattern.pleural * depth / 9 + pattern.dependent * (0.018 * y - 0.009 * z))
    if pattern.lobes is not None:
        weight *= np.isin(lobe_of((z, y, x)), pattern.lobes)
    chosen = rng.choice(len(z), pattern.n_foci, p=weight / weight.sum())
    return np.stack([z, y, x], axis=1)[chosen]


def _score(
    chest: Chest, pattern: _Pattern, foci: Floats, volume_mm3: float, rng: np.random.Generator
) -> Floats:
    """How early each voxel of the lung falls ill; smooth, in mm, higher is earlier."""
    lung = chest.lung
    radius_mm = np.float32((0.24 * volume_mm3 / len(foci)) ** (1 / 3))
    sizes = rng.lognormal(0, 0.35, len(foci)).astype(np.float32)
    distance = np.full(len(lung), np.inf, np.float32)
    for focus, size in zip(foci, sizes, strict=True):
        np.minimum(distance, distance_mm(lung.position_mm_zyx, tuple(focus)) / size, out=distance)
    noise = smooth_noise(chest.grid, float(np.clip(0.9 * radius_mm, 7, 30)), rng)
    score = np.float32(pattern.roughness) * radius_mm * noise.at(lung.voxel) - distance
    score -= np.float32(0.7 * pattern.pleural) * lung.depth_mm_n
    if pattern.lobes is not None:
        score[~np.isin(lobe_of(lung.position_mm_zyx), pattern.lobes)] -= 1000
    return cast(Floats, score)


def distance_mm(position_mm_zyx: Points, centre_zyx: tuple[float, ...]) -> Floats:
    """Distance of each position to a centre."""
    z, y, x = (axis - np.float32(centre) for axis, centre in zip(position_mm_zyx, centre_zyx, strict=True))
    return cast(Floats, np.sqrt(z * z + y * y + x * x))


def _paint_lesion(chest: Chest, pattern: _Pattern, rank: npt.NDArray[np.intp], volume_mm3: float) -> None:
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
    chest: Chest, rank: npt.NDArray[np.intp], n_ends: int, rng: np.random.Generator
) -> None:
    """Airways that stay open inside the consolidation."""
    z, y, x = chest.lung.position_mm_zyx
    ends = rank[rng.integers(0, len(rank), n_ends)]
    ends_zyx = np.stack([z[ends], y[ends], x[ends]], axis=1).astype(np.float64)
    for side, hilum in HILA_ZYX.items():
        of_side = ends_zyx[np.sign(ends_zyx[:, 2]) == side]
        paint_tubes(chest.airway_share_DHW, chest.grid, list(branching(hilum, of_side, leaf_radius_mm=1.2)))
