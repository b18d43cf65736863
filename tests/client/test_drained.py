"""What a site may no longer answer after the centre's orders."""

import pytest

from client.drained import EVERY_STUDY, after_order, is_drained, read_drained, write_drained
from dsan_model.watch_pb2 import Order


def after(*orders: tuple["Order.Kind", str]) -> tuple[str, ...]:
    drained: tuple[str, ...] = ()
    for kind, study in orders:
        drained = after_order(drained, Order(kind=kind, study=study))
    return drained


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ((), ()),
        (((Order.DRAIN, "eight"),), ("eight",)),
        (((Order.DRAIN, "eight"), (Order.DRAIN, "eight")), ("eight",)),
        (((Order.DRAIN, "nine"), (Order.DRAIN, "eight")), ("eight", "nine")),
        (((Order.DRAIN, "eight"), (Order.UNDRAIN, "eight")), ()),
        (((Order.DRAIN, "eight"), (Order.UNDRAIN, "nine")), ("eight",)),
        (((Order.DRAIN, "eight"), (Order.DRAIN, "")), ("", "eight")),
        (((Order.DRAIN, ""), (Order.UNDRAIN, "eight")), ("",)),
        (((Order.DRAIN, "eight"), (Order.DRAIN, ""), (Order.UNDRAIN, "")), ()),
        (((Order.DRAIN, "eight"), (Order.STOP, "eight")), ("eight",)),
    ],
)
def test_orders_add_up(orders, expected) -> None:  # type: ignore[no-untyped-def]
    assert after(*orders) == expected


def test_a_drained_study_is_drained_with_its_parts_and_no_other(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert read_drained(tmp_path) == ()
    assert not is_drained(tmp_path, "eight")
    write_drained(tmp_path, ("eight",))
    assert read_drained(tmp_path) == ("eight",)
    assert is_drained(tmp_path, "eight")
    assert is_drained(tmp_path, "eight.fold-2")
    assert not is_drained(tmp_path, "eighty")
    write_drained(tmp_path, (EVERY_STUDY,))
    assert is_drained(tmp_path, "nine")
