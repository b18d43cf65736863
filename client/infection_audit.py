"""Is the given infection mask one of this scan, and of an infection? (IV-A)"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from client.findings import Finding, FindingError
from client.images import mask_labels
from client.lung_sample import lps_view, lung_sample, mirrored

MIN_DENSER_HU = 50.0  # infection than the rest of the lung
MIN_SAMPLED = 30  # voxels; fewer say nothing
IS_LUNG_SHARE = 0.995  # of the lungs: nobody draws an infection to the lungs' very border
NEARLY_LUNG_SHARE = 0.9  # the lungs again where they are aerated; in white lungs it may be true
AERATED_BELOW_HU = -650.0  # the median of lungs; where ground glass is everywhere it is higher


def audit_infection(
    ct: sitk.Image, lung: sitk.Image, infection: sitk.Image, file: Path | None, case_id: str | None = None
) -> tuple[Finding, ...]:
    """Warns IMAGE-INFECTION-MISFIT if the marked infection is no denser than the rest of the lung.

    The masks are uint8, 0 and 1, on the grid of `ct`; `file` is what the infection was read from, if it was.
    Raises FindingError IMAGE-INFECTION-IS-LUNG if it is the lungs, or what holds them, once more.
    """
    sample = lung_sample(ct, lung)
    marked_DHW = (lps_view(infection)[sample.steps] > 0) & sample.lung_DHW
    n_marked = np.count_nonzero(marked_DHW)
    if n_marked < MIN_SAMPLED:
        return ()
    share, marked_hu = (
        n_marked / np.count_nonzero(sample.lung_DHW),
        float(np.median(sample.hu_DHW[marked_DHW])),
    )
    if share >= IS_LUNG_SHARE or (share >= NEARLY_LUNG_SHARE and marked_hu < AERATED_BELOW_HU):
        raise _is_lung(share, marked_hu, mask_labels(file) if file else (), case_id)
    if share >= NEARLY_LUNG_SHARE:
        return ()
    rest_hu = float(np.median(sample.hu_DHW[sample.lung_DHW & ~marked_DHW]))
    if marked_hu >= rest_hu + MIN_DENSER_HU:
        return ()
    mirrored_DHW = mirrored(marked_DHW, sample.midline_x) & sample.lung_DHW
    is_mirrored = bool(mirrored_DHW.any()) and (
        float(np.median(sample.hu_DHW[mirrored_DHW])) >= rest_hu + 2 * MIN_DENSER_HU
    )
    message = (
        f"what it marks has {marked_hu:.0f} HU in the middle, the rest of the lungs {rest_hu:.0f} HU: it is "
        f"no infection of this scan{'; mirrored left to right it would be' if is_mirrored else ''}"
    )
    fix = "Look at the case in the QC page; use the mask that was drawn on this very scan."
    return (Finding("IMAGE-INFECTION-MISFIT", "warning", "infection mask", message, fix, case_id),)


def _is_lung(share: float, marked_hu: float, labels: tuple[int, ...], case_id: str | None) -> FindingError:
    message = (
        f"it marks {share:.1%} of the lungs, whose median there is {marked_hu:.0f} HU: it is the lungs again"
    )
    fix = "See that the columns lung_mask and infection_mask name the masks that they say."
    if len(labels) > 1:
        message += f"; its file holds the labels {', '.join(map(str, labels))}, and every one above 0 counts"
        fix = (
            "Write a file with the label of the infection alone, 0 elsewhere, and name it in infection_mask."
        )
    return FindingError(Finding("IMAGE-INFECTION-IS-LUNG", "error", "infection mask", message, fix, case_id))
