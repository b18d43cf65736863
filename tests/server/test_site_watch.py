"""SiteWatch at the centre, over real gRPC on loopback, with the site's end and with hostile ones."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import client.site_watch
import server.site_watch
from client.site_watch import SiteWatchClient
from dsan_model.watch_pb2 import Order, SiteStatus
from dsan_model.watch_pb2_grpc import SiteWatchStub
from server.orders import give_order, waiting_orders
from server.site_watch import SiteWatchServer
from server.watch_file import SiteReport, WatchedSite, is_watching, read_watch, write_watch

WAIT_S = 15.0
SECRET = "s3cret"
Metadata = tuple[tuple[str, str], ...]


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _seconds_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.site_watch, "SPEAK_EVERY_S", 0.2)
    monkeypatch.setattr(client.site_watch, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(server.site_watch, "WRITE_EVERY_S", 0.1)
    monkeypatch.setattr(server.site_watch, "LOOK_FOR_ORDERS_EVERY_S", 0.1)
    monkeypatch.setattr(server.site_watch, "TAKEN_AFTER_S", 0.1)


class Centre:
    """A SiteWatch server over a centre's folder, and streams to it."""

    def __init__(self, folder: Path, secret: str | None = None) -> None:
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        self.secret = secret
        self.server = SiteWatchServer("127.0.0.1:0", secret, self.state)
        self.port = self.server.start()
        self.sites: list[SiteWatchClient] = []
        self.orders: list[Order] = []

    def connect(self, name: str, status: SiteStatus | None = None) -> SiteWatchClient:
        said = status or SiteStatus(study="eight", phase="training")
        site = SiteWatchClient(f"127.0.0.1:{self.port}", None, name, lambda: said, self.orders.append)
        site.start()
        self.sites.append(site)
        return site

    def refusal(self, metadata: Metadata, *statuses: SiteStatus) -> grpc.RpcError:
        """How a stream of a bare gRPC client ends."""
        with (
            grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel,
            pytest.raises(grpc.RpcError) as error,
        ):
            for _ in SiteWatchStub(channel).Watch(iter(statuses), metadata=metadata, timeout=WAIT_S):
                pass
        return error.value

    def file(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.state / "watch.json").read_text())
        return content

    def is_connected(self, site: str) -> bool:
        known = read_watch(self.state).get(site)
        return known is not None and known.connected

    def close(self) -> None:
        for site in self.sites:
            site.stop()
        self.server.stop()


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    centre = Centre(tmp_path)
    yield centre
    centre.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Centre]:
    """A centre behind a proxy, with one enrolled site and one that was revoked."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "north.json").write_text('{"name": "north", "revoked_at": null}')
    (tmp_path / "sites" / "south.json").write_text('{"name": "south", "revoked_at": "2026-01-01"}')
    centre = Centre(tmp_path, SECRET)
    yield centre
    centre.close()


def through_proxy(site: str, secret: str = SECRET) -> Metadata:
    return (("x-dsan-site", site), ("x-dsan-proxy", secret))


def test_progress_of_a_site_stands_in_the_file_with_its_last_contact(centre: Centre) -> None:
    status = SiteStatus(study="eight", round=3, branch="ss", phase="training", done=4, steps=9, eta_s=12.5)
    site = centre.connect("north", status)
    wait_until(lambda: centre.is_connected("north") and centre.file()["north"]["status"]["done"])
    entry = centre.file()["north"]
    assert {
        "study": "eight",
        "round": 3,
        "branch": "ss",
        "phase": "training",
        "done": 4,
        "steps": 9,
    }.items() <= (entry["status"].items())
    assert entry["connected"]
    assert abs(entry["last_contact"] - time.time()) < 5
    assert abs(entry["clock_ahead_s"]) < 1
    assert site.connected_since is not None
    assert site.reason == ""
    assert is_watching(centre.state)


def test_a_later_status_replaces_the_earlier(centre: Centre) -> None:
    status = SiteStatus(phase="training", done=1, steps=9)
    centre.connect("north", status)
    wait_until(lambda: centre.is_connected("north"))
    status.done = 7
    wait_until(lambda: centre.file()["north"]["status"]["done"] == 7)


def test_a_new_phase_is_said_at_once_and_the_round_of_an_idle_site_is_remembered(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.site_watch, "SPEAK_EVERY_S", 3600.0)
    monkeypatch.setattr(client.site_watch, "LOOK_EVERY_S", 0.1)
    status = SiteStatus(study="eight", round=4, phase="training")
    centre.connect("north", status)
    wait_until(
        lambda: centre.is_connected("north") and centre.file()["north"]["status"]["phase"] == "training"
    )
    status.Clear()
    status.phase = "idle"
    wait_until(lambda: centre.file()["north"]["status"]["phase"] == "idle")
    known = read_watch(centre.state)["north"]
    assert (known.worked_study, known.worked_round) == ("eight", 4)


def test_what_is_not_of_its_form_is_dropped_at_the_centre_too(centre: Centre) -> None:
    bad = SiteStatus(study="../x", phase="<b>", last_error="/data/name.dcm", release="0.1.0")
    with grpc.insecure_channel(f"127.0.0.1:{centre.port}") as channel:
        answers = SiteWatchStub(channel).Watch(iter([bad]), metadata=(("x-dsan-site", "north"),))
        assert next(answers).kind == Order.NONE
        wait_until(
            lambda: "north" in read_watch(centre.state) and read_watch(centre.state)["north"].status.release
        )
    status = centre.file()["north"]["status"]
    assert (status["study"], status["phase"], status["last_error"]) == ("", "", "")


def test_a_site_that_leaves_is_named_and_its_last_word_is_kept(centre: Centre) -> None:
    site = centre.connect("north")
    wait_until(lambda: centre.is_connected("north") and centre.file()["north"]["status"]["phase"])
    site.stop()
    wait_until(lambda: not centre.is_connected("north"))
    known = read_watch(centre.state)["north"]
    assert known.status.phase == "training"
    assert known.reason


def test_a_silent_site_is_named_though_its_connection_stands(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.site_watch, "LONGEST_SILENCE_S", 0.5)
    monkeypatch.setattr(client.site_watch, "SPEAK_EVERY_S", 60.0)
    monkeypatch.setattr(client.site_watch, "FIRST_PAUSE_S", 60.0)
    site = centre.connect("north")
    wait_until(lambda: centre.is_connected("north"))
    wait_until(lambda: not centre.is_connected("north"))
    assert "silent" in read_watch(centre.state)["north"].reason
    wait_until(lambda: "heard nothing" in site.reason)


def test_a_site_comes_back_by_itself_when_the_centre_does(centre: Centre) -> None:
    site = centre.connect("north")
    wait_until(lambda: site.connected_since)
    centre.server.stop()
    wait_until(lambda: "cannot be reached" in site.reason)
    assert site.connected_since is None
    centre.server = SiteWatchServer(f"127.0.0.1:{centre.port}", None, centre.state)
    centre.server.start()
    wait_until(lambda: site.connected_since and centre.is_connected("north"))


def test_eight_sites_come_back_when_the_centre_does_and_a_restart_starts_no_flood(centre: Centre) -> None:
    names = [f"hospital-{number}" for number in range(1, 9)]
    sites = [centre.connect(name) for name in names]
    for _ in range(3):
        wait_until(lambda: all(centre.is_connected(name) for name in names))
        centre.server.stop()
        wait_until(lambda: all("cannot be reached" in site.reason for site in sites))
        centre.server = SiteWatchServer(f"127.0.0.1:{centre.port}", None, centre.state)
        centre.server.start()
    wait_until(lambda: all(centre.is_connected(name) for name in names))
    assert [site.reason for site in sites] == [""] * 8


def test_a_centre_that_falls_silent_is_left_and_tried_again(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.site_watch, "LONGEST_SILENCE_S", 0.5)
    site = centre.connect("north")
    wait_until(lambda: "no word" in site.reason)
    wait_until(lambda: site.connected_since)


def test_a_restarted_centre_remembers_who_it_heard_of(centre: Centre) -> None:
    site = centre.connect("north")
    wait_until(lambda: centre.is_connected("north"))
    site.stop()
    centre.server.stop()
    assert not read_watch(centre.state)["north"].connected
    centre.server = SiteWatchServer("127.0.0.1:0", None, centre.state)
    centre.server.start()
    time.sleep(0.3)
    assert read_watch(centre.state)["north"].status.phase == "training"


def test_a_killed_centre_does_not_take_its_last_word_for_the_present(centre: Centre) -> None:
    centre.server.stop()
    now = time.time()
    write_watch(centre.state, {"south": WatchedSite(SiteReport(phase="training"), now, True, now)})
    centre.server = SiteWatchServer("127.0.0.1:0", None, centre.state)
    centre.server.start()
    wait_until(lambda: not centre.is_connected("south"))
    assert "started again" in read_watch(centre.state)["south"].reason


def test_an_order_reaches_its_site_and_no_other(centre: Centre) -> None:
    centre.connect("north")
    others: list[Order] = []
    south = SiteWatchClient(f"127.0.0.1:{centre.port}", None, "south", SiteStatus, others.append)
    south.start()
    centre.sites.append(south)
    wait_until(lambda: centre.is_connected("north") and centre.is_connected("south"))
    give_order(centre.state, "north", "stop", "eight")
    wait_until(lambda: not waiting_orders(centre.state))
    assert [(order.kind, order.study) for order in centre.orders] == [(Order.STOP, "eight")]
    assert others == []


def test_an_order_to_all_reaches_a_site_that_connects_later_once(centre: Centre) -> None:
    path = give_order(centre.state, "*", "drain", "eight")
    site = centre.connect("north")
    wait_until(lambda: waiting_orders(centre.state)[path].taken_by == ("north",))
    site.stop()
    wait_until(lambda: not centre.is_connected("north"))
    centre.connect("north")
    wait_until(lambda: centre.is_connected("north"))
    time.sleep(0.5)
    assert [order.kind for order in centre.orders] == [Order.DRAIN]


def test_a_flood_of_messages_ends_the_stream_and_the_site_is_told_why(centre: Centre) -> None:
    flood = [SiteStatus(done=i, steps=1000) for i in range(1000)]
    error = centre.refusal((("x-dsan-site", "north"),), *flood)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "north speaks too often"


def test_a_flood_of_streams_is_refused(centre: Centre) -> None:
    codes = set()
    for _ in range(20):
        with grpc.insecure_channel(f"127.0.0.1:{centre.port}") as channel:
            call = SiteWatchStub(channel).Watch(iter(()), metadata=(("x-dsan-site", "north"),))
            try:
                list(call)
            except grpc.RpcError as error:
                codes.add(error.code())
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_message_that_is_too_long_is_not_read(centre: Centre) -> None:
    error = centre.refusal((("x-dsan-site", "north"),), SiteStatus(study="x" * 100_000))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_newer_stream_of_a_site_takes_the_place_of_the_older(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.site_watch, "FIRST_PAUSE_S", 60.0)
    older = centre.connect("north")
    wait_until(lambda: older.connected_since)
    newer = centre.connect("north")
    wait_until(lambda: "newer stream" in older.reason)
    wait_until(lambda: newer.connected_since and centre.is_connected("north"))
    assert len(read_watch(centre.state)["north"].displaced) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("x-dsan-site", "north"),),
        through_proxy("north", "guessed"),
        (*through_proxy("north"), ("x-dsan-proxy", "guessed")),
        (*through_proxy("north"), ("x-dsan-site", "south")),
        through_proxy("../north"),
        through_proxy(""),
    ],
    ids=["nothing", "no secret", "wrong secret", "two secrets", "two names", "a path", "no name"],
)
def test_who_does_not_come_through_the_proxy_with_one_name_is_refused(
    guarded: Centre, metadata: Metadata
) -> None:
    error = guarded.refusal(metadata, SiteStatus(done=1, steps=2))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert read_watch(guarded.state) == {}


@pytest.mark.parametrize(("site", "words"), [("south", "was revoked"), ("west", "is not enrolled")])
def test_a_revoked_site_and_a_strange_one_are_refused_in_words(
    guarded: Centre, site: str, words: str
) -> None:
    error = guarded.refusal(through_proxy(site))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == f"{site} {words}"


def test_a_site_that_is_revoked_while_it_is_connected_is_cut_off(guarded: Centre) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{guarded.port}") as channel:

        def idle() -> Iterator[SiteStatus]:
            for _ in range(100):
                yield SiteStatus(phase="idle")
                time.sleep(0.3)

        answers = SiteWatchStub(channel).Watch(idle(), metadata=through_proxy("north"))
        assert next(answers).kind == Order.NONE
        (guarded.state.parent / "sites" / "north.json").write_text('{"revoked_at": "2026-11-01"}')
        with pytest.raises(grpc.RpcError) as error:
            next(answers)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    wait_until(lambda: not guarded.is_connected("north"))


def test_a_port_that_is_taken_is_an_error_not_shared(centre: Centre) -> None:
    second = SiteWatchServer(f"127.0.0.1:{centre.port}", None, centre.state)
    with pytest.raises(RuntimeError):
        second.start()
    second.stop()
