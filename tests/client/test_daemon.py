"""The daemon as it runs: its processes, its status, its orders and its end; no centre answers here."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.superexec import run_superexec
from typer.testing import CliRunner

from client.cli import app
from client.daemon import run_daemon
from client.daemon_programs import FORK_SERVER, SUPEREXEC, SUPERNODE, TASK_POLL_S, Centre
from client.daemon_status import status_json
from client.findings import FindingError
from client.site import read_site
from dsan_daemon.processes import started_at
from server.orders import give_order
from server.site_watch import SiteWatchServer
from server.watch_file import read_watch

WAIT_S = 60.0
PROGRAMS = (SUPERNODE, SUPEREXEC, FORK_SERVER)
NOWHERE = "127.0.0.1:9"  # the port "discard": nothing listens


@dataclass
class Running:
    """A daemon in a process of its own, and the centre's SiteWatch."""

    home: Path
    centre: Path
    process: subprocess.Popen[bytes]
    watch_port: int

    @property
    def state(self) -> Path:
        return self.home / "state"

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "status.json").read_text())
        return found

    def pid(self, name: str) -> int | None:
        found: int | None = self.status()["processes"].get(name, {}).get("pid")
        return found


def wait_until(happened: Callable[[], object], seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def start(home: Path, watch_port: int) -> subprocess.Popen[bytes]:
    options = ("--insecure-loopback", NOWHERE, "--insecure-watch", f"127.0.0.1:{watch_port}")
    command = (sys.executable, "-m", "client.cli", "start", "--config", str(home / "site.toml"), *options)
    with (home / "daemon.log").open("ab") as log:
        return subprocess.Popen(command, stderr=log, env=os.environ)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("daemon") / "site"
    home.mkdir()
    (home / "site.toml").write_text('name = "st-mary"\n')
    centre = home.parent / "centre"
    centre.mkdir()
    server = SiteWatchServer("127.0.0.1:0", None, centre)
    port = server.start()
    found = Running(home, centre, start(home, port), port)
    try:
        wait_until(lambda: (found.state / "status.json").exists() and found.pid("supernode"))
        yield found
    finally:
        found.process.kill()
        found.process.wait()
        server.stop()


def test_it_keeps_a_supernode_a_superexec_and_a_fork_server(running: Running) -> None:
    assert set(running.status()["processes"]) == set(PROGRAMS)
    for name in PROGRAMS:
        pid = running.pid(name)
        assert pid is not None
        assert started_at(pid) is not None


def test_it_says_in_words_why_it_is_not_connected(running: Running) -> None:
    wait_until(lambda: running.status()["connection"]["code"] == "CONNECT-REFUSED")
    done = CliRunner().invoke(app, ["status", "--config", str(running.home / "site.toml")])
    assert done.exit_code == 0
    assert "NOT CONNECTED" in done.stdout
    assert f"nothing listens at {NOWHERE}" in done.stdout


def test_its_status_is_there_for_programs_too(running: Running) -> None:
    found = status_json(read_site(running.home / "site.toml"))
    assert found["is_running"] is True
    assert found["daemon"]["work"]["phase"] == "idle"
    assert found["egress"]["messages"] == 0


def test_its_health_is_told_on_loopback(running: Running) -> None:
    base = f"http://127.0.0.1:{running.status()['health_port']}"
    with urllib.request.urlopen(f"{base}/healthz") as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{base}/readyz")
    with caught.value as refused:
        assert refused.code == 503


def test_the_centre_sees_it(running: Running) -> None:
    wait_until(lambda: "st-mary" in read_watch(running.centre))
    assert read_watch(running.centre)["st-mary"].connected


def test_a_second_daemon_of_the_site_is_refused(running: Running) -> None:
    with pytest.raises(FindingError) as caught:
        run_daemon(running.home / "site.toml", Centre(NOWHERE, None, is_secure=False))
    assert caught.value.finding.code == "DAEMON-RUNNING"
    assert str(running.process.pid) in caught.value.finding.message


def test_nothing_leaves_the_computer_in_the_clear(running: Running) -> None:
    arguments = [
        "start",
        "--config",
        str(running.home / "site.toml"),
        "--insecure-loopback",
        "192.0.2.1:9092",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_site_that_never_joined_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "st-mary"\n')
    with pytest.raises(FindingError) as caught:
        run_daemon(tmp_path / "site.toml", None)
    assert caught.value.finding.code == "SITE-NOT-JOINED"


def test_only_its_own_programs_are_on_the_path_of_the_superexec(running: Running) -> None:
    pid = running.pid("superexec")
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (path,) = [value.decode() for value in environment if value.startswith(b"PATH=")]
    first, *rest = path.removeprefix("PATH=").split(":")
    assert first == str(running.state / "programs")
    assert rest == ["/usr/local/bin", "/usr/bin", "/bin"]
    for home in ("supernode", "superexec"):
        assert (running.state / "flwr" / home / "apps").is_file()


def test_the_superexec_asks_as_often_as_we_set_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Path(f"/proc/{running.pid('superexec')}/environ").read_bytes().split(b"\0")
    pairs = [value.decode().partition("=") for value in environment if value.startswith(b"FLWR_SUPEREXEC")]
    assert [name for name, _, _ in pairs] == [run_superexec._TASK_POLL_INTERVAL_ENV]
    monkeypatch.setenv(run_superexec._TASK_POLL_INTERVAL_ENV, pairs[0][2])
    assert run_superexec._get_task_poll_interval() == TASK_POLL_S < 1.0


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_process_that_is_killed_comes_back_and_that_is_told(running: Running, name: str) -> None:
    before = running.pid(name)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: running.pid(name) not in (None, before))
    assert any(f"{name} ended (killed by SIGKILL)" in event["what"] for event in running.status()["events"])


def test_a_daemon_that_is_killed_leaves_nothing_behind_and_is_told_dead(running: Running) -> None:
    pids = [running.pid(name) for name in PROGRAMS]
    running.process.kill()
    running.process.wait()
    done = CliRunner().invoke(app, ["status", "--config", str(running.home / "site.toml")])
    assert done.exit_code == 70
    assert "DEAD" in done.stdout
    wait_until(lambda: all(pid is not None and started_at(pid) is None for pid in pids))
    running.process = start(running.home, running.watch_port)
    wait_until(lambda: running.status()["pid"] == running.process.pid)


def test_drained_of_one_study_it_stays_connected_for_the_others(running: Running) -> None:
    wait_until(lambda: running.pid("supernode"))
    before = running.pid("supernode")
    give_order(running.centre, "st-mary", "drain", "eight")
    wait_until(lambda: running.status()["drained_studies"] == ["eight"])
    assert not running.status()["is_drained"]
    assert running.pid("supernode") == before
    told = CliRunner().invoke(app, ["status", "--config", str(running.home / "site.toml")]).stdout
    assert "takes no message of eight until the operator says `dsan-server undrain st-mary`" in told


def test_drained_of_every_study_it_takes_no_message_also_after_a_restart(running: Running) -> None:
    give_order(running.centre, "st-mary", "drain", "")
    wait_until(lambda: running.status()["is_drained"])
    assert running.status()["processes"] == {}
    wait_until(lambda: read_watch(running.centre)["st-mary"].status.phase == "drained")
    running.process.kill()
    running.process.wait()
    running.process = start(running.home, running.watch_port)
    wait_until(lambda: running.status()["pid"] == running.process.pid)
    assert running.status()["is_drained"]
    assert running.status()["processes"] == {}


def test_told_to_take_messages_again_it_does(running: Running) -> None:
    assert running.status()["is_drained"]
    give_order(running.centre, "st-mary", "undrain", "")
    wait_until(lambda: all(running.pid(name) for name in PROGRAMS))
    assert running.status()["drained_studies"] == []
    wait_until(lambda: read_watch(running.centre)["st-mary"].status.phase == "idle")


def test_told_to_leave_it_leaves_in_time_and_takes_all_with_it(running: Running) -> None:
    running.process.kill()
    running.process.wait()
    running.process = start(running.home, running.watch_port)
    wait_until(lambda: running.status()["pid"] == running.process.pid)
    wait_until(lambda: all(running.pid(name) for name in PROGRAMS))
    pids = [running.pid(name) for name in PROGRAMS]
    running.process.terminate()
    assert running.process.wait(30) == 0
    assert all(pid is not None and started_at(pid) is None for pid in pids)
    assert running.status()["events"][-1]["what"] == "told to leave"
