"""What the centre ordered this site to drain: the message in work is finished, and no other is taken.

state/drained.json, so that the order outlives the daemon. "" is every study: then the SuperNode is ended, and
messages wait at the centre. Of a single study, messages are refused with SITE-DRAINED: others go on.
"""

import json
from pathlib import Path

from dsan_daemon.files import write_atomically
from dsan_model.watch import is_about
from dsan_model.watch_pb2 import Order

DRAINED = "drained.json"
EVERY_STUDY = ""


def read_drained(state_folder: Path) -> tuple[str, ...]:
    """The studies that are drained, in the order of their names."""
    try:
        return tuple(sorted(map(str, json.loads((state_folder / DRAINED).read_text())["studies"])))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def is_drained(state_folder: Path, study: str) -> bool:
    """Whether messages of this study, or part of one, are not to be answered."""
    orders = (Order(kind=Order.DRAIN, study=drained) for drained in read_drained(state_folder))
    return any(is_about(order, study) for order in orders)


def after_order(drained: tuple[str, ...], order: Order) -> tuple[str, ...]:
    """What is drained after an order; UNDRAIN of every study ends all."""
    if order.kind == Order.DRAIN:
        return tuple(sorted({*drained, order.study}))
    if order.kind == Order.UNDRAIN:
        return tuple(study for study in drained if order.study not in (EVERY_STUDY, study))
    return drained


def write_drained(state_folder: Path, drained: tuple[str, ...]) -> None:
    """Keep what is drained; OSError where the disk is full."""
    content = json.dumps({"format_version": 1, "studies": list(drained)}).encode()
    write_atomically(state_folder / DRAINED, content + b"\n")
