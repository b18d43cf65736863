"""How far the message in work is: a line appended to a file, which the site's daemon reads."""

import json
import time
from pathlib import Path

from dsan_model.sampling import Branch

SMALLEST_INTERVAL_S = 1.0
LARGEST_BYTES = 1 << 20  # then the file starts anew


class ProgressFile:
    """Appends phase, steps and branch; the same phase at most once a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_phase: tuple[str, Branch | None] | None = None
        self._last_time = 0.0

    def report(self, phase: str, done: int, steps: int, branch: Branch | None) -> None:
        """Say how far a phase is; `steps` 0 means that it has none."""
        now = time.monotonic()
        if (
            (phase, branch) == self._last_phase
            and now - self._last_time < SMALLEST_INTERVAL_S
            and done < steps
        ):
            return
        self._last_phase, self._last_time = (phase, branch), now
        line = {"time": time.time(), "phase": phase, "done": done, "steps": steps, "branch": branch}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        too_long = self.path.exists() and self.path.stat().st_size > LARGEST_BYTES
        with self.path.open("w" if too_long else "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
