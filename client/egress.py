"""The record of what left: one line for every message to the centre, on disk before the message goes.

state/egress.jsonl, rotated at a size. A message that cannot be recorded does not leave.
"""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dsan_daemon.files import sync

EGRESS = "egress.jsonl"
LARGEST_BYTES = 16 << 20  # then the file becomes egress.jsonl.1, that one .2, and so on; none is deleted
RECENT_REFUSALS = 10
TAIL_BYTES = 4096  # hold the newest lines


@dataclass(frozen=True)
class EgressLine:
    """One message that left."""

    time: float  # unix
    kind: str  # "describe", "round", ...; "other": of a kind that this release does not know
    study: str
    round: int | None
    bytes: int
    sha256: str  # of the message's records
    code: str | None  # of a refusal


@dataclass(frozen=True)
class EgressSums:
    """What left a site altogether."""

    messages: int
    bytes: int
    messages_by_kind: dict[str, int]
    refusals_by_code: dict[str, int]
    recent_refusals: tuple[EgressLine, ...]
    last: EgressLine | None


def record_egress(state_folder: Path, line: EgressLine) -> None:
    """Append a line and force it to disk; OSError if that fails, and then the message must not leave."""
    state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_folder / EGRESS
    with (state_folder / "egress.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_new = not path.exists() or _rotate(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(state_folder)


def read_egress(state_folder: Path) -> Iterator[EgressLine]:
    """Every line, the oldest first; a line that a power cut tore is passed over."""
    older = sorted(state_folder.glob(f"{EGRESS}.*"), key=_age, reverse=True)
    for path in (*older, state_folder / EGRESS):
        if not path.exists():
            continue
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                yield EgressLine(**json.loads(text))
            except (ValueError, TypeError):
                continue


def sum_egress(state_folder: Path) -> EgressSums:
    """Messages and bytes, by kind, and what was refused."""
    lines = list(read_egress(state_folder))
    refusals = [line for line in lines if line.code is not None]
    return EgressSums(
        len(lines),
        sum(line.bytes for line in lines),
        dict(Counter(line.kind for line in lines)),
        dict(Counter(str(line.code) for line in refusals)),
        tuple(refusals[-RECENT_REFUSALS:]),
        lines[-1] if lines else None,
    )


def last_refusal(state_folder: Path) -> str | None:
    """The code of the newest line, if it is one of a refusal."""
    path = state_folder / EGRESS
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return EgressLine(**json.loads(lines[-1])).code
    except (OSError, ValueError, TypeError, IndexError):
        return None


def now() -> float:
    """The time of a line."""
    return round(time.time(), 3)


def _rotate(path: Path) -> bool:
    """Make room if the file is large; older files move up by one, the newest is .1."""
    if path.stat().st_size < LARGEST_BYTES:
        return False
    for older in sorted(path.parent.glob(f"{EGRESS}.*"), key=_age, reverse=True):
        older.rename(path.with_name(f"{EGRESS}.{_age(older) + 1}"))
    path.rename(path.with_name(f"{EGRESS}.1"))
    return True


def _age(path: Path) -> int:
    return int(path.suffix[1:])
