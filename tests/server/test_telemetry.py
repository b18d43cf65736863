"""The centre's metrics over a folder written by the real writers."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from centre_folder import write_centre, write_watched
from prometheus_client import CollectorRegistry, generate_latest

from server.ledger import LedgerEntry, append_event, append_round
from server.telemetry import MOST_SITES, centre_registry
from server.watch_file import SiteReport, WatchedSite, read_watch, write_watch

LABELS = {"site", "study", "branch", "phase", "code", "kind"}


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Path]:
    with (write_centre(tmp_path) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Value by name and labels, as a line of the exposition begins."""
    lines = generate_latest(registry).decode().splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")
    }


def test_the_study_its_round_and_its_updates_are_counted(centre: Path) -> None:
    found = samples(centre_registry(centre))
    assert found['dsan_study_phase{phase="running",study="eight"}'] == 1
    assert found['dsan_study_phase{phase="paused",study="eight"}'] == 0
    assert found['dsan_study_round{study="eight"}'] == 3
    assert found['dsan_study_rounds{study="eight"}'] == 5
    assert found['dsan_round_duration_seconds{study="eight"}'] == 14
    assert 43100 < found['dsan_round_deadline_seconds{study="eight"}'] <= 43200
    assert found['dsan_updates_accepted_total{study="eight"}'] == 10
    assert found['dsan_updates_missing_total{code="SITE-GPU-MEMORY",study="eight"}'] == 2
    assert found['dsan_bytes_to_sites_total{study="eight"}'] == 6000
    assert 0.5 < found['dsan_validation_score{branch="us",study="eight"}'] < 1


def test_an_update_counts_once_by_its_last_word(centre: Path) -> None:
    run = centre / "runs" / "eight"
    append_round(
        run, [LedgerEntry(2, "south", b, "rejected", code="UPDATE-NOT-FINITE") for b in ("us", "ss")]
    )
    found = samples(centre_registry(centre))
    assert found['dsan_updates_rejected_total{code="UPDATE-NOT-FINITE",study="eight"}'] == 2
    assert 'dsan_updates_missing_total{code="SITE-GPU-MEMORY",study="eight"}' not in found


def test_every_site_has_its_phase_contact_and_whether_it_is_late(centre: Path) -> None:
    found = samples(centre_registry(centre))
    assert found['dsan_sites{kind="connected"}'] == 2
    assert found['dsan_sites{kind="away"}'] == 1
    assert found['dsan_sites{kind="never-heard"}'] == 2
    assert found['dsan_site_phase{phase="training",site="east"}'] == 1
    assert found['dsan_site_steps_done{site="east"}'] == 30
    assert found['dsan_site_eta_seconds{site="east"}'] == 95
    assert 79 < found['dsan_site_last_contact_age_seconds{site="south"}'] < 90
    assert (found['dsan_site_late{site="south"}'], found['dsan_site_late{site="east"}']) == (1, 0)
    assert found['dsan_site_late{site="spare"}'] == 0
    assert found["dsan_site_watch_up"] == 1


def test_only_the_labels_of_the_closed_set_are_used_and_no_value_is_free_text(centre: Path) -> None:
    text = generate_latest(centre_registry(centre)).decode()
    pairs = set(re.findall(r'(\w+)="([^"]*)"', text))
    assert {name for name, _ in pairs} <= LABELS
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value) for _, value in pairs)


def test_a_centre_that_heard_of_thousands_of_sites_keeps_its_metrics_bounded(centre: Path) -> None:
    known = read_watch(centre / "state")["east"]
    write_watch(centre / "state", {f"s{n}": replace(known) for n in range(2 * MOST_SITES)})
    sites = {name for name in samples(centre_registry(centre)) if name.startswith("dsan_site_connected{")}
    assert len(sites) == MOST_SITES


def test_a_site_that_is_away_shows_no_progress_of_yesterday(centre: Path) -> None:
    write_watched(centre, east=WatchedSite(SiteReport("eight", 3, "us", "training", 5, 9), 1.0, False, 1.0))
    found = samples(centre_registry(centre))
    assert 'dsan_site_steps{site="east"}' not in found
    assert found['dsan_site_connected{site="east"}'] == 0


def test_without_a_run_the_scrape_still_answers(tmp_path: Path) -> None:
    found = samples(centre_registry(tmp_path))
    assert found["dsan_site_watch_up"] == 0
    assert found["dsan_disk_free_bytes"] > 0


def test_a_torn_ledger_and_a_lost_round_do_not_break_the_scrape(centre: Path) -> None:
    run = centre / "runs" / "eight"
    with (run / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"event": "round", "ro')
    (run / "rounds" / "0002" / "state.json").write_text(json.dumps({"round": 2}))
    (run / "rounds" / "0002" / "validation.safetensors").write_bytes(b"torn")
    assert samples(centre_registry(centre))['dsan_study_round{study="eight"}'] == 2
    shutil.rmtree(run / "rounds")
    assert samples(centre_registry(centre))['dsan_study_round{study="eight"}'] == 1


def begin(centre: Path, name: str, *events: str) -> Path:
    run = centre / "runs" / name
    run.mkdir()
    (run / "study.toml").write_text(f'name = "{name}"\n[sites]\ntraining = ["north", "gone"]\n')
    for event in events:
        append_event(run, event, name)
    return run


def test_every_study_that_is_not_at_its_end_has_its_metrics(centre: Path) -> None:
    paused = begin(centre, "nine", "started")
    append_round(paused, [LedgerEntry(1, "gone", b, "missing", code="SITE-LATE") for b in ("us", "ss")])
    append_event(paused, "paused", "gone is missing")
    begin(centre, "old", "started", "complete")
    found = samples(centre_registry(centre))
    assert found['dsan_study_phase{phase="running",study="eight"}'] == 1
    assert found['dsan_study_phase{phase="paused",study="nine"}'] == 1
    assert found['dsan_updates_missing_total{code="SITE-LATE",study="nine"}'] == 2
    assert found['dsan_site_late{site="gone"}'] == 1
    assert 'dsan_study_phase{phase="complete",study="old"}' not in found


def test_a_site_of_a_study_at_its_end_is_late_for_nothing(tmp_path: Path) -> None:
    append_event(write_centre(tmp_path), "incomplete", "south: missed 1 of 5 rounds")
    assert samples(centre_registry(tmp_path))['dsan_site_late{site="south"}'] == 0
