"""Sites x rounds as the operator sees them, over a centre's folder written by the real writers."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from centre_folder import write_centre, write_watched
from click.testing import Result
from typer.testing import CliRunner

from server.cli import app
from server.ledger import LedgerEntry, append_event, append_round
from server.round_files import StudyOutline
from server.status import SiteInRun, centre_status, duration, shown_run
from server.status_text import doing, status_json, status_text
from server.study import StudyConfig
from server.watch_file import SiteReport, WatchedSite, read_watch


@contextmanager
def in_work(run: Path) -> Iterator[None]:
    """The run is held as by a ServerApp."""
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A centre's folder whose study is in its third round."""
    with in_work(write_centre(tmp_path)):
        yield tmp_path


def site(folder: Path, name: str) -> SiteInRun:
    return next(site for site in centre_status(folder).sites if site.name == name)


def test_the_round_in_work_is_the_one_after_the_last_finished(running: Path) -> None:
    run = centre_status(running).run
    assert run is not None
    assert (run.state, run.round, run.rounds, run.round_seconds) == ("running", 3, 5, 14.0)
    assert run.round_began is not None
    assert run.round_deadline == pytest.approx(run.round_began + 12 * 3600)
    assert run.ends_at == pytest.approx(run.round_began + 3 * 14.0)


def test_every_site_has_its_role_and_what_came_of_each_round(running: Path) -> None:
    sites = {site.name: (site.role, site.rounds) for site in centre_status(running).sites}
    assert sites == {
        "east": ("training", {1: "accepted", 2: "accepted", 3: "working"}),
        "north": ("training", {1: "accepted", 2: "accepted", 3: "answered"}),
        "south": ("training", {1: "accepted", 2: "missing", 3: "waiting"}),
        "west": ("held-out", {}),
        "spare": ("enrolled", {}),
    }


def test_a_revoked_site_is_shown_only_where_it_took_part(running: Path) -> None:
    for name in ("spare", "south"):
        (running / "sites" / f"{name}.json").write_text('{"revoked_at": "2026-11-01T00:00:00Z"}')
    names = [site.name for site in centre_status(running).sites]
    assert "spare" not in names
    assert "south" in names


def test_who_is_late_is_said_with_the_reason_and_nobody_else(running: Path) -> None:
    late = {site.name: site.late for site in centre_status(running).sites if site.late}
    assert set(late) == {"south", "west"}
    assert late["south"].startswith("not connected for 5")
    assert "its connection broke" in late["south"]
    assert "never heard of" in late["west"]


def test_a_site_that_missed_the_last_round_is_named_with_its_code_though_it_is_back(running: Path) -> None:
    now = time.time()
    write_watched(running, south=WatchedSite(SiteReport("eight", 3, "us", "training"), now, True, now))
    assert (
        site(running, "south").late == "round 2 missing: SITE-GPU-MEMORY: the GPU's memory does not suffice"
    )


def test_a_site_that_is_silent_on_a_standing_connection_is_named(running: Path) -> None:
    known = read_watch(running / "state")["east"]
    write_watched(running, east=replace(known, last_contact=time.time() - 40))
    assert site(running, "east").late.startswith("silent for 4")


def test_a_site_whose_daemon_lives_while_its_supernode_is_away_is_named(running: Path) -> None:
    known = read_watch(running / "state")["east"]
    report = replace(known.status, phase="idle", last_error="CONNECT-NODE")
    write_watched(running, east=replace(known, status=report))
    assert site(running, "east").late == "its daemon is there, its SuperNode is not connected (CONNECT-NODE)"


def test_a_clock_that_flower_will_refuse_is_named(running: Path) -> None:
    known = read_watch(running / "state")["east"]
    write_watched(running, east=replace(known, clock_ahead_s=61.0))
    assert "clock is 61 s ahead" in site(running, "east").late
    write_watched(running, east=replace(known, clock_ahead_s=-400.0))
    assert "clock is 400 s behind" in site(running, "east").late


def test_two_daemons_with_one_name_or_key_are_named(running: Path) -> None:
    known, now = read_watch(running / "state")["east"], time.time()
    write_watched(running, east=replace(known, displaced=(now - 900, now - 9, now - 2)))
    assert "two daemons" not in site(running, "east").late  # a line that was cut displaces a stream too
    write_watched(running, east=replace(known, displaced=(now - 20, now - 9, now - 2)))
    assert "two daemons use its name or key" in site(running, "east").late


def test_a_round_that_takes_much_longer_than_usual_is_named(running: Path) -> None:
    ledger = running / "runs" / "eight" / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    for line in lines:
        line["time"] = "2026-01-01T00:00:00.000+00:00"
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert site(running, "east").late.startswith("slow: ")
    assert site(running, "north").late == ""  # it has answered


@pytest.mark.parametrize(
    ("event", "state"), [("paused", "paused"), ("stopped", "stopped"), ("incomplete", "incomplete")]
)
def test_a_run_that_ended_is_what_its_ledger_says(tmp_path: Path, event: str, state: str) -> None:
    run = write_centre(tmp_path)
    append_event(run, event, "why")
    found = centre_status(tmp_path).run
    assert found is not None
    assert (found.state, found.round, found.message, found.round_began) == (state, 2, "why", None)


def test_a_run_whose_server_died_is_interrupted(tmp_path: Path) -> None:
    write_centre(tmp_path)
    run = centre_status(tmp_path).run
    assert run is not None
    assert run.state == "interrupted"


def test_events_on_the_way_do_not_decide_how_a_run_stands(tmp_path: Path) -> None:
    run = write_centre(tmp_path)
    append_event(run, "paused", "too few sites")
    append_event(run, "estimated", "eight")
    found = centre_status(tmp_path).run
    assert found is not None
    assert found.state == "paused"
    (run / "ledger.jsonl").unlink()
    append_event(run, "estimated", "eight")
    found = centre_status(tmp_path).run
    assert found is not None
    assert found.state == "estimated"
    assert "eight: estimated, not begun" in status_text(tmp_path)


def miss(run: Path, number: int, site: str) -> None:
    append_round(
        run, [LedgerEntry(number, site, b, "missing", code="SITE-LATE", message="no answer") for b in "ab"]
    )


def test_who_kept_a_paused_round_from_being_finished_is_named_with_the_reason(tmp_path: Path) -> None:
    run = write_centre(tmp_path)
    miss(run, 3, "east")
    append_event(run, "paused", "round 3 has 2 of the 3 training sites that it needs")
    found = centre_status(tmp_path).run
    assert found is not None
    assert (found.state, found.round) == ("paused", 3)
    assert site(tmp_path, "east").late == "round 3 missing: SITE-LATE: no answer"
    assert site(tmp_path, "north").late == ""
    text = status_text(tmp_path)
    assert "rounds 1 to 3" in text
    assert "✓✓–" in text
    assert "! east: round 3 missing: SITE-LATE: no answer" in text


def test_who_makes_a_study_incomplete_is_named_after_its_end(tmp_path: Path) -> None:
    run = write_centre(tmp_path)
    miss(run, 3, "south")
    append_event(run, "incomplete", "south: missed 2 of 5 rounds")
    assert site(tmp_path, "south").late == "missed 2 of 5 rounds; the last, round 3: SITE-LATE: no answer"
    assert site(tmp_path, "east").late == ""


def test_a_site_that_left_in_the_middle_of_the_round_is_not_shown_as_working(running: Path) -> None:
    known = read_watch(running / "state")["east"]
    write_watched(running, east=replace(known, connected=False))
    assert site(running, "east").rounds[3] == "waiting"


def test_an_end_that_is_past_is_not_told(running: Path) -> None:
    assert "rounds end in about" in status_text(running)
    ledger = running / "runs" / "eight" / "ledger.jsonl"
    lines = [
        json.loads(line) | {"time": "2026-01-01T00:00:00+00:00"} for line in ledger.read_text().splitlines()
    ]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "rounds end in about" not in status_text(running)


def test_the_study_that_a_site_works_for_is_said_if_it_is_another_one(running: Path) -> None:
    known = read_watch(running / "state")["east"]
    report = replace(known.status, study="nine")
    write_watched(running, east=replace(known, status=report))
    assert doing(site(running, "east"), centre_status(running).run) == "training ss for nine"
    assert doing(site(running, "east"), None) == "training ss for nine"


def test_looking_does_not_keep_the_server_off_its_run(tmp_path: Path) -> None:
    run = write_centre(tmp_path)
    (run / ".lock").touch()
    centre_status(tmp_path)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def begin(folder: Path, name: str, *events: str) -> Path:
    run = folder / "runs" / name
    run.mkdir()
    (run / "study.toml").write_text(f'name = "{name}"\n')
    for event in events:
        append_event(run, event, name)
    return run


def test_the_run_in_work_is_shown_and_the_others_are_named(running: Path) -> None:
    begin(running, "nine", "started", "paused")
    begin(running, "old", "started", "complete")
    assert shown_run(running / "runs") == running / "runs" / "eight"
    text = status_text(running)
    assert "eight: running" in text
    assert "other studies: nine (paused); `dsan-server status NAME` shows one" in text
    assert json.loads(status_json(running))["other_runs"] == [
        {"name": "nine", "state": "paused"},
        {"name": "old", "state": "complete"},
    ]
    assert "nine: paused" in status_text(running, "nine")


def test_without_one_in_work_it_is_the_one_that_changed_last_but_not_an_estimate(tmp_path: Path) -> None:
    write_centre(tmp_path)
    complete = begin(tmp_path, "nine", "started", "complete")
    begin(tmp_path, "ten", "estimated")
    assert shown_run(tmp_path / "runs") == complete


def test_a_study_that_does_not_read_is_said_not_hidden(running: Path) -> None:
    (running / "runs" / "eight" / "study.toml").write_text("name =\n")
    text = status_text(running)
    assert "unreadable" in text
    assert "study.toml" in text


def test_of_a_study_of_several_parts_the_newest_part_is_shown(running: Path) -> None:
    run = running / "runs" / "eight"
    part = run / "parts" / "fold-1"
    part.mkdir(parents=True)
    for name in ("ledger.jsonl", "rounds"):
        (run / name).rename(part / name)
    text = (run / "study.toml").read_text()
    (part / "study.toml").write_text(text.replace('"eight"', '"eight.fold-1"'))
    append_event(run, "started", "eight")
    known = read_watch(running / "state")["east"]
    write_watched(running, east=replace(known, worked_study="eight.fold-1"))
    found = centre_status(running).run
    assert found is not None
    assert (found.name, found.study, found.part, found.round) == ("eight", "eight", "fold-1", 3)
    assert site(running, "east").rounds == {1: "accepted", 2: "accepted", 3: "working"}
    assert "eight: running, fold-1, round 3 of 5" in status_text(running)


def test_without_a_run_the_sites_are_shown(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "north.json").write_text("{}")
    text = status_text(tmp_path)
    assert "no run yet" in text
    assert "north" in text


def test_the_text_shows_step_eta_contact_and_reasons(running: Path) -> None:
    text = status_text(running)
    east = next(line for line in text.splitlines() if line.startswith("east"))
    for part in ("training ss", "30/120", "95 s", "ago", "✓✓▶"):
        assert part in east
    assert "✓–·" in text
    assert "! south: not connected" in text
    assert "SiteWatch does not run" not in text


def test_a_disk_that_is_nearly_full_is_said(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "of disk are free" not in status_text(running)
    monkeypatch.setattr("server.status.shutil.disk_usage", lambda folder: SimpleNamespace(free=200_000_000))
    told = " ".join(status_text(running).split())
    assert f"! 0.2 GB of disk are free in {running}: a round that cannot be written stops the study" in told


def test_a_dead_site_watch_is_said(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.watch_file.STALE_S", -1.0)
    assert "SiteWatch does not run" in status_text(running)


def test_json_holds_the_same(running: Path) -> None:
    found = json.loads(status_json(running))
    east = next(site for site in found["sites"] if site["name"] == "east")
    assert found["run"]["round"] == 3
    assert (east["now"]["done"], east["now"]["steps"], east["rounds"]["3"]) == (30, 120, "working")
    assert next(site for site in found["sites"] if site["name"] == "west")["now"] is None


def test_what_a_site_did_before_it_left_is_not_shown_as_what_it_does(running: Path) -> None:
    run = centre_status(running).run
    assert doing(site(running, "south"), run) == "not connected"
    assert doing(site(running, "west"), run) == ""


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (-1, 42.4, 300, 11520)] == ["0 s", "42 s", "5 min", "3.2 h"]


def test_the_defaults_of_the_outline_are_those_of_a_study() -> None:
    outline, study = StudyOutline("n"), StudyConfig(name="n")
    assert (outline.rounds, outline.deadline_h) == (study.rounds, study.participation.deadline_h)
    assert (outline.training, outline.held_out) == (study.sites.training, study.sites.held_out)


def command(folder: Path, *arguments: str) -> Result:
    (folder / "server.toml").write_text('host = "centre"\n')
    return CliRunner().invoke(app, ["status", "--dir", str(folder), *arguments])


def test_the_command_prints_the_matrix_as_text_and_as_json(running: Path) -> None:
    assert "✓✓▶" in command(running).output
    assert json.loads(command(running, "eight", "--json").output)["run"]["name"] == "eight"


def test_a_run_that_is_not_there_is_refused_by_name(running: Path) -> None:
    refused = command(running, "nine")
    assert refused.exit_code == 65
    assert "RUN-UNKNOWN" in refused.output
    assert "eight" in refused.output


def test_watching_shows_changes_in_the_terminal_until_it_is_interrupted(running: Path) -> None:
    (running / "server.toml").write_text('host = "centre"\n')
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "from server.cli import main; main()", "status", "--watch"]
    process = subprocess.Popen(
        [*program, "--dir", str(running)],
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    os.close(theirs)
    try:
        read_until(ours, "30/120")
        known = read_watch(running / "state")["east"]
        write_watched(running, east=replace(known, status=replace(known.status, done=77)))
        read_until(ours, "77/120")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, words: str) -> None:
    said, deadline = "", time.monotonic() + 30
    while words not in said:
        assert time.monotonic() < deadline, said
        if select.select([terminal], [], [], 0.2)[0]:
            said += os.read(terminal, 65536).decode(errors="replace")


def test_a_ledger_that_cannot_be_read_leaves_the_other_studies_to_be_seen(running: Path) -> None:
    (begin(running, "nine") / "ledger.jsonl").mkdir()
    assert "eight: running" in status_text(running)
    assert "nine (unreadable)" in status_text(running)
    assert "nine: unreadable" in status_text(running, "nine")


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "5",
        "[]",
        "{}",
        '{"event": "started"}',
        '{"time": "then", "event": "paused"}',
        '{"time": "2026-01-01T00:00:00+00:00"}',
        '{"time": "2026-01-01T00:00:00+00:00", "event": "round"}',
    ],
)
def test_a_line_that_is_none_of_a_ledger_is_left_out(tmp_path: Path, line: str) -> None:
    write_centre(tmp_path)
    run = begin(tmp_path, "nine", "started")
    with (run / "ledger.jsonl").open("a") as ledger:
        ledger.write(line + "\n")
    append_event(run, "paused", "a site is missing")
    status = centre_status(tmp_path, "nine")
    assert status.run is not None
    assert (status.run.state, status.run.message) == ("paused", "a site is missing")
    assert [event for _, event, _ in status.events] == ["started", "paused"]
