"""Studies of several parts, and from a package, by dsan-server and dsan-client over a real SuperLink."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_study import copied, model_bytes, results_of

from server.ledger import read_ledger
from server.run_folder import study_toml, write_study
from server.study import StudyConfig, preset_study
from simulation.engines import Engine, run_study_on
from simulation.federated_study import find_hospitals, prepare_hospitals
from simulation.federation import (
    Federation,
    found_on_free_ports,
    start_on_loopback,
    stopped_at_the_end,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
SITES = ("hospital-1", "hospital-2", "hospital-4")
PACKAGE = "../leave-one-out/parts/without-hospital-4/model"  # as seen from another run folder


def study(name: str, plan: str, **changes: Any) -> StudyConfig:
    table = preset_study("tiny", name, 5).model_dump()
    table |= {"rounds": 1, "folds": 2, "plan": {"kind": plan}, "sites": {"training": SITES}}
    return StudyConfig.model_validate(table | changes)


LEAVE_ONE_OUT = study("leave-one-out", "leave-one-site-out")


@dataclass
class Deployed:
    """A centre with three hospitals that are connected."""

    federation: Federation

    def train(self, of: StudyConfig, *options: str) -> Path:
        """Run a study to its end, as an operator does; the run folder."""
        path = self.federation.centre / f"{of.name}.toml"
        path.write_text(study_toml(of), encoding="utf-8")
        assert self.federation.study("train", path, *options) == 0
        return self.federation.centre / "runs" / of.name


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, hospitals: Path) -> dict[str, Path]:
    """Name to site.toml, prepared."""
    folder = copied(hospitals, tmp_path_factory.mktemp("plans") / "hospitals")
    found = find_hospitals(folder)
    prepare_hospitals(found, LEAVE_ONE_OUT, 2)
    return {name: found.sites[name] for name in SITES}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, sites: dict[str, Path]) -> Iterator[Deployed]:
    federation = Federation(tmp_path_factory.mktemp("federation"), ())
    with stopped_at_the_end(federation):
        start_on_loopback(federation, sites, *found_on_free_ports(federation))
        yield Deployed(federation)


@pytest.fixture(scope="module")
def left_out(deployed: Deployed) -> Path:
    """The run folder of a study that holds out each site once."""
    return deployed.train(LEAVE_ONE_OUT)


def test_each_site_is_left_out_once(left_out: Path) -> None:
    results = results_of(left_out)
    assert results["complete"] is True
    assert [part["name"] for part in results["plan"]["parts"]] == [f"without-{site}" for site in SITES]
    for site in SITES:
        part = results_of(left_out / "parts" / f"without-{site}")
        assert [s["name"] for s in part["sites"] if s["role"] == "held-out"] == [site]
    assert (left_out / "report.html").exists()


def test_its_parts_have_the_weights_of_the_same_plan_without_any_transport(
    left_out: Path, sites: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(next(iter(sites.values())).parent.parent, tmp_path / "hospitals")
    configs = tuple(folder / site / "site.toml" for site in SITES)
    write_study(tmp_path / "run", LEAVE_ONE_OUT)
    run_study_on(Engine.INPROCESS, tmp_path / "run", configs, 2)
    for site in SITES:
        there, here = (model_bytes(run / "parts" / f"without-{site}") for run in (left_out, tmp_path / "run"))
        assert there
        assert there == here


def test_a_plan_that_is_resumed_repeats_the_part_that_is_missing_and_no_other(
    deployed: Deployed, left_out: Path
) -> None:
    before = {site: model_bytes(left_out / "parts" / f"without-{site}") for site in SITES}
    for name in ("results.json", f"parts/without-{SITES[1]}/results.json"):
        (left_out / name).unlink()
    lines = len(list(read_ledger(left_out)))
    assert deployed.federation.study("resume", left_out.name) == 0
    again = [line["message"] for line in list(read_ledger(left_out))[lines:] if line["event"] == "part"]
    assert again == [f"without-{SITES[1]}"]
    assert {site: model_bytes(left_out / "parts" / f"without-{site}") for site in SITES} == before


def test_every_case_is_validated_by_one_of_two_folds(deployed: Deployed) -> None:
    run = deployed.train(study("folds", "k-fold"))
    results = results_of(run)
    assert results["complete"] is True
    cases = [site["cases"] for site in results["sites"]]
    (pooled,) = [
        row
        for row in results["table2"]
        if (row["set"], row["model"]) == ("validation", "Attention RN34 + DS")
    ]
    assert pooled["n"] == {label: sum(c[label] for c in cases) for label in ("COVID-19", "CAP")}


def test_a_study_goes_on_from_a_package_and_another_evaluates_it(deployed: Deployed, left_out: Path) -> None:
    more = deployed.train(study("more", "single", start={"model": PACKAGE}))
    assert [line["event"] for line in read_ledger(more)].count("start-model") == 1
    assert results_of(more)["complete"] is True
    evaluated = deployed.train(study("evaluated", "evaluate", start={"model": PACKAGE}, sites={}))
    results = results_of(evaluated)
    assert {site["role"] for site in results["sites"]} == {"held-out"}
    there, here = (
        next(
            row
            for row in results_of(run)["per_site"]
            if (row["set"], row["model"], row["site"]) == ("held-out", "Attention RN34 + DS", SITES[2])
        )
        for run in (left_out / "parts" / f"without-{SITES[2]}", evaluated)
    )
    assert there == here  # the same scores as at the end of the study that trained it


def test_a_dry_run_estimates_and_leaves_nothing_else(deployed: Deployed) -> None:
    run = deployed.train(study("dry", "k-fold"), "--dry-run")
    found = json.loads((run / "estimate.json").read_text())
    assert (found["parts"], found["rounds"], found["training_sites"]) == (2, 1, 3)
    assert not (run / "parts").exists()
