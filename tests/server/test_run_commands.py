"""train, resume and stop: what they refuse, and what they leave for the daemon."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import server.run_commands
from dsan_model.ensemble import BAND
from dsan_model.network import initial_state
from dsan_model.weights import flatten, save_weights
from server.centre import Centre, open_centre
from server.cli import app
from server.daemon_lock import alone, is_daemon_running
from server.founding import found_centre
from server.ledger import append_event
from server.model_package import new_package
from server.orders import EVERY_SITE, give_order, mark_taken, waiting_orders
from server.refusals import ExitCode, RefusedError
from server.run_commands import (
    follow_study,
    order_site,
    resume_study,
    stop_study,
    studies_that_need,
    train_study,
)
from server.run_folder import study_toml, write_study
from server.sites import EnrolledSite, now, write_site
from server.status import run_states
from server.study import SitesTable, StartTable, preset_study, read_study
from server.wishes import Attempt, end_wish, make_wish, read_wishes, write_attempt


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    found_centre(tmp_path / "centre", "127.0.0.1")
    centre = open_centre(tmp_path / "centre")[0]
    for name in ("north", "south"):
        revoked = now() if name == "south" else None
        site = EnrolledSite(
            name=name,
            public_key="",
            fingerprint="",
            certificate_serial="1",
            certificate="",
            enrolled_at=now(),
            revoked_at=revoked,
        )
        write_site(centre, site)
    return centre


@pytest.fixture
def daemon(centre: Centre) -> Iterator[None]:
    """The lock that a daemon holds, and what it says of itself."""
    with alone(centre):
        (centre.state / "daemon.json").write_text(json.dumps({"insecure": False}))
        yield


def study(centre: Centre, *training: str) -> Path:
    path = centre.folder / "mine.toml"
    path.write_text(f'name = "mine"\n[sites]\ntraining = {json.dumps(training)}\n')
    return path


@pytest.mark.parametrize("command", [["train", "study.toml"], ["resume", "x"], ["stop", "x"]])
def test_without_a_daemon_nothing_is_started(
    centre: Centre, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(centre.folder)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == ExitCode.UNREACHABLE
    assert "DAEMON-DOWN" in done.stderr
    assert list(centre.runs.iterdir()) == []


def test_a_study_gets_its_run_folder_and_is_asked_for(centre: Centre, daemon: None) -> None:
    train_study(centre, study(centre, "north"))
    assert read_study(centre.run("mine") / "study.toml").sites.training == ("north",)
    assert [(wish.run, wish.wanted) for wish in read_wishes(centre)] == [("mine", "running")]


@pytest.mark.parametrize("name", ["west", "south"])
def test_a_study_names_enrolled_sites_alone(centre: Centre, daemon: None, name: str) -> None:
    with pytest.raises(RefusedError, match=f"STUDY-SITES.*not enrolled: {name}; enrolled are: north"):
        train_study(centre, study(centre, "north", name))
    assert not centre.run("mine").exists()


def test_the_name_of_a_run_is_given_once(centre: Centre, daemon: None) -> None:
    train_study(centre, study(centre, "north"))
    with pytest.raises(RefusedError, match="RUN-EXISTS"):
        train_study(centre, study(centre, "north"))


def test_a_study_may_follow_its_estimate(centre: Centre, daemon: None) -> None:
    wish = train_study(centre, study(centre, "north"), is_dry_run=True)
    assert wish.is_dry_run
    append_event(centre.run("mine"), "estimated", "mine")
    outcome = follow_study(centre, wish)
    assert outcome.exit_code == ExitCode.DONE
    assert "nothing was trained" in outcome.text
    end_wish(centre, wish)
    assert not train_study(centre, study(centre, "north")).is_dry_run


def test_a_study_that_paused_before_its_first_round_can_be_corrected(centre: Centre, daemon: None) -> None:
    run = make_run(centre, "north", "south")
    corrected = study(centre, "north")
    give_order(centre.state, EVERY_SITE, "stop", "mine")
    train_study(centre, corrected)
    assert waiting_orders(centre.state) == {}
    assert read_study(run / "study.toml").sites.training == ("north",)
    assert not (run / "ledger.jsonl").exists()
    (aside,) = (centre.state / "replaced").iterdir()
    assert "south is missing" in (aside / "ledger.jsonl").read_text()
    end_wish(centre, read_wishes(centre)[0])
    (run / "rounds" / "0001").mkdir(parents=True)
    with pytest.raises(RefusedError, match="RUN-EXISTS"):
        train_study(centre, corrected)


def test_a_package_to_start_from_is_looked_at_before_anything_is_made(centre: Centre, daemon: None) -> None:
    path = study(centre, "north")
    path.write_text(path.read_text() + '[start]\nmodel = "packages/first"\n')
    with pytest.raises(RefusedError, match=f"START-MODEL.*{centre.folder}/packages/first"):
        train_study(centre, path)
    assert not centre.run("mine").exists()


def test_a_package_beside_the_study_is_found_from_the_run(centre: Centre, daemon: None) -> None:
    first = preset_study("tiny", "mine", 0).model_copy(update={"sites": SitesTable(training=("north",))})
    description = {
        "study": {"name": "first"},
        "network": first.network.model_dump(mode="json"),
        "input": first.input.model_dump(mode="json"),
        "recipe_digest": first.recipe.digest,
        "ensemble": {"band": list(BAND), "w_inside": 0.9, "w_outside": 0.4},
    }
    folder = centre.folder / "first"
    folder.mkdir()
    with new_package(folder, description, "") as package:
        for branch in first.branches:
            save_weights(package / f"{branch}.safetensors", flatten(initial_state(first.network_config, 0)))
    path = centre.folder / "mine.toml"
    start = StartTable(model="first/model")
    path.write_text(study_toml(first.model_copy(update={"start": start})))
    train_study(centre, path)
    assert Path(read_study(centre.run("mine") / "study.toml").start.model) == folder / "model"


def test_a_study_that_is_wrong_exits_78_and_names_the_key(centre: Centre, daemon: None) -> None:
    path = study(centre)
    path.write_text(path.read_text().replace("training", "trainning"))
    done = CliRunner().invoke(app, ["train", str(path), "--dir", str(centre.folder)])
    assert done.exit_code == ExitCode.BAD_CONFIGURATION
    assert "did you mean 'training'" in done.stderr


@pytest.mark.parametrize("name", ["other", "../mine", "mine/rounds", "."])
def test_an_unknown_run_is_refused(centre: Centre, daemon: None, name: str) -> None:
    train_study(centre, study(centre, "north"))
    for command in (resume_study, stop_study):
        with pytest.raises(RefusedError, match=r"RUN-UNKNOWN.*there are: mine"):
            command(centre, name)


def test_resume_watches_a_study_that_runs_and_asks_for_one_that_does_not(
    centre: Centre, daemon: None
) -> None:
    wish = train_study(centre, study(centre, "north"))
    assert resume_study(centre, "mine") == wish
    end_wish(centre, wish)
    assert resume_study(centre, "mine") != wish
    end_wish(centre, wish)
    (centre.run("mine") / "results.json").write_text('{"complete": true}')
    assert resume_study(centre, "mine") is None


def test_a_study_goes_on_although_a_site_was_revoked_since(centre: Centre, daemon: None) -> None:
    make_run(centre, "north", "south")
    assert resume_study(centre, "mine") is not None


def make_run(centre: Centre, *training: str) -> Path:
    """A paused run; south is revoked."""
    write_study(centre.run("mine"), read_study(study(centre, *training)))
    append_event(centre.run("mine"), "paused", "south is missing")
    return centre.run("mine")


def test_who_revokes_a_site_is_told_which_studies_need_it(centre: Centre) -> None:
    run = make_run(centre, "north", "south")
    assert studies_that_need(centre, "south") == {"mine": "paused"}
    assert studies_that_need(centre, "west") == {}
    told = CliRunner().invoke(app, ["revoke", "north", "--dir", str(centre.folder)])
    assert "study mine (paused) has a part for it" in told.stdout
    append_event(run, "complete", "mine")
    assert studies_that_need(centre, "south") == {}


def test_a_paused_study_that_is_stopped_is_given_up_until_it_is_resumed(centre: Centre, daemon: None) -> None:
    make_run(centre, "north")
    stop_study(centre, "mine")
    assert run_states(centre.runs) == {"mine": "stopped"}
    with pytest.raises(RefusedError, match="RUN-IDLE"):
        stop_study(centre, "mine")
    assert resume_study(centre, "mine") is not None


def test_stop_tells_the_sites_and_waits_for_the_daemon_and_resume_takes_the_order_back(
    centre: Centre, daemon: None
) -> None:
    train_study(centre, study(centre, "north"))

    def carry_out() -> None:
        while not (wishes := [wish for wish in read_wishes(centre) if wish.wanted == "stopped"]):
            time.sleep(0.05)
        end_wish(centre, wishes[0])

    thread = threading.Thread(target=carry_out)
    thread.start()
    stop_study(centre, "mine")
    thread.join()
    (order,) = waiting_orders(centre.state).values()
    assert (order.site, order.order, order.study) == ("*", "stop", "mine")
    with pytest.raises(RefusedError, match="RUN-IDLE"):
        stop_study(centre, "mine")
    resume_study(centre, "mine")
    assert waiting_orders(centre.state) == {}


@pytest.mark.parametrize(("run", "study_name"), [(None, ""), ("mine", "mine")])
def test_a_site_is_told_to_drain_and_whether_it_heard_is_said(
    centre: Centre, daemon: None, monkeypatch: pytest.MonkeyPatch, run: str | None, study_name: str
) -> None:
    train_study(centre, study(centre, "north"))
    monkeypatch.setattr(server.run_commands, "TELL_S", 0.1)
    assert not order_site(centre, "north", "drain", run)
    ((path, order),) = waiting_orders(centre.state).items()
    assert (order.site, order.order, order.study) == ("north", "drain", study_name)
    path.unlink()
    monkeypatch.setattr(server.run_commands, "TELL_S", 30.0)
    hears = threading.Thread(target=hear_next_order, args=(centre,))
    hears.start()
    assert order_site(centre, "north", "undrain", run)
    hears.join()


def hear_next_order(centre: Centre) -> None:
    while not (orders := waiting_orders(centre.state)):
        time.sleep(0.05)
    for path in orders:
        mark_taken(path, "north")


@pytest.mark.parametrize("site", ["south", "west", "*", "../north"])
def test_a_site_that_takes_no_part_cannot_be_told(centre: Centre, daemon: None, site: str) -> None:
    with pytest.raises(RefusedError, match=r"DRAIN-UNKNOWN.*there are: north"):
        order_site(centre, site, "drain", None)
    assert waiting_orders(centre.state) == {}


def test_a_study_that_does_not_stop_is_said(
    centre: Centre, daemon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.run_commands, "STOP_S", 0.2)
    train_study(centre, study(centre, "north"))
    with pytest.raises(RefusedError, match="RUN-HANGS"):
        stop_study(centre, "mine")


def test_following_repeats_the_log_and_ends_with_the_study(
    centre: Centre, daemon: None, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = train_study(centre, study(centre, "north"))
    (centre.run("mine") / "study.log").write_text("")

    def work() -> None:
        time.sleep(0.7)
        write_attempt(centre, wish, Attempt(asked_at=wish.asked_at, failures=1, last_failure="it fell"))
        time.sleep(0.7)
        (centre.run("mine") / "study.log").write_text("round 1/2\n")
        append_event(centre.run("mine"), "paused", "north is late")

    thread = threading.Thread(target=work)
    thread.start()
    outcome = follow_study(centre, wish)
    thread.join()
    told = capsys.readouterr().err
    assert "ended without a result (it fell)" in told
    assert told.endswith("round 1/2\n")
    assert outcome.exit_code == ExitCode.FAILED
    assert "paused" in outcome.text


def test_an_end_before_the_wish_is_not_its_end(centre: Centre) -> None:
    with alone(centre):
        (centre.state / "daemon.json").write_text(json.dumps({"insecure": True}))
        train_study(centre, study(centre, "anyone"))
        append_event(centre.run("mine"), "paused", "before")
        end_wish(centre, read_wishes(centre)[0])
        wish = make_wish(centre, "mine", "running")
    assert not is_daemon_running(centre)
    outcome = follow_study(centre, wish)  # the daemon has gone
    assert outcome.exit_code == ExitCode.UNREACHABLE
