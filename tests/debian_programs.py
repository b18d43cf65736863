"""Programs of Debian that tests run where they are: on PATH, or unpacked under .debian of the checkout."""

import shutil
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[1] / ".debian"
FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")


def debian_program(name: str) -> Path:
    """Where a program lies; the test is skipped if it is nowhere."""
    found = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    candidates = [Path(found)] if found else [UNPACKED / folder / name for folder in FOLDERS]
    for path in candidates:
        if path.is_file():
            return path
    pytest.skip(f"{name} is not installed: apt-get install it, or unpack its package into {UNPACKED.name}/")
