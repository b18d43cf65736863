"""What the SuperNode is doing, as the daemon reads it: `supernode_program` writes it from Flower's log."""

import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

NODE_STATE = "node.json"
WRITE_EVERY_S = 1.0
LONGEST_TROUBLE = 500  # characters


@dataclass(frozen=True)
class NodeState:
    """Times are unix seconds; None: not yet."""

    pid: int
    started: float
    node_id: int | None = None
    contact: float | None = None  # the centre's last answer
    http_status: int | None = None  # of that answer, where it was a refusal
    message_id: str = ""  # taken and not answered yet
    message_kind: str = ""  # "train.round"
    taken: float | None = None
    sending: float | None = None  # since when its answer is on the way
    pushed: float | None = None  # when the centre last took a piece of an answer
    answered: int = 0  # replies that were sent since the start
    trouble: str = ""  # the last error that Flower logged; it stays at the site


# templates of Flower 1.41's log, which say what the SuperNode does
NODE_ID = "SuperNode ID: %s"
RECEIVING = "Receiving: %s message (ID: %s)"
SENDING = "Sending: %s message (ID: %s)"
SENT = "Sent successfully"
GIVEN_UP = (
    "Failed to receive message %s: %s",
    "Failed to send message %s: %s",
    "Run ID %s is not in `RUNNING` status. Ignoring message %s.",
    "Run ID %s is not in `RUNNING` status. Ignoring reply message %s.",
)
PUSH_PATH = "/v1/fleet/push-object"
TEMPLATES = (NODE_ID, RECEIVING, SENDING, SENT, *GIVEN_UP)


class NodeRecorder(logging.Handler):
    """Turns the log of Flower, and of the HTTP client under it, into a file with one JSON object."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._state = NodeState(os.getpid(), time.time())
        self._written = 0.0
        self._write()

    def emit(self, record: logging.LogRecord) -> None:
        """Take over what a line of the log says."""
        before, self._state = self._state, _after(self._state, record)
        is_contact_only = replace(self._state, contact=before.contact) == before
        if not is_contact_only or time.monotonic() - self._written >= WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        with suppress(OSError):  # a full disk: raised in a log handler it would end the SuperNode
            partial.write_text(json.dumps(asdict(self._state)))
            partial.replace(self._path)
        self._written = time.monotonic()


def read_node_state(path: Path) -> NodeState | None:
    """The newest state of the SuperNode; None before its first start."""
    try:
        return NodeState(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _after(state: NodeState, record: logging.LogRecord) -> NodeState:
    arguments = record.args if isinstance(record.args, tuple) else ()
    if record.name == "httpx":
        return _after_answer(state, arguments)
    if record.msg == NODE_ID:
        return replace(state, node_id=int(str(arguments[0])), trouble="")
    if record.msg == RECEIVING:
        kind, identifier = map(str, arguments)
        return replace(state, message_id=identifier, message_kind=kind, taken=time.time())
    if record.msg == SENDING:
        return replace(state, sending=time.time())
    if record.msg == SENT:
        return replace(_idle(state), answered=state.answered + 1)
    if record.msg in GIVEN_UP:
        return replace(_idle(state), trouble=record.getMessage()[:LONGEST_TROUBLE])
    if record.levelno >= logging.ERROR:
        return replace(state, trouble=record.getMessage()[:LONGEST_TROUBLE])
    return state


def _after_answer(state: NodeState, arguments: tuple[object, ...]) -> NodeState:
    """httpx logs method, URL, version, status and phrase of every answer."""
    status, now = int(str(arguments[3])), time.time()
    if status >= 400:
        return replace(state, contact=now, http_status=status)
    is_piece = str(arguments[1]).endswith(PUSH_PATH)
    return replace(state, contact=now, http_status=None, pushed=now if is_piece else state.pushed)


def _idle(state: NodeState) -> NodeState:
    return replace(state, message_id="", message_kind="", taken=None, sending=None)
