"""What a command shows while it works and when it is done; results on stdout, the rest on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from client.preparation import Progress

LINE_EVERY_S = 5.0


@contextmanager
def progress_shown(*steps: str) -> Iterator[tuple[Callable[[Progress], None], ...]]:
    """For each step ("preparing cases") a bar with the time left; off a terminal a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield tuple(_Lines(step).tell for step in steps)
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    with ProgressBar(*columns, console=console) as bar:
        tasks = [bar.add_task(step, total=None, start=False, visible=False) for step in steps]
        yield tuple(partial(_move, bar, task) for task in tasks)


def _move(bar: ProgressBar, task: TaskID, progress: Progress) -> None:
    if not bar.tasks[task].started:
        bar.start_task(task)
    bar.update(task, completed=progress.done, total=progress.total, visible=True)


def say(line: str) -> None:
    """A line of progress on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def duration_text(seconds: float) -> str:
    """48 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes} min {rest_s:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Lines:
    """Lines with the time since the start: the first, the last, and one every few seconds between."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.last_s = -LINE_EVERY_S
        self.started = time.monotonic()

    def tell(self, progress: Progress) -> None:
        seconds = time.monotonic() - self.started
        if seconds - self.last_s < LINE_EVERY_S and progress.done < progress.total:
            return
        self.last_s = seconds
        left = f", {duration_text(progress.eta_s)} left" if progress.eta_s else ""
        say(f"[{seconds:6.1f} s] {self.step}: {progress.done} of {progress.total}{left}")
