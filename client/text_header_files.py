"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr): a look at the header, and at packed pixels."""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.image_files import FIX_RESTORE, ImageFile, first_bytes

_CHUNK_BYTES = 1 << 20
_FIX_SPACING = "Write the file again with its spacing."
_KNOWN_NRRD_SPACES = [
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"),
    *("lps", "ras", "las"),
]
_NUMBERS = (
    *("ElementSpacing", "ElementSize", "TransformMatrix", "Offset", "Position", "Origin"),
    *("spacings", "space directions", "space origin"),
)

Packing = Literal["raw", "deflated", "other"]  # other: as text, or by another method


@dataclass(frozen=True)
class TextHeader:
    """What counts here of a text header; SimpleITK makes the geometry of the others."""

    is_oriented: bool  # it says where the axes point in the patient
    pixel_file: Path
    pixels_at: int  # where they begin in `pixel_file`
    packing: Packing


def read_text_header(file: ImageFile) -> TextHeader:
    """The header of a MetaImage or NRRD. Raises FindingError with an IMAGE- code.

    Refused are a header without a spacing, with numbers that are none, and one that takes its pixels from
    anywhere but one file of its own folder.
    """
    start = first_bytes(file)
    return _meta_header(file, start) if file.suffix in (".mha", ".mhd") else _nrrd_header(file, start)


def check_packed_pixels(file: ImageFile, header: TextHeader) -> None:
    """Unpack compressed pixels once to see that they are whole: SimpleITK takes what it gets.

    Uncompressed pixels that are too short SimpleITK refuses by itself. Raises FindingError IMAGE-DAMAGED.
    """
    if header.packing != "deflated":
        return
    unpack = zlib.decompressobj(wbits=47)  # zlib (MetaImage) or gzip (NRRD)
    try:
        with header.pixel_file.open("rb") as stream:
            stream.seek(header.pixels_at)
            while not unpack.eof:
                packed = unpack.unconsumed_tail or stream.read(_CHUNK_BYTES)
                if not packed and not unpack.flush() and not unpack.eof:
                    raise EOFError("the packed pixels have no end")
                unpack.decompress(packed, _CHUNK_BYTES)
    except (EOFError, zlib.error) as error:
        raise file.error("IMAGE-DAMAGED", f"it cannot be unpacked: {error}", FIX_RESTORE) from None


def _meta_header(file: ImageFile, start: bytes) -> TextHeader:
    lines = re.match(rb"(?s).*?^[ \t]*ElementDataFile[ \t]*=[^\n]*\n?", start, re.MULTILINE)
    if lines is None:
        raise file.error("IMAGE-FORMAT", "its header names no ElementDataFile", FIX_RESTORE)
    fields = _fields(lines.group(), "=")
    _refuse_non_finite(file, fields)
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        raise file.error("IMAGE-SPACING", "its header has no ElementSpacing", _FIX_SPACING)
    pixels = fields["ElementDataFile"]
    is_local = pixels.upper() == "LOCAL"
    is_packed, is_binary = (fields.get(key, "").lower() == "true" for key in ("CompressedData", "BinaryData"))
    return TextHeader(
        is_oriented=any(key in fields for key in ("TransformMatrix", "Orientation", "Rotation")),
        pixel_file=file.path if is_local else _beside(file, pixels),
        pixels_at=lines.end() if is_local else 0,
        packing="deflated" if is_packed else "raw" if is_binary else "other",
    )


def _nrrd_header(file: ImageFile, start: bytes) -> TextHeader:
    if not start.startswith(b"NRRD"):
        raise file.error("IMAGE-FORMAT", "it does not begin like an NRRD file", FIX_RESTORE)
    lines = re.match(rb"(?s).*?(\n\r?\n|\Z)", start)
    fields = _fields(lines.group() if lines else b"", ":")
    _refuse_non_finite(file, fields)
    if "spacings" not in fields and "space directions" not in fields:
        raise file.error("IMAGE-SPACING", "its header has no spacing", _FIX_SPACING)
    if any(key.replace(" ", "") in ("byteskip", "lineskip") for key in fields):
        message = "its header skips bytes or lines before the pixels"
        raise file.error("IMAGE-FORMAT", message, "Write the file again without such a skip.")
    pixels = fields.get("data file", fields.get("datafile"))
    pixels_at = lines.end() if lines and not pixels else 0
    packings: dict[str, Packing] = {"gzip": "deflated", "gz": "deflated", "raw": "raw"}
    return TextHeader(
        is_oriented=fields.get("space", "").lower() in _KNOWN_NRRD_SPACES and "space directions" in fields,
        pixel_file=_beside(file, pixels) if pixels else file.path,
        pixels_at=pixels_at,
        packing=packings.get(fields.get("encoding", "").lower(), "other"),
    )


def _fields(lines: bytes, separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in lines.decode("latin-1").splitlines())
    return {key.strip(): value.strip() for key, found, value in pairs if found}


def _refuse_non_finite(file: ImageFile, fields: dict[str, str]) -> None:
    for key in _NUMBERS:
        if re.search(r"(?i)\b(nan|inf|infinity)\b", fields.get(key, "")):
            raise file.error("IMAGE-HEADER", f"its header says {key} {fields[key]}", FIX_RESTORE)


def _beside(file: ImageFile, name: str) -> Path:
    """The file of pixels that a header names; it must lie in the header's own folder."""
    folder = file.path.resolve().parent
    pixels = (folder / name).resolve()
    if pixels.parent != folder or name.upper().startswith("LIST") or "%" in name:
        message = f"its header takes the pixels from {name!r}, which is not one file of its own folder"
        raise file.error("IMAGE-DATA-FILE", message, "Write header and pixels into one file (.mha, .nrrd).")
    if not pixels.is_file():
        raise file.error("IMAGE-DATA-FILE", f"the file of its pixels, {name!r}, is missing", FIX_RESTORE)
    return pixels
