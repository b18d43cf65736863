"""Packed weights that are files: the same values, no memory, and nothing left when nobody needs them."""

import gc
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.weights import flatten
from server.spool import SMALLEST_BYTES, Spool

SOME = SMALLEST_BYTES // 2  # values in half precision
MANY = 1 << 24  # 32 MiB of them


def packed(n_values: int, seed: int = 0) -> PackedWeights:
    values = torch.randn(n_values, generator=torch.Generator().manual_seed(seed))
    return pack(flatten({"weight": values, "counter": torch.tensor(3)}), Precision.FLOAT16)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_what_is_kept_has_the_same_values_and_the_same_digest(tmp_path: Path) -> None:
    weights = packed(SOME)
    found = Spool(tmp_path).kept(weights)
    assert found.digest == weights.digest
    assert torch.equal(found.unpack().floats, weights.unpack().floats)
    assert found.integers.tolist() == [3]


def test_what_was_let_go_takes_no_memory_and_can_be_read_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    found = spool.kept(packed(MANY))
    gc.collect()
    before = resident_bytes()
    digest = found.digest
    assert resident_bytes() - before > MANY
    spool.let_go()
    assert resident_bytes() - before < MANY / 8
    assert replace(found).digest == digest


def test_the_folder_shows_nothing_and_the_disk_is_free_again_when_nobody_refers_to_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    found = [spool.kept(packed(SOME, seed)) for seed in range(3)]
    assert list(tmp_path.iterdir()) == []
    mapped = Path("/proc/self/maps")
    assert mapped.read_text().count(f"{tmp_path}/") == 3
    del found
    gc.collect()
    assert f"{tmp_path}/" not in mapped.read_text()


@pytest.mark.parametrize("n_values", [0, SOME - 1])
def test_small_weights_stay_in_memory_and_without_a_folder_all_do(tmp_path: Path, n_values: int) -> None:
    small, large = packed(n_values), packed(SOME)
    assert Spool(tmp_path).kept(small) is small
    assert Spool(None).kept(large) is large


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Spool(tmp_path).kept(packed(SOME))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
