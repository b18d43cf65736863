"""Does each slice of a scan go with its neighbours? Lost pixels and a wrong order leave every header right.

Slices are compared by means over strips of a few pixels, which noise hardly reaches, in HU between air and
bone. On the real scans and the phantoms at hand (2 to 8 mm) a slice was never further than 0.8 of its
neighbours' distance from the nearer of them, one distance never more than 2.3 times the usual one, and slices
2 cm apart differed at least 2.1 times as much as neighbours; slices that lost half of their pixels gave 3.5
and 8 times, slices in a random order 1.3 at most.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.findings import Finding
from client.lung_sample import lps_view, spacing_mm_zyx

ROWS, STRIPS = 32, 32  # of a slice that are looked at, and means of each row
RANGE_HU = (-1000, 400)
BODY_ABOVE_HU = -500
BLANK_SHARE = 0.02  # of body in a slice: less is padding above or below the patient
MOST_ODD = 2.0  # distance to the nearer neighbour, by that between both
LARGEST_JUMP, JUMP_HU = 5.0, 100.0  # distance of two neighbours, by the usual one; and at least this much
FAR_MM, LEAST_FAR = 20.0, 1.5  # slices so far apart differ so many times as much as neighbours
UNLIKE_HU = 40.0  # neighbours that differ less are in order; those of a random order differ by 100 or so
LEAST_SLICES = 8
QUIET_HU = 30.0  # slices that differ less are alike, as far as a small lesion goes

Sketch = npt.NDArray[np.float32]  # (slices, rows, strips), HU

_FIX = "Export the series again and look at it slice by slice; if it stays so, leave the case out."


def continuity_findings(ct: sitk.Image) -> tuple[Finding, ...]:
    """Errors SCAN-ORDER, SCAN-ODD-SLICE and SCAN-JUMP of a scan in HU; none for a few slices.

    Slices are counted from the feet, from 1. About a 16th of the voxels of a full-sized scan is read.
    """
    sketch = _sketch(lps_view(ct))
    body = np.flatnonzero(np.mean(sketch > BODY_ABOVE_HU, axis=(1, 2)) > BLANK_SHARE)
    if len(body) == 0 or body[-1] - body[0] + 1 < LEAST_SLICES:
        return ()
    first = int(body[0])
    sketch = sketch[first : int(body[-1]) + 1]
    next_hu = _distances_hu(sketch, 1)
    far = min(max(3, round(FAR_MM / spacing_mm_zyx(ct)[0])), len(sketch) // 3)
    coarse = _coarse(sketch)
    next_coarse_hu = _usual(coarse, 1)
    is_mixed = next_coarse_hu > UNLIKE_HU and _usual(coarse, far) < LEAST_FAR * next_coarse_hu
    if far >= 3 and is_mixed:
        message = f"neighbours differ as much as slices {far} apart: they are not in the order of the body"
        return (_error("SCAN-ORDER", "slices", message),)
    nearer_hu = np.minimum(next_hu[:-1], next_hu[1:])
    odd = nearer_hu > MOST_ODD * np.maximum(_distances_hu(sketch, 2), QUIET_HU)
    if odd.any():
        numbers = [first + 2 + int(i) for i in np.flatnonzero(odd)]
        message = "it is like neither of its neighbours, which are alike: pixels are lost, or of another scan"
        return (_error("SCAN-ODD-SLICE", f"slice {_some(numbers)} from the feet", message),)
    usual_hu = float(np.median(next_hu))
    jumps = np.flatnonzero(next_hu > max(LARGEST_JUMP * usual_hu, JUMP_HU))
    if len(jumps):
        below = first + 1 + int(jumps[0])
        message = (
            f"they differ by {next_hu[jumps[0]]:.0f} HU on average, neighbours here by {usual_hu:.0f}: "
            "pixels or slices are lost"
        )
        return (_error("SCAN-JUMP", f"slices {below} and {below + 1} from the feet", message),)
    return ()


def _sketch(volume_DHW: npt.NDArray[Any]) -> Sketch:
    """Every few rows, each as the means of its strips."""
    n_slices, height, width = volume_DHW.shape
    step, strip = max(1, height // ROWS), max(1, width // STRIPS)
    rows = volume_DHW[:, step // 2 :: step, : width // strip * strip]
    means = rows.astype(np.float32).reshape(-1, strip) @ np.full(strip, 1 / strip, np.float32)
    sketch: Sketch = np.clip(means.reshape(n_slices, rows.shape[1], -1), *RANGE_HU)
    return sketch


def _coarse(sketch: Sketch) -> Sketch:
    """Means of 4 x 4: what is left of noise here is nothing beside the differences of far slices."""
    n_slices, rows, strips = (size // side for size, side in zip(sketch.shape, (1, 4, 4), strict=True))
    whole = sketch[:, : rows * 4, : strips * 4]
    coarse: Sketch = whole.reshape(n_slices, rows, 4, strips, 4).mean(axis=(2, 4))
    return coarse


def _usual(sketch: Sketch, apart: int) -> float:
    return float(np.median(_distances_hu(sketch, apart)))


def _distances_hu(sketch: Sketch, apart: int) -> npt.NDArray[np.float32]:
    """Mean absolute difference of each slice from the one so many further up."""
    distances: npt.NDArray[np.float32] = np.abs(sketch[apart:] - sketch[:-apart]).mean(axis=(1, 2))
    return distances


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _error(code: str, where: str, message: str) -> Finding:
    return Finding(code, "error", where, message, _FIX)
