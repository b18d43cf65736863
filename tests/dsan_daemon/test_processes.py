"""The supervisor with real processes: restarts, ends, and what a killed one leaves behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsan_daemon.processes import (
    Program,
    Supervisor,
    await_leftovers,
    end_leftovers,
    spawn,
    started_at,
    stop_process,
    supervised,
)

WAIT_S = 20.0


def program(folder: Path, script: str, name: str = "sleeper", first_pause_s: float = 0.05) -> Program:
    return Program(name, ("/bin/sh", "-c", script), os.environ, folder / f"{name}.log", first_pause_s)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Runs, and is no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_program_is_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(program(tmp_path, "exec sleep 60"))
        first = supervisor.status()["sleeper"].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        ended: list[str] = []
        wait_until(lambda: bool(ended.extend(supervisor.tend()) or supervisor.status()["sleeper"].restarts))
        status = supervisor.status()["sleeper"]
        assert ended == ["sleeper"]
        assert status.last_exit == -signal.SIGKILL
        assert status.pid not in (None, first)


def test_a_record_that_cannot_be_written_ends_no_program_and_keeps_none_from_its_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pids.partial").mkdir()  # nothing can be written there
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(program(tmp_path, "exec sleep 60"))
        first = supervisor.status()["sleeper"].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: bool(supervisor.tend() is None or supervisor.status()["sleeper"].restarts))
        assert supervisor.status()["sleeper"].pid not in (None, first)
    assert "pids.json cannot be written" in caplog.text


def test_the_pause_grows_while_a_program_keeps_dying(tmp_path: Path) -> None:
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(program(tmp_path, "echo try; exit 3", first_pause_s=0.1))
        started = time.monotonic()
        wait_until(lambda: (supervisor.tend(), supervisor.status()["sleeper"].restarts == 3)[1])
        assert time.monotonic() - started >= 0.1 + 0.2 + 0.4
        assert supervisor.status()["sleeper"].last_exit == 3
    assert (tmp_path / "sleeper.log").read_text().count("try") >= 3


def test_a_program_that_must_wait_long_never_waits_less_while_it_keeps_dying(tmp_path: Path) -> None:
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(program(tmp_path, "exit 3", first_pause_s=70.0))
        child, pauses = supervisor._children["sleeper"], []
        for _ in range(3):
            wait_until(lambda: (supervisor.tend(), child.process is None)[1])
            pauses.append(child.pause_s)
            child.start_at = time.monotonic()  # the pause is over
            wait_until(lambda: (supervisor.tend(), child.process is not None)[1])
    assert pauses == [70.0, 70.0, 70.0]


def test_grandchildren_end_with_their_program(tmp_path: Path) -> None:
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(program(tmp_path, f"sleep 60 & echo $! > {tmp_path}/grandchild; wait"))
        wait_until(lambda: (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text() != "")
        grandchild = int((tmp_path / "grandchild").read_text())
        assert is_alive(grandchild)
    wait_until(lambda: not is_alive(grandchild))


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' TERM; touch {ready}; while true; do sleep 0.1; done"
    process = spawn(("/bin/sh", "-c", script), os.environ, tmp_path / "deaf.log")
    wait_until(ready.exists)
    assert stop_process(process, 0.3) == -signal.SIGKILL


def test_a_hanging_program_is_restarted(tmp_path: Path) -> None:
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(program(tmp_path, "exec sleep 60"))
        first = supervisor.status()["sleeper"].pid
        supervisor.restart("sleeper")
        supervisor.tend()
        assert supervisor.status()["sleeper"].pid not in (None, first)


def test_a_program_of_the_same_name_replaces_the_one_before(tmp_path: Path) -> None:
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(program(tmp_path, "exec sleep 60"))
        first = supervisor.status()["sleeper"].pid
        assert first is not None
        supervisor.start(program(tmp_path, "exec sleep 61"))
        assert not is_alive(first)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_supervisor_left_is_ended_by_the_next(tmp_path: Path, number: signal.Signals) -> None:
    record = tmp_path / "pids.json"
    code = (
        "import os, sys, time; from pathlib import Path; from dsan_daemon.processes import *\n"
        f"s = Supervisor(Path({str(record)!r}))\n"
        f"s.start(Program('a', ('/bin/sleep', '60'), os.environ, Path({str(tmp_path / 'a.log')!r})))\n"
        "print(s.status()['a'].pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        orphan = int(process.stdout.readline())
    process.send_signal(number)
    process.wait()
    assert is_alive(orphan)
    Supervisor(record)
    wait_until(lambda: not is_alive(orphan))


def test_a_descendant_in_a_session_of_its_own_ends_with_its_program(tmp_path: Path) -> None:
    with supervised(tmp_path / "pids.json") as supervisor:
        supervisor.start(
            program(tmp_path, f"setsid sh -c 'echo $$ > {tmp_path}/runaway; exec sleep 60'; wait")
        )
        wait_until(lambda: (tmp_path / "runaway").exists() and (tmp_path / "runaway").read_text() != "")
        runaway = int((tmp_path / "runaway").read_text())
        assert os.getsid(runaway) == runaway
    wait_until(lambda: not is_alive(runaway))


def test_a_descendant_whose_program_is_gone_is_found_by_its_mark(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "pids.json")
    supervisor.start(program(tmp_path, f"setsid sh -c 'echo $$ > {tmp_path}/runaway; exec sleep 60' & wait"))
    wait_until(lambda: (tmp_path / "runaway").exists() and (tmp_path / "runaway").read_text() != "")
    runaway, leader = int((tmp_path / "runaway").read_text()), supervisor.status()["sleeper"].pid
    assert leader is not None
    os.kill(leader, signal.SIGKILL)
    wait_until(lambda: supervisor.tend() == ["sleeper"])
    assert is_alive(runaway)  # a ServerApp outlives the SuperExec that started it
    assert runaway in end_leftovers(tmp_path / "pids.json")
    wait_until(lambda: not is_alive(runaway))


def test_a_reused_process_number_is_left_alone(tmp_path: Path) -> None:
    record = tmp_path / "pids.json"
    process = spawn(("/bin/sleep", "60"), os.environ, tmp_path / "other.log")
    try:
        began = started_at(process.pid)
        assert began is not None
        record.write_text(f'{{"{process.pid}": {began - 1}}}')
        assert end_leftovers(record) == []
        assert process.poll() is None
    finally:
        stop_process(process, 0)


@pytest.mark.parametrize("text", ["", "{", "not json"])
def test_an_unreadable_record_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "pids.json").write_text(text)
    assert end_leftovers(tmp_path / "pids.json") == []


def test_leftovers_that_end_by_themselves_are_waited_for(tmp_path: Path) -> None:
    leaving = subprocess.Popen(["sleep", "0.5"])
    record = tmp_path / "processes.json"
    record.write_text(json.dumps({leaving.pid: started_at(leaving.pid)}))
    reaping = threading.Thread(target=leaving.wait)
    reaping.start()
    began = time.monotonic()
    await_leftovers(record, 20.0)
    assert 0.2 < time.monotonic() - began < 10.0
    reaping.join()
    await_leftovers(record, 20.0)
    assert time.monotonic() - began < 10.0


def test_leftovers_that_stay_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    record.write_text(json.dumps({os.getpid(): started_at(os.getpid())}))
    began = time.monotonic()
    await_leftovers(record, 0.3)
    assert time.monotonic() - began < 5.0


def test_a_group_whose_leader_was_killed_is_ended_too(tmp_path: Path) -> None:
    """As nginx's workers, which have no mark in their environment."""
    record, worker = tmp_path / "pids.json", tmp_path / "worker"
    script = f"env -i sleep 60 & echo $! > {worker}; wait"
    process = spawn(("/bin/sh", "-c", script), os.environ, tmp_path / "leader.log")
    wait_until(lambda: worker.exists() and worker.read_text() != "")
    record.write_text(f'{{"{process.pid}": {started_at(process.pid)}}}')
    process.kill()
    process.wait()
    assert is_alive(int(worker.read_text()))
    assert end_leftovers(record) == [process.pid]
    wait_until(lambda: not is_alive(int(worker.read_text())))
