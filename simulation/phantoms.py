"""Synthetic chest CT with COVID-19 or CAP, its masks known exactly, infection ratios as in Table III (IV-E).

Everything is analytic geometry in mm, so that a patient looks the same on every grid and scanner: x to the
patient's left, y to the back, z to the head (LPS), the origin in the middle of the chest. The infection
ratio is drawn first; the lesion is then as many voxels of lung as it takes, those with the highest score of
a smooth field.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter1d

from dsan_model.cases import LARGE_CAP_ABOVE, TABLE3_BOUNDS, Label
from simulation.phantom_anatomy import AIR_HU, BLOOD_HU, MUSCLE_HU, blend
from simulation.phantom_chest import Chest, healthy_chest
from simulation.phantom_grid import Bools, Floats, Grid, slabs
from simulation.phantom_lesions import distance_mm, infect
from simulation.scanners import Scanner

# Infection ratio at cumulative frequencies, log-uniform in between. The frequencies at 0.005 and 0.030 are
# those of Table III, the one of CAP at 0.001 makes its weight in size-balanced sampling about 1.5 (III-C);
# the ends are ours.
RATIO_QUANTILES = {
    Label.COVID: ((0.0, 151 / 1094, 469 / 1094, 1.0), (0.0001, *TABLE3_BOUNDS, 0.30)),
    Label.CAP: ((0.0, 0.6, 838 / 1092, 1021 / 1092, 1.0), (0.0001, LARGE_CAP_ABOVE, *TABLE3_BOUNDS, 0.30)),
}


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
    chest = healthy_chest(plan.scanner, plan.shape_DHW, plan.anatomy_seed, rng)
    infection_n = infect(chest, plan.label, plan.infection_ratio, rng)
    return _scan(chest, infection_n, plan.scanner, rng)


def right_lung_mark(scanner: Scanner, shape_DHW: tuple[int, int, int], seed: int = 0) -> Phantom:
    """A healthy chest with a dense ball of 25 mm radius in the patient's right lung, marked as infection.

    For tests of orientation: read and resampled in any way, the mark has to lie in the right lung only.
    """
    rng = np.random.default_rng(seed)
    chest = healthy_chest(scanner, shape_DHW, seed, rng)
    z, y, x = chest.lung.position_mm_zyx
    is_right = x < 0
    centre_zyx = tuple(float(np.median(axis[is_right])) for axis in (z, y, x))
    mark_n = is_right & (distance_mm((z, y, x), centre_zyx) < 25)
    chest.lung.parenchyma_hu_n[mark_n] = MUSCLE_HU
    return _scan(chest, mark_n, scanner, rng)


def _scan(chest: Chest, infected_n: Bools, scanner: Scanner, rng: np.random.Generator) -> Phantom:
    lung, shape_DHW = chest.lung, chest.grid.shape_dhw
    ct_DHW = np.empty(shape_DHW, np.int16)
    lung_hu_DHW = np.full(shape_DHW, chest.anatomy.parenchyma_hu, np.float32)
    lung_hu_DHW[lung.voxel] = lung.parenchyma_hu_n
    for planes in slabs(shape_DHW):
        hu = chest.trunk_hu_DHW[planes].copy()
        blend(hu, chest.lung_share_DHW[planes], lung_hu_DHW[planes])
        blend(hu, chest.vessel_share_DHW[planes], np.float32(BLOOD_HU))
        blend(hu, chest.airway_share_DHW[planes], np.float32(AIR_HU))
        hu += _noise_hu(scanner, chest.grid.slab(planes), rng)
        hu += np.float32(scanner.offset_hu)
        ct_DHW[planes] = np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu)
    ct_DHW[:, _is_outside_circle(chest.grid)] = scanner.outside_circle_hu
    infected = tuple(index[infected_n] for index in lung.voxel)
    masks = (_mask(shape_DHW, lung.voxel), _mask(shape_DHW, infected))
    ct, lung_mask, infection = (_image(array, chest.grid, scanner) for array in (ct_DHW, *masks))
    return Phantom(ct, lung_mask, infection, int(infected_n.sum()) / len(lung))


def _noise_hu(scanner: Scanner, grid: Grid, rng: np.random.Generator) -> Floats:
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


def _is_outside_circle(grid: Grid) -> Bools:
    """Rows and columns that the scanner does not reconstruct."""
    radius = np.hypot(grid.y[:, None] - grid.y.mean(), grid.x - grid.x.mean())
    return cast(Bools, radius > np.ptp(grid.x) / 2 + 1)


def _mask(shape_DHW: tuple[int, int, int], voxel: tuple[npt.NDArray[np.intp], ...]) -> npt.NDArray[np.uint8]:
    mask = np.zeros(shape_DHW, np.uint8)
    mask[voxel] = 1
    return mask


def _image(array_DHW: npt.NDArray[np.int16 | np.uint8], grid: Grid, scanner: Scanner) -> sitk.Image:
    image = sitk.GetImageFromArray(array_DHW)
    image.SetSpacing(grid.spacing_mm_zyx[::-1])
    image.SetOrigin([round(float(axis[0]), 3) for axis in (grid.x, grid.y, grid.z)])
    oriented: sitk.Image = sitk.DICOMOrient(image, scanner.orientation)
    return oriented
