"""The health endpoints over real HTTP."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from dsan_daemon.health import HealthServer


class Daemon:
    """What the endpoints look at."""

    def __init__(self) -> None:
        self.state = (True, "ready")
        self.registry = CollectorRegistry()
        Gauge("dsan_test_disk_free_bytes", "Free disk.", registry=self.registry).set(7)
        self.server = HealthServer(0, lambda: self.state, self.registry)
        self.port = self.server.start()

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.server.stop()


def test_a_living_daemon_is_healthy_whether_ready_or_not(daemon: Daemon) -> None:
    daemon.state = (False, "the centre is away")
    assert daemon.get("/healthz") == (200, "ok\n")


def test_readiness_says_why_not(daemon: Daemon) -> None:
    assert daemon.get("/readyz") == (200, "ready\n")
    daemon.state = (False, "the centre is away since 12:03")
    assert daemon.get("/readyz") == (503, "the centre is away since 12:03\n")


def test_metrics_are_those_of_the_registry(daemon: Daemon) -> None:
    status, text = daemon.get("/metrics")
    assert status == 200
    assert "dsan_test_disk_free_bytes 7.0" in text


def test_another_path_is_not_found(daemon: Daemon) -> None:
    assert daemon.get("/")[0] == 404


def test_only_loopback_is_listened_on(daemon: Daemon) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", daemon.port)) != 0


def test_a_port_that_was_given_back_can_be_taken_again(daemon: Daemon) -> None:
    daemon.server.stop()
    again = HealthServer(daemon.port, lambda: (True, ""), CollectorRegistry())
    assert again.start() == daemon.port
    again.stop()
