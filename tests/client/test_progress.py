"""The lines that tell a site's daemon how far a message in work is."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from client import progress
from client.progress import ProgressFile, read_progress
from dsan_model.sampling import Branch


@pytest.fixture
def file(tmp_path: Path) -> ProgressFile:
    return ProgressFile(tmp_path / "work" / "progress.jsonl")


def lines(file: ProgressFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.path.read_text(encoding="utf-8").splitlines()]


def test_a_report_is_a_line_with_time_phase_steps_and_branch(file: ProgressFile) -> None:
    before = time.time()
    file.report("training", 3, 24, Branch.SS)
    (line,) = lines(file)
    assert before <= line.pop("since") <= line.pop("time") <= time.time()
    assert line.pop("eta_s") is None  # from one line alone nobody can tell
    assert line == {"study": "", "round": None, "phase": "training", "done": 3, "steps": 24, "branch": "ss"}


def test_a_line_says_study_and_round_and_how_long_the_phase_will_take(
    file: ProgressFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SMALLEST_INTERVAL_S", 0.0)
    told = ProgressFile(file.path, "spring", 7)
    told.report("training", 1, 10, Branch.US)
    time.sleep(0.2)
    told.report("training", 5, 10, Branch.US)
    line = read_progress(file.path)
    assert line is not None
    assert (line.study, line.round, line.done, line.steps) == ("spring", 7, 5, 10)
    assert line.eta_s == pytest.approx(0.25, abs=0.15)
    assert line.time - line.since == pytest.approx(0.2, abs=0.1)


def test_the_newest_whole_line_is_read(file: ProgressFile) -> None:
    assert read_progress(file.path) is None
    for number in range(100):
        file.report(f"phase {number}", 0, 0, None)
    with file.path.open("a") as torn:
        torn.write('{"time": 1, "phase": "to')
    line = read_progress(file.path)
    assert line is not None
    assert line.phase == "phase 99"


def test_a_phase_without_a_branch_and_without_steps_is_told_as_such(file: ProgressFile) -> None:
    file.report("idle", 0, 0, None)
    assert lines(file)[0]["branch"] is None


def test_the_same_phase_is_told_at_most_once_a_second_but_its_end_always(file: ProgressFile) -> None:
    for done in range(1, 101):
        file.report("training", done, 100, Branch.US)
    assert [line["done"] for line in lines(file)] == [1, 100]


def test_the_same_phase_is_told_again_after_a_while(
    file: ProgressFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SMALLEST_INTERVAL_S", 0.05)
    file.report("training", 1, 100, Branch.US)
    file.report("training", 2, 100, Branch.US)
    time.sleep(0.06)
    file.report("training", 3, 100, Branch.US)
    assert [line["done"] for line in lines(file)] == [1, 3]


def test_another_phase_or_branch_is_told_at_once(file: ProgressFile) -> None:
    file.report("validating", 0, 2, Branch.US)
    file.report("training", 0, 5, Branch.US)
    file.report("training", 0, 5, Branch.SS)
    file.report("validating", 0, 2, Branch.US)
    assert [(line["phase"], line["branch"]) for line in lines(file)] == [
        ("validating", "us"),
        ("training", "us"),
        ("training", "ss"),
        ("validating", "us"),
    ]


def test_a_new_process_goes_on_in_the_same_file(file: ProgressFile) -> None:
    file.report("training", 5, 5, Branch.US)
    ProgressFile(file.path).report("idle", 0, 0, None)
    assert [line["phase"] for line in lines(file)] == ["training", "idle"]


def test_a_file_that_grew_too_long_starts_anew(file: ProgressFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LARGEST_BYTES", 500)
    for number in range(50):
        file.report(f"phase {number}", 0, 0, None)
        assert file.path.stat().st_size < 700
    assert lines(file)[-1]["phase"] == "phase 49"
