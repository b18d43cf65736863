"""A hostile site over a real SuperLink: all its kinds of garbage, a round for each, off the wire."""

import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostile_study import CODES, HOSTILE, hostile_study
from small_study import Simulate, results_of

from server.ledger import read_ledger
from server.run_folder import study_toml
from simulation.federated_study import find_hospitals, prepare_hospitals
from simulation.federation import (
    Federation,
    found_on_free_ports,
    require_done,
    start_on_loopback,
    stopped_at_the_end,
)
from simulation.hostile import KINDS

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
HONEST = "hospital-1"


@dataclass
class Ended:
    """The study's run folder, and what the centre's daemon says of it to Prometheus."""

    run: Path
    metrics: str

    def lines(self, site: str) -> list[dict[str, Any]]:
        ledger = read_ledger(self.run)
        return [line for line in ledger if line["event"] == "round" and line["site"] == site]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, simulate: Simulate) -> Iterator[Ended]:
    """A round for each kind, by dsan-server and dsan-client; the hostile site has a ClientApp of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    options = ("--sites", "2", "--cases", "6", "--preset", "tiny", "--shape", "24", "64", "64")
    assert simulate("hospitals", folder / "hospitals", *options) == 0
    hospitals = find_hospitals(folder / "hospitals")
    study = hostile_study(list(hospitals.sites), len(KINDS))
    prepare_hospitals(hospitals, study, 1)
    federation = Federation(folder, ())
    with stopped_at_the_end(federation):
        address, health_port = found_on_free_ports(federation)
        start_on_loopback(federation, hospitals.sites, address, health_port)
        make_hostile(hospitals.sites[HOSTILE].parent)
        path = federation.centre / "hostile.toml"
        path.write_text(study_toml(study), encoding="utf-8")
        require_done(federation.server("train", path, "--detach"))
        run = federation.centre / "runs" / study.name
        while not any(line["event"] == "incomplete" for line in read_ledger(run)):
            federation.require_alive()
            time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{health_port}/metrics") as answer:
            yield Ended(run, answer.read().decode())


def make_hostile(home: Path) -> None:
    """Put another program in the place of the site's flwr-clientapp."""
    program = home / "state" / "programs" / "flwr-clientapp"
    while not program.exists():
        time.sleep(0.1)
    program.unlink()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m simulation.hostile "$@"\n')
    program.chmod(0o500)


def test_every_kind_of_garbage_is_named_in_the_ledger_and_the_study_goes_on(ended: Ended) -> None:
    codes = {int(line["round"]): str(line["code"]) for line in ended.lines(HOSTILE)}
    found = {kind: codes[number] for number, kind in enumerate(KINDS, 1)}
    for kind, code in found.items():
        print(f"{kind:32} {code}")
    assert found == {kind: CODES.get(kind, "REPLY-PROTOCOL") for kind in KINDS}
    assert {line["status"] for line in ended.lines(HONEST)} == {"accepted"}
    assert len(ended.lines(HONEST)) == 2 * len(KINDS)
    assert results_of(ended.run)["complete"] is False


def test_no_garbage_was_aggregated(ended: Ended) -> None:
    assert {line["status"] for line in ended.lines(HOSTILE)} == {"rejected", "missing"}
    per_round = Counter(line["round"] for line in ended.lines(HOSTILE))
    assert set(per_round.values()) == {2}


def test_every_kind_of_garbage_is_counted_in_the_metrics_by_its_code(ended: Ended) -> None:
    expected = Counter(str(line["code"]) for line in ended.lines(HOSTILE))
    pattern = r'dsan_updates_(?:rejected|missing)_total\{code="([A-Z0-9-]+)",study="hostile"\} (\d+)'
    found = {code: int(n) for code, n in re.findall(pattern, ended.metrics)}
    assert found == dict(expected)
