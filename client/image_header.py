"""The header of a scan or mask in a file, judged before its pixels are read and memory is taken for them.

Two looks at each file: our own and SimpleITK's. Errors are FindingErrors with a code IMAGE-.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.dicom_values import MAX_VOXELS
from client.findings import Finding, FindingError
from client.image_files import FIX_RESTORE, MAX_PLACE_MM, NIFTI_SUFFIXES, ImageFile
from client.nifti_files import NiftiHeader, read_nifti_header
from client.slice_thickness import PAPER_THICKNESS_MM, PAPERS_ARE
from client.text_header_files import TextHeader, read_text_header

EXTENT_MM = (30.0, 2000.0)  # of every axis: less is no chest, more no scanner
MAX_BYTES = 2 * MAX_VOXELS  # of voxels: int16 is what a scanner gives
MOST_UNPACKED = 1032  # bytes that one byte of deflate can hold
SAME_PLACE_WITHIN_MM = 1.0  # by both transforms of a NIfTI; a quaternion is rounded to 0.3 mm in a chest
FIX_EXPORT = "Export the scan again from the original series."

Header = NiftiHeader | TextHeader

_IMAGE_IO = {".nii": "NiftiImageIO", ".mh": "MetaImageIO", ".n": "NrrdImageIO"}
_EIGHT_BIT = (sitk.sitkUInt8, sitk.sitkInt8)


def examine_scan(
    file: ImageFile, max_slice_thickness_mm: float
) -> tuple[Header, sitk.ImageFileReader, tuple[Finding, ...]]:
    """The header of a scan, and the warnings about it; no pixel is read."""
    header, reader = read_headers(file)
    if reader.GetPixelID() in _EIGHT_BIT:
        message = "its voxels have 8 bits, which cannot hold HU: it is a mask or a picture"
        raise file.error("IMAGE-8-BIT", message, FIX_EXPORT)
    findings = _orientation_findings(file, header)
    findings += _thickness_findings(file, reader, max_slice_thickness_mm)
    return header, reader, tuple(findings)


def read_headers(file: ImageFile) -> tuple[Header, sitk.ImageFileReader]:
    """Our look at the file and SimpleITK's, both judged; no pixel is read."""
    is_nifti = file.suffix in NIFTI_SUFFIXES
    header = read_nifti_header(file) if is_nifti else read_text_header(file)
    if isinstance(header, NiftiHeader):
        _check_matrix(file, header)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(next(io for suffix, io in _IMAGE_IO.items() if file.suffix.startswith(suffix)))
    reader.SetFileName(str(file.path))
    with quiet():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise refused(file, error) from None
    _check_grid(file, reader)
    _check_geometry(file, header, reader)
    _check_bytes(file, header, reader)
    return header, reader


def _check_matrix(file: ImageFile, header: NiftiHeader) -> None:
    """Before SimpleITK looks: a matrix without an inverse makes its algebra write to standard error."""
    sides_mm = header.sform_spacing_mm_xyz
    if header.sform_mm is not None and sides_mm is not None and min(sides_mm) > 0:
        _check_orthonormal(file, header.sform_mm[:, :3] / sides_mm)
    elif header.sform_mm is not None:
        raise _not_orthonormal(file, header.sform_mm[:, :3])


def _check_grid(file: ImageFile, reader: sitk.ImageFileReader) -> None:
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1:
        message = f"a voxel has {reader.GetNumberOfComponents()} values, as in a colour picture"
        raise file.error("IMAGE-COLOUR", message, FIX_EXPORT)
    if reader.GetDimension() != 3 or min(size) < 2:
        message = f"the image is {' x '.join(map(str, size))}, not a volume"
        raise file.error("IMAGE-DIMENSION", message, "Write one volume (x, y, z) to a file.")
    n_voxels = int(np.prod(size, dtype=np.float64))
    if n_voxels > MAX_VOXELS:
        message = f"the header declares {' x '.join(map(str, size))} voxels; at most {MAX_VOXELS} are read"
        raise file.error("IMAGE-SIZE", message, "Check the file; nothing was read into memory.")


def _check_geometry(file: ImageFile, header: Header, reader: sitk.ImageFileReader) -> None:
    spacing_mm = np.array(reader.GetSpacing())
    declared = _declared_spacings(header) or [reader.GetSpacing()]
    for declared_mm in np.array(declared):
        if not (np.isfinite(declared_mm).all() and (declared_mm > 0).all() and (spacing_mm > 0).all()):
            raise file.error(
                "IMAGE-SPACING", f"the header says a spacing of {in_mm(declared_mm)}", FIX_EXPORT
            )
        if not np.allclose(declared_mm, spacing_mm, rtol=0.01):
            message = f"the header contradicts itself: spacing {in_mm(spacing_mm)} and {in_mm(declared_mm)}"
            raise file.error("IMAGE-SPACING", message, FIX_EXPORT)
    _check_orthonormal(file, np.reshape(reader.GetDirection(), (3, 3)))
    if not (np.abs(reader.GetOrigin()) <= MAX_PLACE_MM).all():
        place = ", ".join(f"{place_mm:g}" for place_mm in reader.GetOrigin())
        raise file.error("IMAGE-HEADER", f"its first voxel lies at ({place}) mm", FIX_EXPORT)
    _check_transforms(file, header, reader)
    extent_mm = spacing_mm * reader.GetSize()
    if extent_mm.min() < EXTENT_MM[0] or extent_mm.max() > EXTENT_MM[1]:
        message = f"it measures {in_mm(extent_mm)}; a chest is {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm a side"
        raise file.error("IMAGE-EXTENT", message, "Check the spacing in the header (in mm).")


def _check_orthonormal(file: ImageFile, axes: npt.NDArray[np.float64]) -> None:
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise _not_orthonormal(file, axes)


def _not_orthonormal(file: ImageFile, axes: npt.NDArray[np.float64]) -> FindingError:
    message = f"the directions of its axes, {np.round(axes, 3).tolist()}, are not orthonormal"
    return file.error("IMAGE-DIRECTION", message, FIX_EXPORT)


def _check_transforms(file: ImageFile, header: Header, reader: sitk.ImageFileReader) -> None:
    """A NIfTI may say twice where it lies; programs differ in which they believe."""
    if not isinstance(header, NiftiHeader) or header.qform_mm is None or header.sform_mm is None:
        return
    corners = np.array([(*corner, 1) for corner in product(*[(0, size - 1) for size in reader.GetSize()])])
    apart_mm = np.linalg.norm(corners @ (header.qform_mm - header.sform_mm).T, axis=1).max()
    if apart_mm > SAME_PLACE_WITHIN_MM:
        message = f"its qform and its sform put a corner {apart_mm:.4g} mm apart: it lies in two places"
        fix = "Convert the file again from DICOM, or give both transforms the right values."
        raise file.error("IMAGE-TRANSFORMS", message, fix)


def _check_bytes(file: ImageFile, header: Header, reader: sitk.ImageFileReader) -> None:
    """The bytes that the header declares against a limit and against the file, before memory is taken."""
    n_bytes = int(np.prod(reader.GetSize(), dtype=np.int64)) * _voxel_bytes(header, reader)
    if n_bytes > MAX_BYTES:
        message = f"the header declares {n_bytes} bytes of voxels; at most {MAX_BYTES} are read"
        raise file.error("IMAGE-SIZE", message, "Write the file with 16 bits a voxel, a mask with 8.")
    if isinstance(header, NiftiHeader):
        is_packed, is_raw = file.suffix == ".nii.gz", file.suffix == ".nii"
        n_there = file.path.stat().st_size - (header.first_voxel_at if is_raw else 0)
    else:
        is_packed, is_raw = header.packing == "deflated", header.packing == "raw"
        n_there = header.pixel_file.stat().st_size - header.pixels_at
    if is_raw and n_bytes > n_there:
        message = f"its voxels end after {max(0, n_there)} of {n_bytes} bytes"
        raise file.error("IMAGE-TRUNCATED", message, FIX_RESTORE)
    if is_packed and n_bytes > MOST_UNPACKED * n_there:
        message = f"{n_there} packed bytes cannot hold the {n_bytes} that its header declares"
        raise file.error("IMAGE-TRUNCATED", message, FIX_RESTORE)


def _voxel_bytes(header: Header, reader: sitk.ImageFileReader) -> int:
    """In the file; SimpleITK names the type that a scaled NIfTI would become."""
    if isinstance(header, NiftiHeader) and header.dtype is not None:
        return header.dtype.itemsize
    n_bytes: int = sitk.Image([1] * 3, reader.GetPixelID()).GetSizeOfPixelComponent()
    return n_bytes


def _declared_spacings(header: Header) -> list[tuple[float, float, float]]:
    """What a NIfTI says itself, once or twice; SimpleITK uses one of them and replaces zeros and NaN by 1."""
    if not isinstance(header, NiftiHeader):
        return []
    spacings = (header.spacing_mm_xyz, header.sform_spacing_mm_xyz)
    return [spacing_mm for spacing_mm in spacings if spacing_mm is not None]


def _orientation_findings(file: ImageFile, header: Header) -> list[Finding]:
    if header.is_oriented:
        return []
    message = "the header does not say where left and right are; the axes are taken as the format's default"
    fix = "Convert the file again from DICOM; check left and right in the QC page."
    return [file.warning("IMAGE-ORIENTATION", message, fix)]


def _thickness_findings(
    file: ImageFile, reader: sitk.ImageFileReader, max_slice_thickness_mm: float
) -> list[Finding]:
    """The distance of slices from foot to head against the paper's 0.625 to 1.5 mm (IV-A)."""
    axes = np.abs(np.reshape(reader.GetDirection(), (3, 3)))
    thickness_mm = reader.GetSpacing()[int(np.argmax(axes[2]))]
    found = f"the slices are {thickness_mm:.2f} mm apart"
    if thickness_mm > max_slice_thickness_mm + 0.01:
        message = f"{found}; at most {max_slice_thickness_mm:g} mm is taken, {PAPERS_ARE}"
        fix = "Use a thinner reconstruction, or raise the limit in site.toml and say so in the study."
        raise file.error("IMAGE-THICKNESS", message, fix)
    if thickness_mm > PAPER_THICKNESS_MM + 0.01:
        fix = "Use a thinner reconstruction of the same scan if there is one."
        return [file.warning("IMAGE-THICKNESS", f"{found}; {PAPERS_ARE}", fix)]
    return []


def in_mm(lengths_mm: npt.ArrayLike) -> str:
    """Lengths as messages give them: "0.7 x 0.7 x 1.25 mm"."""
    return " x ".join(f"{length:g}" for length in np.atleast_1d(np.asarray(lengths_mm))) + " mm"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep SimpleITK's warnings, which name the file, off standard error."""
    was_on = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(was_on)


def refused(file: ImageFile, error: RuntimeError) -> FindingError:
    """SimpleITK's reason in one line, without places in its source and addresses in memory."""
    lines = [line.strip() for line in str(error).replace(str(file.path), file.path.name).splitlines()]
    reason = " ".join(line for line in lines if line and not re.search(r"\.[ch]xx:\d+:?$", line))
    reason = re.sub(r"\w*\(0x[0-9a-f]+\):? ?|(ITK|sitk::) ?ERROR: ", "", reason)
    code = "IMAGE-DIRECTION" if "orthonormal" in reason else "IMAGE-UNREADABLE"
    return file.error(code, f"SimpleITK cannot read it: {reason[:300]}", FIX_EXPORT)
