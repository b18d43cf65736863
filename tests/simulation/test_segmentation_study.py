"""VB-Net through the same rounds as the classification: simulated, resumed, compared with one site alone."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from small_study import COMMAND, Simulate, copied, model_bytes, results_of

from client.preparation import load_prepared, prepare_cohort, segmentation_target
from client.site import read_site
from client.vbnet_training import VBNetTask, train_vbnet
from dsan_model.cases import patient_folds
from dsan_model.patches import PRESETS
from dsan_model.segmenter import load_segmenter
from dsan_model.traffic import Precision, pack
from dsan_model.training import Machine
from dsan_model.vbnet import initial_vbnet_state
from dsan_model.weights import flatten, load_weights
from server.ledger import read_ledger
from server.run_state import is_sealed

TINY = PRESETS["tiny"]


def arguments(hospitals: Path, out: Path) -> tuple[str, ...]:
    options = ("--task", "segmentation", "--preset", "tiny", "--rounds", "3", "--workers", "2", "--seed", "5")
    return ("--hospitals", str(hospitals), "--out", str(out), *options)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory, simulate: Simulate, hospitals: Path) -> Path:
    """The run folder of an undisturbed segmentation study, three rounds."""
    out = tmp_path_factory.mktemp("runs") / "segmentation"
    assert simulate("run", *arguments(hospitals, out)) == 0
    return out


def test_results_have_dice_of_both_structures_by_set_and_site_and_nothing_of_a_classification(
    segmented: Path,
) -> None:
    results = results_of(segmented)
    assert results["complete"] is True
    by_key = {(row["set"], row["site"], row["structure"], row["group"]): row for row in results["dice"]}
    sites = {site["name"]: site for site in results["sites"]}
    held_out = next(name for name, site in sites.items() if site["role"] == "held-out")
    assert {site for case_set, site, _, _ in by_key if case_set == "validation"} == {"all", *sites} - {
        held_out
    }
    assert by_key["held-out", held_out, "lungs", "all"]["cases"] == sum(sites[held_out]["cases"].values())
    assert all(0 <= row["dice"] <= 1 for row in results["dice"] if row["cases"])
    assert not {"table2", "table3", "roc", "ensemble", "attention", "controls", "curves"} & set(results)


def test_ledger_has_every_site_in_every_round_of_the_one_branch(segmented: Path) -> None:
    lines = [line for line in read_ledger(segmented) if line["event"] == "round"]
    assert {(line["status"], line["branch"]) for line in lines} == {("accepted", "vbnet")}
    assert len(lines) == 3 * 3  # sites, rounds


def test_model_package_holds_one_whole_weights_file_that_names_its_grid(segmented: Path) -> None:
    assert is_sealed(segmented / "model")
    segmenter = load_segmenter(segmented / "model" / "vbnet.safetensors")
    assert segmenter.config == TINY.segmentation
    described = json.loads((segmented / "model" / "model.json").read_text())
    assert described["branches"]["vbnet"]["digest"] == segmenter.weights.digest


def test_report_shows_dice_and_no_table_of_the_classification(segmented: Path) -> None:
    page = (segmented / "report.html").read_text()
    assert "Dice" in page
    assert "Table II" not in page
    assert "ROC" not in page
    assert (segmented / "tables" / "dice.csv").is_file()


def test_weights_differ_from_the_initial_ones_and_loss_falls(segmented: Path) -> None:
    points = results_of(segmented)["segmentation_curves"]
    assert points[-1]["dice_loss"] < points[0]["dice_loss"]


@pytest.mark.long
def test_study_killed_in_its_rounds_ends_with_the_same_weights(
    segmented: Path, hospitals: Path, tmp_path: Path
) -> None:
    command = [*COMMAND, "run", *arguments(copied(hospitals, tmp_path / "hospitals"), tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "round 1/3" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert model_bytes(tmp_path / "killed") == model_bytes(segmented)


def test_one_site_federated_trains_as_it_does_alone(
    hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    for name in ("hospital-1", "hospital-4"):
        shutil.copytree(hospitals / name, tmp_path / "two" / name, ignore=shutil.ignore_patterns("work"))
    study = arguments(tmp_path / "two", tmp_path / "run")
    assert simulate("run", *study, "--rounds", "1") == 0

    site = read_site(tmp_path / "two" / "hospital-1" / "site.toml")
    entries = load_prepared(site, segmentation_target(site))
    folds = patient_folds([entry.case for entry in entries], 5, 5)
    ordered = sorted(entries, key=lambda entry: entry.case.case_id)
    training = [entry for entry in ordered if folds[entry.case.patient_id] != 0]
    initial = flatten(initial_vbnet_state(TINY.segmentation.network, 5))
    incoming = pack(initial, Precision.FLOAT16).unpack()  # as a site gets them
    task = VBNetTask(TINY.segmentation, TINY.training, 5, site.name, 1, incoming)
    alone = train_vbnet(task, training, {}, Machine(torch.device("cpu"))).weights
    federated = load_weights(tmp_path / "run" / "rounds" / "0001" / "vbnet.safetensors")
    moved = (alone.floats - incoming.floats).norm()
    assert (federated.floats - alone.floats).norm() < 0.01 * moved  # what half precision rounds away
    assert torch.equal(federated.integers, alone.integers)


def test_site_that_is_not_prepared_for_segmentation_refuses(
    hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    broken = copied(hospitals, tmp_path / "hospitals")
    settings = (broken / "hospital-1" / "site.toml").read_text()
    other = settings.replace("segmentation_spacing_mm_xyz = [6.0", "segmentation_spacing_mm_xyz = [7.0")
    assert other != settings
    (broken / "hospital-1" / "site.toml").write_text(other)
    assert simulate("run", *arguments(broken, tmp_path / "run")) == 78


def test_scans_without_given_masks_are_left_out(hospitals: Path, tmp_path: Path) -> None:
    copied(hospitals, tmp_path / "hospitals")
    home = tmp_path / "hospitals" / "hospital-1"
    header, first, *others = (home / "cohort.csv").read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index("lung_mask")] = ""
    (home / "cohort.csv").write_text("\n".join([header, ",".join(cells), *others]) + "\n")
    site = read_site(home / "site.toml")
    result = prepare_cohort(site, 1, target=segmentation_target(site))
    assert result.n_left_out == 1
    assert [finding.code for finding in result.findings if finding.severity == "error"] == ["IMAGE-NO-MASK"]
