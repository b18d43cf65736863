"""An image file that a case names: what every format has in common.

The modules nifti_files and text_header_files look at a file before SimpleITK does, because SimpleITK 2.5.7
reads much without a word that it should not (measured): a truncated NIfTI is filled up with zeros, a damaged
compressed MetaImage or NRRD comes out as noise, NaN in a NIfTI becomes 0, a spacing of zero or NaN becomes 1,
and a header may name any file of the machine as its pixels.
"""

from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from client.findings import Finding, FindingError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
TEXT_HEADER_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
MAX_PLACE_MM = 1_000_000.0  # of the first voxel from the scanner's middle; a scanner measures less than 10 m
FIX_RESTORE = "Export or copy the file again."

_LONGEST_TEXT_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class ImageFile:
    """A file, what it is to its case, and the place of findings about it."""

    path: Path
    role: str  # "scan", "lung mask", "infection mask"
    case_id: str | None

    def error(self, code: str, message: str, fix: str) -> FindingError:
        """An error to raise, with this file as its place."""
        return FindingError(Finding(code, "error", self._where, message, fix, self.case_id))

    def warning(self, code: str, message: str, fix: str) -> Finding:
        """A warning with this file as its place."""
        return Finding(code, "warning", self._where, message, fix, self.case_id)

    @property
    def _where(self) -> str:
        return f"{self.role} {self.path.name}"

    @property
    def suffix(self) -> str:
        """The known suffix in lower case, or an empty text."""
        known = (*NIFTI_SUFFIXES, *TEXT_HEADER_SUFFIXES)
        return next((suffix for suffix in known if self.path.name.lower().endswith(suffix)), "")


def first_bytes(file: ImageFile) -> bytes:
    """Enough of the file for any text header. Raises FindingError for what is no image file at all."""
    try:
        with file.path.open("rb") as stream:
            start = stream.read(_LONGEST_TEXT_HEADER_BYTES)
    except FileNotFoundError:
        raise file.error("IMAGE-MISSING", "the file does not exist", FIX_RESTORE) from None
    except OSError as error:
        raise file.error("IMAGE-UNREADABLE", f"it cannot be opened: {error.strerror}", FIX_RESTORE) from None
    if not start:
        raise file.error("IMAGE-EMPTY-FILE", "the file has 0 bytes", FIX_RESTORE)
    if start.startswith(b"version https://git-lfs"):
        raise file.error(
            "IMAGE-LFS-POINTER", "this is a git-lfs pointer, not the image", "Run `git lfs pull`."
        )
    is_dicom = start[128:132] == b"DICM" or file.path.suffix.lower() in (".dcm", ".ima")
    if is_dicom and file.role != "scan":
        raise _dicom_mask(file)
    if not file.suffix:
        known = ", ".join((*NIFTI_SUFFIXES, *TEXT_HEADER_SUFFIXES))
        message = f"the format is not known; known are {known} and a folder of DICOM files"
        is_scan = file.role == "scan"
        fix = "Convert the file, or name the folder of the DICOM series." if is_scan else "Convert the file."
        raise file.error("IMAGE-FORMAT", message if is_scan else f"{message} for scans", fix)
    return start


def _dicom_mask(file: ImageFile) -> FindingError:
    try:
        modality = str(dcmread(file.path, specific_tags=["Modality"], stop_before_pixels=True).Modality)
    except (InvalidDicomError, OSError, AttributeError, ValueError):
        modality = "unknown"
    message = f"it is a DICOM file of modality {modality}; masks are read as NIfTI, NRRD or MetaImage"
    fix = "Convert it to NIfTI on the grid of its scan: a SEG with dcmqi's segimage2itkimage or highdicom."
    if modality == "RTSTRUCT":
        fix = "Convert its contours to a NIfTI mask on the grid of the scan, with plastimatch or 3D Slicer."
    return file.error("IMAGE-MASK-DICOM", message, fix)
