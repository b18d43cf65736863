"""One scan or mask of a case in, from a DICOM folder or a file, checked before anything is done with it.

Headers are judged before pixels are read and memory is allocated for them. Images stay SimpleITK's:
(x, y, z), mm, LPS. Errors are FindingErrors with a code IMAGE- (files) or DICOM- (folders).
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.dicom import audit_dicom_folder, read_dicom_series
from client.dicom_values import Volume, plausibility_findings
from client.findings import Finding, FindingError
from client.image_files import ImageFile
from client.image_header import Header, examine_scan, in_mm, quiet, read_headers, refused
from client.nifti_files import NiftiHeader, read_nifti_image
from client.slice_continuity import continuity_findings
from client.slice_thickness import MAX_SLICE_THICKNESS_MM
from client.text_header_files import check_packed_pixels

GATE_VERSION = 2  # of what `read_ct` refuses: a volume that has passed another one is made again
SAME_GRID_WITHIN_VOXELS = 0.25  # half a voxel is the commonest real error, a hundredth common rounding
MAX_INFECTION_OUTSIDE_LUNG = 0.5

_INT16 = np.iinfo(np.int16)


def read_ct(
    path: Path, case_id: str | None, max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
) -> tuple[sitk.Image, tuple[Finding, ...]]:
    """The scan in HU, int16 or float32, without metadata, and the warnings about it.

    `path` is a folder with one DICOM series, or a NIfTI, NRRD or MetaImage file. Raises FindingError for a
    scan that cannot be used: see the codes IMAGE-, DICOM- and SCAN- in docs/reference/errors.md.
    """
    if path.is_dir():
        return read_dicom_series(path, case_id, max_slice_thickness_mm)
    file = ImageFile(path, "scan", case_id)
    header, reader, findings = examine_scan(file, max_slice_thickness_mm)
    ct = _as_hu(_pixels(file, header, reader))
    _check_values(file, sitk.GetArrayViewFromImage(ct))
    for finding in continuity_findings(ct):
        raise FindingError(replace(finding, case_id=case_id))
    return ct, findings


def gate_name(max_slice_thickness_mm: float) -> str:
    """What a scan that was read has passed; part of the key of a stored volume."""
    return f"gate {GATE_VERSION}, slices of at most {max_slice_thickness_mm:g} mm"


def audit_ct(
    path: Path, case_id: str | None, max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
) -> tuple[Finding, ...]:
    """What the headers say against a scan, errors first; `read_ct`, which reads pixels, may find more."""
    if path.is_dir():
        return audit_dicom_folder(path, case_id, max_slice_thickness_mm)
    try:
        return examine_scan(ImageFile(path, "scan", case_id), max_slice_thickness_mm)[2]
    except FindingError as error:
        return (error.finding,)


def audit_mask(path: Path, case_id: str | None, role: str = "mask") -> tuple[Finding, ...]:
    """What the header of a mask says against it by itself; `read_mask` compares it with its scan."""
    try:
        read_headers(ImageFile(path, role, case_id))
    except FindingError as error:
        return (error.finding,)
    return ()


def read_mask(path: Path, ct: sitk.Image, case_id: str | None, role: str = "mask") -> sitk.Image:
    """A mask on the voxel grid of `ct`: uint8, 1 where the file is above 0 (any label counts), else 0.

    The grids must agree in mm; axes stored in another order or direction are turned to those of `ct`.
    `role` is what messages call it: "lung mask". Raises FindingError with an IMAGE- code.
    """
    file = ImageFile(path, role, case_id)
    header, reader = read_headers(file)
    if sorted(reader.GetSize()) != sorted(ct.GetSize()):
        raise _other_grid(file, _grid(reader), ct)
    labels = _turned_to(_pixels(file, header, reader), ct)
    if labels.GetSize() != ct.GetSize() or _distance_voxels(labels, ct) > SAME_GRID_WITHIN_VOXELS:
        raise _other_grid(file, _grid(reader), ct)
    values = sitk.GetArrayViewFromImage(labels)
    low, high = 0 if values.dtype.kind == "u" else values.min(), values.max()
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
    image = _pixels(file, *read_headers(file))  # named, as a view does not keep its image alive
    slices = sitk.GetArrayViewFromImage(image)
    return tuple(sorted({int(value) for slice_HW in slices for value in np.unique(slice_HW) if value > 0}))


def check_masks(lung: sitk.Image, infection: sitk.Image, case_id: str | None) -> tuple[Finding, ...]:
    """Warnings about a case's two masks (uint8, one grid); raises FindingError for an empty lung mask.

    An empty infection mask is a ratio of 0, which is common in CAP and legitimate.
    """
    lung_DHW, infection_DHW = (sitk.GetArrayViewFromImage(mask).view(np.bool_) for mask in (lung, infection))
    if not lung_DHW.any():
        fix = "Segment the lungs again, or leave the case out."
        raise FindingError(
            Finding("IMAGE-LUNG-EMPTY", "error", "lung mask", "it marks no voxel", fix, case_id)
        )
    n_infection = int(np.count_nonzero(infection_DHW))
    marked = np.flatnonzero(infection_DHW.any(axis=(1, 2)))
    n_outside = sum(int(np.count_nonzero(infection_DHW[z] > lung_DHW[z])) for z in marked)
    if n_outside <= MAX_INFECTION_OUTSIDE_LUNG * n_infection:
        return ()
    message = f"{n_outside / n_infection:.0%} of it lies outside the lung mask"
    fix = "Check that both masks belong to this scan and that left and right are not swapped."
    return (Finding("IMAGE-INFECTION-OUTSIDE", "warning", "infection mask", message, fix, case_id),)


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
    with quiet():
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise refused(file, error) from None
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
    return f"{size} voxels of {in_mm(image.GetSpacing())} from ({origin}) mm, axes {axes}"
