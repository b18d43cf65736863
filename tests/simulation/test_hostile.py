"""A hostile site: none of its replies is aggregated, none ends the study, each is named in the ledger."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_study import CODES, HOSTILE, hostile_study
from small_study import Simulate, copied, results_of

from server.ledger import read_ledger
from server.run_folder import write_study
from simulation.engines import run_in_process
from simulation.federated_study import find_hospitals, prepare_hospitals
from simulation.hostile import HOSTILE_VARIABLE, KINDS
from simulation.hostile import app as hostile_app

ROUNDS_WITHOUT = 8  # with the kinds that would poison a mean


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, simulate: Simulate) -> Iterator[Path]:
    """The run folder of a study with one honest and one hostile training site, a round for each kind."""
    folder = tmp_path_factory.mktemp("hostile")
    options = ("--sites", "3", "--cases", "6", "--preset", "tiny", "--shape", "24", "64", "64")
    assert simulate("hospitals", folder / "hospitals", *options) == 0
    hospitals = find_hospitals(folder / "hospitals")
    study = hostile_study(list(hospitals.names), len(KINDS))
    write_study(folder / "run", study)
    prepare_hospitals(hospitals, study, 2)
    logging.getLogger("dsan").handlers.clear()  # those of the command above write to what is closed
    os.environ[HOSTILE_VARIABLE] = HOSTILE
    run_in_process(folder / "run", tuple(hospitals.sites.values()), 2, hostile_app)
    yield folder / "run"
    del os.environ[HOSTILE_VARIABLE]


def lines_of(run_folder: Path, site: str) -> list[dict[str, Any]]:
    return [line for line in read_ledger(run_folder) if line["event"] == "round" and line["site"] == site]


def test_every_kind_of_garbage_is_rejected_with_its_code_and_the_study_goes_on(run_folder: Path) -> None:
    codes = {int(line["round"]): str(line["code"]) for line in lines_of(run_folder, HOSTILE)}
    found = {kind: codes[number] for number, kind in enumerate(KINDS, 1)}
    for kind, code in found.items():
        print(f"{kind:32} {code}")
    assert found == {kind: CODES.get(kind, "REPLY-PROTOCOL") for kind in KINDS}
    assert len(KINDS) >= 29
    assert {line["status"] for line in lines_of(run_folder, "hospital-1")} == {"accepted"}
    results = results_of(run_folder)
    assert results["complete"] is False
    assert len(results["timing"]["rounds"]) == 2 * len(KINDS)


def test_the_honest_site_goes_on_as_if_the_hostile_one_were_not_there_bit_for_bit(
    run_folder: Path, tmp_path: Path
) -> None:
    sites = find_hospitals(copied(run_folder.parent / "hospitals", tmp_path / "hospitals")).sites
    (sites[HOSTILE].parent / "store" / "index.json").write_text("{}")  # here it refuses every round
    write_study(tmp_path / "run", hostile_study(list(sites), ROUNDS_WITHOUT))
    (tmp_path / "run" / "size_groups.json").write_bytes((run_folder / "size_groups.json").read_bytes())
    run_in_process(tmp_path / "run", tuple(sites.values()), 2, hostile_app)
    digests = [
        [line["digest"] for line in lines_of(folder, "hospital-1") if line["round"] <= ROUNDS_WITHOUT]
        for folder in (run_folder, tmp_path / "run")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2 * ROUNDS_WITHOUT  # an update follows from all rounds before it
