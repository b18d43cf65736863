"""Files that are whole or not there, also after a power cut."""

import os
from pathlib import Path

PRIVATE = 0o600  # keys and secrets


def write_atomically(path: Path, content: bytes, mode: int = 0o644, partial: Path | None = None) -> None:
    """Replace a file whole: a reader, or a restart after a power cut, sees the old or the new one.

    Whatever ends the writing leaves the old one, and nothing beside it. `partial` is what the new one is
    called until it is whole; files that several processes may write at once need one for each of them.
    """
    partial = partial or path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # of a process that was killed; it may have other rights
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
