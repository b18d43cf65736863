"""Orders as files: given, waiting, taken, withdrawn, too old."""

import json
import os
import time
from pathlib import Path

from server.orders import LONGEST_WAIT_S, give_order, mark_taken, waiting_orders, withdraw_orders


def test_an_order_to_one_site_waits_for_it_alone_and_is_done_with_when_taken(tmp_path: Path) -> None:
    path = give_order(tmp_path, "north", "stop", "eight")
    order = waiting_orders(tmp_path)[path]
    assert order.waits_for("north")
    assert not order.waits_for("south")
    mark_taken(path, "north")
    assert waiting_orders(tmp_path) == {}


def test_an_order_to_every_site_waits_for_each_of_them(tmp_path: Path) -> None:
    path = give_order(tmp_path, "*", "drain", "eight")
    mark_taken(path, "north")
    mark_taken(path, "north")
    assert waiting_orders(tmp_path)[path].taken_by == ("north",)
    order = waiting_orders(tmp_path)[path]
    assert not order.waits_for("north")
    assert order.waits_for("south")


def test_a_file_with_nothing_but_the_order_is_one(tmp_path: Path) -> None:
    path = tmp_path / "orders" / "1.json"
    path.parent.mkdir()
    path.write_text('{"site": "*", "order": "stop", "study": "eight"}')
    assert waiting_orders(tmp_path)[path].waits_for("north")


def test_orders_come_oldest_first(tmp_path: Path) -> None:
    given = [give_order(tmp_path, "north", order, "eight") for order in ("drain", "stop")]
    assert list(waiting_orders(tmp_path)) == given


def test_what_is_withdrawn_is_not_delivered_any_more(tmp_path: Path) -> None:
    give_order(tmp_path, "*", "stop", "eight")
    other = give_order(tmp_path, "*", "stop", "nine")
    withdraw_orders(tmp_path, "eight")
    assert list(waiting_orders(tmp_path)) == [other]


def test_a_study_that_goes_on_does_not_end_the_drain_of_a_site(tmp_path: Path) -> None:
    drain = give_order(tmp_path, "north", "drain", "eight")
    withdraw_orders(tmp_path, "eight")
    assert list(waiting_orders(tmp_path)) == [drain]


def test_an_order_that_is_too_old_or_none_is_removed(tmp_path: Path) -> None:
    old = give_order(tmp_path, "north", "stop", "eight")
    entry = json.loads(old.read_text())
    old.write_text(json.dumps(entry | {"given_unix_s": time.time() - LONGEST_WAIT_S - 1}))
    undated = tmp_path / "orders" / "undated.json"
    undated.write_text('{"site": "north", "order": "stop", "study": "eight"}')
    os.utime(undated, (0, 0))
    nonsense = tmp_path / "orders" / "nonsense.json"
    nonsense.write_text('{"site": "north", "order": "explode", "study": "eight"}')
    assert waiting_orders(tmp_path) == {}
    assert not any(path.exists() for path in (old, undated, nonsense))


def test_an_order_withdrawn_while_it_is_delivered_stays_withdrawn(tmp_path: Path) -> None:
    path = give_order(tmp_path, "*", "stop", "eight")
    withdraw_orders(tmp_path, "eight")
    mark_taken(path, "north")
    assert not path.exists()
