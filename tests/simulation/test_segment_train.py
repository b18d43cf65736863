"""VB-Net of one hospital: trained on its own scans, ended and gone on, its masks used at another hospital."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_study import Simulate, copied, results_of
from typer.testing import CliRunner, Result

from client.cli import app
from client.preparation import load_prepared
from client.segment_train_state import load_standing
from client.site import read_site
from client.vbnet_masks import vbnet_name
from client.volume_store import read_stored_case
from dsan_model.segmenter import load_segmenter

EPOCHS = 12


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(home: Path, out: Path, epochs: int, *more: object) -> Result:
    options = ("--config", home / "site.toml", "--out", out, "--preset", "tiny", "--rounds", epochs)
    return run("segment-train", *options, *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, hospitals: Path) -> Path:
    """The largest of the hospitals, prepared for a segmentation."""
    largest = max(hospitals.iterdir(), key=lambda folder: len((folder / "cohort.csv").read_text()))
    folder = copied(largest, tmp_path_factory.mktemp("alone") / "hospital")
    assert run("prepare", "--segmentation", "--config", folder / "site.toml", "--workers", 2).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def weights(home: Path) -> Path:
    """What an undisturbed training wrote."""
    out = home.parent / "vbnet.safetensors"
    assert train(home, out, EPOCHS).exit_code == 0
    return out


def test_training_tells_each_epoch_and_how_the_weights_are_used(
    home: Path, weights: Path, tmp_path: Path
) -> None:
    result = train(home, tmp_path / "out", EPOCHS + 1)
    told = re.findall(r"epoch (\d+): loss 0\.\d{3}, Dice lungs [01]\.\d{3}, infection", result.stderr)
    assert told == [str(EPOCHS + 1)]
    assert f"{EPOCHS} epochs of this training were done before" in result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith('next: lungs = "vbnet", infection = "vbnet", weights = ')
    assert load_segmenter(tmp_path / "out").name == vbnet_name(tmp_path / "out")


def test_training_that_was_killed_ends_with_the_same_weights(
    home: Path, weights: Path, tmp_path: Path
) -> None:
    again = copied(home, tmp_path / "hospital")
    options = ("--config", again / "site.toml", "--out", tmp_path / "out", "--preset", "tiny", "--rounds")
    command = (sys.executable, "-m", "client.cli", "segment-train", *map(str, options), str(EPOCHS))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 3"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    result = train(again, tmp_path / "out", EPOCHS)
    assert "of this training were done before" in result.stderr
    assert load_segmenter(tmp_path / "out").digest == load_segmenter(weights).digest


def test_another_seed_is_another_training(home: Path, tmp_path: Path) -> None:
    result = train(home, tmp_path / "out", 1, "--seed", 1)
    assert result.exit_code == 0
    assert "done before" not in result.stderr


def test_a_damaged_standing_is_not_gone_on_from(home: Path, tmp_path: Path) -> None:
    again = copied(home, tmp_path / "hospital")
    assert train(again, tmp_path / "out", 1).exit_code == 0
    (kept,) = (again / "work" / "segment-train").glob("*/epoch-00001.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert load_standing(kept.parent) is None


def test_masks_of_the_trained_weights_are_told_with_the_cases_and_to_the_centre(
    hospitals: Path, weights: Path, tmp_path: Path, simulate: Simulate
) -> None:
    copied(hospitals, tmp_path / "hospitals")
    home = next(
        folder for folder in sorted((tmp_path / "hospitals").iterdir()) if any(folder.glob("images/*/*.dcm"))
    )
    without_masks(home)
    settings = f'\n[segmentation]\nlungs = "vbnet"\ninfection = "vbnet"\nweights = "{weights}"\n'
    with (home / "site.toml").open("a") as file:
        file.write(settings)
    result = run("prepare", "--config", home / "site.toml", "--workers", 2)
    assert result.exit_code == 0, result.output

    name = vbnet_name(weights)
    entries = load_prepared(read_site(home / "site.toml"))
    assert {str(entry.masks) for entry in entries} == {f"lungs {name}, infection {name}"}
    assert all(read_stored_case(entry.path).masks == entry.masks for entry in entries)
    page = (home / "qc.html").read_text()
    assert f'lungs {name}, infection {name}</td><td class="n">{len(entries)}</td>' in page

    out = tmp_path / "run"
    options = ("--preset", "tiny", "--rounds", "1", "--workers", "2")
    assert simulate("run", "--hospitals", tmp_path / "hospitals", "--out", out, *options) == 0
    told = {site["name"]: (site["lung_masks"], site["infection_masks"]) for site in results_of(out)["sites"]}
    assert told[home.name] == ({name: len(entries)}, {name: len(entries)})
    assert {str(counts) for site, counts in told.items() if site != home.name} != {str(told[home.name])}


def without_masks(home: Path) -> None:
    """Empty the cells of both masks of every case."""
    with (home / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (home / "cohort.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"lung_mask": "", "infection_mask": ""} for row in rows)
