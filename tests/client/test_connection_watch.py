"""Why a site that reaches its centre is not connected: what the centre answered, or what its node said."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from client import connection_watch
from client.connection_watch import ConnectionWatch
from client.daemon_status import ConnectionStatus
from client.node_state import NodeState


class Centre(BaseHTTPRequestHandler):
    """Answers a message without a key as a SuperLink does."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Centre)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def status(
    address: str, node_state: Path, node: NodeState, monkeypatch: pytest.MonkeyPatch
) -> ConnectionStatus:
    monkeypatch.setattr(connection_watch, "LOOK_EVERY_S", 0.02)
    node_state.write_text(json.dumps(asdict(node)))
    watch = ConnectionWatch(address, None, node_state)
    watch.start()
    deadline = time.monotonic() + 20
    while not watch.is_reachable and time.monotonic() < deadline:
        time.sleep(0.02)
    watch.stop()
    return watch.status(None)


def test_a_key_that_the_centre_does_not_take_is_said_and_whom_to_ask(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = NodeState(1, time.time(), contact=time.time(), http_status=403, trouble="Client error '403'")
    found = status(address, tmp_path / "node.json", node, monkeypatch)
    assert found.code == "ADMIT-UNKNOWN"
    assert "not enrolled there or was revoked" in found.reason
    assert "ask the operator" in found.fix


def test_what_the_node_said_is_told_without_flowers_link(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = (
        "Exit Code: 700\nThe SuperLink is full.\n\nFor more information, visit: <https://flower.ai/700.html>"
    )
    found = status(address, tmp_path / "node.json", NodeState(1, time.time(), trouble=trouble), monkeypatch)
    assert found.code == "CONNECT-NODE"
    assert found.reason.endswith("says: Exit Code: 700 The SuperLink is full.")
