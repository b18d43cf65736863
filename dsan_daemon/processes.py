"""Child processes that are kept running, stopped together, and never left behind.

A supervisor records its children in a file and marks them, and all that they start, in their environment. If
it is killed itself, the next one ends what is left of them first: two SuperLinks never share a database, nor
two SuperNodes a key. A ServerApp that has left its parents' session is found by its mark.
"""

import ctypes
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

STOP_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MARK = "DSAN_SUPERVISED"  # in the environment of a program and of all its descendants: RECORD#NAME
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # there new memory costs a quarter
STEADY_S = 60.0  # who lived this long begins again with the first pause
_SET_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl

log = logging.getLogger("dsan.processes")


@dataclass(frozen=True)
class Program:
    """A command to keep running: its arguments, its environment, and the file that takes its output."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    first_pause_s: float = FIRST_PAUSE_S  # before it is started again; doubles while it keeps dying


@dataclass
class ProcessStatus:
    """What became of a program so far."""

    pid: int | None  # None while it waits to be started again
    restarts: int
    last_exit: int | None  # of the process before; negative: the signal that ended it
    since: float  # time.monotonic() of its start or end


@dataclass
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    status: ProcessStatus = field(default_factory=lambda: ProcessStatus(None, 0, None, time.monotonic()))
    pause_s: float = 0.0
    start_at: float = 0.0


class Supervisor:
    """Keeps programs running: one that ends is started again after a pause that grows while it keeps dying.

    record: the file with the children's process numbers; its folder must be the daemon's alone.
    """

    def __init__(self, record: Path) -> None:
        self._record = record.resolve()
        self._children: dict[str, _Child] = {}
        end_leftovers(record)

    def start(self, program: Program) -> None:
        """Start a program, or replace the one of the same name."""
        if program.name in self._children:
            self.stop(program.name)
        child = _Child(program)
        self._children[program.name] = child
        self._spawn(child)

    def tend(self) -> list[str]:
        """Start again what ended and has paused long enough; returns the names of what ended just now."""
        now, ended = time.monotonic(), []
        for child in self._children.values():
            if child.process is not None and (code := child.process.poll()) is not None:
                _end_group(child.process.pid, signal.SIGKILL)  # what it left of its own children
                self._retire(child, code, now)
                ended.append(child.program.name)
            elif child.process is None and now >= child.start_at:
                child.status.restarts += 1
                self._spawn(child)
        return ended

    def restart(self, name: str) -> None:
        """End a program that hangs; it starts again at once."""
        child = self._children[name]
        code = stop_process(child.process, 0.0) if child.process is not None else None
        _end_marked(self._mark(name))  # also what it left when it ended by itself
        if code is not None:
            self._retire(child, code, time.monotonic())
            child.start_at = 0.0

    def status(self) -> dict[str, ProcessStatus]:
        """How each program fares, by name."""
        children = list(self._children.items())  # other threads ask too
        return {name: child.status for name, child in children}

    def stop(self, name: str, grace_s: float = STOP_S) -> None:
        """End one program for good."""
        child = self._children.pop(name)
        if child.process is not None:
            stop_process(child.process, grace_s)
        _end_marked(self._mark(name))
        self._write_record()

    def stop_all(self, grace_s: float = STOP_S) -> None:
        """End every program, the last started first."""
        for name in reversed(list(self._children)):
            self.stop(name, grace_s)

    def _spawn(self, child: _Child) -> None:
        program = child.program
        marked = {**program.environment, MARK: self._mark(program.name)}
        child.process = spawn(program.command, marked, program.log)
        child.status.pid, child.status.since = child.process.pid, time.monotonic()
        self._write_record()

    def _mark(self, name: str) -> str:
        return f"{self._record}#{name}"

    def _retire(self, child: _Child, code: int, now: float) -> None:
        lived = now - child.status.since
        first = child.program.first_pause_s
        longer = max(first, min(2 * child.pause_s, LONGEST_PAUSE_S))
        child.pause_s = first if lived >= STEADY_S else longer
        child.process, child.start_at = None, now + child.pause_s
        child.status.pid, child.status.last_exit, child.status.since = None, code, now
        self._write_record()

    def _write_record(self) -> None:
        pids = [child.process.pid for child in self._children.values() if child.process is not None]
        partial = self._record.with_suffix(".partial")
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({str(pid): started_at(pid) for pid in pids}))
            partial.replace(self._record)
        except OSError as error:  # a full disk ends no program; the next supervisor has their marks
            log.error("%s cannot be written: %s", self._record, error.strerror)


@contextmanager
def supervised(record: Path) -> Iterator[Supervisor]:
    """A supervisor whose programs are all ended with the block."""
    supervisor = Supervisor(record)
    try:
        yield supervisor
    finally:
        supervisor.stop_all()


def spawn(command: tuple[str, ...], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A process that leads a session of its own; what it prints is appended to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def signals_held(*numbers: signal.Signals) -> Iterator[None]:
    """These signals come after the end of this; a process that is started meanwhile never takes them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, however that happens (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def stop_process(process: subprocess.Popen[bytes], grace_s: float = STOP_S) -> int:
    """SIGTERM to a process of `spawn`, then SIGKILL to it and its children; returns its exit status."""
    with suppress(subprocess.TimeoutExpired):
        if grace_s > 0 and process.poll() is None:
            _end_group(process.pid, signal.SIGTERM)
            process.wait(grace_s)
    _end_group(process.pid, signal.SIGKILL)
    return process.wait()


def await_leftovers(record: Path, seconds: float) -> None:
    """Give the processes that a killed supervisor left behind some time to end by themselves."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _left(record):
        time.sleep(0.1)


def end_leftovers(record: Path) -> list[int]:
    """End the processes that a killed supervisor left behind; returns their process numbers.

    A process number that another program has got since is told by its start time and left alone.
    """
    marked = _end_marked(f"{record.resolve()}#", is_prefix=True)
    left = _left(record)
    for pid in left:
        _end_group(pid, signal.SIGKILL)
    record.unlink(missing_ok=True)
    return sorted({*left, *marked})


def _left(record: Path) -> list[int]:
    """Recorded processes that are still there, or whose group is; another program is told by its start.

    nginx's workers outlive their killed master, in its group, and their environment bears no mark. While a
    group lives no process gets its number; after a reboot it means nothing.
    """
    try:
        recorded = json.loads(record.read_text())
        is_of_this_boot = record.stat().st_mtime > time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (FileNotFoundError, ValueError):
        return []
    found = []
    for pid, started in ((int(pid), started) for pid, started in recorded.items() if started):
        there = started_at(pid)
        if there == started or (there is None and is_of_this_boot and _has_group(pid)):
            found.append(pid)
    return found


def started_at(pid: int) -> int | None:
    """The start of a process in clock ticks since the boot (Linux); None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _end_marked(mark: str, is_prefix: bool = False) -> list[int]:
    """SIGKILL to every process with the mark in its environment (Linux), whatever session it is in."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended meanwhile, or another user's
            entries = path.read_bytes().split(b"\0")
            is_marked = any(e.startswith(wanted) if is_prefix else e == wanted for e in entries)
            if is_marked and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return found


def _has_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _end_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
