"""A centre's daemon as an operator starts it, in a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.centre import Centre, ServerConfig, open_centre
from server.founding import found_centre

WAIT_S = 150.0  # imports alone take a minute on a machine that does much else


def wait_until(happened: Callable[[], object], seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class RunningCentre:
    """A new centre for 127.0.0.1, and its daemon."""

    def __init__(self, folder: Path, *options: str) -> None:
        found_centre(folder, "127.0.0.1")
        text = (folder / "server.toml").read_text()
        for key, port in zip(("port", "console_port", "health_port"), free_ports(3), strict=True):
            text = re.sub(rf"(?m)^{key} = \d+", f"{key} = {port}", text)
        (folder / "server.toml").write_text(text)
        self.centre: Centre
        self.config: ServerConfig
        self.centre, self.config = open_centre(folder)
        self.options = options
        self.log = folder / "daemon.log"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "server.cli", "start", "--dir", str(self.centre.folder)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stderr=log, env=os.environ)
        return self.process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.config.port}"

    def readiness(self) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.config.health_port}/readyz") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.readiness()[0] == 200)

    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.centre.state / "daemon.json").read_text())
        return found

    def superlink_log(self) -> str:
        return (self.centre.state / "logs" / "superlink.log").read_text()

    def node_id(self, site: str) -> int | None:
        found = json.loads((self.centre.sites / f"{site}.json").read_text())["node_id"]
        return None if found is None else int(found)

    def kill(self) -> None:
        """The daemon alone, as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)
