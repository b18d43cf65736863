"""sd_notify against a socket as systemd makes one."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsan_daemon.notify import notify_alive, notify_ready, notify_stopping, watchdog_s


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_ready_alive_and_stopping_arrive_with_a_status_of_one_line(manager: socket.socket) -> None:
    assert notify_ready("waiting\nfor work")
    assert notify_alive("training")
    assert notify_stopping("told to end")
    assert [manager.recv(200).decode() for _ in range(3)] == [
        "READY=1\nSTATUS=waiting for work",
        "WATCHDOG=1\nSTATUS=training",
        "STOPPING=1\nSTATUS=told to end",
    ]


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"dsan-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify_alive("here")
        assert receiver.recv(200) == b"WATCHDOG=1\nSTATUS=here"


def test_nothing_is_sent_and_nothing_breaks_without_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify_ready("up")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify_ready("up")


def test_the_watchdog_interval_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_s() == 30.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() is None
