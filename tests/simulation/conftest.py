"""Small hospitals, written and studied once for all tests of the simulation."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_study import Simulate, study_arguments
from typer.testing import CliRunner

from simulation.cli import app


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    """A command in this process logs to a stream that is closed after it."""
    yield
    logging.getLogger("dsan").handlers.clear()


@pytest.fixture(scope="session")
def simulate() -> Simulate:
    """Run a dsan-simulate command line in this process; its exit code."""

    def run(*arguments: str | Path) -> int:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code

    return run


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory, simulate: Simulate) -> Path:
    """Four hospitals of twelve scans for the preset `tiny`; the last is held out, one is one-class."""
    folder = tmp_path_factory.mktemp("hospitals") / "four"
    arguments = ("--sites", "4", "--cases", "12", "--preset", "tiny", "--shape", "24", "64", "64")
    assert simulate("hospitals", folder, *arguments) == 0
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, simulate: Simulate, hospitals: Path) -> Path:
    """The run folder of an undisturbed study over them, three rounds, with the baseline."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert simulate("run", *study_arguments(hospitals, out)) == 0
    return out
