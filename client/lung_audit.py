"""Are these the lungs of this scan, both of them and whole? The audit of given and of segmented lungs (IV-A).

A given mask may be on the right grid and still be wrong: mirrored, another patient's, of one lung. It is
compared with the air inside the body, on every few voxels only, so that it costs no time beside the reading.
"""
# Suffixes: _DHW is (z, y, x) in LPS: from the feet up, from front to back, from the patient's right to left.

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from client.findings import Finding, FindingError, Severity
from client.lung_sample import Array, Fit, Sample, fit_of, lps_view, lung_sample, spacing_mm_zyx
from client.mask_names import GIVEN

MAX_CUT_CM2 = 10.0  # of lung on the first or last slice
MIN_LUNG_SHARE = 0.12  # of both lungs' volume; the smaller lung has 0.4 to 0.5 in health
MIN_AIR_IN_MASK = 0.05  # a mask with less holds no lung; white lungs of the dying have more
MISFIT = 0.25  # of the mask without air, and of the lungs' air outside it: no illness makes both
MAX_LUNGS_ML = 12_000.0  # the largest lungs, with emphysema, hold some 10 l
MAX_BODY_SHARE = 0.5  # of the body that the scan shows, if most of the mask is no air; lungs have 0.1 to 0.4
MAX_DENSE = 0.7  # of a mask; only the gravest pneumonia leaves less air
MIN_LEFT_OUT = 0.25  # of the air of the lungs that a mask marks; the airways have 0.02
MIRRORED_BETTER_BY = 0.03  # in Dice with the air; heart and stomach make the lungs unlike each other

_FIX_MASK = "Name a lung mask in cohort.csv, or leave the case out."
_FIX_GIVEN = "Look at the case in the QC page; use the mask that was drawn on this very scan."
_FIX_SEGMENTED = f"Look at the case in the QC page. {_FIX_MASK[:-1]}, or choose another method in site.toml."


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


def audit_lungs(
    ct: sitk.Image, lung: sitk.Image, source: str = GIVEN, case_id: str | None = None
) -> tuple[Finding, ...]:
    """Warnings about a lung mask (uint8, 0 and 1, on the grid of `ct`, not empty); `source` made it.

    Warns SEG-ONE-LUNG, SEG-LUNGS-CUT, IMAGE-LUNG-PART and IMAGE-LUNG-MISFIT; raises FindingError
    IMAGE-LUNG-TOO-LARGE, IMAGE-LUNG-MIRRORED or IMAGE-LUNG-MISFIT for a mask that cannot be this scan's.
    """
    mask = _Mask(source, case_id)
    sample = lung_sample(ct, lung)
    _, y_mm, x_mm = spacing_mm_zyx(ct)
    n_marked_z = np.array([np.count_nonzero(slice_yx) for slice_yx in lps_view(lung).view(np.bool_)])
    bottom_cm2, top_cm2 = (float(n_marked_z[z]) * y_mm * x_mm / 100 for z in (0, -1))
    fit = fit_of(sample)
    if fit is not None:
        _refuse_without_air(fit, mask)
    _refuse_too_large(sample, fit, mask)
    if fit is not None:
        _refuse_mirrored(fit, mask)
    of_sides = one_lung_findings(*sample.sides_ml(), source, case_id)
    return (
        *of_sides,
        *cut_findings(top_cm2, bottom_cm2, case_id),
        *_gap_findings(n_marked_z, mask),
        *(_fit_findings(fit, mask, has_both_sides=not of_sides) if fit is not None else ()),
    )


def nothing_left(message: str, case_id: str | None = None) -> FindingError:
    """The error for a lung mask of which a network's grid holds no voxel; `message` says how much it was."""
    fix = "Give a mask of the whole lungs, segment them again, or leave the case out."
    return FindingError(Finding("IMAGE-LUNG-TINY", "error", "lung mask", message, fix, case_id))


# ---- findings ----


@dataclass(frozen=True)
class _Mask:
    """Whose mask is judged."""

    source: str  # "given", or the method that made it
    case_id: str | None

    def finding(self, code: str, severity: Severity, message: str, fix: str = "") -> Finding:
        """About this mask; without `fix`, what helps against a mask of its source."""
        is_given = self.source == GIVEN
        of_source = "" if is_given else f" ({self.source})"
        fix = fix or (_FIX_GIVEN if is_given else _FIX_SEGMENTED)
        return Finding(code, severity, "lung mask", f"{message}{of_source}", fix, self.case_id)

    def error(self, code: str, message: str, fix: str = "") -> FindingError:
        return FindingError(self.finding(code, "error", message, fix))


def _refuse_too_large(sample: Sample, fit: Fit | None, mask: _Mask) -> None:
    volume_l, limit_l = sum(sample.sides_ml()) / 1000, MAX_LUNGS_ML / 1000
    if volume_l > limit_l:
        message = f"it marks {volume_l:.1f} l; lungs hold at most {limit_l:g} l"
    elif fit is not None and fit.body_share > MAX_BODY_SHARE and fit.air_in_mask < 0.5:
        message = f"it marks {fit.body_share:.0%} of the body, and {fit.air_in_mask:.0%} of that is air"
    else:
        return
    raise mask.error("IMAGE-LUNG-TOO-LARGE", message)


def _refuse_mirrored(fit: Fit, mask: _Mask) -> None:
    if fit.mirrored_dice > fit.dice + MIRRORED_BETTER_BY:
        message = (
            f"mirrored left to right it fits the scan better (Dice with the air of the lungs "
            f"{fit.mirrored_dice:.2f}, as it is {fit.dice:.2f})"
        )
        fix = "Write the mask with the orientation of its scan; mind LPS (DICOM) against RAS (NIfTI)."
        raise mask.error("IMAGE-LUNG-MIRRORED", message, fix if mask.source == GIVEN else "")


def _refuse_without_air(fit: Fit, mask: _Mask) -> None:
    if fit.air_in_mask < MIN_AIR_IN_MASK:
        message = f"{fit.air_in_mask:.0%} of what it marks holds air: these are not the lungs of this scan"
        raise mask.error("IMAGE-LUNG-MISFIT", message)


def _fit_findings(fit: Fit, mask: _Mask, has_both_sides: bool) -> tuple[Finding, ...]:
    dense = 1 - fit.air_in_mask
    code = "IMAGE-LUNG-MISFIT"
    if min(dense, fit.air_outside) >= MISFIT:
        whose = ": it may be another patient's" if mask.source == GIVEN else ""
        message = (
            f"{dense:.0%} of what it marks holds no air, and {fit.air_outside:.0%} of the air of the lungs "
            f"lies outside{whose}"
        )
    elif dense > MAX_DENSE:
        message = f"{dense:.0%} of what it marks holds no air: these are white lungs, or more than lungs"
    elif has_both_sides and fit.lung_air_outside >= MIN_LEFT_OUT:
        code = "IMAGE-LUNG-PART"
        message = f"it leaves out {fit.lung_air_outside:.0%} of the air of the lungs that it marks"
    else:
        return ()
    return (mask.finding(code, "warning", message),)


def _gap_findings(n_marked_z: Array, mask: _Mask) -> tuple[Finding, ...]:
    """Slices without lung between slices with lung; half a mask is often one with every other slice."""
    marked = np.flatnonzero(n_marked_z)
    n_empty = int(marked[-1] - marked[0] + 1 - len(marked)) if len(marked) else 0
    if not n_empty:
        return ()
    message = f"{n_empty} slices between its first and its last of {len(n_marked_z)} mark no lung"
    return (mask.finding("IMAGE-LUNG-PART", "warning", message),)
