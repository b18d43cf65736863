"""ledger.jsonl: what every site did, readable after a power cut too."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from server.ledger import LEDGER, LedgerEntry, append_event, append_round, last_statuses, read_ledger

ACCEPTED = LedgerEntry(1, "north", "us", "accepted", cases=48, steps=3, seconds=1.5, bytes=1000, digest="ab")
MISSING = LedgerEntry(1, "south", "us", "missing", code="SITE-LATE", message="no answer before the deadline")


def lines(run_folder: Path) -> list[str]:
    return (run_folder / LEDGER).read_text(encoding="utf-8").splitlines()


def test_a_round_has_a_line_for_every_entry_with_the_time(tmp_path: Path) -> None:
    append_round(tmp_path, [ACCEPTED, MISSING])
    first, second = (json.loads(line) for line in lines(tmp_path))
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "event": "round",
        "round": 1,
        "site": "north",
        "branch": "us",
        "status": "accepted",
        "cases": 48,
        "steps": 3,
        "seconds": 1.5,
        "bytes": 1000,
        "digest": "ab",
        "relative_update": None,
        "cosine": None,
        "code": None,
        "message": None,
    }
    assert (second["status"], second["code"], second["cases"]) == ("missing", "SITE-LATE", None)


def test_lines_are_only_ever_added(tmp_path: Path) -> None:
    append_event(tmp_path, "started", "study")
    before = (tmp_path / LEDGER).read_bytes()
    append_round(tmp_path, [ACCEPTED])
    append_event(tmp_path, "complete", "study")
    assert (tmp_path / LEDGER).read_bytes().startswith(before)
    assert [line["event"] for line in read_ledger(tmp_path)] == ["started", "round", "complete"]


def test_a_run_without_a_ledger_has_no_lines(tmp_path: Path) -> None:
    assert list(read_ledger(tmp_path)) == []
    assert last_statuses(tmp_path) == {}


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_torn_last_line_is_left_out_and_the_next_line_is_not_glued_to_it(
    tmp_path: Path, kept: float
) -> None:
    append_round(tmp_path, [ACCEPTED, MISSING])
    whole = (tmp_path / LEDGER).read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    (tmp_path / LEDGER).write_bytes(whole[: last + int(kept * (len(whole) - last))])
    assert last_statuses(tmp_path) == {(1, "north"): "accepted"}
    append_event(tmp_path, "resumed", "after round 1")
    assert [line["event"] for line in read_ledger(tmp_path)] == ["round", "resumed"]


def test_a_tear_through_a_character_is_a_torn_line_too(tmp_path: Path) -> None:
    append_event(tmp_path, "started", "study")
    append_event(tmp_path, "paused", "Universitätsklinikum")
    content = (tmp_path / LEDGER).read_bytes()
    (tmp_path / LEDGER).write_bytes(content[: content.index("ä".encode()) + 1])
    assert [line["event"] for line in read_ledger(tmp_path)] == ["started"]


@pytest.mark.parametrize("text", ["two\nlines", "line\u2028separator", "next\u0085line", "\x1c", 'a "quote"'])
def test_a_message_of_a_site_cannot_break_its_line(tmp_path: Path, text: str) -> None:
    append_round(tmp_path, [LedgerEntry(1, "south", "us", "rejected", code="X", message=text)])
    (line,) = read_ledger(tmp_path)
    assert line["message"] == text
    assert last_statuses(tmp_path) == {(1, "south"): "rejected"}


def test_the_last_word_on_a_round_and_site_counts(tmp_path: Path) -> None:
    append_event(tmp_path, "started", "study")
    append_round(tmp_path, [ACCEPTED, MISSING])
    append_event(tmp_path, "paused", "south is missing")
    append_round(tmp_path, [ACCEPTED, LedgerEntry(1, "south", "us", "accepted", cases=10)])
    append_round(tmp_path, [LedgerEntry(2, "north", "us", "rejected", code="UPDATE-LAYOUT")])
    assert last_statuses(tmp_path) == {
        (1, "north"): "accepted",
        (1, "south"): "accepted",
        (2, "north"): "rejected",
    }
