"""A round as a contract: what a site lost is sent again, slow is not dead, late is not lost."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from restarting_grid import RestartingGrid, description
from study_terms import STUDY_TERMS

from dsan_model.network import NetworkConfig, initial_state
from dsan_model.protocol import (
    DescribeRequest,
    RoundReply,
    RoundRequest,
    SiteDescription,
    encode,
)
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.weights import flatten
from server import exchange as exchange_module
from server import idle_sites
from server.exchange import CRASHES, Exchange, Failure, Outcome
from server.ledger import read_ledger
from server.spool import SMALLEST_BYTES
from server.watch_file import SiteReport, WatchedSite, write_watch

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
Answering = Callable[["Hospitals", str, int, Message], Message]  # site, how often it was asked before


class Hospitals:
    """Sites whose behaviour is a function; node 1 is the first one."""

    def __init__(self, behaviours: dict[str, Answering], pool: ThreadPoolExecutor, run_folder: Path) -> None:
        self.behaviours = behaviours
        self.times_asked = dict.fromkeys(behaviours, 0)
        self.lock = threading.Lock()
        paths = tuple(Path(site) / "site.toml" for site in behaviours)
        self.grid = RestartingGrid(self._app(), paths, pool)
        self.exchange = Exchange(self.grid, 20.0, run_folder)
        self.exchange.nodes.by_site = {site: node for node, site in enumerate(behaviours, 1)}
        self.run_folder = run_folder

    def _app(self) -> ClientApp:
        app = ClientApp()

        @app.query("describe")
        def describe(message: Message, context: Context) -> Message:
            return self._answer(message, context)

        @app.train("round")
        def train(message: Message, context: Context) -> Message:
            return self._answer(message, context)

        return app

    def _answer(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site-config"])).parent.name
        with self.lock:
            asked_before = self.times_asked[site]
            self.times_asked[site] += 1
        return self.behaviours[site](self, site, asked_before, message)

    def node(self, site: str) -> int:
        """The node that the site had at the start."""
        return list(self.behaviours).index(site) + 1

    def ask(self, *sites: str) -> list[Outcome[SiteDescription]]:
        """Ask these sites, or all of them, to describe themselves."""
        return list(
            self.exchange.ask(
                dict.fromkeys(sites or self.behaviours, DescribeRequest(STUDY_TERMS)), SiteDescription
            )
        )

    def events(self) -> list[tuple[str, str]]:
        """Event and message of every line of the ledger."""
        return [(str(line["event"]), str(line["message"])) for line in read_ledger(self.run_folder)]


def answers(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    return Message(encode(description(site)), reply_to=message)


def dies_once(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    """The first time, its node is restarted while it is at work, and the message is lost."""
    if asked_before == 0:
        time.sleep(0.1)
        hospitals.grid.leave(hospitals.node(site))
        hospitals.grid.come_back(hospitals.node(site))
    return answers(hospitals, site, asked_before, message)


def crashes(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    raise MemoryError("a path of the site")


def crashes_twice(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    if asked_before < 2:
        raise MemoryError("a path of the site")
    return answers(hospitals, site, asked_before, message)


def is_slow(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    time.sleep(0.6)
    return answers(hospitals, site, asked_before, message)


Connect = Callable[..., Hospitals]


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    monkeypatch.setattr(exchange_module, "LOOK_EVERY_S", 0.05)
    with ThreadPoolExecutor(4) as pool:
        yield lambda **behaviours: Hospitals(behaviours, pool, tmp_path)


def names(outcomes: list[Outcome[SiteDescription]]) -> list[str]:
    return [o.answer.site if isinstance(o.answer, SiteDescription) else o.answer.code for o in outcomes]


def test_what_a_restarted_node_lost_is_sent_again(connect: Connect) -> None:
    hospitals = connect(east=answers, north=dies_once)
    assert names(hospitals.ask()) == ["east", "north"]
    assert hospitals.times_asked == {"east": 1, "north": 2}
    assert ("asked-again", "north: its node was started anew") in hospitals.events()


def test_a_slow_site_is_not_dead_and_not_asked_again(connect: Connect) -> None:
    hospitals = connect(east=is_slow, north=is_slow)
    assert names(hospitals.ask()) == ["east", "north"]
    assert len(hospitals.grid.pushed) == 2
    assert hospitals.events() == []


def test_a_node_that_is_away_is_waited_for_and_named(connect: Connect) -> None:
    hospitals = connect(east=answers, north=dies_once)
    hospitals.grid.leave(2)
    threading.Timer(0.6, hospitals.grid.come_back, (2,)).start()
    assert names(hospitals.ask()) == ["east", "north"]
    assert hospitals.events()[0] == ("site-away", "north is not connected")


def test_a_node_that_stays_away_is_unavailable_at_the_deadline_and_keeps_nobody(connect: Connect) -> None:
    hospitals = connect(east=answers, north=answers, west=answers)
    hospitals.grid.leave(2)
    hospitals.exchange.deadline_s = 0.5
    assert names(hospitals.ask()) == ["east", "SITE-UNAVAILABLE", "west"]


def test_what_is_sent_while_a_node_is_away_waits_for_it_and_is_not_sent_twice(connect: Connect) -> None:
    hospitals = connect(north=answers)
    del hospitals.grid.activations[1]
    threading.Timer(0.4, hospitals.grid.come_back, (1,)).start()
    assert names(hospitals.ask()) == ["north"]
    assert hospitals.times_asked == {"north": 1}


def test_a_site_that_comes_back_as_another_node_is_found_by_the_name_that_it_gives(connect: Connect) -> None:
    hospitals = connect(east=answers, north=answers)
    hospitals.exchange.nodes.by_site = {"north": 7}  # a node that left; node 2 is the site's new one
    assert names(hospitals.ask("north")) == ["north"]
    assert hospitals.exchange.nodes.by_site["north"] == 2


def test_a_registered_name_is_believed_and_the_name_that_a_node_gives_is_not(connect: Connect) -> None:
    hospitals = connect(east=answers, north=answers)
    hospitals.grid.names = {1: "north", 2: "south"}
    hospitals.exchange.nodes.by_site = {"north": 7}
    hospitals.exchange.deadline_s = 3.0
    (outcome,) = hospitals.ask("north")
    assert hospitals.exchange.nodes.by_site["north"] == 1
    assert isinstance(outcome.answer, SiteDescription)  # whose site is checked where the answer is admitted
    assert outcome.answer.site == "east"


def test_a_client_app_that_fails_is_asked_again_a_few_times(connect: Connect) -> None:
    hospitals = connect(east=crashes, north=crashes_twice)
    assert names(hospitals.ask()) == ["SITE-CRASHED", "north"]
    assert hospitals.times_asked == {"east": CRASHES, "north": 3}
    assert not any("path" in message for _, message in hospitals.events())


def replies_to_a_round(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    update = pack(flatten({"weight": torch.linspace(-1, 1, SMALLEST_BYTES)}), Precision.FLOAT16)
    return Message(encode(RoundReply(site, 1, {}, {}, {Branch.US: update})), reply_to=message)


def replies_and_leaves(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    threading.Timer(0.5, hospitals.grid.leave, (hospitals.node(site),)).start()
    return replies_to_a_round(hospitals, site, asked_before, message)


def replies_slowly(hospitals: Hospitals, site: str, asked_before: int, message: Message) -> Message:
    time.sleep(1.2)
    return replies_to_a_round(hospitals, site, asked_before, message)


def is_a_file_in(folder: Path, update: PackedWeights) -> bool:
    """Whether its floats lie where a file of the folder is mapped (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if str(folder) in line and int(start, 16) <= update.floats.ctypes.data < int(end, 16):
            return True
    return False


def test_a_reply_before_its_turn_waits_on_disk_and_survives_its_node(connect: Connect) -> None:
    hospitals = connect(east=replies_slowly, north=replies_and_leaves)
    weights = {Branch.US: pack(flatten(initial_state(TINY, 0)), Precision.FLOAT16)}
    request = RoundRequest(STUDY_TERMS, 1, 0, {}, weights)
    outcomes = hospitals.exchange.ask(dict.fromkeys(hospitals.behaviours, request), RoundReply)
    east, north = next(outcomes), next(outcomes)
    assert isinstance(east.answer, RoundReply)
    assert isinstance(north.answer, RoundReply)
    assert 2 not in hospitals.grid.activations
    assert is_a_file_in(hospitals.run_folder, north.answer.updates[Branch.US])
    assert north.answer.updates[Branch.US].digest == east.answer.updates[Branch.US].digest
    assert list(outcomes) == []


def test_the_reply_to_a_request_that_is_over_is_never_taken_for_another(connect: Connect) -> None:
    hospitals = connect(north=is_slow)
    hospitals.exchange.deadline_s = 0.1
    assert names(hospitals.ask()) == ["SITE-LATE"]
    hospitals.exchange.deadline_s = 20.0
    assert names(hospitals.ask()) == ["north"]
    assert hospitals.times_asked == {"north": 2}
    assert isinstance(hospitals.ask()[0].answer, SiteDescription | Failure)


def test_a_node_that_is_started_anew_is_asked_anew_who_it_is(connect: Connect) -> None:
    hospitals = connect(north=dies_once)
    exchange = hospitals.exchange
    exchange.nodes.by_site = {}
    outcome, deadline = None, time.monotonic() + 20
    while outcome is None and time.monotonic() < deadline:
        exchange.nodes.look()
        outcome = exchange.introduction(1, STUDY_TERMS)
        time.sleep(0.02)
    assert outcome is not None
    assert names([outcome]) == ["north"]
    assert hospitals.times_asked == {"north": 2}


@pytest.fixture
def watched(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hospitals]:
    """North, whose first message is lost, in a centre where SiteWatch says what it does."""
    monkeypatch.setattr(idle_sites, "IDLE_S", 0.5)
    monkeypatch.setattr(idle_sites, "LOOK_EVERY_S", 0.05)
    state, run_folder = tmp_path / "centre" / "state", tmp_path / "centre" / "runs" / "study"
    for folder in (state, run_folder):
        folder.mkdir(parents=True)
    (tmp_path / "centre" / "server.toml").touch()

    def start(phase: str) -> Hospitals:
        now = time.time()
        write_watch(state, {"north": WatchedSite(SiteReport(phase=phase), now, True, now)})
        hospitals = connect(north=answers)
        hospitals.run_folder = run_folder
        by_site = hospitals.exchange.nodes.by_site
        hospitals.exchange = Exchange(hospitals.grid, 3.0, run_folder)
        hospitals.exchange.nodes.by_site = by_site
        hospitals.grid.names, hospitals.grid.swallows = {1: "north"}, {1}
        return hospitals

    return start


def test_an_idle_site_whose_message_never_came_is_asked_again(watched: Callable[..., Hospitals]) -> None:
    hospitals = watched("idle")
    assert names(hospitals.ask()) == ["north"]
    assert hospitals.events() == [
        ("asked-again", "north: it has nothing to do, so its message or answer was lost")
    ]


def test_a_site_at_work_is_not_asked_again(watched: Callable[..., Hospitals]) -> None:
    hospitals = watched("training")
    assert names(hospitals.ask()) == ["SITE-LATE"]
    assert hospitals.events() == []


def test_a_site_that_is_revoked_is_not_waited_for(watched: Callable[..., Hospitals], tmp_path: Path) -> None:
    hospitals = watched("training")
    sites = tmp_path / "centre" / "sites"
    sites.mkdir()
    (sites / "north.json").write_text('{"revoked_at": "2026-11-01T00:00:00Z"}')
    hospitals.exchange.deadline_s = 3600.0
    assert names(hospitals.ask()) == ["SITE-REVOKED"]


def test_an_idle_site_is_asked_again_who_it_is(watched: Callable[..., Hospitals]) -> None:
    hospitals = watched("idle")
    hospitals.exchange.nodes.by_site = {}
    outcome, deadline = None, time.monotonic() + 20
    while outcome is None and time.monotonic() < deadline:
        hospitals.exchange.nodes.look()
        outcome = hospitals.exchange.introduction(1, STUDY_TERMS)
        time.sleep(0.02)
    assert outcome is not None
    assert names([outcome]) == ["north"]
