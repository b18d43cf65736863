"""What a site may no longer answer after the centre's orders."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from client.drained import EVERY_STUDY, after_order, is_refused, read_drained, write_drained
from client.node_state import NODE_STATE, NodeState
from dsan_model.watch_pb2 import Order


def after(*orders: tuple["Order.Kind", str]) -> list[str]:
    drained: dict[str, float] = {}
    for kind, study in orders:
        drained = after_order(drained, Order(kind=kind, study=study), 1.0)
    return sorted(drained)


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ((), []),
        (((Order.DRAIN, "eight"),), ["eight"]),
        (((Order.DRAIN, "nine"), (Order.DRAIN, "eight")), ["eight", "nine"]),
        (((Order.DRAIN, "eight"), (Order.UNDRAIN, "eight")), []),
        (((Order.DRAIN, "eight"), (Order.UNDRAIN, "nine")), ["eight"]),
        (((Order.DRAIN, "eight"), (Order.DRAIN, "")), ["", "eight"]),
        (((Order.DRAIN, ""), (Order.UNDRAIN, "eight")), [""]),
        (((Order.DRAIN, "eight"), (Order.DRAIN, ""), (Order.UNDRAIN, "")), []),
        (((Order.DRAIN, "eight"), (Order.STOP, "eight")), ["eight"]),
    ],
)
def test_orders_add_up(orders: tuple[tuple["Order.Kind", str], ...], expected: list[str]) -> None:
    assert after(*orders) == expected


def test_an_order_that_comes_twice_counts_from_the_first(tmp_path: Path) -> None:
    order = Order(kind=Order.DRAIN, study="eight")
    assert after_order(after_order({}, order, 1.0), order, 2.0) == {"eight": 1.0}


def test_a_drained_study_is_refused_with_its_parts_and_no_other(tmp_path: Path) -> None:
    assert read_drained(tmp_path) == {}
    assert not is_refused(tmp_path, "eight")
    write_drained(tmp_path, {"eight": 1.0})
    assert read_drained(tmp_path) == {"eight": 1.0}
    assert is_refused(tmp_path, "eight")
    assert is_refused(tmp_path, "eight.fold-2")
    assert not is_refused(tmp_path, "eighty")


@pytest.mark.parametrize(("taken", "expected"), [(99.0, False), (101.0, True), (None, True)])
def test_a_message_that_was_taken_before_the_order_is_finished(
    tmp_path: Path, taken: float | None, expected: bool
) -> None:
    write_drained(tmp_path, {"eight": 100.0})
    node = NodeState(pid=1, started=1.0, message_id="m", taken=taken)
    (tmp_path / NODE_STATE).write_text(json.dumps(asdict(node)))
    assert is_refused(tmp_path, "eight") == expected


def test_of_a_site_that_is_drained_of_every_study_no_message_is_refused_it_logs_off(tmp_path: Path) -> None:
    write_drained(tmp_path, {EVERY_STUDY: 1.0})
    assert not is_refused(tmp_path, "eight")
