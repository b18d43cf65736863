"""Are these the lungs of this scan, both of them and whole? The audit of given and of segmented lungs (IV-A).

A given mask may be on the right grid and still be wrong: mirrored, another patient's, of one lung. It is
compared with the air inside the body, on every few voxels only, so that it costs no time beside the reading.
"""
# Suffixes: _DHW is (z, y, x) in LPS: from the feet up, from front to back, from the patient's right to left.

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.findings import Finding, FindingError

MAX_CUT_CM2 = 10.0  # of lung on the first or last slice
MIN_LUNG_SHARE = 0.12  # of both lungs' volume; the smaller lung has 0.4 to 0.5 in health
SAMPLED_SIDE = 64  # voxels of each axis that are looked at, at most twice as many
AIR_BELOW_HU = -400  # half way between lung and soft tissue
TISSUE_ABOVE_HU = -300
MIN_AIR_IN_MASK = 0.05  # a mask with less holds no lung; white lungs of the dying have more
MISFIT = 0.25  # of the mask without air, and of the lungs' air outside it: no illness makes both
MIRRORED_BETTER_BY = 0.03  # in Dice with the air; heart and stomach make the lungs unlike each other
MIN_DENSER_HU = 50.0  # infection than the rest of the lung
MIN_SAMPLED_INFECTION = 30  # voxels; fewer say nothing

_FIX_MASK = "Name a lung mask in cohort.csv, or leave the case out."
_FIX_GIVEN = "Look at the case in the QC page; use the mask that was drawn on this very scan."

Array = npt.NDArray[Any]  # a view of an image's voxels
Mask = npt.NDArray[np.bool_]


def one_lung_findings(
    right_ml: float, left_ml: float, source: str, case_id: str | None
) -> tuple[Finding, ...]:
    """Warns SEG-ONE-LUNG if hardly any of the lungs lies on one side; `source` is what made the mask."""
    if min(right_ml, left_ml) >= MIN_LUNG_SHARE * (right_ml + left_ml):
        return ()
    missing = "right" if right_ml < left_ml else "left"
    found = f"{right_ml:.0f} ml on the right, {left_ml:.0f} ml on the left ({source})"
    message = f"the {missing} lung is missing: {found}"
    fix = f"Look at the case: a lung without air is not found by every method. {_FIX_MASK}"
    return (Finding("SEG-ONE-LUNG", "warning", "lung mask", message, fix, case_id),)


def cut_findings(top_cm2: float, bottom_cm2: float, case_id: str | None) -> tuple[Finding, ...]:
    """Warns SEG-LUNGS-CUT if the lungs reach the first or last slice with more than MAX_CUT_CM2."""
    areas_cm2 = {"top": top_cm2, "bottom": bottom_cm2}
    cut = {end: area_cm2 for end, area_cm2 in areas_cm2.items() if area_cm2 > MAX_CUT_CM2}
    if not cut:
        return ()
    where = " and ".join(f"the {end} ({area_cm2:.0f} cm2 on the last slice)" for end, area_cm2 in cut.items())
    message = f"the lungs are cut off at {where}; volumes and the infection ratio are of a part"
    fix = "Use a series that covers the lungs."
    return (Finding("SEG-LUNGS-CUT", "warning", "lung mask", message, fix, case_id),)


def audit_given_lungs(ct: sitk.Image, lung: sitk.Image, case_id: str | None = None) -> tuple[Finding, ...]:
    """Warnings about a given lung mask (uint8, 0 and 1, on the grid of `ct`, not empty).

    Warns SEG-ONE-LUNG, SEG-LUNGS-CUT and IMAGE-LUNG-MISFIT; raises FindingError IMAGE-LUNG-MIRRORED or
    IMAGE-LUNG-MISFIT for a mask that cannot be this scan's.
    """
    sample = _sample(ct, lung)
    _, y_mm, x_mm = _spacing_mm_zyx(ct)
    lung_DHW = lps_view(lung)
    top_cm2, bottom_cm2 = (np.count_nonzero(lung_DHW[z]) * y_mm * x_mm / 100 for z in (-1, 0))
    fit = _fit(sample)
    if fit is not None:
        _refuse_without_air(fit, case_id)
        _refuse_mirrored(fit, case_id)
    return (
        *one_lung_findings(*sample.sides_ml(), "given", case_id),
        *cut_findings(top_cm2, bottom_cm2, case_id),
        *(_misfit_findings(fit, case_id) if fit is not None else ()),
    )


def audit_given_infection(
    ct: sitk.Image, lung: sitk.Image, infection: sitk.Image, case_id: str | None = None
) -> tuple[Finding, ...]:
    """Warns IMAGE-INFECTION-MISFIT if the marked infection is no denser than the rest of the lung."""
    sample = _sample(ct, lung)
    marked_DHW = (lps_view(infection)[sample.steps] > 0) & sample.lung_DHW
    if np.count_nonzero(marked_DHW) < MIN_SAMPLED_INFECTION or marked_DHW.sum() > 0.9 * sample.lung_DHW.sum():
        return ()
    marked_hu = float(np.median(sample.hu_DHW[marked_DHW]))
    rest_hu = float(np.median(sample.hu_DHW[sample.lung_DHW & ~marked_DHW]))
    if marked_hu >= rest_hu + MIN_DENSER_HU:
        return ()
    mirrored_DHW = _mirrored(marked_DHW, sample.midline_x) & sample.lung_DHW
    is_mirrored = bool(mirrored_DHW.any()) and (
        float(np.median(sample.hu_DHW[mirrored_DHW])) >= rest_hu + 2 * MIN_DENSER_HU
    )
    message = (
        f"what it marks has {marked_hu:.0f} HU in the middle, the rest of the lungs {rest_hu:.0f} HU: it is "
        f"no infection of this scan{'; mirrored left to right it would be' if is_mirrored else ''}"
    )
    return (Finding("IMAGE-INFECTION-MISFIT", "warning", "infection mask", message, _FIX_GIVEN, case_id),)


def lps_view(image: sitk.Image) -> Array:
    """The voxels as (z, y, x), each axis along the patient's nearest; lives as long as `image`."""
    cosines = np.reshape(image.GetDirection(), (3, 3))
    stored = np.argmax(np.abs(cosines), axis=1)
    array: Array = sitk.GetArrayViewFromImage(image).transpose([2 - axis for axis in reversed(stored)])
    steps = [-1 if cosines[lps, stored[lps]] < 0 else 1 for lps in (2, 1, 0)]
    return array[tuple(slice(None, None, step) for step in steps)]


# ---- the sample ----


@dataclass(frozen=True)
class _Sample:
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
class _Fit:
    """How a mask lies on the air inside the body."""

    air_in_mask: float  # share of the mask that is air
    air_outside: float  # share of the air that the mask leaves out
    dice: float
    mirrored_dice: float  # of the mask mirrored at the middle of the body


def _sample(ct: sitk.Image, lung: sitk.Image) -> _Sample:
    hu_DHW, lung_DHW = lps_view(ct), lps_view(lung)
    strides = [max(1, size // SAMPLED_SIDE) for size in hu_DHW.shape]
    steps = tuple(slice(None, None, stride) for stride in strides)
    sampled_hu_DHW = np.ascontiguousarray(hu_DHW[steps])
    voxel_ml = float(np.prod(ct.GetSpacing()) * np.prod(strides)) / 1000
    return _Sample(steps, sampled_hu_DHW, lung_DHW[steps] > 0, _midline_x(sampled_hu_DHW), voxel_ml)


def _midline_x(hu_DHW: Array) -> float:
    """Middle of the body: half of its tissue lies on either side; a table is as symmetric as it is."""
    tissue_x = np.count_nonzero(hu_DHW > TISSUE_ABOVE_HU, axis=(0, 1)).astype(float)
    if not tissue_x.any():
        return len(tissue_x) / 2
    columns = np.flatnonzero(tissue_x > 0.05 * tissue_x.max())
    return float(columns[0] + columns[-1] + 1) / 2


def _fit(sample: _Sample) -> _Fit | None:
    """None where the scan shows no air inside a body to compare with."""
    air_DHW = _air_inside(sample.hu_DHW)
    n_air, n_mask = np.count_nonzero(air_DHW), np.count_nonzero(sample.lung_DHW)
    if not n_air or not n_mask:
        return None
    n_both = np.count_nonzero(air_DHW & sample.lung_DHW)
    n_mirrored = np.count_nonzero(air_DHW & _mirrored(sample.lung_DHW, sample.midline_x))
    dice, mirrored_dice = (2 * n / (n_air + n_mask) for n in (n_both, n_mirrored))
    return _Fit(n_both / n_mask, 1 - n_both / n_air, dice, mirrored_dice)


def _air_inside(hu_DHW: Array) -> Mask:
    """Air that does not reach the sides of the scan: lungs and airways, and what gas the bowel has."""
    air = sitk.GetImageFromArray((hu_DHW < AIR_BELOW_HU).astype(np.uint8))
    labels_DHW = sitk.GetArrayFromImage(sitk.ConnectedComponent(air))
    sides = (labels_DHW[:, 0], labels_DHW[:, -1], labels_DHW[:, :, 0], labels_DHW[:, :, -1])
    is_inside = np.ones(int(labels_DHW.max()) + 1, np.bool_)
    is_inside[np.unique(np.concatenate([side.ravel() for side in sides]))] = False
    is_inside[0] = False
    inside_DHW: Mask = is_inside[labels_DHW]
    return inside_DHW


def _mirrored(mask_DHW: Mask, midline_x: float) -> Mask:
    """The mask with left and right swapped at the midline."""
    source_x = np.round(2 * midline_x - 1 - np.arange(mask_DHW.shape[2])).astype(int)
    is_there_x = (source_x >= 0) & (source_x < mask_DHW.shape[2])
    mirrored_DHW: Mask = mask_DHW[:, :, np.clip(source_x, 0, mask_DHW.shape[2] - 1)] & is_there_x
    return mirrored_DHW


def _spacing_mm_zyx(image: sitk.Image) -> tuple[float, float, float]:
    stored = np.argmax(np.abs(np.reshape(image.GetDirection(), (3, 3))), axis=1)
    x_mm, y_mm, z_mm = (float(image.GetSpacing()[axis]) for axis in stored)
    return z_mm, y_mm, x_mm


# ---- findings ----


def _refuse_mirrored(fit: _Fit, case_id: str | None) -> None:
    if fit.mirrored_dice > fit.dice + MIRRORED_BETTER_BY:
        message = (
            f"mirrored left to right it fits the scan better (Dice with the air of the lungs "
            f"{fit.mirrored_dice:.2f}, as it is {fit.dice:.2f})"
        )
        fix = "Write the mask with the orientation of its scan; mind LPS (DICOM) against RAS (NIfTI)."
        raise FindingError(Finding("IMAGE-LUNG-MIRRORED", "error", "lung mask", message, fix, case_id))


def _refuse_without_air(fit: _Fit, case_id: str | None) -> None:
    if fit.air_in_mask < MIN_AIR_IN_MASK:
        message = f"{fit.air_in_mask:.0%} of what it marks holds air: these are not the lungs of this scan"
        raise FindingError(Finding("IMAGE-LUNG-MISFIT", "error", "lung mask", message, _FIX_GIVEN, case_id))


def _misfit_findings(fit: _Fit, case_id: str | None) -> tuple[Finding, ...]:
    if min(1 - fit.air_in_mask, fit.air_outside) < MISFIT:
        return ()
    message = (
        f"{1 - fit.air_in_mask:.0%} of what it marks holds no air, and {fit.air_outside:.0%} of the air of "
        "the lungs lies outside: it may be another patient's"
    )
    return (Finding("IMAGE-LUNG-MISFIT", "warning", "lung mask", message, _FIX_GIVEN, case_id),)
