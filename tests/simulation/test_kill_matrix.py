"""The kill matrix: what its command prints, and two of its cells in a deployment."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from debian_programs import debian_program
from kill_table import RESULTS, Cell, read_cells, table_text

MATRIX = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_matrix.py"
GOOD = Cell("site-power", "unpulled", "2026-11-23T09:00:00+00:00", True, 80.0, 2.0, 0, True, True, 0)


def printed(cell: Cell) -> str:
    return table_text({(cell.target, cell.phase): cell}, [cell.target], [cell.phase])


def test_a_good_cell_says_when_work_went_on_and_when_the_site_was_named() -> None:
    assert GOOD.is_good
    assert "80 s / 0 / 2 s" in printed(GOOD)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"equal": False}, "DIFFERS"),
        ({"complete": False}, "INCOMPLETE"),
        ({"trained_again": 1}, "AGAIN"),
        ({"named_s": 91.0}, "BAD"),
        ({"named_s": None}, "BAD"),
        ({"repeated": 2}, "BAD"),
        ({"back_s": None}, "BAD"),
        ({"reached": False}, "NOT REACHED"),
    ],
)
def test_a_cell_that_is_not_as_it_should_be_is_marked(change: dict[str, Any], word: str) -> None:
    cell = replace(GOOD, **change)
    assert not cell.is_good
    assert word in printed(cell)


def test_a_cell_that_cannot_be_has_its_reason_and_one_that_was_not_run_is_said() -> None:
    text = table_text({}, ["site-clientapp"], ["idle", "training"])
    assert re.search(r"site-clientapp +none \(2\) +not run", text)
    assert "none (2): there is one for each message, and none is in work" in text


def test_what_was_measured_is_read_again_and_the_newest_counts(tmp_path: Path) -> None:
    lines = [json.dumps(asdict(cell)) + "\n" for cell in (replace(GOOD, equal=False), GOOD)]
    (tmp_path / RESULTS).write_text("".join(lines))
    assert read_cells(tmp_path) == {("site-power", "unpulled"): GOOD}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_serverapp_killed_while_it_writes_a_round_and_a_site_whose_line_is_cut(tmp_path: Path) -> None:
    debian_program("nginx")
    targets, phases = ("centre-serverapp", "site-frozen"), ("unpulled", "writing")
    command = [sys.executable, str(MATRIX), "--folder", str(tmp_path / "matrix"), "--lanes", "1"]
    command += ["--targets", *targets, "--phases", *phases]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
