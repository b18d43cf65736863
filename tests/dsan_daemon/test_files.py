"""Files that are whole or not there."""

import resource
from pathlib import Path

import pytest

from dsan_daemon.files import PRIVATE, write_atomically


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")
    path.with_name("results.json.partial").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_file_that_the_disk_does_not_hold_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, b"something new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_does_not_disturb_the_next(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.with_name("results.json.partial").write_bytes(b"something much longer than the new content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_secret_is_its_owners_alone_from_the_first_byte_on(tmp_path: Path) -> None:
    path = tmp_path / "ca.key"
    write_atomically(path, b"public once")
    write_atomically(path, b"secret", PRIVATE)
    assert path.stat().st_mode & 0o777 == 0o600
