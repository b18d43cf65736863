"""What the daemon does about studies, against a real SuperLink whose runs nobody takes."""

import fcntl
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from types import ModuleType

import pytest

import server.study_keeper
from dsan_daemon.bundle import bundle_digest
from dsan_daemon.flower import PIECE_BYTES
from dsan_daemon.processes import Supervisor, supervised
from server import superlink_main
from server.centre import Centre, open_centre
from server.founding import found_centre
from server.ledger import append_event, read_ledger
from server.membership import reconcile_nodes
from server.proxy import LARGEST_UPLOAD
from server.sites import EnrolledSite, now, sites_locked, write_site
from server.study_keeper import StudyKeeper
from server.superlink import SuperLink, SuperLinkError, superlink_program
from server.superlink_main import copy_log, for_weights, private_names
from server.wishes import end_wish, make_wish, read_attempt, read_wishes


class Running:
    """A SuperLink with a database on disk, and no SuperExec."""

    def __init__(self, state: Path, supervisor: Supervisor) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        secret = state / "superexec.secret"
        secret.write_text("secret")
        self.supervisor = supervisor
        supervisor.start(superlink_program(state, self.port, secret, has_authentication=True))
        self.superlink = SuperLink(self.port)
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not self.superlink.is_healthy():
            self.supervisor.tend()
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("state")
    with supervised(state / "processes.json") as supervisor:
        running = Running(state, supervisor)
        yield running
        running.superlink.close()


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    found_centre(tmp_path, "127.0.0.1")
    (tmp_path / "state").mkdir()
    centre = open_centre(tmp_path)[0]
    (centre.run("first")).mkdir()
    (centre.run("first") / "study.toml").write_text('name = "first"\n')
    return centre


@pytest.fixture
def keeper(centre: Centre, running: Running) -> Iterator[StudyKeeper]:
    keeper = StudyKeeper(centre, running.superlink)
    keeper.begin()
    yield keeper
    keeper.begin()


@contextmanager
def at_work(centre: Centre) -> Iterator[None]:
    """As a ServerApp holds its run folder."""
    with (centre.run("first") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_id(centre: Centre) -> int | None:
    return read_attempt(centre, read_wishes(centre)[0]).run_id


def test_a_wish_is_submitted_once_with_the_bundle_of_this_release(
    centre: Centre, keeper: StudyKeeper, running: Running
) -> None:
    make_wish(centre, "first", "running")
    keeper.tend()
    first = run_id(centre)
    keeper.tend()
    assert run_id(centre) == first
    assert running.superlink.unfinished_runs() == [first]
    assert running.superlink.run_status(first).status == "pending"  # type: ignore[arg-type, union-attr]
    assert len(bundle_digest()) == 64


def test_a_run_that_cannot_be_remembered_is_not_begun(
    centre: Centre, keeper: StudyKeeper, running: Running
) -> None:
    make_wish(centre, "first", "running")
    before = running.superlink.unfinished_runs()
    blocked = centre.state / "studies" / "first.attempt.json.partial"
    blocked.mkdir()  # as if the disk were full, or another user had written here
    for _ in range(3):
        with pytest.raises(OSError, match="partial"):
            keeper.tend()
    assert running.superlink.unfinished_runs() == before
    blocked.rmdir()
    keeper.tend()
    assert run_id(centre) is not None


def test_a_run_that_nobody_takes_asks_for_a_new_superexec(
    centre: Centre, keeper: StudyKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.study_keeper, "PENDING_S", 0.5)
    make_wish(centre, "first", "running")
    assert not keeper.tend()
    assert not keeper.tend()
    time.sleep(0.6)
    assert keeper.tend()
    assert not keeper.tend()  # the new one is given time


def test_a_run_that_ended_without_an_end_of_its_study_is_submitted_again_after_growing_pauses(
    centre: Centre, keeper: StudyKeeper, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.study_keeper, "FIRST_PAUSE_S", 0.4)
    wish = make_wish(centre, "first", "running")
    seen, pauses = [], []
    for _ in range(3):
        keeper.tend()
        seen.append(run_id(centre))
        running.superlink.stop_run(seen[-1])  # type: ignore[arg-type]
        keeper.tend()
        attempt = read_attempt(centre, wish)
        assert attempt.run_id is None
        pauses.append(attempt.next_try - time.time())
        keeper.tend()
        assert run_id(centre) is None  # not before its time
        time.sleep(max(0.0, attempt.next_try - time.time()))
    assert len(set(seen)) == 3
    assert read_attempt(centre, wish).failures == 3
    assert pauses == pytest.approx([0.4, 0.8, 1.6], abs=0.3)


def test_a_run_that_finished_a_round_is_submitted_again_after_the_first_pause(
    centre: Centre, keeper: StudyKeeper, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.study_keeper, "FIRST_PAUSE_S", 0.2)
    wish = make_wish(centre, "first", "running")
    for finished in (1, 2):
        keeper.tend()
        (centre.run("first") / "rounds" / f"{finished:04d}").mkdir(parents=True)
        found = run_id(centre)
        assert found is not None
        running.superlink.stop_run(found)
        keeper.tend()
        attempt = read_attempt(centre, wish)
        assert attempt.failures == 1
        time.sleep(max(0.0, attempt.next_try - time.time()))


def test_a_process_that_died_is_noticed_by_its_lock(
    centre: Centre, keeper: StudyKeeper, running: Running
) -> None:
    wish = make_wish(centre, "first", "running")
    keeper.tend()
    first = run_id(centre)
    with at_work(centre):
        keeper.tend()
        assert run_id(centre) == first
    keeper.tend()
    keeper.tend()
    assert read_attempt(centre, wish).last_failure == "its process has ended"
    assert running.superlink.run_status(first).is_finished  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("event", ["complete", "incomplete", "paused"])
def test_a_study_that_has_ended_is_left_alone(centre: Centre, keeper: StudyKeeper, event: str) -> None:
    append_event(centre.run("first"), event, "of a session before")
    make_wish(centre, "first", "running")
    keeper.tend()
    with at_work(centre):
        append_event(centre.run("first"), event, "now")
        keeper.tend()
        assert read_wishes(centre) != []  # its process still writes the report
    keeper.tend()
    assert read_wishes(centre) == []


def test_a_stopped_study_ends_at_flower_and_in_the_ledger(
    centre: Centre, keeper: StudyKeeper, running: Running
) -> None:
    make_wish(centre, "first", "running")
    keeper.tend()
    first = run_id(centre)
    make_wish(centre, "first", "stopped")
    with at_work(centre):
        keeper.tend()
        assert running.superlink.run_status(first).is_finished  # type: ignore[arg-type, union-attr]
        assert read_wishes(centre) != []
    keeper.tend()
    assert [line["event"] for line in read_ledger(centre.run("first"))] == ["stopped"]
    assert read_wishes(centre) == []


def test_a_process_that_does_not_stop_asks_for_a_new_superexec(
    centre: Centre, keeper: StudyKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.study_keeper, "STOP_S", 0.2)
    make_wish(centre, "first", "stopped")
    with at_work(centre):
        assert not keeper.tend()
        time.sleep(0.3)
        assert keeper.tend()


def test_a_new_daemon_ends_what_flower_believes_to_be_at_work_and_submits_anew(
    centre: Centre, keeper: StudyKeeper, running: Running
) -> None:
    make_wish(centre, "first", "running")
    keeper.tend()
    first = run_id(centre)
    after_power_cut = StudyKeeper(centre, running.superlink)
    after_power_cut.begin()
    assert running.superlink.unfinished_runs() == []
    after_power_cut.tend()
    wish = read_wishes(centre)[0]
    assert read_attempt(centre, wish).next_try - time.time() < 6
    assert first is not None
    end_wish(centre, wish)


def test_a_run_of_another_database_is_taken_for_lost(centre: Centre, keeper: StudyKeeper) -> None:
    wish = make_wish(centre, "first", "running")
    keeper.tend()
    attempt = read_attempt(centre, wish)
    server.study_keeper.write_attempt(centre, wish, attempt.model_copy(update={"run_id": 12345}))
    keeper.tend()
    assert read_attempt(centre, wish).last_failure == "the SuperLink has lost it"


def enrol(centre: Centre, name: str, keys: object) -> None:
    with sites_locked(centre):
        site = EnrolledSite(
            name=name,
            public_key=keys.public_key,
            fingerprint="",
            certificate_serial="1",
            certificate="",
            enrolled_at=now(),  # type: ignore[attr-defined]
        )
        write_site(centre, site)


def test_the_superlinks_nodes_are_made_those_of_the_enrolled_sites(
    centre: Centre, running: Running, site_keys: ModuleType
) -> None:
    stranger, north, south = (site_keys.make_keys() for _ in range(3))
    running.superlink.register("stranger", stranger.public_key)
    running.superlink.register("renamed", north.public_key)
    enrol(centre, "south", south)
    reconcile_nodes(centre, running.superlink)
    assert [node.name for node in running.superlink.nodes()] == ["south"]
    node_id = running.superlink.nodes()[0].node_id
    with sites_locked(centre) as sites:
        assert sites["south"].node_id == node_id
        write_site(centre, sites["south"].model_copy(update={"revoked_at": now()}))
    reconcile_nodes(centre, running.superlink)
    assert running.superlink.nodes() == []
    with sites_locked(centre) as sites:
        assert sites["south"].node_id is None


def test_the_private_names_of_flower_are_there_and_its_database_gets_our_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql, _ = private_names()
    monkeypatch.setattr(sql, "SQLITE_PRAGMAS", for_weights(sql.SQLITE_PRAGMAS))
    names = ("busy_timeout", "journal_mode", "wal_autocheckpoint", "journal_size_limit", "secure_delete")
    with closing(sqlite3.connect(tmp_path / "superlink.db")) as connection:
        sql._set_sqlite_pragmas(connection, None)
        found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    assert found == [120_000, "wal", 131_072, 2**27, 0]


def test_the_log_of_the_database_is_copied_beside_who_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql, _ = private_names()
    monkeypatch.setattr(sql, "SQLITE_PRAGMAS", for_weights(sql.SQLITE_PRAGMAS))
    monkeypatch.setattr(superlink_main, "COPY_EVERY_S", 0.05)
    database, stopped = tmp_path / "superlink.db", Event()
    copying = Thread(target=copy_log, args=(database, stopped))
    copying.start()  # before there is a database
    try:
        with closing(sqlite3.connect(database)) as connection:
            sql._set_sqlite_pragmas(connection, None)
            connection.execute("CREATE TABLE pieces (content BLOB)")
            for _ in range(3):
                before = database.stat().st_size
                connection.execute("INSERT INTO pieces VALUES (zeroblob(2000000))")
                connection.commit()
                deadline = time.monotonic() + 30
                while database.stat().st_size < before + 2_000_000:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            connection.execute("BEGIN IMMEDIATE")  # who writes for long does not end the thread
            time.sleep(0.2)
            connection.rollback()
            assert copying.is_alive()
    finally:
        stopped.set()
        copying.join(10)
    assert not copying.is_alive()


def test_the_proxy_takes_the_pieces_in_which_weights_travel() -> None:
    largest = int(LARGEST_UPLOAD.removesuffix("m")) * 2**20
    assert largest >= PIECE_BYTES + 2**20  # and what is said about a piece


def test_a_superlink_that_is_killed_keeps_its_runs_and_one_that_is_gone_is_said(
    centre: Centre, keeper: StudyKeeper, running: Running
) -> None:
    make_wish(centre, "first", "running")
    keeper.tend()
    first = run_id(centre)
    pid = running.supervisor.status()["superlink"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    with pytest.raises(SuperLinkError, match="does not answer"):
        keeper.tend()
    running.wait()
    keeper.tend()
    assert run_id(centre) == first
    assert running.superlink.unfinished_runs() == [first]
