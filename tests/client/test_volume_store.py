import errno
import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from client import volume_store
from client.findings import Finding, FindingError
from client.images import gate_name
from client.mask_names import MaskNames
from client.volume_store import (
    load_masks,
    load_volume,
    read_stored_case,
    remove_leftovers,
    verify_volume,
    volume_bytes,
    volume_key,
    volume_path,
    write_atomically,
    write_volume,
)
from dsan_model.preprocessing import PreparedCase, Recipe

SHAPE_DHW = (9, 13, 11)  # 1287 voxels: no whole number of bytes of mask
RECIPE = Recipe(SHAPE_DHW)
GATE = gate_name(5.0)
GIVEN = MaskNames("given", "given")
WARNING = Finding(
    "IMAGE-THICKNESS", "warning", "scan ct.nii.gz", "the slices are 2 mm apart", "None.", "0412"
)


def prepared_case() -> PreparedCase:
    rng = np.random.default_rng(0)
    lung_DHW = rng.random(SHAPE_DHW) < 0.5
    volume_DHW = rng.random(SHAPE_DHW, dtype=np.float32) * lung_DHW
    return PreparedCase(
        volume_DHW, lung_DHW, lung_DHW & (rng.random(SHAPE_DHW) < 0.1), 0.1 + 0.2, 4321.5, 0.46
    )


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = volume_path(tmp_path, volume_key(("ab", "cd"), GIVEN, RECIPE, GATE))
    write_volume(path, prepared_case(), RECIPE, GIVEN, (WARNING,))
    return path


def test_a_stored_case_comes_back_with_its_masks_exactly_and_its_volume_as_float16(stored: Path) -> None:
    expected = prepared_case()
    volume_DHW = load_volume(stored)
    assert volume_DHW.dtype == np.float16
    np.testing.assert_array_equal(volume_DHW, expected.volume_DHW.astype(np.float16))
    assert np.abs(volume_DHW - expected.volume_DHW).max() * 1500 < 0.5  # HU
    lung_DHW, infection_DHW = load_masks(stored)
    np.testing.assert_array_equal(lung_DHW, expected.lung_DHW)
    np.testing.assert_array_equal(infection_DHW, expected.infection_DHW)
    assert lung_DHW.dtype == np.bool_


def test_the_header_comes_back_to_the_last_bit(stored: Path) -> None:
    case = read_stored_case(stored)
    assert case.shape_DHW == SHAPE_DHW
    assert (case.infection_ratio, case.lung_volume_ml, case.scale_factor) == (0.1 + 0.2, 4321.5, 0.46)
    assert (case.recipe_digest, case.masks) == (RECIPE.digest, GIVEN)
    assert case.findings == (WARNING,)


def test_the_same_case_is_stored_as_the_same_bytes(stored: Path, tmp_path: Path) -> None:
    again = tmp_path / "again" / stored.name
    write_volume(again, prepared_case(), RECIPE, GIVEN, (WARNING,))
    assert again.read_bytes() == stored.read_bytes()


def test_the_size_on_disk_is_what_was_announced(stored: Path) -> None:
    assert stored.stat().st_size <= volume_bytes(RECIPE) <= stored.stat().st_size + 4096


def test_the_checksum_is_one_that_sha256sum_knows(stored: Path) -> None:
    verify_volume(stored)
    checksum = f"{stored.name}.sha256"
    subprocess.run(
        ["sha256sum", "--check", "--strict", checksum], cwd=stored.parent, check=True, capture_output=True
    )


def test_a_flipped_bit_is_found(stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(FindingError, match="STORE-DAMAGED"):
        verify_volume(stored)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_cut_file_is_damaged_already_by_its_header(stored: Path, keep: int) -> None:
    stored.write_bytes(stored.read_bytes()[:keep])
    with pytest.raises(FindingError, match="STORE-DAMAGED"):
        read_stored_case(stored)


def test_a_volume_of_another_format_is_refused(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_store, "STORE_FORMAT", 3)
    with pytest.raises(FindingError, match="its format is 2, not 3"):
        read_stored_case(stored)


def test_what_is_not_there_is_missing(tmp_path: Path, stored: Path) -> None:
    for read in (read_stored_case, verify_volume):
        with pytest.raises(FindingError, match="STORE-MISSING"):
            read(tmp_path / "none.safetensors")
    stored.with_name(f"{stored.name}.sha256").unlink()
    with pytest.raises(FindingError, match="STORE-MISSING"):
        verify_volume(stored)


def test_the_key_depends_on_content_mask_source_recipe_and_gate() -> None:
    keys = {
        volume_key(("ab", "cd"), GIVEN, RECIPE, GATE),
        volume_key(("cd", "ab"), GIVEN, RECIPE, GATE),
        volume_key(("ab", "ce"), GIVEN, RECIPE, GATE),
        volume_key(("ab", "cd"), MaskNames("vbnet-1", "given"), RECIPE, GATE),
        volume_key(("ab", "cd"), GIVEN, Recipe(), GATE),
        volume_key(("ab", "cd"), GIVEN, RECIPE, gate_name(3.0)),
    }
    assert len(keys) == 6
    assert volume_key(("ab", "cd"), GIVEN, RECIPE, GATE) in keys


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index.json"
    write_atomically(path, b"old")

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["index.json"]
    assert path.read_bytes() == b"old"


def test_leftovers_of_a_killed_run_are_removed_and_volumes_are_not(tmp_path: Path, stored: Path) -> None:
    (tmp_path / ".index.json.77.tmp").write_bytes(b"half")
    (stored.parent / f".{stored.name}.77.tmp").write_bytes(b"half")
    remove_leftovers(tmp_path)
    names = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert names == [stored.name, f"{stored.name}.sha256"]
    assert (
        hashlib.sha256(stored.read_bytes()).hexdigest()
        in stored.with_name(f"{stored.name}.sha256").read_text()
    )
