"""Good and bad DICOM series for tests: one small sound chest CT, and a list of ways to spoil it.

The sound series has 12 slices of 32 x 32 pixels of 10 mm, 1.25 mm apart: a body in air with two lungs.
File names run against the order of the slices, and every data set carries CANARY as the patient's name.
"""

import copy
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

CANARY = "CANARY^JOHN"
N_SLICES = 12
SIDE = 32
SPACING_MM = 1.25
ORIGIN_MM_XYZ = (-155.0, -155.0, -200.0)


def chest_hu(n_slices: int = N_SLICES) -> np.ndarray:
    """(D, H, W) int16 in HU: air, a body of 40 HU, lungs of -850 HU, and a mark that differs by slice."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    slice_hu = np.where((x / 14) ** 2 + (y / 11) ** 2 < 1, 40, -1000)
    for center in (-6, 6):
        slice_hu[((x - center) / 4) ** 2 + (y / 7) ** 2 < 1] = -850
    volume = np.repeat(slice_hu[None], n_slices, axis=0).astype(np.int16)
    volume[:, SIDE // 2, SIDE // 2] = 100 + np.arange(n_slices)
    return volume


def good_slices(n_slices: int = N_SLICES) -> list[Dataset]:
    """The data sets of a sound series, from the feet up."""
    return [_slice(index, hu) for index, hu in enumerate(chest_hu(n_slices))]


def _slice(index: int, hu: np.ndarray) -> Dataset:
    data = Dataset()
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.1.{index + 1}"
    data.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    data.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.3"
    data.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.4"
    data.PatientName, data.PatientID, data.PatientBirthDate = CANARY, "CANARY-ID", "19700101"
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.InstanceNumber = 100 - index
    data.ImagePositionPatient = [*ORIGIN_MM_XYZ[:2], ORIGIN_MM_XYZ[2] + index * SPACING_MM]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [10, 10]
    data.SliceThickness = SPACING_MM
    data.Rows, data.Columns = hu.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    store(data, hu.astype(np.int32) + 1024)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


def store(data: Dataset, values: np.ndarray) -> None:
    """Puts `values` (H, W) into the pixel data, in 16 bits, little endian."""
    data["PixelData"] = pydicom.DataElement(0x7FE00010, "OW", (values & 0xFFFF).astype("<u2").tobytes())


def stored(data: Dataset) -> np.ndarray:
    """(H, W) int32: the unsigned stored values of an uncompressed slice."""
    return np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns).astype(np.int32)


def encode(data: Dataset) -> bytes:
    """The bytes of a DICOM file in the transfer syntax that its file meta information names."""
    if data.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        data = copy.copy(data)
        store(data, stored(data).astype(np.uint16).byteswap())
    buffer = io.BytesIO()
    with pydicom.config.disable_value_validation():
        pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def file_name(index: int) -> str:
    """The name of slice `index` from the feet up; names run from the head down."""
    return f"IM{99 - index:04d}.dcm"


def write_series(folder: Path, slices: Sequence[Dataset]) -> Path:
    """Writes one file a slice and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(slices):
        (folder / file_name(index)).write_bytes(encode(data))
    return folder


Edit = Callable[[list[Dataset]], object]


@dataclass(frozen=True)
class BadSeries:
    """A way to spoil the sound series: `write` fills a folder, which must be refused with `code`."""

    name: str
    code: str
    write: Callable[[Path], object]


def _edited(name: str, code: str, edit: Edit, n_slices: int = N_SLICES) -> BadSeries:
    """Spoils the data sets before they are written."""

    def write(folder: Path) -> None:
        slices = good_slices(n_slices)
        edit(slices)
        write_series(folder, slices)

    return BadSeries(name, code, write)


def _one_file(name: str, code: str, spoil: Callable[[Path], object]) -> BadSeries:
    """Spoils one file of a written series."""

    def write(folder: Path) -> None:
        spoil(write_series(folder, good_slices()) / file_name(5))

    return BadSeries(name, code, write)


def _with_bytes(name: str, code: str, content: Callable[[Path], bytes]) -> BadSeries:
    """Replaces one file of a written series by what `content` makes of it."""

    def write(folder: Path) -> None:
        path = write_series(folder, good_slices()) / file_name(5)
        path.write_bytes(content(path))

    return BadSeries(name, code, write)


def _every(**tags: object) -> Edit:
    """Sets tags in all slices; None removes a tag."""

    def edit(slices: list[Dataset]) -> None:
        for data in slices:
            _set(data, **tags)

    return edit


def _fifth(**tags: object) -> Edit:
    """Sets tags in the fifth slice; None removes a tag."""
    return lambda slices: _set(slices[4], **tags)


def _set(data: Dataset, **tags: object) -> None:
    for keyword, value in tags.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)


def with_element(content: bytes, keyword: str, value: bytes) -> bytes:
    """A file (explicit VR, little endian) with other bytes as the value of a tag, be they valid or not."""
    tag = pydicom.tag.Tag(keyword)
    start = content.index(struct.pack("<HH", tag.group, tag.element) + dictionary_VR(tag).encode()) + 6
    (length,) = struct.unpack_from("<H", content, start)
    return content[:start] + struct.pack("<H", len(value)) + value + content[start + 2 + length :]


def rewrite(folder: Path, keyword: str, value: bytes) -> None:
    """Gives a tag another value in all the files of a folder."""
    for path in folder.iterdir():
        path.write_bytes(with_element(path.read_bytes(), keyword, value))


def _raw(name: str, code: str, keyword: str, value: bytes) -> BadSeries:
    """Writes bytes that no writer of DICOM would."""
    return BadSeries(name, code, lambda folder: rewrite(write_series(folder, good_slices()), keyword, value))


def _move(shift_mm_xyz: Callable[[int], Sequence[float]]) -> Edit:
    """Moves slice number i by `shift_mm_xyz(i)`."""

    def edit(slices: list[Dataset]) -> None:
        for index, data in enumerate(slices):
            moved = np.array(data.ImagePositionPatient, float) + shift_mm_xyz(index)
            data.ImagePositionPatient = [float(round(value, 4)) for value in moved]

    return edit


def _restack(row: Sequence[float], column: Sequence[float]) -> Edit:
    """Turns the stack: slices of another orientation along their own normal."""
    normal = np.cross(row, column)

    def edit(slices: list[Dataset]) -> None:
        for index, data in enumerate(slices):
            data.ImageOrientationPatient = [round(float(value), 6) for value in (*row, *column)]
            data.ImagePositionPatient = [round(float(value), 4) for value in index * SPACING_MM * normal]

    return edit


def leaning(degrees: float) -> tuple[Sequence[float], Sequence[float]]:
    """Directions of rows and columns of a slice that leans backwards."""
    angle = np.radians(degrees)
    return (1, 0, 0), (0, float(np.cos(angle)), -float(np.sin(angle)))


def _tilt(slices: list[Dataset]) -> None:
    """The table moves along z while the slices lean."""
    row, column = leaning(14)
    for data in slices:
        data.ImageOrientationPatient = [round(float(value), 6) for value in (*row, *column)]


def _spread(spacing_mm: Callable[[int], float]) -> Edit:
    """Puts slice number i at the sum of the spacings before it."""
    return _move(lambda index: (0, 0, sum(spacing_mm(i) for i in range(index)) - index * SPACING_MM))


def _revalue(change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(slices: list[Dataset]) -> None:
        for data in slices:
            store(data, change(stored(data)))

    return edit


def _all(*edits: Edit) -> Edit:
    def edit(slices: list[Dataset]) -> None:
        for each in edits:
            each(slices)

    return edit


def _crop(slices: list[Dataset]) -> None:
    half = stored(slices[4])[: SIDE // 2]
    _set(slices[4], Rows=SIDE // 2)
    store(slices[4], half)


def _as_colour(slices: list[Dataset]) -> None:
    for data in slices:
        _set(data, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
        data.PixelData = data.PixelData * 3


def _as_8_bit(slices: list[Dataset]) -> None:
    for data in slices:
        data.PixelData = (stored(data) >> 4).astype(np.uint8).tobytes()
        _set(data, BitsAllocated=8, BitsStored=8, HighBit=7)


def _as_32_bit(slices: list[Dataset]) -> None:
    for data in slices:
        data.PixelData = stored(data).astype("<u4").tobytes()
        _set(data, BitsAllocated=32, BitsStored=32, HighBit=31)


def compress_rle(slices: list[Dataset]) -> None:
    """Compresses without loss, by RLE."""
    for data in slices:
        data.compress(RLELossless, generate_instance_uid=False)


def _broken_jpeg(slices: list[Dataset]) -> None:
    for data in slices:
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        data.PixelData = encapsulate([b"\xff\xd8" + b"not a jpeg stream " * 40 + b"\xff\xd9"])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True


def _two_series(slices: list[Dataset]) -> None:
    for data in slices[6:]:
        data.SeriesInstanceUID += ".9"


def _localizer_beside(slices: list[Dataset]) -> None:
    slices[4].SeriesInstanceUID += ".9"
    slices[4].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def _one_object(slices: list[Dataset]) -> None:
    slices[0].NumberOfFrames = N_SLICES
    slices[0].PixelData = b"".join(data.PixelData for data in slices)
    del slices[1:]


def _deflated(path: Path, n_bytes: int) -> bytes:
    """The file, deflated, with a document of `n_bytes` in it."""
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.EncapsulatedDocument = bytes(n_bytes)
    return encode(data)


def _without_preamble(path: Path) -> bytes:
    whole = path.read_bytes()
    return whole[whole.index(b"\x08\x00\x08\x00CS") :]


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("where-there-is-nothing.dcm")


def _spoilt_rle(spoil: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Spoils the bytes of one file of a compressed series."""

    def write(folder: Path) -> None:
        slices = good_slices()
        compress_rle(slices)
        path = write_series(folder, slices) / file_name(5)
        path.write_bytes(spoil(path.read_bytes()))

    return write


def _only(**files: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_bytes(content)

    return write


def _one_level_too_high(folder: Path) -> None:
    write_series(folder / "series", good_slices())


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 527296\n"
_NOISE = np.random.default_rng(0)

BAD_SERIES = (
    # the folder and its files
    BadSeries("no such folder", "DICOM-FOLDER", lambda folder: None),
    BadSeries("a file instead of a folder", "DICOM-FOLDER", lambda folder: folder.write_bytes(b"x")),
    BadSeries("an empty folder", "DICOM-NONE", Path.mkdir),
    BadSeries("a folder of folders", "DICOM-NONE", _one_level_too_high),
    BadSeries("reports only", "DICOM-NONE", _only(report_pdf=b"%PDF", notes_txt=b"seen", index_xml=b"<x/>")),
    BadSeries("a MetaImage file", "DICOM-NONE", _only(scan_mhd=b"ObjectType = Image", scan_raw=bytes(999))),
    _with_bytes("a slice of no bytes", "DICOM-EMPTY-FILE", lambda path: b""),
    _with_bytes("a Git LFS pointer", "DICOM-LFS-POINTER", lambda path: LFS_POINTER),
    _with_bytes("a slice of noise", "DICOM-NOT-DICOM", lambda path: _NOISE.bytes(3000)),
    _with_bytes("a slice of text", "DICOM-NOT-DICOM", lambda path: b"404 not found\n"),
    _with_bytes("a slice of zeros", "DICOM-NOT-DICOM", lambda path: bytes(3000)),
    BadSeries(
        "a picture called .dcm", "DICOM-NOT-DICOM", _only(screenshot_dcm=b"\x89PNG\r\n\x1a\n" + bytes(300))
    ),
    BadSeries("noise without a suffix", "DICOM-NOT-DICOM", _only(IM7=b"\xff" * 300)),
    _with_bytes("a data set without preamble", "DICOM-NO-PREAMBLE", _without_preamble),
    _one_file("a link to nothing", "DICOM-UNREADABLE", _dangling),
    _with_bytes("a deflated slice cut off", "DICOM-UNREADABLE", lambda path: _deflated(path, 10)[:-5]),
    _with_bytes("a deflation bomb", "DICOM-UNREADABLE", lambda path: _deflated(path, 80 * 2**20)),
    _with_bytes("a header cut off", "DICOM-NO-PIXELS", lambda path: path.read_bytes()[:700]),
    _with_bytes("a slice cut off by 2 bytes", "DICOM-TRUNCATED", lambda path: path.read_bytes()[:-2]),
    BadSeries("a compressed slice cut off", "DICOM-TRUNCATED", _spoilt_rle(lambda whole: whole[:-40])),
    BadSeries("a compressed slice without end", "DICOM-TRUNCATED", _spoilt_rle(lambda whole: whole[:-8])),
    BadSeries(
        "a broken chain of fragments",
        "DICOM-TRUNCATED",
        _spoilt_rle(lambda whole: whole.replace(b"\xfe\xff\xdd\xe0", b"\xfe\xff\xdd\xe1")),
    ),
    # what it is
    _edited("an MR", "DICOM-MODALITY", _every(Modality="MR")),
    _edited("a report among the slices", "DICOM-MODALITY", _fifth(Modality="SR", PixelData=None)),
    _edited("a segmentation", "DICOM-MODALITY", _every(Modality="SEG")),
    _edited("a slice without pixels", "DICOM-NO-PIXELS", _fifth(PixelData=None)),
    _edited("all slices in one object", "DICOM-MULTIFRAME", _one_object),
    _edited("Enhanced CT", "DICOM-MULTIFRAME", _every(SOPClassUID=EnhancedCTImageStorage)),
    _edited("a localizer", "DICOM-LOCALIZER", _every(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), 1),
    _edited("a localizer beside the series", "DICOM-LOCALIZER", _localizer_beside),
    _edited("a maximum projection", "DICOM-PROJECTION", _every(ImageType=["DERIVED", "SECONDARY", "MAX_IP"])),
    _edited("a thin projection", "DICOM-PROJECTION", _fifth(ImageType=["DERIVED", "PRIMARY", "CSA MIP"])),
    _edited("two series", "DICOM-SERIES", _two_series),
    # tags
    _edited("no position", "DICOM-MISSING-TAG", _every(ImagePositionPatient=None)),
    _edited("one slice without position", "DICOM-MISSING-TAG", _fifth(ImagePositionPatient=None)),
    _edited("an empty position", "DICOM-MISSING-TAG", _fifth(ImagePositionPatient="")),
    _edited("no orientation", "DICOM-MISSING-TAG", _every(ImageOrientationPatient=None)),
    _edited("no pixel spacing", "DICOM-MISSING-TAG", _every(PixelSpacing=None)),
    _edited("no rows", "DICOM-MISSING-TAG", _every(Rows=None)),
    _edited("no bits stored", "DICOM-MISSING-TAG", _every(BitsStored=None)),
    _edited("no modality", "DICOM-MISSING-TAG", _every(Modality=None)),
    _raw("a position that is not a number", "DICOM-BAD-TAG", "ImagePositionPatient", b"0\\nan\\1"),
    _raw("an infinite spacing", "DICOM-BAD-TAG", "PixelSpacing", b"1e999\\1"),
    _raw("decimal commas", "DICOM-BAD-TAG", "PixelSpacing", b"0,7\\0,7"),
    _raw("a name in the place of a number", "DICOM-BAD-TAG", "SliceThickness", CANARY.encode()),
    _raw("two coordinates", "DICOM-BAD-TAG", "ImagePositionPatient", b"1\\2"),
    _raw("a position of 2000 bytes", "DICOM-BAD-TAG", "ImagePositionPatient", b"1" * 2000),
    _raw("rows as text", "DICOM-BAD-TAG", "Rows", b"32  "),
    # geometry
    _edited("directions of no length", "DICOM-ORIENTATION", _every(ImageOrientationPatient=[0] * 6)),
    _edited("parallel directions", "DICOM-ORIENTATION", _every(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
    _edited("directions too long", "DICOM-ORIENTATION", _every(ImageOrientationPatient=[2, 0, 0, 0, 2, 0])),
    _edited("a coronal reformat", "DICOM-NOT-AXIAL", _restack((1, 0, 0), (0, 0, -1))),
    _edited("a sagittal reformat", "DICOM-NOT-AXIAL", _restack((0, 1, 0), (0, 0, -1))),
    _edited("an oblique reformat", "DICOM-NOT-AXIAL", _restack(*leaning(30))),
    _edited(
        "one slice turned", "DICOM-MIXED-ORIENTATION", _fifth(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    ),
    _edited("pixels of no size", "DICOM-PIXEL-SPACING", _every(PixelSpacing=[0, 0])),
    _edited("pixels of negative size", "DICOM-PIXEL-SPACING", _every(PixelSpacing=[-10, -10])),
    _edited("pixels of 1 m", "DICOM-PIXEL-SPACING", _every(PixelSpacing=[1000, 1000])),
    _edited("pixels in cm", "DICOM-PIXEL-SPACING", _every(PixelSpacing=[1, 1])),
    _edited("pixels in cm in one direction", "DICOM-PIXEL-SPACING", _every(PixelSpacing=[10, 1])),
    _edited("mixed pixel spacing", "DICOM-MIXED-SPACING", _fifth(PixelSpacing=[9.5, 9.5])),
    _edited("two frames of reference", "DICOM-MIXED-FRAME", _fifth(FrameOfReferenceUID="1.2.3")),
    _edited("a slice twice", "DICOM-DUPLICATE", lambda slices: slices.append(slices[4])),
    _edited("two phases in one series", "DICOM-DUPLICATE", lambda slices: slices.extend(good_slices())),
    _edited("all slices in one place", "DICOM-DUPLICATE", _spread(lambda index: 0)),
    _edited("two slices in one place", "DICOM-DUPLICATE", _spread(lambda index: SPACING_MM * (index != 4))),
    _edited("a tilted gantry", "DICOM-TILT", _tilt),
    _edited("a leaning stack of axial slices", "DICOM-TILT", _move(lambda index: (0, 0.3 * index, 0))),
    _edited("two centres of reconstruction", "DICOM-SHIFT", _move(lambda index: (25 * (index > 5), 0, 0))),
    _edited("one slice aside", "DICOM-SHIFT", _move(lambda index: (0, 5 * (index == 3), 0))),
    _edited("a slice missing", "DICOM-GAP", lambda slices: slices.pop(4)),
    _edited("three slices missing", "DICOM-GAP", lambda slices: slices.__delitem__(slice(3, 6)), 16),
    _edited("two gaps", "DICOM-GAP", lambda slices: (slices.pop(9), slices.pop(4)), 16),
    _edited("two spacings", "DICOM-SPACING", _spread(lambda index: 1.0 if index < 6 else 1.4)),
    _edited("one slice out of step", "DICOM-SPACING", _move(lambda index: (0, 0, 0.4 * (index == 4)))),
    _edited("a drift too small between neighbours", "DICOM-SPACING", _spread(lambda i: 1 + 0.015 * i)),
    _edited("a zigzag", "DICOM-GEOMETRY", _move(lambda index: (0.9 * (index % 2), 0, 0))),
    _edited("a single slice", "DICOM-FEW-SLICES", lambda slices: None, 1),
    _edited("four slices", "DICOM-FEW-SLICES", lambda slices: None, 4),
    _edited("slices of 8 mm", "DICOM-THICKNESS", _all(_spread(lambda index: 8), _every(SliceThickness=8))),
    _edited("thin slices 10 mm apart", "DICOM-THICKNESS", _spread(lambda index: 10)),
    _edited("slices half a metre apart", "DICOM-THICKNESS", _spread(lambda index: 500)),
    # pixels, as declared
    _edited("a matrix of 65535", "DICOM-SIZE", _every(Rows=65535, Columns=65535, PixelSpacing=[0.01, 0.01])),
    _edited("rows that are not there", "DICOM-PIXEL-LENGTH", _every(Rows=2 * SIDE, PixelSpacing=[5, 10])),
    _edited("less pixels than rows", "DICOM-PIXEL-LENGTH", _fifth(PixelData=bytes(2000))),
    _edited("mixed sizes", "DICOM-MIXED-SIZE", _crop),
    _edited("RGB", "DICOM-COLOUR", _as_colour),
    _edited("a palette", "DICOM-COLOUR", _every(PhotometricInterpretation="PALETTE COLOR")),
    _edited("MONOCHROME1", "DICOM-MONOCHROME1", _every(PhotometricInterpretation="MONOCHROME1")),
    _edited("8 bits", "DICOM-BITS", _as_8_bit),
    _edited("32 bits", "DICOM-BITS", _as_32_bit),
    _edited("20 bits stored in 16", "DICOM-BITS", _every(BitsStored=20, HighBit=19)),
    _edited("a high bit elsewhere", "DICOM-BITS", _every(HighBit=15)),
    _edited("a third kind of sign", "DICOM-BITS", _every(PixelRepresentation=7)),
    _edited("mixed bits", "DICOM-MIXED-FORMAT", _fifth(BitsStored=16, HighBit=15)),
    _raw("video", "DICOM-TRANSFER-SYNTAX", "TransferSyntaxUID", MPEG2MPML.encode()),
    _raw("an unknown transfer syntax", "DICOM-TRANSFER-SYNTAX", "TransferSyntaxUID", b"1.2.3.45"),
    _raw("no transfer syntax", "DICOM-TRANSFER-SYNTAX", "TransferSyntaxUID", b""),
    _raw("native called JPEG 2000", "DICOM-PIXEL-LENGTH", "TransferSyntaxUID", JPEG2000Lossless.encode()),
    _edited("a JPEG stream that is none", "DICOM-PIXELS", _broken_jpeg),
    # values
    _edited("no slope", "DICOM-RESCALE", _every(RescaleSlope=None)),
    _edited("one slice without intercept", "DICOM-RESCALE", _fifth(RescaleIntercept=None)),
    _edited("a slope of zero", "DICOM-RESCALE", _every(RescaleSlope=0)),
    _edited("a negative slope", "DICOM-RESCALE", _every(RescaleSlope=-1)),
    _edited("a slope of a million", "DICOM-RESCALE", _every(RescaleSlope=1e6)),
    _edited("an intercept of a million", "DICOM-RESCALE", _every(RescaleIntercept=-1e6)),
    _edited("mixed intercepts", "DICOM-MIXED-RESCALE", _fifth(RescaleIntercept=0)),
    _edited("an atomic number map", "DICOM-RESCALE-TYPE", _every(RescaleType="Z_EFF")),
    _edited("a mask", "DICOM-HU", _all(_revalue(lambda values: values % 3), _every(RescaleIntercept=0))),
    _edited("one value everywhere", "DICOM-HU", _revalue(np.zeros_like)),
    _edited("an intercept lost", "DICOM-HU", _every(RescaleIntercept=0)),
    _edited("an intercept applied twice", "DICOM-HU", _every(RescaleIntercept=-2048)),
    _edited("a slope of two", "DICOM-HU", _every(RescaleSlope=2)),
    _edited("noise", "DICOM-HU", _revalue(lambda values: _NOISE.integers(0, 4096, values.shape))),
)
