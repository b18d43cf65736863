"""Studies of several parts and studies from a model package, as a researcher runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_study import Simulate, copied, model_bytes, results_of

from server.ledger import read_ledger

TINY = ("--preset", "tiny", "--rounds", "1", "--workers", "2", "--seed", "5")


@pytest.fixture(scope="module")
def own_hospitals(tmp_path_factory: pytest.TempPathFactory, hospitals: Path, finished: Path) -> Path:
    """The hospitals of the other tests, prepared, without what they finished."""
    return copied(hospitals, tmp_path_factory.mktemp("plans") / "hospitals")


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, own_hospitals: Path, simulate: Simulate) -> Path:
    """The run folder of a 5-fold cross-validation."""
    out = tmp_path_factory.mktemp("runs") / "folds"
    assert simulate("run", "--hospitals", own_hospitals, "--out", out, *TINY, "--plan", "k-fold") == 0
    return out


def rows_of(results: dict[str, Any], case_set: str) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in results["table2"] if row["set"] == case_set}


@pytest.mark.long
def test_every_case_of_the_training_sites_is_validated_by_one_fold(folds: Path) -> None:
    results = results_of(folds)
    cases = [s["cases"] for s in results["sites"] if s["role"] == "training"]
    pooled = rows_of(results, "validation")
    assert set(pooled) == {"Attention RN34 + US", "Attention RN34 + SS", "Attention RN34 + DS"}
    for row in pooled.values():
        assert row["n"] == {label: sum(c[label] for c in cases) for label in ("COVID-19", "CAP")}
    parts = [results_of(folds / "parts" / f"fold-{k}") for k in range(5)]
    for model in pooled:
        n = [rows_of(part, "validation")[model]["n"]["CAP"] for part in parts]
        assert sum(n) == pooled[model]["n"]["CAP"]


@pytest.mark.long
def test_the_held_out_set_is_told_as_mean_and_deviation_of_the_folds(folds: Path) -> None:
    results = results_of(folds)
    (row,) = [
        r
        for r in results["plan"]["table2_means"]
        if (r["set"], r["model"]) == ("held-out", "Attention RN34 + US")
    ]
    values = [
        rows_of(results_of(folds / "parts" / f"fold-{k}"), "held-out")[row["model"]]["auc"] for k in range(5)
    ]
    assert row["auc"]["values"] == values
    assert row["auc"]["mean"] == pytest.approx(sum(values) / 5)
    assert rows_of(results, "held-out")["Attention RN34 + US"]["auc"] == row["auc"]["mean"]
    assert {test["metric"] for test in results["plan"]["t_tests"]} == {
        "auc",
        "accuracy",
        "sensitivity",
        "specificity",
        "f1",
    }
    assert "Parts of the study: mean and deviation" in (folds / "report.html").read_text()


@pytest.mark.long
def test_a_plan_goes_on_where_it_was_and_leaves_finished_parts_alone(
    folds: Path, own_hospitals: Path, simulate: Simulate
) -> None:
    before = {k: model_bytes(folds / "parts" / f"fold-{k}") for k in range(5)}
    for name in ("results.json", "parts/fold-3/results.json"):
        (folds / name).unlink()
    lines = len(list(read_ledger(folds)))
    assert simulate("run", "--hospitals", own_hospitals, "--out", folds, *TINY, "--plan", "k-fold") == 0
    again = [line["message"] for line in list(read_ledger(folds))[lines:] if line["event"] == "part"]
    assert again == ["fold-3"]
    assert {k: model_bytes(folds / "parts" / f"fold-{k}") for k in range(5)} == before


@pytest.mark.long
def test_each_site_is_left_out_once_and_scored_by_the_model_that_never_saw_it(
    own_hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    out = tmp_path / "sites"
    options = ("--hospitals", own_hospitals, "--out", out, *TINY, "--plan", "leave-one-site-out")
    assert simulate("run", *options) == 0
    results = results_of(out)
    assert [part["name"] for part in results["plan"]["parts"]] == [
        f"without-hospital-{k}" for k in range(1, 5)
    ]
    pooled = rows_of(results, "held-out")["Attention RN34 + DS"]
    every = [site["cases"] for site in results["sites"]]
    assert pooled["n"]["COVID-19"] == sum(cases["COVID-19"] for cases in every)
    for k in range(1, 5):
        part = results_of(out / "parts" / f"without-hospital-{k}")
        assert [s["name"] for s in part["sites"] if s["role"] == "held-out"] == [f"hospital-{k}"]


def test_a_study_continues_from_a_package_and_another_evaluates_it(
    finished: Path, own_hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    model = finished / "model"
    options = ("--hospitals", own_hospitals, "--start", model, *TINY)
    assert simulate("run", *options, "--out", tmp_path / "more") == 0
    first, last = (results_of(run)["curves"] for run in (finished, tmp_path / "more"))
    losses = {row["branch"]: row["classification_loss"] for row in first if row["round"] == 1}
    for row in last:
        assert row["classification_loss"] < losses[row["branch"]]  # it does not begin again
    assert simulate("run", *options, "--out", tmp_path / "test", "--plan", "evaluate") == 0
    results = results_of(tmp_path / "test")
    assert {site["role"] for site in results["sites"]} == {"held-out"}
    there, here = (
        next(
            row
            for row in results_of(run)["per_site"]
            if (row["set"], row["model"], row["site"]) == ("held-out", "Attention RN34 + DS", "hospital-4")
        )
        for run in (finished, tmp_path / "test")
    )
    assert there == here  # the same scores as at the end of the study that trained it
    assert not (tmp_path / "test" / "model").exists()


def test_a_package_of_another_network_is_refused(
    finished: Path, own_hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (finished / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "us.safetensors").write_bytes(b"nothing")
    out = tmp_path / "refused"
    assert simulate("run", "--hospitals", own_hospitals, "--start", model, "--out", out, *TINY) == 78
    assert not (out / "rounds").exists()


def test_a_dry_run_says_what_a_plan_takes_and_trains_nothing(
    own_hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    out = tmp_path / "dry"
    options = ("--hospitals", own_hospitals, "--out", out, *TINY, "--plan", "k-fold", "--dry-run")
    assert simulate("run", *options) == 0
    found = json.loads((out / "estimate.json").read_text())
    assert (found["parts"], found["rounds"], found["training_sites"]) == (5, 1, 3)
    assert found["seconds"] > 0
    assert not (out / "parts").exists()
    assert not (out / "sites.json").exists()
