"""The upright grid that lungs and infection are segmented on, and the way back to the scan's own.

Suffixes: _DHW an array over (z, y, x) of the grid, in LPS: feet up, front to back, right to left.
"""

import hashlib
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from dsan_model.preprocessing import PAPER_SPACING_MM_XYZ, WINDOW_HU

Spacing = tuple[float, float, float]
OUTSIDE_HU = -1024.0
SHARES = 200  # a mask is interpolated in so many steps
RECIPE_VERSION = 1  # raise it with every change that alters a volume on the grid


@dataclass(frozen=True)
class SegmentationRecipe:
    """What a segmentation study may vary of its volumes: the spacing; the default is that of IV-B."""

    spacing_mm_xyz: Spacing = PAPER_SPACING_MM_XYZ

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides how a volume comes out."""
        text = f"segmentation {RECIPE_VERSION}; spacing {self.spacing_mm_xyz}; window {WINDOW_HU}"
        return hashlib.sha256(text.encode()).hexdigest()


def in_lps_order(image: sitk.Image) -> sitk.Image:
    """The image with its axes stored along the patient's, nearly: whole blocks of voxels begin at one end."""
    if sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()) == "LPS":
        return image
    ordered: sitk.Image = sitk.DICOMOrient(image, "LPS")
    return ordered


def upright_grid(ct: sitk.Image, spacing_mm_xyz: Spacing) -> sitk.Image:
    """The scan (float32, HU) on an upright LPS grid of this spacing; finer voxels are averaged first."""
    shrunk = _averaged(ct, spacing_mm_xyz)
    corners = product(*[(0, size - 1) for size in shrunk.GetSize()])
    corners_mm = [shrunk.TransformIndexToPhysicalPoint(corner) for corner in corners]
    low_mm, high_mm = np.min(corners_mm, axis=0), np.max(corners_mm, axis=0)
    size = [int(steps) + 1 for steps in (high_mm - low_mm) / spacing_mm_xyz + 1e-6]
    return sitk.Resample(
        shrunk, size, sitk.Transform(), sitk.sitkLinear, low_mm.tolist(), list(spacing_mm_xyz),
        [1, 0, 0, 0, 1, 0, 0, 0, 1], OUTSIDE_HU, sitk.sitkFloat32,
    )  # fmt: skip


def windowed(grid: sitk.Image) -> npt.NDArray[np.float32]:
    """(D, H, W), the window of IV-B mapped to -1 to 1."""
    low_hu, high_hu = WINDOW_HU
    hu_DHW: npt.NDArray[np.float32] = sitk.GetArrayViewFromImage(grid)
    scaled: npt.NDArray[np.float32] = (np.clip(hu_DHW, low_hu, high_hu) - low_hu) * (
        2 / (high_hu - low_hu)
    ) - 1
    return scaled


def mask_on_grid(mask: sitk.Image, grid: sitk.Image) -> npt.NDArray[np.bool_]:
    """(D, H, W): the voxels of the grid of which at least half is inside; `mask` is uint8, 0 and 1."""
    shares = _averaged(mask * SHARES, grid.GetSpacing())
    linear = sitk.sitkLinear
    on_grid = sitk.Resample(shares, grid, sitk.Transform(), linear, 0, sitk.sitkUInt8) >= SHARES // 2
    inside_DHW: npt.NDArray[np.bool_] = sitk.GetArrayFromImage(on_grid).view(np.bool_)
    return inside_DHW


def mask_on_scan(
    probability_DHW: npt.NDArray[np.float32], probable_from: float, grid: sitk.Image, ct: sitk.Image
) -> sitk.Image:
    """uint8 on the scan's grid, 1 where the interpolated probability is at least `probable_from`.

    Beyond the grid (by less than a voxel) the probability at its edge goes on.
    """
    probability = sitk.GetImageFromArray(probability_DHW)
    probability.CopyInformation(grid)
    linear = sitk.sitkLinear
    on_scan: sitk.Image = (
        sitk.Resample(probability, ct, sitk.Transform(), linear, 0.0, sitk.sitkFloat32, True) >= probable_from
    )
    return on_scan


def _averaged(image: sitk.Image, spacing_mm_xyz: Spacing) -> sitk.Image:
    """The mean of as many voxels along each axis as fit into one of the grid's, nearly."""
    ordered = in_lps_order(image)
    factors = [
        max(1, min(size, int(coarse_mm / spacing_mm)))
        for size, spacing_mm, coarse_mm in zip(
            ordered.GetSize(), ordered.GetSpacing(), spacing_mm_xyz, strict=True
        )
    ]
    return sitk.BinShrink(ordered, factors) if max(factors) > 1 else ordered
