from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsan_model.patches import PRESETS
from dsan_model.segmenter import Segmenter, SegmenterError, load_segmenter, save_segmenter
from dsan_model.vbnet import initial_vbnet_state
from dsan_model.weights import flatten

CONFIG = PRESETS["tiny"].segmentation


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vbnet.safetensors"
    save_segmenter(path, Segmenter(CONFIG, flatten(initial_vbnet_state(CONFIG.network, 0))))
    return path


def code(path: Path) -> str:
    with pytest.raises(SegmenterError) as refused:
        load_segmenter(path)
    return refused.value.code


def test_what_is_read_is_what_was_written(file: Path) -> None:
    segmenter = load_segmenter(file)
    assert segmenter.config == CONFIG
    assert segmenter.weights.digest == flatten(initial_vbnet_state(CONFIG.network, 0)).digest
    assert segmenter.name == f"vbnet-3-{segmenter.digest[:12]}"


def test_name_changes_with_the_weights_and_with_the_grid() -> None:
    weights = flatten(initial_vbnet_state(CONFIG.network, 0))
    other_weights = Segmenter(CONFIG, flatten(initial_vbnet_state(CONFIG.network, 1)))
    other_grid = Segmenter(PRESETS["demo"].segmentation, weights)
    assert len({Segmenter(CONFIG, weights).name, other_weights.name, other_grid.name}) == 3


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    assert code(tmp_path / "none.safetensors") == "VBNET-MISSING"


def test_every_flipped_byte_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for position in (8, header // 2, header + 8, (header + len(whole)) // 2, len(whole) - 1):
        spoilt = bytearray(whole)
        spoilt[position] ^= 4
        file.write_bytes(spoilt)
        assert code(file) in ("VBNET-DAMAGED", "VBNET-FORMAT")


def test_a_file_that_is_cut_off_is_damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    assert code(file) == "VBNET-DAMAGED"


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(1, 8)}, tmp_path / "us.safetensors", metadata={"digest": "0"})
    assert code(tmp_path / "us.safetensors") == "VBNET-FORMAT"


def test_weights_that_are_not_numbers_are_damaged(tmp_path: Path) -> None:
    weights = flatten(initial_vbnet_state(CONFIG.network, 0))
    weights.floats[3] = float("nan")
    save_segmenter(tmp_path / "vbnet.safetensors", Segmenter(CONFIG, weights))
    assert code(tmp_path / "vbnet.safetensors") == "VBNET-DAMAGED"
