"""What the centre ordered this site to drain: the message in work is finished, and no other is taken.

state/drained.json, so that the order outlives the daemon. "" is every study: then the SuperNode is ended, and
messages wait at the centre. Of a single study, messages that were taken since are refused with SITE-DRAINED.
"""

import json
from pathlib import Path

from client.node_state import NODE_STATE, read_node_state
from dsan_daemon.files import write_atomically
from dsan_model.watch import is_about
from dsan_model.watch_pb2 import Order

DRAINED = "drained.json"
EVERY_STUDY = ""

Drained = dict[str, float]  # study: unix time of the order


def read_drained(state_folder: Path) -> Drained:
    """What is drained; nothing if there never was such an order."""
    try:
        studies = json.loads((state_folder / DRAINED).read_text())["studies"]
        return {str(study): float(since) for study, since in studies.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_refused(state_folder: Path, study: str) -> bool:
    """Whether the message in work is of a study, or a part of one, that was drained before it was taken."""
    node = read_node_state(state_folder / NODE_STATE)
    taken = node.taken if node is not None else None
    return any(
        drained != EVERY_STUDY and is_about(Order(study=drained), study) and (taken is None or since <= taken)
        for drained, since in read_drained(state_folder).items()
    )


def after_order(drained: Drained, order: Order, now: float) -> Drained:
    """What is drained after an order; UNDRAIN of every study ends all."""
    if order.kind == Order.DRAIN:
        return {order.study: now} | drained
    if order.kind == Order.UNDRAIN:
        return {study: since for study, since in drained.items() if order.study not in (EVERY_STUDY, study)}
    return drained


def write_drained(state_folder: Path, drained: Drained) -> None:
    """Keep what is drained; OSError where the disk is full."""
    content = json.dumps({"format_version": 1, "studies": drained}).encode()
    write_atomically(state_folder / DRAINED, content + b"\n")
