"""A folder of DICOM slices in, one CT volume in HU out, or a coded finding that says why not (IV-B).

Headers are read by pydicom (client/dicom_header.py) and judged (client/dicom_audit.py) before a pixel is
touched. Native slices are then read straight from their files, compressed ones by SimpleITK, in the order
of their positions. Axes: the image is (x, y, z) in mm, LPS; arrays are (D, H, W) = (z, y, x).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.dicom_audit import audit_series
from client.dicom_findings import error
from client.dicom_folder import read_headers
from client.dicom_geometry import Stack, stack_slices
from client.dicom_header import SliceHeader
from client.dicom_values import plausibility_findings
from client.findings import Finding, FindingError
from client.image_memory import new_image
from client.slice_continuity import continuity_findings
from client.slice_thickness import MAX_SLICE_THICKNESS_MM

Slice = npt.NDArray[Any]  # of integers or floats, as the file and its calibration ask for

_INT16 = np.iinfo(np.int16)
_READ_STRAIGHT = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
)  # little endian, neither deflated nor compressed


def read_dicom_series(
    folder: Path, case_id: str | None, max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
) -> tuple[sitk.Image, tuple[Finding, ...]]:
    """The CT series in `folder` as an image in HU, and the warnings about it.

    The image is (x, y, z) with spacing in mm and LPS geometry from the slices' positions, int16 (float32 if
    slope or intercept are not whole numbers), without any DICOM tag as metadata. HU beyond int16 are clipped.
    Raises FindingError with the most telling error of `audit_dicom_folder`, or with one about the pixels.
    """
    headers, findings = _examine(folder, case_id, max_slice_thickness_mm)
    _raise_first_error(findings)
    stack = stack_slices(headers)
    try:
        image = _read_image(stack)
    except FindingError as failure:
        raise FindingError(replace(failure.finding, case_id=case_id)) from None
    of_values = (*plausibility_findings(sitk.GetArrayViewFromImage(image)), *continuity_findings(image))
    _raise_first_error(tuple(replace(finding, case_id=case_id) for finding in of_values))
    return image, findings


def audit_dicom_folder(
    folder: Path, case_id: str | None, max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
) -> tuple[Finding, ...]:
    """Everything that is wrong with the files and headers of a folder; errors first. No pixel is read."""
    return _examine(folder, case_id, max_slice_thickness_mm)[1]


def _examine(
    folder: Path, case_id: str | None, max_slice_thickness_mm: float
) -> tuple[tuple[SliceHeader, ...], tuple[Finding, ...]]:
    headers, of_files = read_headers(folder)
    of_series = audit_series(headers, max_slice_thickness_mm) if headers else ()
    findings = [replace(finding, case_id=case_id) for finding in (*of_files, *of_series)]
    return headers, tuple(sorted(findings, key=lambda finding: finding.severity != "error"))


def _raise_first_error(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        if finding.severity == "error":
            raise FindingError(finding)


def _read_image(stack: Stack) -> sitk.Image:
    """The volume in HU, slice by slice, so that nothing larger than the volume is ever held."""
    first = stack.headers[0]
    shape_DHW = (len(stack.headers), first.rows or 0, first.columns or 0)
    is_whole = _is_whole(first)
    image, volume_DHW = new_image(shape_DHW, np.int16 if is_whole else np.float32)
    for slice_HW, header in zip(volume_DHW, stack.headers, strict=True):
        hu_HW = _read_slice(header)
        if hu_HW.shape != slice_HW.shape:
            raise _undecodable(header, f"expected {slice_HW.shape} pixels, found {hu_HW.shape}")
        if is_whole and hu_HW.dtype != np.int16:
            hu_HW = np.clip(hu_HW.astype(np.int32, copy=False), _INT16.min, _INT16.max)
        slice_HW[:] = hu_HW
    spacing_mm_y, spacing_mm_x = first.pixel_spacing_mm_yx or (0.0, 0.0)
    image.SetSpacing((spacing_mm_x, spacing_mm_y, stack.spacing_mm))
    image.SetOrigin(stack.positions_mm_N3[0].tolist())
    image.SetDirection(stack.axes_33.ravel().tolist())
    return image


def _is_whole(header: SliceHeader) -> bool:
    """Whether HU are whole numbers."""
    return float(header.slope or 0).is_integer() and float(header.intercept or 0).is_integer()


def _read_slice(header: SliceHeader) -> Slice:
    """(H, W) in HU; unclipped, in a type that holds it."""
    try:
        if header.transfer_syntax in _READ_STRAIGHT:
            return _to_hu(_read_stored(header), header)
        return _decode_slice(header.path)
    except (RuntimeError, ValueError, OSError) as failure:  # SimpleITK's and numpy's words for damaged files
        raise _undecodable(header, f"cannot be decoded ({type(failure).__name__})") from None


def _read_stored(header: SliceHeader) -> Slice:
    """(H, W), the stored values of a native slice; bits above BitsStored are overlays and are cut off."""
    dtype = "<i2" if header.pixel_representation else "<u2"
    stored_HW = np.empty((header.rows or 0, header.columns or 0), dtype)
    with header.path.open("rb", buffering=0) as file:
        file.seek(header.pixels.offset if header.pixels else 0)
        if file.readinto(stored_HW.data) != stored_HW.nbytes:
            raise ValueError("the file ends before its pixels do")
    unused_bits = 16 - (header.bits_stored or 16)
    if unused_bits:
        stored_HW <<= unused_bits
        stored_HW >>= unused_bits
    return stored_HW


def _to_hu(stored_HW: Slice, header: SliceHeader) -> Slice:
    """What SimpleITK computes, in int16 where nothing can overflow: a scan is read in half the time."""
    slope, intercept = header.slope or 0.0, header.intercept or 0.0
    if not _is_whole(header):
        return stored_HW * slope + intercept
    if slope == 1 and (header.bits_stored or 16) <= 14:  # 2**14 + MAX_INTERCEPT_HU < 2**15
        hu_HW = stored_HW.view(np.int16)
        hu_HW += np.int16(intercept)
        return hu_HW
    return stored_HW.astype(np.int32) * int(slope) + int(intercept)


def _decode_slice(path: Path) -> Slice:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    slice_1HW = sitk.GetArrayFromImage(reader.Execute())
    return slice_1HW[0] if slice_1HW.ndim == 3 else slice_1HW


def _undecodable(header: SliceHeader, message: str) -> FindingError:
    fix = "Copy the file from the PACS again; if it stays so, leave the case out."
    return FindingError(error("DICOM-PIXELS", f"file {header.name}", message, fix))
