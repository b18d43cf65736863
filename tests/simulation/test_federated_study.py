"""The whole study on one machine, as a researcher runs it."""

import fcntl
import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from small_study import COMMAND, Simulate, copied, model_bytes, results_of, study_arguments
from typer.testing import CliRunner

from server.ledger import read_ledger
from server.run_state import is_sealed
from simulation.cli import app


def test_results_have_every_model_in_both_sets(finished: Path) -> None:
    rows = {(row["set"], row["model"]) for row in results_of(finished)["table2"]}
    models = {"RN34 + US", "Attention RN34 + US", "Attention RN34 + SS", "Attention RN34 + DS"}
    assert rows == {(case_set, model) for case_set in ("validation", "held-out") for model in models}


def test_results_count_every_case_once(finished: Path, hospitals: Path) -> None:
    results = results_of(finished)
    for site in results["sites"]:
        listed = (hospitals / site["name"] / "cohort.csv").read_text().splitlines()[1:]
        assert sum(site["cases"].values()) == len(listed)
    held_out = next(site for site in results["sites"] if site["role"] == "held-out")
    row = next(row for row in results["table2"] if row["set"] == "held-out")
    assert row["n"] == held_out["cases"]


def test_ledger_accepts_every_training_site_in_every_round_and_branch(finished: Path) -> None:
    lines = [line for line in read_ledger(finished) if line["event"] == "round"]
    assert {line["status"] for line in lines} == {"accepted"}
    assert len(lines) == 3 * 3 * 3  # sites, rounds, branches


def test_the_ledger_has_the_cosine_of_every_accepted_update(finished: Path) -> None:
    cosines: dict[tuple[object, object], list[float]] = {}
    for line in read_ledger(finished):
        if line["event"] == "round":
            cosines.setdefault((line["round"], line["branch"]), []).append(float(str(line["cosine"])))
    assert len(cosines) == 3 * 3
    for of_round in cosines.values():
        assert all(-1 <= cosine <= 1 for cosine in of_round)
        assert max(of_round) > 0  # a mean cannot point away from all that it is made of


def test_every_line_of_the_json_log_knows_its_study_and_those_of_a_round_the_round(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "study.jsonl").read_text().splitlines()]
    assert {line["study"] for line in lines} == {finished.name}
    assert {line["round"] for line in lines if line["message"].startswith("round ")} == {1, 2, 3}
    assert [line["message"] for line in lines] == [
        line.split(" ", 3)[3] for line in (finished / "study.log").read_text().splitlines()
    ]


def test_drawn_groups_of_size_balanced_sampling_pass_the_chi_square_test(finished: Path) -> None:
    results = results_of(finished)
    assert results["sampling_test"][0]["p_value"] > 1e-3
    assert any(site["p_value"] is not None for site in results["sampling_by_site"])


def test_model_package_is_sealed_and_report_is_written(finished: Path) -> None:
    assert is_sealed(finished / "model")
    assert "Attention RN34 + DS" in (finished / "report.html").read_text()
    assert list((finished / "figures" / "panels").glob("*.png"))


@pytest.mark.slow
def test_study_killed_at_random_moments_ends_with_the_same_weights(
    finished: Path, hospitals: Path, tmp_path: Path
) -> None:
    moment = random.Random()
    command = [
        *COMMAND,
        "run",
        *study_arguments(copied(hospitals, tmp_path / "hospitals"), tmp_path / "killed"),
    ]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if "prepared" in line:
                break
        time.sleep(moment.uniform(0.5, 4.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert model_bytes(tmp_path / "killed") == model_bytes(finished)


def test_same_command_again_resumes_and_changes_nothing(
    finished: Path, hospitals: Path, simulate: Simulate
) -> None:
    before = model_bytes(finished)
    assert simulate("run", *study_arguments(hospitals, finished)) == 0
    assert model_bytes(finished) == before


def test_other_settings_in_the_same_folder_are_refused(
    finished: Path, hospitals: Path, simulate: Simulate
) -> None:
    assert simulate("run", *study_arguments(hospitals, finished), "--rounds", "4") == 78


def test_site_without_a_usable_case_pauses_the_study_unless_a_quorum_goes_on(
    hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    broken = copied(hospitals, tmp_path / "hospitals")
    manifest = broken / "hospital-1" / "cohort.csv"
    manifest.write_text(manifest.read_text().splitlines()[0] + "\nc1,p1,COVID-19,images/none.nii,,,,,,\n")
    assert simulate("run", *study_arguments(broken, tmp_path / "paused")) == 70
    assert not (tmp_path / "paused" / "results.json").exists()
    assert simulate("run", *study_arguments(broken, tmp_path / "quorum"), "--quorum", "2") == 70
    results = results_of(tmp_path / "quorum")
    assert results["complete"] is False
    missing = {line["site"] for line in read_ledger(tmp_path / "quorum") if line.get("status") == "missing"}
    assert missing == {"hospital-1"}
    assert {site["rounds_completed"] for site in results["sites"] if site["name"] != "hospital-1"} == {0, 3}
    assert simulate("run", *study_arguments(broken, tmp_path / "quorum"), "--quorum", "2") == 70
    again = results_of(tmp_path / "quorum")  # of both sessions, though the second trained nothing
    assert again["traffic"]["bytes_from_sites"] > 0.99 * results["traffic"]["bytes_from_sites"]


def test_held_out_site_of_one_class_has_no_auc_but_a_specificity(tmp_path: Path, simulate: Simulate) -> None:
    options = ("--preset", "tiny", "--sites", "3", "--cases", "8", "--held-out-mix", "cap-only")
    assert simulate("run", *options, "--rounds", "1", "--out", tmp_path / "cap-only") == 0
    for row in results_of(tmp_path / "cap-only")["table2"]:
        if row["set"] == "held-out":
            assert (row["auc"], row["sensitivity"]) == (None, None)
            assert row["specificity"] is not None


def test_volumes_prepared_to_another_grid_are_refused_before_anything_runs(
    hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    assert simulate("run", "--preset", "demo", "--hospitals", hospitals, "--out", tmp_path / "other") == 78


@pytest.mark.parametrize("lock_name", [".lock", ".command.lock"])  # of a ServerApp, of a command
def test_a_run_folder_in_use_is_refused_and_left_alone(
    hospitals: Path, tmp_path: Path, simulate: Simulate, lock_name: str
) -> None:
    run_folder = tmp_path / "in-use"
    run_folder.mkdir()
    with (run_folder / lock_name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert simulate("run", *study_arguments(hospitals, run_folder)) == 70
    left = {path.name for path in run_folder.iterdir()}
    assert "ledger.jsonl" not in left
    assert lock_name == ".lock" or "study.toml" not in left


def test_an_unreadable_site_toml_costs_that_hospital_and_no_other(
    hospitals: Path, tmp_path: Path, simulate: Simulate, caplog: pytest.LogCaptureFixture
) -> None:
    broken = copied(hospitals, tmp_path / "hospitals")
    (broken / "hospital-1" / "site.toml").write_text('nam = "hospital-1"\n')
    out = tmp_path / "quorum"
    assert simulate("run", *study_arguments(broken, out), "--rounds", "1", "--quorum", "2") == 70
    assert any("hospital-1/site.toml" in line and "nam" in line for line in caplog.messages)
    results = results_of(out)
    assert results["complete"] is False
    assert {row["site"]: row["code"] for row in results["failures"]} == {"hospital-1": "SITE-KEY"}
    assert {row["name"] for row in results["sites"] if row["rounds_completed"] == 1} == {
        "hospital-2",
        "hospital-3",
    }


def test_a_disk_that_takes_no_more_is_said_in_a_line(hospitals: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "full"
    arguments = [*COMMAND, "run", *study_arguments(copied(hospitals, tmp_path / "hospitals"), run_folder)]
    limited = ["/bin/bash", "-c", 'ulimit -f 100; exec "$@"', "limited", *arguments]  # files of 100 KiB
    ended = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert ended.returncode == 70
    assert "Traceback" not in ended.stderr
    assert "SITE-OS-" in ended.stderr
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--held-out", "nobody"), "no such hospital"),
        (("--quorum", "9"), "there are 3 training hospitals"),
        (("--held-out", "hospital-1, hospital-2,hospital-3, hospital-4"), "leave at least one to train"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    out = tmp_path / "refused"
    result = CliRunner().invoke(app, ["run", "--preset", "tiny", "--sites", "4", "--out", str(out), *options])
    assert result.exit_code == 78
    assert reason in result.stderr
    assert not (out / "hospitals").exists()


def test_a_folder_whose_name_names_no_study_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "--preset", "tiny", "--out", str(tmp_path / "a b")])
    assert result.exit_code == 78
    assert "the folder names the study" in result.stderr
