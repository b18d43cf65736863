"""Log lines as a person and as a log collector see them."""

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dsan_daemon.logs import configure_logs, logging_about

log = logging.getLogger("dsan.test")


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_with_study_round_and_site_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs()
    with logging_about(study="eight", site="north"), logging_about(round=3):
        log.info("%d cases", 60)
    log.info("after")
    first, second = lines(capsys)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "logger": "dsan.test",
        "message": "60 cases",
        "study": "eight",
        "round": 3,
        "site": "north",
    }
    assert not {"study", "round", "site"} & set(second)


def test_what_a_call_says_itself_outweighs_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    with logging_about(site="north"):
        log.info("late", extra={"site": "south"})
    assert lines(capsys)[0]["site"] == "south"


def test_an_error_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it went wrong")
    (line,) = lines(capsys)
    assert "ValueError: two\nlines" in line["error"]


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(logging.WARNING)
    log.info("chatter")
    assert lines(capsys) == []


def test_a_line_is_words_in_a_terminal() -> None:
    ours, theirs = pty.openpty()
    script = "import logging; from dsan_daemon.logs import *; configure_logs(); logging.info('two words')"
    done = subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True)
    os.close(theirs)
    said = os.read(ours, 1000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert said.strip().endswith("INFO two words")
    assert not said.startswith("{")
