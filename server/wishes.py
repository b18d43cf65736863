"""Which studies should run: what the operator asked for last, kept on disk until it is done.

`train`, `resume` and `stop` write a wish; the daemon carries it out, over any number of restarts, and removes
it when the study has come to an end.
"""

import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dsan_daemon.files import write_atomically
from server.centre import Centre
from server.ledger import read_ledger

ENDS = frozenset(
    {"complete", "incomplete", "paused", "stopped", "estimated"}
)  # events that end a study in the ledger


class Wish(BaseModel):
    """What the operator asked for a run."""

    model_config = ConfigDict(frozen=True)

    run: str
    wanted: Literal["running", "stopped"]
    asked_at: float  # unix seconds
    lines_before: int  # of the ledger: an end before that is not ours
    is_dry_run: bool = False  # estimate time and traffic only


class Attempt(BaseModel):
    """How far the daemon is with a wish."""

    model_config = ConfigDict(frozen=True)

    asked_at: float  # of the wish
    run_id: int | None = None  # of Flower; None while none is submitted
    submitted_at: float = 0.0  # unix seconds
    failures: int = 0  # runs in a row that ended without an end of the study
    last_failure: str = ""
    next_try: float = 0.0  # unix seconds


def make_wish(
    centre: Centre, run: str, wanted: Literal["running", "stopped"], is_dry_run: bool = False
) -> Wish:
    """Write down what is asked for a run; a wish that is there is replaced."""
    lines_before = sum(1 for _ in read_ledger(centre.run(run)))
    wish = Wish(
        run=run, wanted=wanted, asked_at=time.time(), lines_before=lines_before, is_dry_run=is_dry_run
    )
    _folder(centre).mkdir(parents=True, exist_ok=True)
    _write(_folder(centre) / f"{run}.wish.json", wish)
    return wish


def read_wishes(centre: Centre) -> list[Wish]:
    """Everything that is asked for, the oldest first."""
    wishes = (Wish.model_validate_json(path.read_bytes()) for path in _folder(centre).glob("*.wish.json"))
    return sorted(wishes, key=lambda wish: wish.asked_at)


def end_wish(centre: Centre, wish: Wish) -> None:
    """A wish that came true, or came to its end, is forgotten."""
    for kind in ("wish", "attempt"):
        (_folder(centre) / f"{wish.run}.{kind}.json").unlink(missing_ok=True)


def read_attempt(centre: Centre, wish: Wish) -> Attempt:
    """How far the daemon is; an attempt at an earlier wish passes on its run."""
    try:
        found = Attempt.model_validate_json((_folder(centre) / f"{wish.run}.attempt.json").read_bytes())
    except FileNotFoundError:
        return Attempt(asked_at=wish.asked_at)
    return found if found.asked_at == wish.asked_at else Attempt(asked_at=wish.asked_at, run_id=found.run_id)


def write_attempt(centre: Centre, wish: Wish, attempt: Attempt) -> None:
    """Keep how far the daemon is, over a restart."""
    _write(_folder(centre) / f"{wish.run}.attempt.json", attempt)


def study_end(centre: Centre, wish: Wish) -> str | None:
    """The event in the ledger that ended the study since the wish, if there is one."""
    lines = list(read_ledger(centre.run(wish.run)))[wish.lines_before :]
    return next((str(line["event"]) for line in reversed(lines) if line.get("event") in ENDS), None)


def _folder(centre: Centre) -> Path:
    return centre.state / "studies"


def _write(path: Path, content: BaseModel) -> None:
    write_atomically(path, content.model_dump_json(indent=1).encode() + b"\n")
