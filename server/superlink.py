"""The SuperLink as the daemon sees it: how it is started, and what it is asked over its control interface.

The interface has no authentication of its own; it is on loopback, and the proxy lets nobody else reach it.
Flower's own client speaks it (a private name of Flower 1.41: this module is the only one that uses it).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from dsan_daemon.bundle import build_bundle, bundle_digest
from dsan_daemon.flower import flower_environment, flower_program
from dsan_daemon.processes import Program
from server.superlink_main import AUTHENTICATION

LOOPBACK = "127.0.0.1"
ANSWER_S = 15.0
FINISHED = "finished"
GIVES_MEMORY_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576"}  # glibc: else freed pieces of a reply pile up
_UNREGISTERED = "unregistered"
Answer = TypeVar("Answer")


class SuperLinkError(Exception):
    """The SuperLink did not answer, or refused."""


@dataclass(frozen=True)
class Node:
    """A node that the SuperLink knows."""

    node_id: int
    name: str
    public_key: bytes  # PEM


@dataclass(frozen=True)
class RunStatus:
    """How Flower says that a run fares."""

    status: str  # pending, starting, running, finished
    details: str  # of a run that failed

    @property
    def is_finished(self) -> bool:
        """Whether no process works on it any more, as far as Flower knows."""
        return self.status == FINISHED


class SuperLink:
    """The control interface of the SuperLink on a port of loopback."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOOPBACK}:{port}"
        version = RuntimeVersionHttpInterceptor(component_name="dsan-server")
        self._client = ControlHttpClient(self._url, interceptors=[version], timeout=ANSWER_S)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def is_healthy(self) -> bool:
        """Whether it answers at all."""
        try:
            return httpx.get(f"{self._url}/health", timeout=ANSWER_S).is_success
        except httpx.HTTPError:
            return False

    def submit(self, run_folder: Path, is_dry_run: bool = False) -> int:
        """Start the study of a run folder, or its estimate; returns Flower's number of the run."""
        fab = Fab(bundle_digest(), build_bundle(), {})
        settings = user_config_to_proto({"run-dir": str(run_folder), "dry-run": is_dry_run})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=settings)
        answer = _asked(lambda: self._client.StartRun(request))
        if not answer.HasField("run_id"):
            raise SuperLinkError("the SuperLink did not take the study: its log has the reason")
        return int(answer.run_id)

    def run_status(self, run_id: int) -> RunStatus | None:
        """How a run fares; None if the SuperLink does not know it (its database is another one)."""
        try:
            answer = _asked(lambda: self._client.ListRuns(ListRunsRequest(run_id=run_id)))
        except UnknownToSuperLinkError:
            return None
        status = answer.run_dict[run_id].status
        return RunStatus(status.status, status.details)

    def unfinished_runs(self) -> list[int]:
        """Runs that Flower believes to be at work."""
        answer = _asked(lambda: self._client.ListRuns(ListRunsRequest(limit=1000)))
        return [run_id for run_id, run in answer.run_dict.items() if run.status.status != FINISHED]

    def stop_run(self, run_id: int) -> None:
        """End a run; one that has ended, or is unknown, stays as it is."""
        status = self.run_status(run_id)
        if status is not None and not status.is_finished:
            _asked(lambda: self._client.StopRun(StopRunRequest(run_id=run_id)))

    def nodes(self) -> list[Node]:
        """The registered nodes, connected or not."""
        answer = _asked(lambda: self._client.ListNodes(ListNodesRequest()))
        return [
            Node(node.node_id, node.name, node.public_key)
            for node in answer.nodes_info
            if node.status != _UNREGISTERED
        ]

    def register(self, name: str, public_key: str) -> int:
        """Admit the node with this key (OpenSSH form) under a name; returns its number."""
        request = RegisterNodeRequest(public_key=pem_of(public_key), name=name)
        node_id = int(_asked(lambda: self._client.RegisterNode(request)).node_id)
        if node_id == 0:
            raise SuperLinkError(f"the SuperLink did not register {name}: its log has the reason")
        return node_id

    def unregister(self, node_id: int) -> None:
        """End a node's admission; it is cut off with its next request."""
        _asked(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id)))


class UnknownToSuperLinkError(SuperLinkError):
    """The SuperLink does not know what it was asked about."""


def pem_of(public_key: str) -> bytes:
    """A public key in OpenSSH form as the SuperLink keeps it."""
    return public_key_to_bytes(load_ssh_public_key(public_key.encode()))  # type: ignore[arg-type]


def superlink_program(state: Path, port: int, secret: Path, has_authentication: bool) -> Program:
    """The SuperLink on loopback, with a database that outlives it."""
    arguments = (
        *("--insecure", "--host", LOOPBACK, "--port", str(port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--database", str(state / "superlink.db")),
    )
    environment = flower_environment(state / "flwr" / "superlink")
    environment[AUTHENTICATION] = "1" if has_authentication else "0"
    command = (sys.executable, "-P", "-m", "server.superlink_main", *arguments)
    return Program("superlink", command, environment, state / "logs" / "superlink.log")


def superexec_program(state: Path, port: int, secret: Path) -> Program:
    """The process that starts a ServerApp for each run."""
    arguments = (
        *("--insecure", "--runtime-api-address", f"{LOOPBACK}:{port}"),
        *("--superexec-auth-secret-file", str(secret)),
    )
    command = (flower_program("flower-superexec"), *arguments)
    environment = flower_environment(state / "flwr" / "superexec") | GIVES_MEMORY_BACK
    return Program("superexec", command, environment, state / "logs" / "superexec.log")


def write_operator_connection(state: Path, port: int) -> None:
    """For a person who wants Flower's own words: `FLWR_HOME=state/flwr/operator flwr ls local`."""
    home = state / "flwr" / "operator"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n\n[superlink.local]\n'
        f'address = "{LOOPBACK}:{port}"\ninsecure = true\n'
    )


def _asked(ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except httpx.HTTPStatusError as error:
        text = error.response.text[:500]
        kind = (
            UnknownToSuperLinkError if error.response.status_code == httpx.codes.NOT_FOUND else SuperLinkError
        )
        raise kind(f"the SuperLink refused ({error.response.status_code}): {text}") from None
    except (httpx.HTTPError, ValueError) as error:
        raise SuperLinkError(f"the SuperLink does not answer: {error}") from None
