import hashlib
import os
from pathlib import Path

from client.content_digests import content_digest, is_unchanged, read_known_digests, write_known_digests


def test_the_digest_of_one_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"voxels")
    digest = content_digest(tmp_path / "ct.nii.gz")
    assert digest.sha256 == hashlib.sha256(b"voxels").hexdigest()
    assert digest.path == str(tmp_path / "ct.nii.gz")


def test_a_folder_is_the_same_under_other_names_and_another_with_other_content(tmp_path: Path) -> None:
    for folder, names in (("a", ("1", "2")), ("b", ("y", "x")), ("c", ("1", "2"))):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / names[0]).write_bytes(b"first")
        (tmp_path / folder / "deep" / names[1]).write_bytes(b"third" if folder == "c" else b"second")
    a, b, c = (content_digest(tmp_path / folder).sha256 for folder in "abc")
    assert a == b != c


def test_the_pixels_beside_a_header_count(tmp_path: Path) -> None:
    header = tmp_path / "ct.mhd"
    header.write_text("ElementSpacing = 1 1 1\nElementDataFile = ct.raw\n")
    (tmp_path / "ct.raw").write_bytes(b"one")
    one = content_digest(header)
    (tmp_path / "ct.raw").write_bytes(b"two")
    assert content_digest(header).sha256 != one.sha256
    os.utime(tmp_path / "ct.raw", ns=(1, 1))
    assert not is_unchanged(one)


def test_a_file_is_unchanged_until_its_size_or_time_changes(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(b"voxels")
    digest = content_digest(path)
    assert is_unchanged(digest)
    path.write_bytes(b"voxels!")
    assert not is_unchanged(digest)
    digest = content_digest(path)
    os.utime(path, ns=(5, 5))
    assert not is_unchanged(digest)


def test_a_file_that_is_gone_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(b"voxels")
    digest = content_digest(path)
    path.unlink()
    assert not is_unchanged(digest)


def test_a_header_that_no_longer_is_one_has_changed(tmp_path: Path) -> None:
    header = tmp_path / "ct.mhd"
    header.write_text("ElementSpacing = 1 1 1\nElementDataFile = ct.raw\n")
    (tmp_path / "ct.raw").write_bytes(b"one")
    digest = content_digest(header)
    header.write_text("ElementDataFile = /etc/passwd\n")
    assert not is_unchanged(digest)


def test_digests_are_remembered_and_a_damaged_memory_is_empty(tmp_path: Path) -> None:
    assert read_known_digests(tmp_path) == {}
    (tmp_path / "ct.nii.gz").write_bytes(b"voxels")
    digest = content_digest(tmp_path / "ct.nii.gz")
    write_known_digests(tmp_path, [digest])
    assert read_known_digests(tmp_path) == {digest.path: digest}
    for damaged in (b"", b"[{}]", b"{", b"[1]", b'[{"path": "x", "other": 1}]'):
        (tmp_path / "digests.json").write_bytes(damaged)
        assert read_known_digests(tmp_path) == {}
