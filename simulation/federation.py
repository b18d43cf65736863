"""A whole federation on one machine: a centre and hospitals with separate folders, over TLS with node keys.

What an operator and eight engineers do by hand (docs/how-to/run-the-server.md) is done here by the same two
commands, dsan-server and dsan-client, each in a process of its own. Nothing of them is imported.
"""

import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from dsan_daemon.processes import end_leftovers, started_at
from server.run_folder import study_toml
from server.study import StudyConfig

READY_S = 300.0
RECORD = "processes.json"  # of the daemons, for a command that comes after a killed one
STOP_S = 45.0  # a daemon leaves within 30 s

log = logging.getLogger("dsan.simulation")


class FederationError(Exception):
    """A command failed, or a daemon did not come up."""


@dataclass
class Federation:
    """The folders of centre and hospitals, and the daemons that run in them."""

    folder: Path
    hospitals: tuple[Path, ...]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def centre(self) -> Path:
        """The centre's folder."""
        return self.folder / "centre"

    def server(self, *arguments: str | Path, stdout: TextIO | None = None) -> int:
        """Run dsan-server in the centre's folder; its exit code."""
        return self._run("server.cli", *arguments, "--dir", self.centre, stdout=stdout)

    def study(self, *arguments: str | Path, stdout: TextIO | None = None) -> int:
        """Run `dsan-server train` or `resume` to its end; FederationError if a daemon ends before it does."""
        arguments = (*arguments, "--dir", self.centre)
        _tell("server.cli", arguments)
        command = _command("server.cli", arguments)
        with subprocess.Popen(command, env=_environment(), stdout=stdout) as process:
            try:
                while process.poll() is None:
                    self.require_alive()
                    time.sleep(0.5)
            finally:
                process.terminate()
        return process.returncode

    def client(self, *arguments: str | Path, stdout: TextIO | None = None) -> int:
        """Run dsan-client; its exit code."""
        return self._run("client.cli", *arguments, stdout=stdout)

    def start(self, name: str, module: str, *arguments: str | Path) -> None:
        """Start a daemon; what it says goes to NAME.log."""
        _tell(module, arguments)
        with (self.folder / f"{name}.log").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                _command(module, arguments),
                env=_environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        pids = [process.pid for process in self.daemons.values() if process.poll() is None]
        (self.folder / RECORD).write_text(json.dumps({str(pid): started_at(pid) for pid in pids}))

    def require_alive(self) -> None:
        """FederationError if a daemon has ended."""
        for name, process in self.daemons.items():
            if process.poll() is not None:
                raise FederationError(f"{name} ended with {process.returncode}: see {self.folder}/{name}.log")

    def stop(self) -> None:
        """End every daemon, all at the same time."""
        for process in self.daemons.values():
            process.send_signal(signal.SIGTERM)
        for process in self.daemons.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self, module: str, *arguments: str | Path, stdout: TextIO | None = None) -> int:
        _tell(module, arguments)
        return subprocess.run(_command(module, arguments), env=_environment(), stdout=stdout).returncode


def run_federation(folder: Path, hospitals: tuple[Path, ...], study: StudyConfig) -> int:
    """Bring everything up, run the study, print its headline, stop everything; the exit code of `train`."""
    federation = Federation(folder.resolve(), hospitals)
    with stopped_at_the_end(federation):
        for hospital in hospitals:
            require_done(federation.client("prepare", "--config", hospital / "site.toml"))
        address, health_port = found_on_free_ports(federation)
        federation.start("centre", "server.cli", "start", "--dir", federation.centre)
        for hospital in hospitals:
            require_done(federation.client("init", hospital.name, "--server", address, "--dir", hospital))
        wait_until_ready(federation, health_port)
        requests = [hospital / f"{hospital.name}.enrol.json" for hospital in hospitals]
        require_done(federation.server("enrol", *requests))
        for hospital in hospitals:
            kit = federation.centre / f"{hospital.name}.kit.json"
            require_done(federation.client("join", kit, "--config", hospital / "site.toml"))
        for hospital in hospitals:
            federation.start(hospital.name, "client.cli", "start", "--config", hospital / "site.toml")
        path = federation.centre / f"{study.name}.toml"
        path.write_text(study_toml(study), encoding="utf-8")
        return federation.study("train", path)


@contextmanager
def stopped_at_the_end(federation: Federation) -> Iterator[None]:
    """End all daemons with the block, and before it those that a killed command left in the folder."""
    end_leftovers(federation.folder / RECORD)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        log.info("stopping %d daemons", len(federation.daemons))
        federation.stop()
        signal.signal(signal.SIGTERM, before)


def found_on_free_ports(federation: Federation, stdout: TextIO | None = None) -> tuple[str, int]:
    """A centre on free ports; returns the address for the sites and the port of its health."""
    require_done(federation.server("init", "--host", "127.0.0.1", stdout=stdout))
    settings = federation.centre / "server.toml"
    text = settings.read_text(encoding="utf-8")
    ports = dict(zip(("port", "console_port", "health_port"), _free_ports(3), strict=True))
    for key, port in ports.items():
        text = re.sub(rf"(?m)^{key} = \d+", f"{key} = {port}", text)
    settings.write_text(text, encoding="utf-8")
    return f"127.0.0.1:{ports['port']}", ports["health_port"]


def start_on_loopback(
    federation: Federation, sites: Mapping[str, Path], address: str, health_port: int
) -> None:
    """The daemons of the centre and of sites (name to site.toml), in the clear and without keys."""
    host, _, port = address.partition(":")
    federation.start("centre", "server.cli", "start", "--dir", federation.centre, "--insecure-loopback")
    wait_until_ready(federation, health_port)
    for name, config in sites.items():
        loopback = ("--insecure-loopback", address, "--insecure-watch", f"{host}:{int(port) + 1}")
        federation.start(name, "client.cli", "start", "--config", config, *loopback)


def wait_until_ready(federation: Federation, health_port: int) -> None:
    """Until the centre serves sites and studies; FederationError if it does not come to that."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        federation.require_alive()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health_port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise FederationError(
        f"the centre is not ready after {READY_S:.0f} s: see {federation.folder}/centre.log"
    )


def require_done(code: int) -> None:
    """FederationError unless a command's exit code is 0."""
    if code != 0:
        raise FederationError(f"the last command ended with {code}")


def _tell(module: str, arguments: tuple[str | Path, ...]) -> None:
    program = {"server.cli": "dsan-server", "client.cli": "dsan-client"}[module]
    log.info("$ %s %s", program, shlex.join(map(str, arguments)))


def _command(module: str, arguments: tuple[str | Path, ...]) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}  # many processes share the cores of this machine


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; the one after the first is too (SiteWatch, without a proxy)."""
    while True:
        probes = [socket.socket() for _ in range(count + 1)]
        try:
            for probe in probes[:-1]:
                probe.bind(("127.0.0.1", 0))
            ports = [int(probe.getsockname()[1]) for probe in probes[:-1]]
            probes[-1].bind(("127.0.0.1", ports[0] + 1))
        except (OSError, OverflowError):
            continue
        else:
            return ports
        finally:
            for probe in probes:
                probe.close()
