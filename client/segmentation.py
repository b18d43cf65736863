"""Lungs and infection without a network: a stand-in for VB-Net (III, IV-B) where no masks are given.

The lungs are the air inside the body less the airways, closed over vessels and small consolidations. The
infection is a crude estimate and says so. Both are found on an upright grid of 2 mm and brought back to the
scan's own. A change that alters masks raises the number in the method's name: ratios of different segmenters
are not comparable.
"""
# Suffixes: _DHW an array over (z, y, x) of the coarse grid, in LPS: feet up, front to back, right to left.

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.findings import Finding, FindingError
from client.lung_audit import MIN_LUNG_SHARE, cut_findings, one_lung_findings
from client.lung_sample import AIR_BELOW_HU
from dsan_model.segmentation_grid import in_lps_order

LUNGS = "classical-2"
INFECTION = "crude-2"

COARSE_MM = 2.0
HAZE_BELOW_HU = -200  # dense ground glass, if it is thick; fat is -120 to -60
BODY_ABOVE_HU = -300
GAS_BELOW_HU = -965  # the median inside stomach and bowel is -975 to -995; lungs, emphysema too, are denser
CLOSING_MM = 8.0
MIN_PIECE_ML, MIN_LUNGS_ML = 40.0, 400.0

AIRWAY_BELOW_HU = -700  # at -400 the thin wall of the trachea would have holes on the coarse grid
TRACHEA_MM2 = (60.0, 700.0)  # its cross-section; also the most that a branch has
TRACHEA_OFF_MIDLINE_MM = 40.0
MIN_TRACHEA_MM = 24.0  # gas in the gullet is shorter
BRONCHI_BELOW_CARINA_MM = 50.0

# The crude estimate, chosen by eye on one scan each of COVID-19, CAP and no disease.
SMOOTHING_MM = 1.5
OPACITY_ABOVE_PARENCHYMA_HU, OPACITY_HU = 150.0, (-700.0, -500.0)
SOLID_HU = -200.0
HAZE_RADIUS_MM, SOLID_RADIUS_MM = 4.0, 6.0  # what a ball of this size does not fit into is a vessel
RIM_MM = 2.0  # of the lung mask: partial volume with the chest wall
MIN_LESION_ML = 0.3

Hu = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Segmentation:
    """A mask on the voxel grid of its scan: uint8, 0 and 1."""

    mask: sitk.Image
    source: str  # method and version
    findings: tuple[Finding, ...]  # warnings
    file: Path | None = None  # of a given mask


def segment_lungs(ct: sitk.Image, case_id: str | None = None) -> Segmentation:
    """Both lungs of a chest CT in HU (int16 or float32, any orientation and spacing), airways left out.

    Ground glass is included, a solid consolidation where aerated lung surrounds it or it is thinner than
    16 mm; one that fills the border of a lobe is missed. Warns SEG-ONE-LUNG and SEG-LUNGS-CUT; raises
    FindingError SEG-NO-LUNGS.
    """
    coarse = _coarse(ct)
    hu_DHW, body_DHW = sitk.GetArrayFromImage(coarse), _body(coarse)
    inside_DHW = body_DHW & ~_airways(hu_DHW, body_DHW)
    right_DHW, left_DHW = (_closed(side_DHW) & inside_DHW for side_DHW in _sides(hu_DHW, inside_DHW))
    right_ml, left_ml = _volume_ml(right_DHW), _volume_ml(left_DHW)
    if right_ml + left_ml < MIN_LUNGS_ML:
        message = f"{right_ml + left_ml:.0f} ml of lung were found, expected were {MIN_LUNGS_ML:.0f} or more"
        fix = "Check that the scan shows a chest and that its values are HU."
        raise FindingError(Finding("SEG-NO-LUNGS", "error", "scan", message, fix, case_id))
    lungs_DHW = right_DHW | left_DHW
    top_cm2, bottom_cm2 = (float(lungs_DHW[z].sum()) * COARSE_MM**2 / 100 for z in (-1, 0))
    findings = (
        *one_lung_findings(right_ml, left_ml, LUNGS, case_id),
        *cut_findings(top_cm2, bottom_cm2, case_id),
    )
    return Segmentation(_onto_scan(lungs_DHW, coarse, ct), LUNGS, findings)


def estimate_infection(ct: sitk.Image, lung: sitk.Image, case_id: str | None = None) -> Segmentation:
    """A crude estimate of the infected part of the lungs: what is denser than this patient's own parenchyma.

    `ct` as for `segment_lungs`; `lung` is a mask on its grid, uint8, 0 and 1. Vessels are told from lesions
    by their thickness alone: lesions thinner than about 10 mm are lost, thick vessels at the hila may be
    taken, and so is lung that is dense for another reason (collapsed, fibrotic, dependent). Always warns
    SEG-CRUDE-INFECTION.
    """
    coarse = _coarse(ct)
    lung_DHW = _coarse_mask(lung, coarse)
    infection_DHW = np.zeros_like(lung_DHW)
    threshold_hu = float("nan")
    if lung_DHW.any():
        box = _box(lung_DHW, margin=4)
        smooth = sitk.SmoothingRecursiveGaussian(coarse, SMOOTHING_MM)
        hu_DHW, lung_DHW = sitk.GetArrayFromImage(smooth)[box], lung_DHW[box]
        threshold_hu = _opacity_threshold_hu(hu_DHW[lung_DHW])
        infection_DHW[box] = _lesions(hu_DHW, lung_DHW, threshold_hu)
    mask = sitk.And(_onto_scan(infection_DHW, coarse, ct), lung)
    return Segmentation(mask, INFECTION, (_crude_finding(threshold_hu, case_id),))


# ---- body and airways ----


def _body(coarse: sitk.Image) -> Mask:
    """The patient with all air inside, without the table: the largest piece of tissue, its slices filled."""
    tissue = sitk.GrayscaleMorphologicalOpening(coarse > BODY_ABOVE_HU, [2, 2, 0], sitk.sitkBox)
    labels = sitk.RelabelComponent(sitk.ConnectedComponent(tissue), sortByObjectSize=True)
    body = labels == 1
    filled = [sitk.BinaryFillhole(body[:, :, z], False, 1.0) for z in range(body.GetDepth())]
    return _as_mask(sitk.JoinSeries(filled))


def _midline_x(body_DHW: Mask) -> float:
    """Middle of the trunk, as a column of the coarse grid."""
    columns = np.flatnonzero(body_DHW.any(axis=(0, 1)))
    return float(columns[0] + columns[-1]) / 2 if len(columns) else body_DHW.shape[2] / 2


def _airways(hu_DHW: Hu, body_DHW: Mask) -> Mask:
    """Trachea and main bronchi, followed from the top slice by slice until they open into the lungs."""
    air_DHW = (hu_DHW < AIRWAY_BELOW_HU) & body_DHW
    midline_x = _midline_x(body_DHW)
    for top in range(len(air_DHW) - 1, len(air_DHW) // 3, -1):
        seed_HW = _trachea_seed(air_DHW[top], midline_x)
        if seed_HW is None:
            continue
        tracked_DHW = _follow(air_DHW, top, seed_HW)
        if np.count_nonzero(tracked_DHW.any(axis=(1, 2))) * COARSE_MM >= MIN_TRACHEA_MM:
            return _dilated(tracked_DHW, COARSE_MM) & (hu_DHW < AIR_BELOW_HU) & body_DHW
    return np.zeros_like(air_DHW)


def _trachea_seed(air_HW: Mask, midline_x: float) -> Mask | None:
    """The round piece of air nearest to the midline that has the size of a trachea."""
    best, best_off_mm = None, TRACHEA_OFF_MIDLINE_MM
    for piece_HW in _pieces(air_HW, TRACHEA_MM2[0] / COARSE_MM**2):
        rows, columns = np.nonzero(piece_HW)
        area_mm2 = len(rows) * COARSE_MM**2
        is_round = max(np.ptp(rows), np.ptp(columns)) * COARSE_MM < 2.2 * np.sqrt(area_mm2)
        off_mm = abs(columns.mean() - midline_x) * COARSE_MM
        if area_mm2 <= TRACHEA_MM2[1] and is_round and off_mm < best_off_mm:
            best, best_off_mm = piece_HW, off_mm
    return best


def _follow(air_DHW: Mask, top: int, seed_HW: Mask) -> Mask:
    """The airway below a seed: in each slice the pieces of air that touch the slice above and stay small."""
    tracked_DHW = np.zeros_like(air_DHW)
    tracked_DHW[top] = seed_HW
    carina: int | None = None
    for z in range(top - 1, -1, -1):
        near_HW = _dilated(tracked_DHW[z + 1], COARSE_MM)
        pieces = [piece_HW for piece_HW in _pieces(air_DHW[z], 3) if (piece_HW & near_HW).any()]
        branches = [piece_HW for piece_HW in pieces if piece_HW.sum() * COARSE_MM**2 <= TRACHEA_MM2[1]]
        if carina is None and len(pieces) > 1:
            carina = z
        is_deep = carina is not None and (carina - z) * COARSE_MM > BRONCHI_BELOW_CARINA_MM
        if not branches or is_deep:
            break
        tracked_DHW[z] = np.logical_or.reduce(branches)
    return tracked_DHW


# ---- lungs ----


def _aerated(hu_DHW: Hu, where_DHW: Mask) -> Mask:
    """Air, and what is hazier but thicker than the blurred surface of the lungs."""
    air_DHW = (hu_DHW < AIR_BELOW_HU) & where_DHW
    haze_DHW = (hu_DHW < HAZE_BELOW_HU) & where_DHW & ~air_DHW
    return air_DHW | _opened(haze_DHW, COARSE_MM)


def _sides(hu_DHW: Hu, inside_DHW: Mask) -> tuple[Mask, Mask]:
    """The right and the left lung: every piece of air that is no gas, split where it lies on both sides."""
    right_DHW, left_DHW = np.zeros_like(inside_DHW), np.zeros_like(inside_DHW)
    midline_x = _midline_x(inside_DHW)
    air_DHW = _aerated(hu_DHW, inside_DHW)
    for piece_DHW in _pieces(_opened(air_DHW, COARSE_MM), MIN_PIECE_ML * 1000 / COARSE_MM**3):
        if _is_gas(hu_DHW, piece_DHW):
            continue
        for lung_DHW in _split(piece_DHW, midline_x):
            is_left = np.nonzero(lung_DHW)[2].mean() > midline_x
            (left_DHW if is_left else right_DHW)[lung_DHW] = True
    return right_DHW, left_DHW


def _is_gas(hu_DHW: Hu, piece_DHW: Mask) -> bool:
    box = _box(piece_DHW, margin=1)
    inside_n = hu_DHW[box][_eroded(piece_DHW[box], 2 * COARSE_MM)]
    return bool(len(inside_n) and np.median(inside_n) < GAS_BELOW_HU)


def _split(piece_DHW: Mask, midline_x: float) -> list[Mask]:
    """A piece that lies on both sides of the midline as two, cut where it is thinnest; others as they are."""
    left_share = (np.nonzero(piece_DHW)[2] > midline_x).mean()
    if min(left_share, 1 - left_share) < MIN_LUNG_SHARE:
        return [piece_DHW]
    box = _box(piece_DHW, margin=1)
    depth_mm = _depth_mm(piece_DHW[box])
    for cut_mm in (2.0, 4.0, 8.0, 12.0, 16.0):
        cores = list(_pieces(depth_mm > cut_mm, 0.05 * np.count_nonzero(piece_DHW)))
        if len(cores) > 1:
            return [_within(box, part, piece_DHW) for part in _valley_parts(cores, depth_mm)]
    is_left_x = np.arange(piece_DHW.shape[2]) > midline_x
    return [piece_DHW & ~is_left_x, piece_DHW & is_left_x]


def _valley_parts(cores: list[Mask], depth_mm: Hu) -> list[Mask]:
    """The whole box shared out among the cores along the valleys of depth."""
    markers_DHW = np.zeros(depth_mm.shape, np.uint8)
    for label, core_DHW in enumerate(cores, start=1):
        markers_DHW[core_DHW] = label
    labels = sitk.MorphologicalWatershedFromMarkers(
        sitk.GetImageFromArray(-depth_mm), sitk.GetImageFromArray(markers_DHW), markWatershedLine=False
    )
    labels_DHW = sitk.GetArrayFromImage(labels)
    return [labels_DHW == label for label in range(1, len(cores) + 1)]


def _within(box: Box, part: Mask, piece_DHW: Mask) -> Mask:
    lung_DHW = np.zeros_like(piece_DHW)
    lung_DHW[box] = part & piece_DHW[box]
    return lung_DHW


def _closed(lung_DHW: Mask) -> Mask:
    """The lung with its vessels, nodules and small consolidations: closed by CLOSING_MM, then filled."""
    if not lung_DHW.any():
        return lung_DHW
    closed_DHW = lung_DHW.copy()
    box = _box(lung_DHW, margin=int(CLOSING_MM / COARSE_MM) + 2)
    closed = sitk.BinaryMorphologicalClosing(_image(lung_DHW[box]), _ball(CLOSING_MM, 3))
    closed_DHW[box] = _as_mask(sitk.BinaryFillhole(closed))
    return closed_DHW


# ---- infection ----


def _opacity_threshold_hu(lung_hu_n: Hu) -> float:
    """Between this patient's parenchyma, the commonest value in the lungs, and ground glass."""
    counts, edges = np.histogram(lung_hu_n, bins=np.arange(-1000, -595, 10))
    parenchyma_hu = float(edges[counts.argmax()]) + 5
    return float(np.clip(parenchyma_hu + OPACITY_ABOVE_PARENCHYMA_HU, *OPACITY_HU))


def _lesions(hu_DHW: Hu, lung_DHW: Mask, threshold_hu: float) -> Mask:
    """What is dense, too thick for a vessel, and not just the rim of the lung.

    Haze and solid tissue are opened apart: together, a vessel and the blur around it would be thick enough.
    """
    dense_DHW = lung_DHW & (hu_DHW > threshold_hu)
    inner_DHW = dense_DHW & _eroded(lung_DHW, RIM_MM)
    haze_DHW = _opened(inner_DHW & (hu_DHW < SOLID_HU), HAZE_RADIUS_MM)
    solid_DHW = _opened(inner_DHW & (hu_DHW >= SOLID_HU), SOLID_RADIUS_MM)
    thick_DHW = _dilated(haze_DHW | solid_DHW, RIM_MM) & dense_DHW
    lesions = list(_pieces(thick_DHW, MIN_LESION_ML * 1000 / COARSE_MM**3))
    return np.logical_or.reduce(lesions) if lesions else np.zeros_like(dense_DHW)


# ---- findings ----


def _crude_finding(threshold_hu: float, case_id: str | None) -> Finding:
    message = (
        f"it is a crude estimate ({INFECTION}): lung above {threshold_hu:.0f} HU without vessels; it was "
        "never validated, misses small or thin lesions and counts collapsed lung as infected"
    )
    fix = "Name an infection mask in cohort.csv; do not compare its ratio with that of another segmenter."
    return Finding("SEG-CRUDE-INFECTION", "warning", "infection mask", message, fix, case_id)


# ---- the coarse grid ----


def _coarse(ct: sitk.Image) -> sitk.Image:
    """The scan (float32, HU) on an upright LPS grid of COARSE_MM; finer voxels are averaged first."""
    ordered = in_lps_order(ct)
    factors = [
        max(1, min(size, int(COARSE_MM / spacing_mm)))
        for size, spacing_mm in zip(ordered.GetSize(), ordered.GetSpacing(), strict=True)
    ]
    shrunk = sitk.BinShrink(ordered, factors)
    corners = product(*[(0, size - 1) for size in shrunk.GetSize()])
    corners_mm = [shrunk.TransformIndexToPhysicalPoint(corner) for corner in corners]
    low_mm, high_mm = np.min(corners_mm, axis=0), np.max(corners_mm, axis=0)
    size = [int(steps) + 1 for steps in (high_mm - low_mm) / COARSE_MM + 1e-6]
    return sitk.Resample(
        shrunk, size, sitk.Transform(), sitk.sitkLinear, low_mm.tolist(), [COARSE_MM] * 3,
        [1, 0, 0, 0, 1, 0, 0, 0, 1], -1024.0, sitk.sitkFloat32,
    )  # fmt: skip


def _coarse_mask(mask: sitk.Image, coarse: sitk.Image) -> Mask:
    nearest = sitk.sitkNearestNeighbor
    return _as_mask(sitk.Resample(mask, coarse, sitk.Transform(), nearest, 0, sitk.sitkUInt8))


def _onto_scan(mask_DHW: Mask, coarse: sitk.Image, ct: sitk.Image) -> sitk.Image:
    """The mask on the scan's grid, its surface interpolated; beyond the coarse grid its edge goes on."""
    share = _image(mask_DHW) * 200
    share.CopyInformation(coarse)
    linear = sitk.sitkLinear
    on_scan: sitk.Image = sitk.Resample(share, ct, sitk.Transform(), linear, 0, sitk.sitkUInt8, True) >= 100
    return on_scan


# ---- masks as arrays ----


def _image(mask_DHW: Mask) -> sitk.Image:
    """With the coarse spacing; its origin does not matter to what is done with it."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask_DHW).view(np.uint8))
    image.SetSpacing([COARSE_MM] * mask_DHW.ndim)
    return image


def _as_mask(image: sitk.Image) -> Mask:
    return cast(Mask, sitk.GetArrayFromImage(image).view(np.bool_))


def _depth_mm(mask_DHW: Mask) -> Hu:
    """Distance to the border of the mask, positive inside."""
    distance = sitk.SignedMaurerDistanceMap(_image(mask_DHW), True, False, True)
    return cast(Hu, sitk.GetArrayFromImage(distance))


def _dilated(mask: Mask, radius_mm: float) -> Mask:
    return _as_mask(sitk.BinaryDilate(_image(mask), _ball(radius_mm, mask.ndim)))


def _eroded(mask: Mask, radius_mm: float) -> Mask:
    return _as_mask(sitk.BinaryErode(_image(mask), _ball(radius_mm, mask.ndim)))


def _opened(mask_DHW: Mask, radius_mm: float) -> Mask:
    if not mask_DHW.any():
        return mask_DHW
    box, opened_DHW = _box(mask_DHW, margin=1), np.zeros_like(mask_DHW)
    opened = sitk.BinaryMorphologicalOpening(_image(mask_DHW[box]), _ball(radius_mm, 3))
    opened_DHW[box] = _as_mask(opened)
    return opened_DHW


def _ball(radius_mm: float, dimension: int) -> list[int]:
    return [round(radius_mm / COARSE_MM)] * dimension


def _pieces(mask: Mask, min_voxels: float) -> Iterator[Mask]:
    """Connected pieces of at least so many voxels, the largest first."""
    labels = sitk.RelabelComponent(sitk.ConnectedComponent(_image(mask)), max(1, int(min_voxels)), True)
    labels_DHW = sitk.GetArrayViewFromImage(labels)
    for label in range(1, int(labels_DHW.max()) + 1):
        yield labels_DHW == label


def _box(mask_DHW: Mask, margin: int) -> Box:
    """The part of the grid that holds the mask and a margin around it."""
    z, y, x = (
        slice(max(0, int(index.min()) - margin), int(index.max()) + 1 + margin)
        for index in np.nonzero(mask_DHW)
    )
    return z, y, x


def _volume_ml(mask_DHW: Mask) -> float:
    return float(np.count_nonzero(mask_DHW)) * COARSE_MM**3 / 1000
