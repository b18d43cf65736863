"""How far the message in work is: lines appended to a file, which the site's daemon reads."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dsan_model.sampling import Branch

SMALLEST_INTERVAL_S = 1.0
LARGEST_BYTES = 1 << 20  # then the file starts anew
TAIL_BYTES = 4096  # hold a few lines


@dataclass(frozen=True)
class ProgressLine:
    """One line of progress.jsonl."""

    time: float  # unix
    study: str
    round: int | None
    phase: str
    done: int
    steps: int  # 0: the phase has none
    branch: str | None
    since: float  # unix, when the phase began
    eta_s: float | None  # to the end of the phase


class ProgressFile:
    """Appends phase, steps and branch of the work on one message; the same phase at most once a second."""

    def __init__(self, path: Path, study: str = "", round_number: int | None = None) -> None:
        self.path = path
        self.study = study
        self.round = round_number
        self._last_phase: tuple[str, Branch | None] | None = None
        self._last_time = self._began = self._since = 0.0
        self._done_at_first = 0

    def report(self, phase: str, done: int, steps: int, branch: Branch | None) -> None:
        """Say how far a phase is; `steps` 0 means that it has none."""
        now = time.monotonic()
        is_same = (phase, branch) == self._last_phase
        if is_same and now - self._last_time < SMALLEST_INTERVAL_S and done < steps:
            return
        if not is_same:
            self._last_phase, self._began, self._since = (phase, branch), now, time.time()
            self._done_at_first = done
        self._last_time = now
        done_since = done - self._done_at_first  # the first line of a phase cannot tell how fast it is
        eta_s = round((now - self._began) / done_since * (steps - done), 1) if done_since > 0 else None
        line = ProgressLine(
            time.time(), self.study, self.round, phase, done, steps, branch, self._since, eta_s
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        too_long = self.path.exists() and self.path.stat().st_size > LARGEST_BYTES
        with self.path.open("w" if too_long else "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")


def read_progress(path: Path) -> ProgressLine | None:
    """The newest line; None if there is none that is whole."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for text in reversed(lines):
        with suppress(ValueError, TypeError):
            return ProgressLine(**json.loads(text))
    return None
