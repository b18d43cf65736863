import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.worker_pool import WorkerDied, parallel_map

# Workers import what they call, and they cannot import a test: the functions here are the standard library's.


def test_every_job_comes_back_with_its_own_result() -> None:
    results = dict(parallel_map(math.sqrt, [float(n) for n in range(40)], workers=2))
    assert results == {float(n): math.sqrt(n) for n in range(40)}


def test_no_jobs_no_workers() -> None:
    assert list(parallel_map(math.sqrt, [], workers=2)) == []


def test_a_job_that_kills_its_worker_costs_nobody_else() -> None:
    jobs = [0, 0, signal.SIGKILL, 0, 0, signal.SIGSEGV, 0, 0]  # signal 0 does nothing
    results = [
        (int(job), isinstance(result, WorkerDied))
        for job, result in parallel_map(signal.raise_signal, jobs, 2)
    ]
    assert sorted(results) == [(0, False)] * 6 + [(9, True), (11, True)]


def test_an_error_of_the_function_itself_is_raised() -> None:
    with pytest.raises(ValueError, match=r"nonnegative|domain"):
        list(parallel_map(math.sqrt, [1.0, -1.0], workers=2))


def test_a_worker_has_one_thread_and_leaves_our_own_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    script = (
        "import os; from client.worker_pool import parallel_map\n"
        "names = ['OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS']\n"
        "print(sorted(parallel_map(os.getenv, names, 2)), [os.getenv(name) for name in names])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[('OMP_NUM_THREADS', '1'), ('OPENBLAS_NUM_THREADS', '1')] [None, '7']"


def test_the_workers_of_a_killed_parent_end() -> None:
    script = (
        "import multiprocessing, threading, time; from client.worker_pool import parallel_map\n"
        "def work(): list(parallel_map(time.sleep, [600, 600], 2))\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "while len(multiprocessing.active_children()) < 2: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    assert all(is_running(worker) for worker in workers)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "orphaned workers"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
