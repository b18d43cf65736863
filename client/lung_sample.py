"""Every few voxels of a scan with a mask of it, and how that mask lies on the air inside the body (IV-A).

It is looked at on a sample only, so that it costs no time beside the reading.
"""
# Suffixes: _DHW is (z, y, x) in LPS: from the feet up, from front to back, from the patient's right to left.

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

SAMPLED_SIDE = 64  # voxels of each axis that are looked at, at most twice as many
AIR_BELOW_HU = -400  # half way between lung and soft tissue
TISSUE_ABOVE_HU = -300
MIN_TOUCHED = 0.05  # of a piece of air, for it to be the lungs: a stroke into the stomach is no lung

Array = npt.NDArray[Any]  # a view of an image's voxels
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """Every few voxels of a scan and of its lung mask, and where the middle of the body is."""

    steps: tuple[slice, ...]
    hu_DHW: Array
    lung_DHW: Mask
    midline_x: float  # a column of the sample
    voxel_ml: float  # that a sampled voxel stands for

    def sides_ml(self) -> tuple[float, float]:
        """The mask's volume right and left of the midline."""
        columns = self.lung_DHW.sum(axis=(0, 1)) * self.voxel_ml
        is_right_x = np.arange(len(columns)) < self.midline_x
        return float(columns[is_right_x].sum()), float(columns[~is_right_x].sum())


@dataclass(frozen=True)
class Fit:
    """How a mask lies on the air inside the body."""

    air_in_mask: float  # share of the mask that is air
    air_outside: float  # share of the air that the mask leaves out
    lung_air_outside: float  # the same of those pieces of air that the mask marks
    body_share: float  # of the body, with all air inside, that the mask marks
    dice: float
    mirrored_dice: float  # of the mask mirrored at the middle of the body


def lung_sample(ct: sitk.Image, lung: sitk.Image) -> Sample:
    """`lung` is on the grid of `ct`, which is in HU."""
    hu_DHW, lung_DHW = lps_view(ct), lps_view(lung)
    strides = [max(1, size // SAMPLED_SIDE) for size in hu_DHW.shape]
    steps = tuple(slice(None, None, stride) for stride in strides)
    sampled_hu_DHW = np.ascontiguousarray(hu_DHW[steps])
    voxel_ml = float(np.prod(ct.GetSpacing()) * np.prod(strides)) / 1000
    return Sample(steps, sampled_hu_DHW, lung_DHW[steps] > 0, _midline_x(sampled_hu_DHW), voxel_ml)


def _midline_x(hu_DHW: Array) -> float:
    """Middle of the body: half of its tissue lies on either side; a table is as symmetric as it is."""
    tissue_x = np.count_nonzero(hu_DHW > TISSUE_ABOVE_HU, axis=(0, 1)).astype(float)
    if not tissue_x.any():
        return len(tissue_x) / 2
    columns = np.flatnonzero(tissue_x > 0.05 * tissue_x.max())
    return float(columns[0] + columns[-1] + 1) / 2


def fit_of(sample: Sample) -> Fit | None:
    """None where the sample holds no air inside a body, or nothing of the mask."""
    pieces_DHW = _air_inside(sample.hu_DHW)
    air_DHW, lung_DHW = pieces_DHW > 0, sample.lung_DHW
    n_air, n_mask = np.count_nonzero(air_DHW), np.count_nonzero(lung_DHW)
    if not n_air or not n_mask:
        return None
    n_both = np.count_nonzero(air_DHW & lung_DHW)
    n_mirrored = np.count_nonzero(air_DHW & mirrored(lung_DHW, sample.midline_x))
    n_body = np.count_nonzero(air_DHW | lung_DHW | (sample.hu_DHW > TISSUE_ABOVE_HU))
    dice, mirrored_dice = (2 * n / (n_air + n_mask) for n in (n_both, n_mirrored))
    return Fit(
        n_both / n_mask,
        1 - n_both / n_air,
        _left_out(pieces_DHW, lung_DHW),
        n_mask / n_body,
        dice,
        mirrored_dice,
    )


def _left_out(pieces_DHW: Array, lung_DHW: Mask) -> float:
    """Share that the mask leaves out of the pieces of air that it marks; gas of the bowel is none of them."""
    n_of_piece = np.bincount(pieces_DHW.ravel())
    n_marked = np.bincount(pieces_DHW[lung_DHW], minlength=len(n_of_piece))
    is_lung = n_marked > MIN_TOUCHED * n_of_piece
    is_lung[0] = False
    return 1 - float(n_marked[is_lung].sum()) / max(1.0, float(n_of_piece[is_lung].sum()))


def _air_inside(hu_DHW: Array) -> Array:
    """Labels of the pieces of air that do not reach the sides of the scan; 0 elsewhere.

    They are lungs and airways, and what gas the bowel has.
    """
    air = sitk.GetImageFromArray((hu_DHW < AIR_BELOW_HU).astype(np.uint8))
    labels_DHW = sitk.GetArrayFromImage(sitk.ConnectedComponent(air))
    sides = (labels_DHW[:, 0], labels_DHW[:, -1], labels_DHW[:, :, 0], labels_DHW[:, :, -1])
    label_of_piece = np.arange(int(labels_DHW.max()) + 1)
    label_of_piece[np.unique(np.concatenate([side.ravel() for side in sides]))] = 0
    pieces_DHW: Array = label_of_piece[labels_DHW]
    return pieces_DHW


def mirrored(mask_DHW: Mask, midline_x: float) -> Mask:
    """The mask with left and right swapped at the midline."""
    source_x = np.round(2 * midline_x - 1 - np.arange(mask_DHW.shape[2])).astype(int)
    is_there_x = (source_x >= 0) & (source_x < mask_DHW.shape[2])
    mirrored_DHW: Mask = mask_DHW[:, :, np.clip(source_x, 0, mask_DHW.shape[2] - 1)] & is_there_x
    return mirrored_DHW


def spacing_mm_zyx(image: sitk.Image) -> tuple[float, float, float]:
    """As the axes of `lps_view`."""
    stored = np.argmax(np.abs(np.reshape(image.GetDirection(), (3, 3))), axis=1)
    x_mm, y_mm, z_mm = (float(image.GetSpacing()[axis]) for axis in stored)
    return z_mm, y_mm, x_mm


def lps_view(image: sitk.Image) -> Array:
    """The voxels as (z, y, x), each axis along the patient's nearest; lives as long as `image`."""
    cosines = np.reshape(image.GetDirection(), (3, 3))
    stored = np.argmax(np.abs(cosines), axis=1)
    array: Array = sitk.GetArrayViewFromImage(image).transpose([2 - axis for axis in reversed(stored)])
    steps = [-1 if cosines[lps, stored[lps]] < 0 else 1 for lps in (2, 1, 0)]
    return array[tuple(slice(None, None, step) for step in steps)]
