"""What a case's files contain, as SHA-256, remembered so that an unchanged file is not read again."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from client.findings import FindingError
from client.image_files import ImageFile
from client.text_header_files import read_text_header
from client.volume_store import write_atomically

_FILE = "digests.json"


@dataclass(frozen=True)
class ContentDigest:
    """SHA-256 (hex) of an image; it holds as long as names, sizes and times of its files stay the same."""

    path: str
    signature: str
    sha256: str


def content_digest(path: Path) -> ContentDigest:
    """Read an image file, or all files of a DICOM folder, in any order and by any names.

    Raises FindingError for a header whose file of pixels may not be read, OSError if a file cannot be read.
    """
    signature = _signature(path)  # before reading: a file that changes meanwhile is read again next time
    digests = sorted(_file_digest(file) for file in _files(path))
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return ContentDigest(str(path), signature, sha256)


def is_unchanged(digest: ContentDigest) -> bool:
    """Whether the files still have the names, sizes and times that they had when they were read."""
    try:
        return _signature(Path(digest.path)) == digest.signature
    except (OSError, FindingError):  # gone, or its header is no longer one: whoever reads it will say so
        return False


def read_known_digests(store: Path) -> dict[str, ContentDigest]:
    """The digests of earlier runs, by path. This is only a memory: a damaged one counts as empty."""
    try:
        rows = json.loads((store / _FILE).read_bytes())
        return {row["path"]: ContentDigest(**row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write_known_digests(store: Path, digests: Iterable[ContentDigest]) -> None:
    """Keep the digests for the next run."""
    rows = [asdict(digest) for digest in digests]
    write_atomically(store / _FILE, json.dumps(rows, indent=0).encode())


def _signature(path: Path) -> str:
    stats = ((file, file.stat()) for file in _files(path))
    lines = [f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in stats]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> list[Path]:
    """All that the content of an image depends on: the files of a folder, or a header and its pixel file."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    file = ImageFile(path, "file", None)
    return [path, read_text_header(file).pixel_file] if file.suffix in (".mhd", ".nhdr") else [path]
