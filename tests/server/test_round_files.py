"""A run's rounds read to be looked at: whatever is missing or torn, the rest is there."""

from pathlib import Path

import numpy as np
import pytest
from centre_folder import write_centre
from safetensors.numpy import save_file

from dsan_model.dice import DICE_COUNTS_SHAPE, MILLION
from dsan_model.metrics import ScoreCounts, auc
from server.round_files import read_outline, read_rounds, read_validation, validation_score


def test_scores_are_those_of_a_site_or_of_all_together(tmp_path: Path) -> None:
    run = write_centre(tmp_path)
    (number, counts), *_ = read_validation(run, newest_first=True)
    east = counts["east", "us"]
    assert isinstance(east, ScoreCounts)
    assert number == 2
    assert validation_score(counts, "us", "east") == auc(east.histogram())[0]  # type: ignore[index]
    assert validation_score(counts, "us") == pytest.approx(validation_score(counts, "us", "east"))
    assert validation_score(counts, "us", "south") is None
    assert validation_score(counts, "vbnet") is None


def test_the_score_of_vb_net_is_its_mean_dice(tmp_path: Path) -> None:
    counts_SGQ = np.zeros(DICE_COUNTS_SHAPE, np.int64)
    counts_SGQ[:, 0, 0] = 2
    counts_SGQ[:, 0, 1] = round(1.5 * MILLION)
    folder = tmp_path / "rounds" / "0001"
    folder.mkdir(parents=True)
    save_file({"east/vbnet": counts_SGQ}, folder / "validation.safetensors")
    ((_, counts),) = read_validation(tmp_path)
    assert validation_score(counts, "vbnet") == pytest.approx(0.75)


def test_losses_and_bytes_are_those_of_the_rounds(tmp_path: Path) -> None:
    first, second = read_rounds(write_centre(tmp_path))
    assert (first.round, first.seconds, first.bytes_to_sites, first.bytes_from_sites) == (1, 14.0, 3000, 2000)
    assert second.losses["north", "ss"] == pytest.approx(0.5)
    assert ("south", "us") not in second.losses


def test_a_torn_round_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    run = write_centre(tmp_path)
    (run / "rounds" / "0001" / "state.json").write_bytes(b"{")
    (run / "rounds" / "0001" / "validation.safetensors").write_bytes(b"torn")
    assert [entry.round for entry in read_rounds(run)] == [2]
    assert [number for number, _ in read_validation(run)] == [2]


@pytest.mark.parametrize(
    "text", ["name =", "rounds = 3", 'name = "n"\nrounds = "many"', 'name = "n"\nsites = 3']
)
def test_a_study_that_does_not_read_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match=r"study\.toml cannot be read"):
        read_outline(tmp_path)
