"""Packed weights that are files: the same values, no memory, and nothing left when nobody needs them."""

import errno
import gc
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.weights import flatten
from server.spool import Spool

MANY = 1 << 24  # values; 32 MiB in half precision


def packed(n_values: int, seed: int = 0) -> PackedWeights:
    values = torch.randn(n_values, generator=torch.Generator().manual_seed(seed))
    return pack(flatten({"weight": values, "counter": torch.tensor(3)}), Precision.FLOAT16)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_what_is_kept_has_the_same_values_and_the_same_digest(tmp_path: Path) -> None:
    weights = packed(1000)
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
    found = [spool.kept(packed(1000, seed)) for seed in range(3)]
    assert list(tmp_path.iterdir()) == []
    mapped = Path("/proc/self/maps")
    assert mapped.read_text().count(f"{tmp_path}/") == 3
    del found
    gc.collect()
    assert f"{tmp_path}/" not in mapped.read_text()


def test_without_a_folder_and_without_floats_weights_stay_in_memory(tmp_path: Path) -> None:
    weights = packed(1000)
    assert Spool(None).kept(weights) is weights
    counters = pack(flatten({"counter": torch.tensor(3)}), Precision.FLOAT16)
    assert Spool(tmp_path).kept(counters) is counters


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 # numpy puts no number into it
            Spool(tmp_path).kept(packed(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno in (None, errno.EFBIG), os.strerror(caught.value.errno or 0)
