"""The study that the tests of the simulation compare with, and what they look at of a run folder."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Simulate = Callable[..., int]
COMMAND = (sys.executable, "-c", "from simulation.cli import main; main()")  # in a process of its own


def study_arguments(hospitals: Path, out: Path) -> tuple[str, ...]:
    """Options of `dsan-simulate run`: the preset tiny, three rounds, with the baseline."""
    options = ("--preset", "tiny", "--rounds", "3", "--baseline", "--workers", "2", "--seed", "5")
    return ("--hospitals", str(hospitals), "--out", str(out), *options)


def copied(hospitals: Path, to: Path) -> Path:
    """The hospitals with their prepared volumes, without what they finished for other studies."""
    shutil.copytree(hospitals, to, ignore=shutil.ignore_patterns("work", "panels"))
    return to


def model_bytes(run_folder: Path) -> dict[str, bytes]:
    """The weights of the model package, by branch."""
    return {path.stem: path.read_bytes() for path in sorted((run_folder / "model").glob("*.safetensors"))}


def results_of(run_folder: Path) -> dict[str, Any]:
    """results.json."""
    results: dict[str, Any] = json.loads((run_folder / "results.json").read_text())
    return results
