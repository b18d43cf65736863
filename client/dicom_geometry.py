"""Do the slices of a series stand as one regular axial volume? Gaps, copies, tilts, mixtures (IV-A, IV-B).

Axes: N slices; positions and directions are (x, y, z) in mm, LPS.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.dicom_findings import ALL_SLICES, Headers, error, has_error, some_files, warning
from client.dicom_header import SliceHeader
from client.findings import Finding

FIELD_OF_VIEW_MM = (100.0, 1000.0)
MAX_OBLIQUE_DEG = 20.0
MAX_POSITION_ERROR_MM = 0.11  # some scanners write positions to a tenth of a mm
MAX_LATERAL_SHIFT_MM = 1.0  # slices further beside each other are sheared, or of two reconstructions

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """A series in the order of its slices along their normal, with its geometry (x, y, z; mm; LPS).

    `axes_33` has the directions of a row, of a column and of the normal as columns.
    """

    headers: tuple[SliceHeader, ...]
    positions_mm_N3: Array
    distances_mm: Array  # of each slice along the normal, ascending
    axes_33: Array

    @property
    def spacing_mm(self) -> float:
        """The mean distance of neighbouring slices; 0 for a single one."""
        intervals = len(self.headers) - 1
        return float(self.distances_mm[-1] - self.distances_mm[0]) / intervals if intervals else 0.0


def stack_slices(headers: Headers) -> Stack:
    """Orders slices by position along their normal, never by file name or InstanceNumber."""
    axes_33 = _axes(headers[0])
    positions_mm_N3 = np.array([header.position_mm_xyz for header in headers], dtype=np.float64)
    distances_mm = positions_mm_N3 @ axes_33[:, 2]
    order = np.argsort(distances_mm, kind="stable")
    return Stack(tuple(headers[i] for i in order), positions_mm_N3[order], distances_mm[order], axes_33)


def orientation_findings(headers: Headers) -> list[Finding]:
    """Directions that are none, that are not axial, or that differ within the series."""
    cosines_N23 = np.array([header.orientation for header in headers], dtype=np.float64).reshape(-1, 2, 3)
    lengths = np.linalg.norm(cosines_N23, axis=2)
    dots = np.abs(np.sum(cosines_N23[:, 0] * cosines_N23[:, 1], axis=1))
    if np.abs(lengths - 1).max() > 0.01 or dots.max() > 0.01:
        message = (
            "directions of rows and columns must be perpendicular unit vectors; found lengths "
            f"{lengths.min():.3g} to {lengths.max():.3g}, scalar products up to {dots.max():.3g}"
        )
        fix = "Export the series again: ImageOrientationPatient is damaged."
        return [error("DICOM-ORIENTATION", ALL_SLICES, message, fix)]
    return [*_off_axis(cosines_N23, headers), *_mixed_orientation(cosines_N23)]


def in_plane_findings(headers: Headers) -> list[Finding]:
    """PixelSpacing that no chest has, or that differs within the series; several frames of reference."""
    spacings_mm_N2 = np.array([header.pixel_spacing_mm_yx for header in headers], dtype=np.float64)
    pixels_N2 = np.array([(header.rows, header.columns) for header in headers], dtype=np.float64)
    extents_mm_N2 = spacings_mm_N2 * pixels_N2
    where, found = ALL_SLICES, f"{spacings_mm_N2.min():.4g} to {spacings_mm_N2.max():.4g} mm"
    findings = []
    low_mm, high_mm = FIELD_OF_VIEW_MM
    if extents_mm_N2.min() < low_mm or extents_mm_N2.max() > high_mm:
        message = (
            f"PixelSpacing {found} makes a field of view of {extents_mm_N2.min():.4g} to "
            f"{extents_mm_N2.max():.4g} mm; a chest takes {low_mm:g} to {high_mm:g} mm"
        )
        fix = "Export the series again with its true PixelSpacing: volumes and ratios depend on it."
        findings.append(error("DICOM-PIXEL-SPACING", where, message, fix))
    elif np.ptp(spacings_mm_N2, axis=0).max() > 0.001:
        fix = "Keep the slices of one reconstruction only."
        message = f"PixelSpacing differs within the series: {found}"
        findings.append(error("DICOM-MIXED-SPACING", where, message, fix))
    frames = {header.frame_uid for header in headers}
    if len(frames) > 1:
        message = f"the slices have {len(frames)} frames of reference: their positions cannot be compared"
        fix = "Keep the slices of one acquisition only."
        findings.append(error("DICOM-MIXED-FRAME", where, message, fix))
    return findings


def stacking_findings(stack: Stack) -> list[Finding]:
    """Copies, tilt, jumps, gaps and uneven distances; then highdicom's word, and what other tags say."""
    if len(stack.headers) == 1:
        return []
    findings = [*_lateral(stack), *(_duplicates(stack) or _intervals(stack))]
    if not has_error(findings):
        findings += [*_second_opinion(stack), *_other_tags(stack)]
    return findings


def _axes(header: SliceHeader) -> Array:
    """(3, 3): directions of row, column and normal as columns, made exactly orthonormal."""
    row, column = np.array(header.orientation, dtype=np.float64).reshape(2, 3)
    row = row / np.linalg.norm(row)
    normal = np.cross(row, column)
    normal = normal / np.linalg.norm(normal)
    return np.stack([row, np.cross(normal, row), normal], axis=1)


def _off_axis(cosines_N23: Array, headers: Headers) -> list[Finding]:
    normals_N3 = np.cross(cosines_N23[:, 0], cosines_N23[:, 1])
    leans_deg = np.degrees(np.arccos(np.minimum(np.abs(normals_N3[:, 2]), 1)))
    turns_deg = np.degrees(np.arccos(np.minimum(np.abs(cosines_N23[:, 0]).max(axis=1), 1)))
    bad = [header for header, lean in zip(headers, leans_deg, strict=True) if lean > MAX_OBLIQUE_DEG]
    if bad:
        message = f"slices stand up to {leans_deg.max():.0f} degrees off the axial plane"
        fix = "Use the original axial series, not a coronal, sagittal or oblique reformat."
        return [error("DICOM-NOT-AXIAL", some_files(bad, headers), message, fix)]
    oblique_deg = max(float(leans_deg.max()), float(turns_deg.max()))
    if oblique_deg <= 1:
        return []
    message = f"the slices are turned by {oblique_deg:.1f} degrees against the patient's axes"
    fix = "They will be resampled to these axes; use the unturned axial series if there is one."
    return [warning("DICOM-OBLIQUE", ALL_SLICES, message, fix)]


def _mixed_orientation(cosines_N23: Array) -> list[Finding]:
    differences = np.abs(cosines_N23 - cosines_N23[0]).max(axis=(1, 2))
    n_others = np.count_nonzero(differences > 0.001)
    if n_others == 0:
        return []
    message = f"{n_others} of {len(differences)} slices do not lie as the first, by {differences.max():.3g}"
    fix = "Keep the slices of one axial reconstruction only."
    return [error("DICOM-MIXED-ORIENTATION", ALL_SLICES, message, fix)]


def _duplicates(stack: Stack) -> list[Finding]:
    same = np.flatnonzero(np.diff(stack.distances_mm) < 0.01)
    if not same.size:
        return []
    first = int(same[0])
    message = f"{same.size} slices stand where another stands, first at {stack.distances_mm[first]:.2f} mm"
    fix = "Remove the copies; give each phase, acquisition or encoding of a scan a folder of its own."
    one, other = sorted(header.name for header in stack.headers[first : first + 2])
    return [error("DICOM-DUPLICATE", f"files {one} and {other}", message, fix)]


def _lateral(stack: Stack) -> list[Finding]:
    """Slices must stand above each other along their normal; a steady shift is a tilted gantry."""
    lateral_mm_N2 = (stack.positions_mm_N3 - stack.positions_mm_N3[0]) @ stack.axes_33[:, :2]
    shift_mm = float(np.linalg.norm(lateral_mm_N2, axis=1).max())
    height_mm = float(stack.distances_mm[-1] - stack.distances_mm[0])
    if shift_mm <= MAX_LATERAL_SHIFT_MM or height_mm == 0:
        return []
    where = ALL_SLICES
    share_N1 = (stack.distances_mm[:, None] - stack.distances_mm[0]) / height_mm
    if np.abs(lateral_mm_N2 - share_N1 * lateral_mm_N2[-1]).max() > MAX_LATERAL_SHIFT_MM:
        message = f"slices stand up to {shift_mm:.1f} mm beside each other: positions jump in the plane"
        return [error("DICOM-SHIFT", where, message, "Keep the slices of one reconstruction only.")]
    lean_deg = float(np.degrees(np.arctan2(shift_mm, height_mm)))
    message = (
        f"the stack leans {lean_deg:.1f} degrees ({shift_mm:.1f} mm over {height_mm:.1f} mm): gantry tilt"
    )
    fix = "Use a scan without tilt, or have the console correct it: a sheared chest is not a volume."
    return [error("DICOM-TILT", where, message, fix)]


def _intervals(stack: Stack) -> list[Finding]:
    intervals_mm = np.diff(stack.distances_mm)
    usual_mm = float(np.median(intervals_mm))
    missing = np.round(intervals_mm / usual_mm) - 1
    excess_mm = intervals_mm - usual_mm
    gaps = np.flatnonzero((missing >= 1) & (np.abs(excess_mm - missing * usual_mm) < 0.2 * usual_mm))
    if gaps.size:
        return [_gap(stack, int(gaps[0]), usual_mm, gaps.size, int(missing[gaps].sum()))]
    even_mm = stack.distances_mm[0] + stack.spacing_mm * np.arange(len(stack.headers))
    drift_mm = float(np.abs(stack.distances_mm - even_mm).max())
    if max(float(np.abs(excess_mm).max()), drift_mm) <= MAX_POSITION_ERROR_MM:
        return []
    message = (
        f"slices are {intervals_mm.min():.2f} to {intervals_mm.max():.2f} mm apart and up to "
        f"{drift_mm:.2f} mm off an even grid; {MAX_POSITION_ERROR_MM:g} mm is taken"
    )
    fix = "Use a reconstruction with one distance between slices."
    return [error("DICOM-SPACING", ALL_SLICES, message, fix)]


def _gap(stack: Stack, first: int, usual_mm: float, n_gaps: int, n_missing: int) -> Finding:
    below_mm, above_mm = stack.distances_mm[first : first + 2]
    message = (
        f"a gap of {above_mm - below_mm:.2f} mm between the slices at {below_mm:.2f} and {above_mm:.2f} mm "
        f"where slices are {usual_mm:.2f} mm apart; missing in all: {n_missing} slices in {n_gaps} gaps"
    )
    below, above = (header.name for header in stack.headers[first : first + 2])
    fix = "Export the series again, with all its slices."
    return error("DICOM-GAP", f"between files {below} and {above}", message, fix)


def _second_opinion(stack: Stack) -> list[Finding]:
    """highdicom's own judgement of the positions, for what the checks above overlook."""
    from highdicom.spatial import get_volume_positions  # here: whoever reads no DICOM need not wait for it

    spacing_mm, _ = get_volume_positions(
        stack.positions_mm_N3.tolist(),
        stack.axes_33[:, :2].T.ravel().tolist(),
        atol=2
        * MAX_POSITION_ERROR_MM,  # it compares with the mean distance, the checks above with the median
        perpendicular_tol=0.02,  # 11 degrees: rounding alone tilts neighbours half a mm apart as far
    )
    if spacing_mm is not None:
        return []
    message = "highdicom finds no regular volume in the positions of the slices"
    fix = "Export the series again, or use another reconstruction."
    return [error("DICOM-GEOMETRY", ALL_SLICES, message, fix)]


def _other_tags(stack: Stack) -> list[Finding]:
    """Where the positions make a sound volume but other tags tell another story."""
    stated_mm = abs(stack.headers[0].spacing_tag_mm or 0.0)
    tilt_deg = stack.headers[0].tilt_deg or 0.0
    where, findings = ALL_SLICES, []
    if stated_mm and abs(stated_mm - stack.spacing_mm) > max(MAX_POSITION_ERROR_MM, 0.1 * stated_mm):
        message = f"SpacingBetweenSlices is {stated_mm:g} mm, positions are {stack.spacing_mm:.2f} mm apart"
        fix = "See that slices were not left out evenly, such as every second one; positions are believed."
        findings.append(warning("DICOM-SPACING-TAG", where, message, fix))
    if abs(tilt_deg) > 0.5:
        message = f"GantryDetectorTilt is {tilt_deg:g} degrees, positions and orientation show none"
        fix = "See on the quality page that the chest is not sheared."
        findings.append(warning("DICOM-TILT-TAG", where, message, fix))
    return findings
