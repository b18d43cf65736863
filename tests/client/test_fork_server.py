"""The process that ClientApps are forked from: each is new, gets its arguments, and outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import clientapp_start
from client.daemon_programs import PIPE, clientapp_script
from client.fork_server import IMPORTED
from client.installed_code import write_programs
from dsan_daemon.processes import started_at

WAIT_S = 60.0
SERVER = """
import json, os, sys, time
from pathlib import Path
from client.fork_server import fork_for_each
pipe, told = Path(sys.argv[1]), Path(sys.argv[2])
os.mkfifo(pipe)
arguments = fork_for_each(os.open(pipe, os.O_RDWR))
partial = told / f"{os.getpid()}.partial"
partial.write_text(json.dumps([arguments, os.getpgid(0)]))
partial.rename(told / f"{os.getpid()}.json")
time.sleep(float(arguments[0]))
"""


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def start(pipe: Path, *arguments: str) -> int:
    command = [sys.executable, "-I", "-S", clientapp_start.__file__, str(pipe), *arguments]
    return subprocess.run(command, check=False).returncode


class Server:
    """A fork server whose forks write down who they are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pipe = folder, folder / PIPE
        command = [sys.executable, "-c", SERVER, str(self.pipe), str(folder)]
        self.process = subprocess.Popen(command)
        wait_until(lambda: self.pipe.exists() and start(self.pipe, "0") == 0)
        wait_until(lambda: len(self.forks()) == 1)

    def forks(self) -> dict[int, Any]:
        return {int(path.stem): json.loads(path.read_text()) for path in self.folder.glob("*.json")}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    yield found
    found.process.kill()
    found.process.wait()
    for pid in found.forks():
        if started_at(pid) is not None:
            os.kill(pid, signal.SIGKILL)


def newest(server: Server, *arguments: str) -> int:
    """Start a ClientApp; its process number."""
    before = set(server.forks())
    assert start(server.pipe, *arguments) == 0
    wait_until(lambda: set(server.forks()) - before)
    (pid,) = set(server.forks()) - before
    return pid


def test_each_is_a_process_of_its_own_with_its_own_arguments(server: Server) -> None:
    arguments = ("0", "--token", "über 'quoted' \\ $HOME", "--insecure")
    first, second = newest(server, *arguments), newest(server, "0")
    assert len({first, second, server.process.pid}) == 3
    assert server.forks()[first] == [list(arguments), first]  # and of a group of its own


def test_those_that_ended_are_no_zombies(server: Server) -> None:
    pid = newest(server, "0")
    wait_until(lambda: started_at(pid) is None)


def test_the_end_of_the_server_is_not_the_end_of_the_work(server: Server) -> None:
    pid = newest(server, "600")
    server.process.kill()
    server.process.wait()
    assert started_at(pid) is not None
    assert start(server.pipe, "0") == 1  # nobody reads; the script then starts it from nothing


def test_told_to_leave_it_tells_them_and_waits(server: Server) -> None:
    first, second = newest(server, "600"), newest(server, "600")
    server.process.terminate()
    assert server.process.wait(WAIT_S) == 0
    assert started_at(first) is None
    assert started_at(second) is None


def test_without_a_pipe_nothing_is_handed_over(tmp_path: Path) -> None:
    assert start(tmp_path / "none", "0") == 1


def test_what_does_not_fit_into_one_write_is_not_handed_over(server: Server) -> None:
    assert start(server.pipe, "0", "x" * 5000) == 1
    newest(server, "0")  # and the server goes on


def test_the_script_starts_a_clientapp_from_nothing_where_there_is_no_server(tmp_path: Path) -> None:
    write_programs(tmp_path / "a folder", clientapp_script(tmp_path / PIPE))
    command = [tmp_path / "a folder" / "flwr-clientapp", "--token", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode != 0
    assert "DSAN_SITE" in done.stderr  # client.clientapp_program asks for the site that it belongs to


LOOK = """
import importlib, os, sys
import torch
asked = []
for name in ("is_available", "device_count", "_lazy_init", "init", "current_device", "is_bf16_supported"):
    setattr(torch.cuda, name, lambda *a, _name=name, **k: asked.append(_name))
for name in sys.argv[1:]:
    importlib.import_module(name)
sys.modules["client.work"].installed_versions()
assert not torch.cuda.is_initialized()
print(asked, len(os.listdir("/proc/self/task")))
"""


def test_what_it_imports_asks_for_no_gpu_and_starts_no_thread() -> None:
    command = [sys.executable, "-c", LOOK, *IMPORTED]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # as the daemon has it
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[] 1\n"
