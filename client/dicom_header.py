"""What the audit knows of one DICOM slice: a whitelist of tags and where its pixels lie.

No tag that names a patient, a study or a person is read, and no value is converted by pydicom: its
warnings quote values, and a damaged file can carry a name into any of them.
"""

import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from client.findings import Finding, FindingError

TEXTS = (
    "SOPClassUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PhotometricInterpretation",
    "LossyImageCompression",
    "RescaleType",
)
WHOLES = (  # 16-bit binary numbers
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
DECIMALS = {  # numbers written as text, and how many of them
    "NumberOfFrames": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
    "SliceThickness": 1,
    "SpacingBetweenSlices": 1,
    "GantryDetectorTilt": 1,
    "RescaleSlope": 1,
    "RescaleIntercept": 1,
}
WHITELIST = (*TEXTS, *WHOLES, *DECIMALS)  # nothing else of a data set is read

MAX_INFLATED_BYTES = 64 * 2**20  # a slice of 2048 x 2048 x 2 bytes, eight times over
_LONGEST_VALUE = 1024  # bytes; no tag of the whitelist needs more
_TAG_OF = {keyword: Tag(keyword) for keyword in WHITELIST}
_PIXEL_TAGS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))  # hashed: pydicom compares tags slowly
_DECIMAL_TEXT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NO_VALUE = b"\xff"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM = (0xFFFE, 0xE000)
_SEQUENCE_DELIMITER = (0xFFFE, 0xE0DD)


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data of a file lie; `declared_bytes` is None for compressed fragments."""

    offset: int
    declared_bytes: int | None
    is_truncated: bool


@dataclass(frozen=True)
class SliceHeader:
    """The whitelisted tags of one file; None where a tag is absent, empty or not readable."""

    path: Path
    transfer_syntax: str
    pixels: PixelElement | None
    absent: frozenset[str]  # keywords that are absent or empty
    malformed: tuple[str, ...]  # keywords whose value is not what the standard says
    sop_class: str | None
    modality: str | None
    image_type: tuple[str, ...]
    series_uid: str | None = field(repr=False)  # compared, never shown
    frame_uid: str | None = field(repr=False)  # compared, never shown
    photometric: str | None
    is_lossy: bool
    rescale_type: str | None
    samples_per_pixel: int | None
    rows: int | None
    columns: int | None
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    pixel_representation: int | None  # 0 unsigned, 1 two's complement
    position_mm_xyz: tuple[float, ...] | None
    orientation: tuple[float, ...] | None  # direction of a row, direction of a column (unit vectors, LPS)
    pixel_spacing_mm_yx: tuple[float, ...] | None
    frames: float | None
    thickness_mm: float | None
    spacing_tag_mm: float | None  # SpacingBetweenSlices; the truth is in the positions
    tilt_deg: float | None
    slope: float | None
    intercept: float | None

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.name


def read_header(path: Path) -> SliceHeader:
    """The whitelisted tags of one DICOM file; pixel data are located, not read.

    Raises FindingError (DICOM-UNREADABLE) for a file that cannot be opened or parsed.
    """
    try:
        with path.open("rb") as file, quiet_pydicom():
            _refuse_inflation(path, file)
            return _parse(path, file)
    except FindingError:
        raise
    except Exception as error:  # pydicom raises whatever a damaged file makes it stumble over
        raise _unreadable(path, f"the header cannot be parsed ({type(error).__name__})") from None


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keeps pydicom's log lines and warnings in: they quote values, and the audit says what matters."""
    logger = logging.getLogger("pydicom")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def _unreadable(path: Path, message: str) -> FindingError:
    fix = "Copy the file from the PACS again; if it stays so, leave the case out."
    return FindingError(Finding("DICOM-UNREADABLE", "error", f"file {path.name}", message, fix))


def _refuse_inflation(path: Path, file: BinaryIO) -> None:
    """A deflated file says nowhere how large it gets, so it is measured before pydicom unpacks it."""
    if DeflatedExplicitVRLittleEndian.encode() not in file.read(2048):
        file.seek(0)
        return
    meta = read_file_meta_info(path)
    file.seek(128 + 4 + 12 + int(meta.FileMetaInformationGroupLength))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacker.decompress(file.read(), MAX_INFLATED_BYTES)
    if unpacker.unconsumed_tail:
        raise _unreadable(path, f"the deflated file unpacks to more than {MAX_INFLATED_BYTES} bytes")
    file.seek(0)


def _parse(path: Path, file: BinaryIO) -> SliceHeader:
    found: list[tuple[str | None, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            found.append((vr, length))
        return bool(found)

    dataset = read_partial(file, at_pixels, defer_size=_LONGEST_VALUE, specific_tags=list(_TAG_OF.values()))
    pixels = _pixel_element(dataset, file, *found[0]) if found else None
    return _header(path, dataset, pixels)


def _pixel_element(dataset: FileDataset, file: BinaryIO, vr: str | None, length: int) -> PixelElement:
    """`file` (or the unpacked buffer of a deflated one) stands at the start of the pixel element."""
    stream = file if dataset.buffer is None else dataset.buffer
    offset = stream.tell() + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8)
    size_bytes = stream.seek(0, 2)
    if length != _UNDEFINED_LENGTH:
        return PixelElement(offset, length, is_truncated=offset + length > size_bytes)
    return PixelElement(offset, None, is_truncated=not _fragments_end(file, offset, size_bytes))


def _fragments_end(file: BinaryIO, offset: int, size_bytes: int) -> bool:
    """Whether the chain of compressed fragments reaches its delimiter inside the file."""
    file.seek(offset)
    while True:
        item = file.read(8)
        if len(item) < 8:
            return False
        group, element, length = struct.unpack("<HHL", item)
        if (group, element) == _SEQUENCE_DELIMITER:
            return True
        if (group, element) != _ITEM or file.tell() + length > size_bytes:
            return False
        file.seek(length, 1)


def _header(path: Path, dataset: FileDataset, pixels: PixelElement | None) -> SliceHeader:
    raw = {keyword: _raw(dataset, keyword) for keyword in WHITELIST}
    texts = {keyword: _text(raw[keyword]) for keyword in TEXTS}
    byte_order: Literal["little", "big"] = "little" if dataset.original_encoding[1] else "big"
    wholes = {keyword: _whole(raw[keyword], byte_order) for keyword in WHOLES}
    decimals = {keyword: _decimals(raw[keyword], count) for keyword, count in DECIMALS.items()}
    single = {keyword: None if value is None else value[0] for keyword, value in decimals.items()}
    numbers = {**wholes, **decimals}
    absent = frozenset(
        key for key in WHITELIST if not (raw[key] if key in WHOLES else raw[key].strip(b" \0"))
    )
    return SliceHeader(
        path=path,
        transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        pixels=pixels,
        absent=absent,
        malformed=tuple(key for key, value in numbers.items() if value is None and key not in absent),
        sop_class=texts["SOPClassUID"],
        modality=texts["Modality"],
        image_type=tuple(part.strip() for part in (texts["ImageType"] or "").split("\\")),
        series_uid=texts["SeriesInstanceUID"],
        frame_uid=texts["FrameOfReferenceUID"],
        photometric=texts["PhotometricInterpretation"],
        is_lossy=texts["LossyImageCompression"] == "01",
        rescale_type=texts["RescaleType"],
        samples_per_pixel=wholes["SamplesPerPixel"],
        rows=wholes["Rows"],
        columns=wholes["Columns"],
        bits_allocated=wholes["BitsAllocated"],
        bits_stored=wholes["BitsStored"],
        high_bit=wholes["HighBit"],
        pixel_representation=wholes["PixelRepresentation"],
        position_mm_xyz=decimals["ImagePositionPatient"],
        orientation=decimals["ImageOrientationPatient"],
        pixel_spacing_mm_yx=decimals["PixelSpacing"],
        frames=single["NumberOfFrames"],
        thickness_mm=single["SliceThickness"],
        spacing_tag_mm=single["SpacingBetweenSlices"],
        tilt_deg=single["GantryDetectorTilt"],
        slope=single["RescaleSlope"],
        intercept=single["RescaleIntercept"],
    )


def _raw(dataset: FileDataset, keyword: str) -> bytes:
    """The undecoded value; what is too long to be one becomes a byte that no reader below accepts."""
    element = dataset.get_item(_TAG_OF[keyword], keep_deferred=True)
    if element is None:
        return b""
    if isinstance(element, RawDataElement) and element.length == 0:
        return b""
    return element.value if isinstance(element.value, bytes) else _NO_VALUE


@lru_cache(maxsize=4096)  # most values are the same in all slices of a series
def _text(raw: bytes) -> str | None:
    return raw.decode("ascii", "replace").strip(" \0") or None


def _whole(raw: bytes, byte_order: Literal["little", "big"]) -> int | None:
    return int.from_bytes(raw, byte_order) if len(raw) == 2 else None


@lru_cache(maxsize=4096)
def _decimals(raw: bytes, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers; "nan", "1_000" and "0,7", which float() or a reader might take, are none."""
    parts = [part.strip(" \0") for part in raw.decode("ascii", "replace").split("\\")]
    if len(parts) != count or not all(_DECIMAL_TEXT.fullmatch(part) for part in parts):
        return None
    numbers = tuple(float(part) for part in parts)
    return numbers if all(math.isfinite(number) for number in numbers) else None
