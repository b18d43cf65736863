"""One scan or mask of a case in, from a DICOM folder or a file, checked before anything is done with it.

Headers are judged before pixels are read and memory is allocated for them. Images stay SimpleITK's:
(x, y, z), mm, LPS. Errors are FindingErrors with a code IMAGE- (files) or DICOM- (folders).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.dicom import audit_dicom_folder, read_dicom_series
from client.dicom_values import MAX_VOXELS, Volume, plausibility_findings
from client.findings import Finding, FindingError
from client.image_files import FIX_RESTORE, MAX_PLACE_MM, NIFTI_SUFFIXES, ImageFile
from client.nifti_files import NiftiHeader, read_nifti_header, read_nifti_image
from client.slice_thickness import MAX_SLICE_THICKNESS_MM, PAPER_THICKNESS_MM, PAPERS_ARE
from client.text_header_files import TextHeader, check_packed_pixels, read_text_header

EXTENT_MM = (30.0, 2000.0)  # of every axis: less is no chest, more no scanner
MAX_BYTES = 2 * MAX_VOXELS  # of voxels: int16 is what a scanner gives
MOST_UNPACKED = 1032  # bytes that one byte of deflate can hold
SAME_GRID_WITHIN_VOXELS = 0.25  # half a voxel is the commonest real error, a hundredth common rounding
SAME_PLACE_WITHIN_MM = 1.0  # by both transforms of a NIfTI; a quaternion is rounded to 0.3 mm in a chest
MAX_INFECTION_OUTSIDE_LUNG = 0.5

Header = NiftiHeader | TextHeader

_INT16 = np.iinfo(np.int16)
_IMAGE_IO = {".nii": "NiftiImageIO", ".mh": "MetaImageIO", ".n": "NrrdImageIO"}
_EIGHT_BIT = (sitk.sitkUInt8, sitk.sitkInt8)
_FIX_EXPORT = "Export the scan again from the original series."


def read_ct(
    path: Path, case_id: str | None, max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
) -> tuple[sitk.Image, tuple[Finding, ...]]:
    """The scan in HU, int16 or float32, without metadata, and the warnings about it.

    `path` is a folder with one DICOM series, or a NIfTI, NRRD or MetaImage file. Raises FindingError for a
    scan that cannot be used: see the codes IMAGE- and DICOM- in docs/reference/errors.md.
    """
    if path.is_dir():
        return read_dicom_series(path, case_id, max_slice_thickness_mm)
    file = ImageFile(path, "scan", case_id)
    header, reader, findings = _examined(file, max_slice_thickness_mm)
    ct = _as_hu(_pixels(file, header, reader))
    _check_values(file, sitk.GetArrayViewFromImage(ct))
    return ct, findings


def audit_ct(
    path: Path, case_id: str | None, max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
) -> tuple[Finding, ...]:
    """What the headers say against a scan, errors first; `read_ct`, which reads pixels, may find more."""
    if path.is_dir():
        return audit_dicom_folder(path, case_id, max_slice_thickness_mm)
    try:
        return _examined(ImageFile(path, "scan", case_id), max_slice_thickness_mm)[2]
    except FindingError as error:
        return (error.finding,)


def audit_mask(path: Path, case_id: str | None, role: str = "mask") -> tuple[Finding, ...]:
    """What the header of a mask says against it by itself; `read_mask` compares it with its scan."""
    try:
        _headers(ImageFile(path, role, case_id))
    except FindingError as error:
        return (error.finding,)
    return ()


def read_mask(path: Path, ct: sitk.Image, case_id: str | None, role: str = "mask") -> sitk.Image:
    """A mask on the voxel grid of `ct`: uint8, 1 where the file is above 0 (any label counts), else 0.

    The grids must agree in mm; axes stored in another order or direction are turned to those of `ct`.
    `role` is what messages call it: "lung mask". Raises FindingError with an IMAGE- code.
    """
    file = ImageFile(path, role, case_id)
    header, reader = _headers(file)
    if sorted(reader.GetSize()) != sorted(ct.GetSize()):
        raise _other_grid(file, _grid(reader), ct)
    labels = _turned_to(_pixels(file, header, reader), ct)
    if labels.GetSize() != ct.GetSize() or _distance_voxels(labels, ct) > SAME_GRID_WITHIN_VOXELS:
        raise _other_grid(file, _grid(reader), ct)
    values = sitk.GetArrayViewFromImage(labels)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0) or not _is_whole(values):
        message = f"its values, {low:g} to {high:g}, are not labels (0, 1, 2, ...)"
        raise file.error("IMAGE-MASK-VALUES", message, "Write the mask with 0 outside and 1 inside.")
    is_mask = labels.GetPixelID() == sitk.sitkUInt8 and high <= 1
    mask = labels if is_mask else sitk.GetImageFromArray(np.greater(values, 0).view(np.uint8))
    mask.CopyInformation(ct)
    return mask


def mask_labels(path: Path) -> tuple[int, ...]:
    """The values above 0 of a mask that `read_mask` has taken."""
    file = ImageFile(path, "mask", None)
    slices = sitk.GetArrayViewFromImage(_pixels(file, *_headers(file)))
    return tuple(sorted({int(value) for slice_HW in slices for value in np.unique(slice_HW) if value > 0}))


def check_masks(lung: sitk.Image, infection: sitk.Image, case_id: str | None) -> tuple[Finding, ...]:
    """Warnings about a case's two masks (uint8, one grid); raises FindingError for an empty lung mask.

    An empty infection mask is a ratio of 0, which is common in CAP and legitimate.
    """
    lung_DHW, infection_DHW = sitk.GetArrayViewFromImage(lung), sitk.GetArrayViewFromImage(infection)
    if not lung_DHW.any():
        fix = "Segment the lungs again, or leave the case out."
        raise FindingError(
            Finding("IMAGE-LUNG-EMPTY", "error", "lung mask", "it marks no voxel", fix, case_id)
        )
    n_infection = int(np.count_nonzero(infection_DHW))
    slices = zip(infection_DHW, lung_DHW, strict=True)
    n_outside = sum(int(np.count_nonzero(marked_HW > lung_HW)) for marked_HW, lung_HW in slices)
    if n_outside <= MAX_INFECTION_OUTSIDE_LUNG * n_infection:
        return ()
    message = f"{n_outside / n_infection:.0%} of it lies outside the lung mask"
    fix = "Check that both masks belong to this scan and that left and right are not swapped."
    return (Finding("IMAGE-INFECTION-OUTSIDE", "warning", "infection mask", message, fix, case_id),)


# ---- headers ----


def _examined(
    file: ImageFile, max_slice_thickness_mm: float
) -> tuple[Header, sitk.ImageFileReader, tuple[Finding, ...]]:
    """The header of a scan, and the warnings about it; no pixel is read."""
    header, reader = _headers(file)
    if reader.GetPixelID() in _EIGHT_BIT:
        message = "its voxels have 8 bits, which cannot hold HU: it is a mask or a picture"
        raise file.error("IMAGE-8-BIT", message, _FIX_EXPORT)
    findings = _orientation_findings(file, header)
    findings += _thickness_findings(file, reader, max_slice_thickness_mm)
    return header, reader, tuple(findings)


def _headers(file: ImageFile) -> tuple[Header, sitk.ImageFileReader]:
    """Our look at the file and SimpleITK's, both judged; no pixel is read."""
    is_nifti = file.suffix in NIFTI_SUFFIXES
    header = read_nifti_header(file) if is_nifti else read_text_header(file)
    if isinstance(header, NiftiHeader):
        _check_matrix(file, header)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(next(io for suffix, io in _IMAGE_IO.items() if file.suffix.startswith(suffix)))
    reader.SetFileName(str(file.path))
    with _quiet():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _refused(file, error) from None
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
        raise file.error("IMAGE-COLOUR", message, _FIX_EXPORT)
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
            raise file.error("IMAGE-SPACING", f"the header says a spacing of {_mm(declared_mm)}", _FIX_EXPORT)
        if not np.allclose(declared_mm, spacing_mm, rtol=0.01):
            message = f"the header contradicts itself: spacing {_mm(spacing_mm)} and {_mm(declared_mm)}"
            raise file.error("IMAGE-SPACING", message, _FIX_EXPORT)
    _check_orthonormal(file, np.reshape(reader.GetDirection(), (3, 3)))
    if not (np.abs(reader.GetOrigin()) <= MAX_PLACE_MM).all():
        place = ", ".join(f"{place_mm:g}" for place_mm in reader.GetOrigin())
        raise file.error("IMAGE-HEADER", f"its first voxel lies at ({place}) mm", _FIX_EXPORT)
    _check_transforms(file, header, reader)
    extent_mm = spacing_mm * reader.GetSize()
    if extent_mm.min() < EXTENT_MM[0] or extent_mm.max() > EXTENT_MM[1]:
        message = f"it measures {_mm(extent_mm)}; a chest is {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm a side"
        raise file.error("IMAGE-EXTENT", message, "Check the spacing in the header (in mm).")


def _check_orthonormal(file: ImageFile, axes: npt.NDArray[np.float64]) -> None:
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise _not_orthonormal(file, axes)


def _not_orthonormal(file: ImageFile, axes: npt.NDArray[np.float64]) -> FindingError:
    message = f"the directions of its axes, {np.round(axes, 3).tolist()}, are not orthonormal"
    return file.error("IMAGE-DIRECTION", message, _FIX_EXPORT)


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
    fix = "Use a thinner reconstruction of the same scan."
    if thickness_mm > max_slice_thickness_mm + 0.01:
        message = f"{found}; at most {max_slice_thickness_mm:g} mm is taken, {PAPERS_ARE}"
        raise file.error("IMAGE-THICKNESS", message, fix)
    if thickness_mm > PAPER_THICKNESS_MM + 0.01:
        return [file.warning("IMAGE-THICKNESS", f"{found}; {PAPERS_ARE}", fix)]
    return []


def _mm(lengths_mm: npt.ArrayLike) -> str:
    return " x ".join(f"{length:g}" for length in np.atleast_1d(np.asarray(lengths_mm))) + " mm"


# ---- pixels ----


def _pixels(file: ImageFile, header: Header, reader: sitk.ImageFileReader) -> sitk.Image:
    """The image without its metadata: an NRRD made from DICOM carries the patient's name."""
    if isinstance(header, NiftiHeader):
        image: sitk.Image = read_nifti_image(file, header, reader.GetSize()[::-1])
        image.SetSpacing(reader.GetSpacing())
        image.SetOrigin(reader.GetOrigin())
        image.SetDirection(reader.GetDirection())
        return image
    check_packed_pixels(file, header)
    with _quiet():
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise _refused(file, error) from None
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def _as_hu(image: sitk.Image) -> sitk.Image:
    """int16 where the values are whole numbers of that range, otherwise float32."""
    if image.GetPixelID() in (sitk.sitkInt16, sitk.sitkFloat32):
        return image
    values = sitk.GetArrayViewFromImage(image)
    fits = values.dtype.kind in "iu" and values.min() >= _INT16.min and values.max() <= _INT16.max
    ct: sitk.Image = sitk.Cast(image, sitk.sitkInt16 if fits else sitk.sitkFloat32)
    return ct


def _check_values(file: ImageFile, ct_DHW: Volume) -> None:
    low, high = float(ct_DHW.min()), float(ct_DHW.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        message = "some voxels are NaN or infinite"
        raise file.error("IMAGE-NOT-FINITE", message, "Replace them, e.g. by -1024 HU, or export again.")
    if low >= 0 and high <= 255:
        message = f"its values are {low:g} to {high:g}, as in a mask or a picture"
        raise file.error("IMAGE-MASK-AS-CT", message, "Name the scan in column image, the mask in its own.")
    for finding in plausibility_findings(ct_DHW):
        raise file.error("IMAGE-HU", finding.message, finding.fix)


def _is_whole(values: npt.NDArray[np.generic]) -> bool:
    return values.dtype.kind in "iu" or all(bool(np.all(np.mod(part, 1) == 0)) for part in values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep SimpleITK's warnings, which name the file, off standard error."""
    was_on = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(was_on)


def _refused(file: ImageFile, error: RuntimeError) -> FindingError:
    """SimpleITK's reason in one line, without places in its source and addresses in memory."""
    lines = [line.strip() for line in str(error).replace(str(file.path), file.path.name).splitlines()]
    reason = " ".join(line for line in lines if line and not re.search(r"\.[ch]xx:\d+:?$", line))
    reason = re.sub(r"\w*\(0x[0-9a-f]+\):? ?|(ITK|sitk::) ?ERROR: ", "", reason)
    code = "IMAGE-DIRECTION" if "orthonormal" in reason else "IMAGE-UNREADABLE"
    return file.error(code, f"SimpleITK cannot read it: {reason[:300]}", _FIX_EXPORT)


# ---- the grid of a mask ----


def _turned_to(mask: sitk.Image, ct: sitk.Image) -> sitk.Image:
    """The mask with its axes stored in the order and directions of the scan's."""
    if np.allclose(mask.GetDirection(), ct.GetDirection(), atol=1e-3):
        return mask
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(ct.GetDirection())
    turned: sitk.Image = sitk.DICOMOrient(mask, orientation)
    return turned


def _distance_voxels(mask: sitk.Image, ct: sitk.Image) -> float:
    """How far the corners of both grids lie apart at most, in the scan's smallest voxel side."""
    corners = list(product(*[(0, size - 1) for size in ct.GetSize()]))
    of_mask = np.array([mask.TransformIndexToPhysicalPoint(corner) for corner in corners])
    of_ct = np.array([ct.TransformIndexToPhysicalPoint(corner) for corner in corners])
    return float(np.linalg.norm(of_mask - of_ct, axis=1).max() / min(ct.GetSpacing()))


def _other_grid(file: ImageFile, grid: str, ct: sitk.Image) -> FindingError:
    message = f"its grid is {grid}, the scan's is {_grid(ct)}"
    return file.error("IMAGE-MASK-GEOMETRY", message, "Use the mask that was drawn on this very scan.")


def _grid(image: Any) -> str:  # an image or its reader: SimpleITK has no type for what they share
    size = "x".join(map(str, image.GetSize()))
    origin = ", ".join(f"{place:.4g}" for place in image.GetOrigin())
    axes = np.round(np.reshape(image.GetDirection(), (3, 3)).T, 3).tolist()
    return f"{size} voxels of {_mm(image.GetSpacing())} from ({origin}) mm, axes {axes}"
