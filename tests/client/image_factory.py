"""Good and bad scans and masks as files for tests: one small sound scan, and a list of ways to spoil it.

The sound scan has 26 slices of 20 x 24 voxels of 3 mm, 1.25 mm apart: a body with two lungs, an infection in
the right upper front. Every list is used twice: by the tests of the readers, and by the table of bad input.
"""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SHAPE_DHW = (26, 20, 24)
SPACING_MM_XYZ = (3.0, 3.0, 1.25)
NAN = float("nan")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"

Array = npt.NDArray[np.generic]
Fields = dict[int, tuple[object, ...]]  # of a NIfTI header: {offset: (struct format, values...)}


# ---- what is right ----


def image(array_DHW: Array) -> sitk.Image:
    """The array on the grid of the sound scan."""
    made = sitk.GetImageFromArray(array_DHW)
    made.SetSpacing(SPACING_MM_XYZ)
    made.SetOrigin((-36.5, -22.0, 110.25))
    return made


def lung_array() -> npt.NDArray[np.uint8]:
    """Two lungs of 3360 voxels, seven columns in front of each other's mirror image."""
    lung = np.zeros(SHAPE_DHW, np.uint8)
    lung[3:23, 4:16, 3:10] = lung[3:23, 4:16, 14:21] = 1
    return lung


def infection_array() -> npt.NDArray[np.uint8]:
    """In the right upper front: high z, low y, low x."""
    infection = np.zeros(SHAPE_DHW, np.uint8)
    infection[17:22, 5:9, 4:8] = 1
    return infection


def hu_array() -> npt.NDArray[np.int16]:
    """Tissue of 40 HU, lungs of -850 that begin and end by degrees, infection of -300, noise of 30."""
    hu = densities(lung_array(), infection_array())
    return hu + np.random.default_rng(0).integers(-30, 30, SHAPE_DHW, dtype=np.int16)


def densities(lung: Array, infection: Array) -> npt.NDArray[np.int16]:
    """HU without noise. Lungs of slices 3 to 22 begin and end by degrees: no slice is all unlike the next."""
    hu = np.where(lung == 1, -850, 40).astype(np.int16)
    for slices, lung_hu in {(3, 22): -180, (4, 21): -400, (5, 20): -620}.items():
        hu[list(slices)] = np.maximum(hu[list(slices)], np.int16(lung_hu))
    return np.where(infection == 1, np.int16(-300), hu)


def written(folder: Path, made: sitk.Image, name: str) -> Path:
    """The image as a file of the format that its name has."""
    path = folder / name
    sitk.WriteImage(made, str(path), useCompression=name.endswith(("gz", "nrrd")))
    return path


# ---- ways to write a bad file ----


@dataclass(frozen=True)
class BadImage:
    """A file that must be refused with `code`, in a message that holds `says`; `write` returns its path."""

    name: str
    code: str
    write: Callable[[Path], Path]
    says: str = ""
    severity: str = "error"


def nifti(folder: Path, fields: Fields, array: Array | None = None) -> Path:
    """An uncompressed NIfTI of the scan with header fields overwritten."""
    path = written(folder, image(hu_array() if array is None else array), "ct.nii")
    content = bytearray(path.read_bytes())
    for offset, (form, *values) in fields.items():
        struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)
    return path


META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "3 3 1.25",
    "DimSize": "24 20 26",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "24 20 26",
    "space directions": "(3,0,0) (0,3,0) (0,0,1.25)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(0,0,0)",
}


def text_header(path: Path, fields: dict[str, str], changes: dict[str, str | None]) -> Path:
    """A MetaImage or NRRD of the scan, with fields changed, added, or (None) left out."""
    is_meta = "NDims" in fields
    lines = [
        f"{key}{' = ' if is_meta else ': '}{value}" for key, value in {**fields, **changes}.items() if value
    ]
    if is_meta:  # this one ends the header
        lines.sort(key=lambda line: line.startswith("ElementDataFile"))
    text = "\n".join(lines) + "\n" if is_meta else "NRRD0004\n" + "\n".join(lines) + "\n\n"
    path.write_bytes(text.encode() + hu_array().tobytes())
    return path


def _nifti(name: str, code: str, says: str, fields: Fields, severity: str = "error") -> BadImage:
    return BadImage(f"NIfTI, {name}", code, lambda folder: nifti(folder, fields), says, severity)


def _meta(name: str, code: str, **changes: str | None) -> BadImage:
    return BadImage(f"MetaImage, {name}", code, lambda folder: _meta_file(folder, changes))


def _meta_file(folder: Path, changes: dict[str, str | None]) -> Path:
    """In a folder of its own, with pixels that a header may not reach for beside that folder."""
    outside, inner = folder / "ct.raw", folder / "case"
    outside.write_bytes(hu_array().tobytes())
    inner.mkdir()
    (inner / "link.raw").symlink_to(outside)
    return text_header(inner / "ct.mha", META, changes)


def _nrrd(name: str, code: str, changes: dict[str, str | None]) -> BadImage:
    return BadImage(f"NRRD, {name}", code, lambda folder: text_header(folder / "ct.nrrd", NRRD, changes))


def _scan(name: str, code: str, values: Callable[[], Array], suffix: str = "nrrd") -> BadImage:
    """A sound file of other values."""
    return BadImage(name, code, lambda folder: written(folder, image(values()), f"ct.{suffix}"))


def _bytes(name: str, code: str, file: str, content: Callable[[Path], bytes]) -> BadImage:
    """A file of bytes; `content` is called with a folder for what it needs to make them."""

    def write(folder: Path) -> Path:
        whole = content(folder)
        (folder / file).write_bytes(whole)
        return folder / file

    return BadImage(name, code, write)


def _cut(folder: Path, n_bytes: int) -> bytes:
    return nifti(folder, {}).read_bytes()[:n_bytes]


def _packed(folder: Path) -> bytes:
    return gzip.compress(nifti(folder, {}).read_bytes())


def _with_voxel(value: float) -> Array:
    values = hu_array().astype(np.float32)
    values[5, 6, 7] = value
    return values


def spaced(z_mm: float) -> sitk.Image:
    """The scan with another distance of its slices."""
    scan = image(hu_array())
    scan.SetSpacing((3.0, 3.0, z_mm))
    return scan


def damaged_packing(folder: Path, suffix: str) -> Path:
    """One bit of the packed pixels is flipped."""
    path = folder / f"ct.{suffix}"
    sitk.WriteImage(image(hu_array()), str(path), useCompression=True)
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0x10
    path.write_bytes(content)
    return path


_TINY_VOXELS: Fields = {76: ("4f", 1, 0.5, 0.5, 0.5), 252: ("2h", 1, 0)}

BAD_NIFTI = (
    _nifti("a spacing of zero", "IMAGE-SPACING", "0 x 3 x 1.25 mm", {80: ("f", 0.0)}),
    _nifti("a negative spacing", "IMAGE-SPACING", "-3 x 3 x 1.25 mm", {80: ("f", -3.0)}),
    _nifti("a spacing that is NaN", "IMAGE-SPACING", "nan", {84: ("f", NAN)}),
    _nifti("an infinite spacing", "IMAGE-SPACING", "inf", {88: ("f", float("inf"))}),
    _nifti(
        "pixdim against its quaternion", "IMAGE-SPACING", "contradicts itself", {80: ("3f", 2.0, 2.0, 1.25)}
    ),
    _nifti(
        "pixdim against its matrix",
        "IMAGE-SPACING",
        "contradicts itself",
        {252: ("2h", 0, 1), 80: ("3f", 2.0, 2.0, 1.25)},
    ),
    *(
        _nifti(f"{value:g} in its {field}", "IMAGE-HEADER", says, {252: ("2h", 1, 1), offset: ("f", value)})
        for offset, field, says in (
            (260, "quaternion", "is no rotation"),
            (272, "qoffset", "its qoffset puts the first voxel at"),
            (308, "srow offset", "its srow offset puts the first voxel at"),
        )
        for value in (NAN, float("inf"), 1e30)
    ),
    _nifti("NaN in its matrix", "IMAGE-HEADER", "srow matrix", {252: ("2h", 0, 1), 284: ("f", NAN)}),
    _nifti(
        "a matrix mirrored against its quaternion",
        "IMAGE-TRANSFORMS",
        "a corner 138 mm apart",
        {252: ("2h", 1, 1), 280: ("4f", 3.0, 0.0, 0.0, 36.5)},
    ),
    _nifti(
        "a matrix moved against its quaternion",
        "IMAGE-TRANSFORMS",
        "a corner 500 mm apart",
        {252: ("2h", 1, 1), 324: ("f", 610.25)},
    ),
    _nifti("a slope that is NaN", "IMAGE-HEADER", "slope nan", {112: ("f", NAN)}),
    _nifti("an infinite intercept", "IMAGE-HEADER", "intercept inf", {116: ("f", float("inf"))}),
    _nifti("a slope of a million", "IMAGE-HU", "not HU", {112: ("2f", 1e6, 0.0)}),
    _nifti("a slope of a thousandth", "IMAGE-HU", "not HU", {112: ("2f", 1e-3, 0.0)}),
    _nifti("an intercept of 1024", "IMAGE-HU", "not HU", {112: ("2f", 1.0, 1024.0)}),
    _nifti("32000 voxels a side", "IMAGE-SIZE", "32000 x 32000 x 32000", {42: ("3h", 32000, 32000, 32000)}),
    _nifti("a slice more than it has", "IMAGE-TRUNCATED", "of 25920 bytes", {42: ("3h", 24, 20, 27)}),
    _nifti(
        "gigabytes declared by a small file",
        "IMAGE-TRUNCATED",
        "of 1258291200 bytes",
        {42: ("3h", 512, 512, 600), 70: ("2h", 64, 64), **_TINY_VOXELS},
    ),
    _nifti(
        "more bytes than are read",
        "IMAGE-SIZE",
        "8589934592 bytes of voxels; at most 3145728000",
        {42: ("3h", 1024, 1024, 1024), 70: ("2h", 64, 64), **_TINY_VOXELS},
    ),
    _nifti("two dimensions", "IMAGE-DIMENSION", "24 x 520", {40: ("4h", 2, 24, 520, 1)}),
    _nifti("four dimensions", "IMAGE-DIMENSION", "24 x 20 x 13 x 2", {40: ("5h", 4, 24, 20, 13, 2)}),
    _nifti("colours", "IMAGE-COLOUR", "3 values", {70: ("2h", 128, 24)}),
    _nifti("8 bits", "IMAGE-8-BIT", "8 bits", {70: ("2h", 2, 8)}),
    _nifti("NIfTI-2", "IMAGE-FORMAT", "NIfTI-1", {0: ("i", 540)}),
    _nifti(
        "a matrix of zeros", "IMAGE-DIRECTION", "orthonormal", {252: ("2h", 0, 1), 280: ("12f", *[0.0] * 12)}
    ),
    _nifti(
        "a sheared matrix",
        "IMAGE-DIRECTION",
        "orthonormal",
        {252: ("2h", 0, 1), 280: ("12f", 3, 1, 0, 0, 0, 3, 0, 0, 0, 0, 1.25, 0)},
    ),
    _nifti(
        "metres called mm",
        "IMAGE-EXTENT",
        "30 to 2000 mm",
        {76: ("4f", 1, 0.003, 0.003, 0.00125), 252: ("2h", 1, 0)},
    ),
    _nifti(
        "a chest of 7 m", "IMAGE-EXTENT", "30 to 2000 mm", {76: ("4f", 1, 300, 300, 4), 252: ("2h", 1, 0)}
    ),
)

BAD_META = (
    _meta("a spacing of zero", "IMAGE-SPACING", ElementSpacing="0 3 1.25"),
    _meta("a negative spacing", "IMAGE-SPACING", ElementSpacing="-3 3 1.25"),
    _meta("no spacing", "IMAGE-SPACING", ElementSpacing=None),
    _meta("a spacing that is NaN", "IMAGE-HEADER", ElementSpacing="nan 3 1.25"),
    _meta("an infinite origin", "IMAGE-HEADER", Offset="0 inf 0"),
    _meta("directions of zeros", "IMAGE-DIRECTION", TransformMatrix="0 0 0 0 0 0 0 0 0"),
    _meta("sheared directions", "IMAGE-DIRECTION", TransformMatrix="1 0.3 0 0 1 0 0 0 1"),
    _meta("directions too long", "IMAGE-DIRECTION", TransformMatrix="2 0 0 0 2 0 0 0 2"),
    _meta("32000 voxels a side", "IMAGE-SIZE", DimSize="32000 32000 32000"),
    _meta("a negative size", "IMAGE-SIZE", DimSize="24 -20 26"),
    _meta("no slices", "IMAGE-DIMENSION", DimSize="24 20 0"),
    _meta("one slice", "IMAGE-DIMENSION", DimSize="24 20 1"),
    _meta("a slice more than it has", "IMAGE-TRUNCATED", DimSize="24 20 27"),
    _meta("an origin of a light year", "IMAGE-HEADER", Offset="0 1e30 0"),
    _meta("gigabytes declared by a small file", "IMAGE-TRUNCATED", DimSize="400 500 600"),
    _meta("an unknown type", "IMAGE-UNREADABLE", ElementType="MET_FOO"),
    _meta("8 bits", "IMAGE-8-BIT", ElementType="MET_UCHAR"),
    _meta("colours", "IMAGE-COLOUR", ElementNumberOfChannels="3"),
    _meta("raw pixels called packed", "IMAGE-DAMAGED", CompressedData="True"),
    _meta("no pixels", "IMAGE-FORMAT", ElementDataFile=None),
    _meta("pixels of a system file", "IMAGE-DATA-FILE", ElementDataFile="/etc/passwd"),
    _meta("pixels of another folder", "IMAGE-DATA-FILE", ElementDataFile="../ct.raw"),
    _meta("pixels by a link", "IMAGE-DATA-FILE", ElementDataFile="link.raw"),
    _meta("pixels of a lost file", "IMAGE-DATA-FILE", ElementDataFile="none.raw"),
    _meta("a list of pixel files", "IMAGE-DATA-FILE", ElementDataFile="LIST"),
    _meta("a pattern of pixel files", "IMAGE-DATA-FILE", ElementDataFile="ct%03d.raw 1 26 1"),
)

BAD_NRRD = (
    _nrrd("a direction of zeros", "IMAGE-SPACING", {"space directions": "(0,0,0) (0,3,0) (0,0,1.25)"}),
    _nrrd("no spacing", "IMAGE-SPACING", {"space directions": None, "space": None, "space origin": None}),
    _nrrd("a direction that is NaN", "IMAGE-HEADER", {"space directions": "(nan,0,0) (0,3,0) (0,0,1.25)"}),
    _nrrd("an origin that is NaN", "IMAGE-HEADER", {"space origin": "(nan,0,0)"}),
    _nrrd("sheared directions", "IMAGE-DIRECTION", {"space directions": "(3,1,0) (0,3,0) (0,0,1.25)"}),
    _nrrd("32000 voxels a side", "IMAGE-SIZE", {"sizes": "32000 32000 32000"}),
    _nrrd("a slice more than it has", "IMAGE-TRUNCATED", {"sizes": "24 20 27"}),
    _nrrd("8 bits", "IMAGE-8-BIT", {"type": "unsigned char"}),
    _nrrd("raw pixels called packed", "IMAGE-DAMAGED", {"encoding": "gzip"}),
    _nrrd("pixels of a system file", "IMAGE-DATA-FILE", {"data file": "/etc/passwd"}),
    _nrrd("a list of pixel files", "IMAGE-DATA-FILE", {"data file": "LIST"}),
    _nrrd("bytes skipped", "IMAGE-FORMAT", {"byte skip": "-1"}),
)

NO_IMAGES = (
    _bytes("an empty file", "IMAGE-EMPTY-FILE", "ct.nii.gz", lambda _: b""),
    _bytes("a Git LFS pointer called NIfTI", "IMAGE-LFS-POINTER", "ct.nii.gz", lambda _: LFS_POINTER),
    _bytes("a Git LFS pointer called MetaImage", "IMAGE-LFS-POINTER", "ct.mha", lambda _: LFS_POINTER),
    _bytes("a picture", "IMAGE-FORMAT", "ct.png", lambda _: b"\x89PNG"),
    _bytes("a DICOM file", "IMAGE-FORMAT", "IM0001.dcm", lambda _: b"\0" * 128 + b"DICM"),
    _bytes("a text called NIfTI", "IMAGE-FORMAT", "ct.nii", lambda _: b"hello" * 100),
    _bytes("plain NIfTI called gzip", "IMAGE-FORMAT", "ct.nii.gz", lambda folder: _cut(folder, 99_999)),
    _bytes("gzip called plain NIfTI", "IMAGE-FORMAT", "packed.nii", lambda folder: _packed(folder)),
    _bytes(
        "gigabytes declared by a small gzip",
        "IMAGE-TRUNCATED",
        "ct.nii.gz",
        lambda folder: gzip.compress(
            nifti(folder, {42: ("3h", 512, 512, 600), 70: ("2h", 64, 64), **_TINY_VOXELS}).read_bytes()[:352]
        ),
    ),
    _bytes("a text called gzip", "IMAGE-DAMAGED", "ct.nii.gz", lambda _: b"hello" * 100),
    _bytes("a text called NRRD", "IMAGE-FORMAT", "ct.nrrd", lambda _: b"hello" * 100),
    _bytes("a text called MetaImage", "IMAGE-FORMAT", "ct.mhd", lambda _: b"hello" * 100),
    _bytes(
        "a header that is no UTF-8",
        "IMAGE-SPACING",
        "ct.mhd",
        lambda _: b"\xff\xfe\nElementDataFile = LOCAL\nElementSpacing = 1 1 1\n",
    ),
)

DAMAGED_FILES = (
    *(
        _bytes(f"NIfTI of {n} bytes", "IMAGE-TRUNCATED", "cut.nii", lambda folder, n=n: _cut(folder, n))
        for n in (100, 349, 9000)
    ),
    *(
        _bytes(
            f"packed NIfTI of {n} bytes",
            "IMAGE-TRUNCATED",
            "cut.nii.gz",
            lambda folder, n=n: gzip.compress(_cut(folder, n)),
        )
        for n in (100, 349, 9000)
    ),
    _bytes("gzip without its checksum", "IMAGE-DAMAGED", "ct.nii.gz", lambda folder: _packed(folder)[:-9]),
    _bytes(
        "gzip cut off in the voxels", "IMAGE-DAMAGED", "ct.nii.gz", lambda folder: _packed(folder)[:10_000]
    ),
    BadImage("a flipped bit in a MetaImage", "IMAGE-DAMAGED", lambda folder: damaged_packing(folder, "mha")),
    BadImage("a flipped bit in an NRRD", "IMAGE-DAMAGED", lambda folder: damaged_packing(folder, "nrrd")),
)

BAD_VALUES = (
    *(
        _scan(f"{value} in a {suffix}", "IMAGE-NOT-FINITE", lambda value=value: _with_voxel(value), suffix)
        for value in (np.nan, np.inf, -np.inf)
        for suffix in ("nii", "nii.gz", "nrrd", "mha")
    ),
    _scan("a mask of 16 bits given as CT", "IMAGE-MASK-AS-CT", lambda: lung_array().astype(np.int16)),
    _scan("a mask of floats given as CT", "IMAGE-MASK-AS-CT", lambda: lung_array().astype(np.float32) * 2),
    _scan(
        "a picture of the scan",
        "IMAGE-MASK-AS-CT",
        lambda: (np.clip(hu_array(), -1000, 150) + 1000.0) / 1150 * 255,
    ),
    _scan("a mask of 8 bits given as CT", "IMAGE-8-BIT", lung_array),
    _scan("stored values for HU", "IMAGE-HU", lambda: hu_array().astype(np.int32) + 1024),
    _scan(
        "unsigned stored values for HU",
        "IMAGE-HU",
        lambda: (hu_array().astype(np.int32) + 1024).astype(np.uint16),
    ),
    _scan("air everywhere", "IMAGE-HU", lambda: np.zeros(SHAPE_DHW, np.int16) - 1000),
    _scan("values of a billion", "IMAGE-HU", lambda: hu_array().astype(np.float64) * 1e9),
)

BAD_GEOMETRY = (
    BadImage(
        "slices of 8 mm",
        "IMAGE-THICKNESS",
        lambda folder: written(folder, spaced(8.0), "ct.nii.gz"),
        "8.00 mm apart; at most 5 mm",
    ),
    BadImage(
        "slices of 2 mm",
        "IMAGE-THICKNESS",
        lambda folder: written(folder, spaced(2.0), "ct.nii.gz"),
        "2.00 mm apart; the paper's",
        "warning",
    ),
    _nifti("no orientation", "IMAGE-ORIENTATION", "left and right", {252: ("2h", 0, 0)}, "warning"),
)

BAD_SCANS = (*(*BAD_NIFTI, *BAD_META, *BAD_NRRD, *NO_IMAGES, *DAMAGED_FILES, *BAD_VALUES, *BAD_GEOMETRY),)


# ---- masks ----


def _shifted(made: sitk.Image, shift_mm: float) -> sitk.Image:
    x, y, z = made.GetOrigin()
    made.SetOrigin((x + shift_mm, y, z))
    return made


def _respaced(made: sitk.Image) -> sitk.Image:
    made.SetSpacing((3.0, 3.0, 1.3))
    return made


def _turned(made: sitk.Image) -> sitk.Image:
    made.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))  # the voxels stay, the axis flips: the other lung
    return made


def _transposed(made: sitk.Image) -> sitk.Image:
    return image(np.ascontiguousarray(sitk.GetArrayFromImage(made).transpose(0, 2, 1)))


def _mask(name: str, code: str, change: Callable[[sitk.Image], sitk.Image], says: str) -> BadImage:
    return BadImage(
        name, code, lambda folder: written(folder, change(image(lung_array())), "lung.nrrd"), says
    )


def dicom_mask(folder: Path, modality: str = "SEG") -> Path:
    """A DICOM object with no more than says what it is."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.3", modality
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(folder / "lung.dcm", enforce_file_format=True)
    return folder / "lung.dcm"


def _labels(name: str, values: Callable[[], Array]) -> BadImage:
    return BadImage(name, "IMAGE-MASK-VALUES", lambda folder: written(folder, image(values()), "lung.nii.gz"))


BAD_MASKS = (  # lung masks of the sound scan, by themselves
    _mask("a slice less", "IMAGE-MASK-GEOMETRY", lambda made: made[:, :, 1:], "24x20x25 voxels"),
    _mask("half a voxel aside", "IMAGE-MASK-GEOMETRY", lambda made: _shifted(made, 1.5), "from (-35,"),
    _mask("another spacing", "IMAGE-MASK-GEOMETRY", _respaced, "3 x 3 x 1.3 mm"),
    _mask("an axis turned in the header", "IMAGE-MASK-GEOMETRY", _turned, "axes [[-1.0"),
    _mask("axes swapped in the voxels", "IMAGE-MASK-GEOMETRY", _transposed, "20x24x26 voxels"),
    BadImage("a DICOM segmentation", "IMAGE-MASK-DICOM", dicom_mask, "of modality SEG"),
    BadImage(
        "DICOM contours",
        "IMAGE-MASK-DICOM",
        lambda folder: dicom_mask(folder, "RTSTRUCT"),
        "modality RTSTRUCT",
    ),
    _labels("the scan itself", hu_array),
    _labels("probabilities", lambda: lung_array() * np.float32(0.7)),
    _labels("NaN for lung", lambda: np.where(lung_array(), np.float32(np.nan), np.float32(0))),
)


# ---- a chest whose halves differ, for masks that are on the right grid and wrong ----

CHEST_DHW, CHEST_MM_XYZ = (40, 40, 48), (7.0, 7.0, 1.4)


@dataclass(frozen=True)
class Chest:
    """A scan and two masks, (D, H, W) on one grid: the right lung is larger, the heart lies on the left."""

    hu: npt.NDArray[np.int16]
    lung: npt.NDArray[np.uint8]
    infection: npt.NDArray[np.uint8]

    def written(self, folder: Path, case_id: str) -> None:
        """Three NIfTI files as `cohort_factory.line` names them."""
        for suffix, array in (("", self.hu), ("_lung", self.lung), ("_infection", self.infection)):
            made = sitk.GetImageFromArray(array)
            made.SetSpacing(CHEST_MM_XYZ)
            sitk.WriteImage(made, str(folder / f"{case_id}{suffix}.nii.gz"))


def chest() -> Chest:
    """The sound one."""
    z, y, x = np.ogrid[: CHEST_DHW[0], : CHEST_DHW[1], : CHEST_DHW[2]]
    whole = (z >= 4) & (z < 36)
    right = ((x - 14) / 8) ** 2 + ((y - 20) / 12) ** 2 < 1
    left = (((x - 34) / 8) ** 2 + ((y - 20) / 12) ** 2 < 1) & ~(
        ((x - 28) / 8) ** 2 + ((y - 14) / 10) ** 2 < 1
    )
    lung = whole & (right | left)
    infection = lung & (((x - 12) / 5) ** 2 + ((y - 24) / 5) ** 2 + ((z - 20) / 12) ** 2 < 1)
    body = ((x - 23.5) / 22) ** 2 + ((y - 19.5) / 17) ** 2 < 1
    depth = np.minimum(z - 3, 36 - z)  # of a slice below the tip of the lungs or above their base, from 1
    lung_hu = np.where(lung, np.maximum(40 - 220 * depth, -850), 0)  # they begin and end by degrees
    hu = np.where(infection, -300, np.where(lung, lung_hu, np.where(body, 40, -1000)))
    noise = np.random.default_rng(1).integers(-30, 30, CHEST_DHW)
    return Chest((hu + noise).astype(np.int16), lung.astype(np.uint8), infection.astype(np.uint8))
