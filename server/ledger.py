"""ledger.jsonl: one line for what a site did in a branch and round, and for what happened to the run."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

LEDGER = "ledger.jsonl"
Status = Literal["accepted", "rejected", "missing"]


@dataclass(frozen=True)
class LedgerEntry:
    """One site in one branch of one round; what a missing or rejected site did not deliver is None."""

    round: int
    site: str
    branch: str
    status: Status
    cases: int | None = None
    steps: int | None = None
    seconds: float | None = None
    bytes: int | None = None
    digest: str | None = None
    relative_update: float | None = None
    cosine: float | None = None  # of the update with the round's mean update (update_sketch.py)
    code: str | None = None
    message: str | None = None


def append_round(run_folder: Path, entries: list[LedgerEntry]) -> None:
    """Write the entries of a round; they are on disk when this returns."""
    _append(run_folder, [{"event": "round", **asdict(entry)} for entry in entries])


def append_event(run_folder: Path, event: str, message: str) -> None:
    """Write what happened to the run as a whole: started, resumed, complete, incomplete, ..."""
    _append(run_folder, [{"event": event, "message": message}])


def read_ledger(run_folder: Path) -> Iterator[dict[str, object]]:
    """Every line, oldest first; one that a power cut tore, or that is none of a ledger, is left out."""
    yield from _parsed(_lines(run_folder))


def read_events(run_folder: Path) -> Iterator[dict[str, object]]:
    """What happened to the run as a whole, oldest first: quickly, however many rounds there are."""
    lines = (line for line in _lines(run_folder) if b'"event": "round"' not in line)
    yield from _parsed(lines)


def last_statuses(run_folder: Path) -> dict[tuple[int, str], Status]:
    """The last word of the ledger on every (round, site): a resumed round is written twice."""
    found: dict[tuple[int, str], Status] = {}
    for line in read_ledger(run_folder):
        if line.get("event") == "round":
            found[int(str(line["round"])), str(line["site"])] = line["status"]  # type: ignore[assignment]
    return found


def _lines(run_folder: Path) -> list[bytes]:
    path = run_folder / LEDGER
    return path.read_bytes().split(b"\n") if path.exists() else []


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, object]]:
    for line in lines:  # bytes: a tear may go through a character
        try:
            found = json.loads(line)
            if _is_ledger_line(found):
                yield found
        except ValueError:
            continue


def _is_ledger_line(found: object) -> bool:
    """Whether it says what happened and when, and of a round which, who and how. ValueError: a bad time."""
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        return False
    datetime.fromisoformat(str(found.get("time")))
    if found["event"] != "round":
        return True
    return isinstance(found.get("round"), int) and all(
        isinstance(found.get(key), str) for key in ("site", "branch", "status")
    )


def _append(run_folder: Path, lines: list[dict[str, object]]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    text = "".join(json.dumps({"time": now, **line}, ensure_ascii=False) + "\n" for line in lines)
    path = run_folder / LEDGER
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        text = "\n" + text  # a power cut tore the last line: ours must not be glued to it
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
