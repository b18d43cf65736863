"""Pooled figures, means and paired t-tests over the parts of a study, with numbers checked by hand."""

from typing import Any

import pytest
from scipy.stats import ttest_rel

from server.plan_results import METRICS, t_tests, table2_means
from server.plans import parts_of
from server.study import StudyConfig

US, DS = "Attention RN34 + US", "Attention RN34 + DS"


def part(us: float | None, ds: float | None) -> dict[str, Any]:
    """A part whose two models have the same value of every metric."""
    n = {"COVID-19": 10, "CAP": 10}
    return {
        "table2": [
            {"set": "held-out", "model": model, "n": n} | dict.fromkeys(METRICS, value)
            for model, value in ((US, us), (DS, ds))
        ]
    }


def found(us: tuple[float | None, ...], ds: tuple[float | None, ...]) -> dict[str, Any]:
    return {f"fold-{k}": part(*values) for k, values in enumerate(zip(us, ds, strict=True))}


def test_means_have_the_deviation_of_a_sample() -> None:
    us, ds = table2_means(found((0.8, 0.9, 1.0), (0.7, 0.7, 0.7)))
    assert us["auc"]["mean"] == pytest.approx(0.9)
    assert us["auc"]["std"] == pytest.approx(0.1)
    assert us["auc"]["values"] == [0.8, 0.9, 1.0]
    assert ds["f1"]["std"] == pytest.approx(0.0, abs=1e-12)


def test_a_metric_that_a_part_lacks_has_no_mean() -> None:
    (us, _) = table2_means(found((0.8, None, 1.0), (0.7, 0.7, 0.7)))
    assert us["auc"] == {"mean": None, "std": None, "values": [0.8, None, 1.0]}


def test_models_are_compared_by_a_paired_t_test_over_the_parts() -> None:
    us, ds = (0.80, 0.82, 0.85, 0.81, 0.84), (0.83, 0.84, 0.86, 0.85, 0.85)
    rows = t_tests(found(us, ds))
    assert len(rows) == len(METRICS)
    expected = ttest_rel(us, ds)
    assert rows[0]["t"] == pytest.approx(expected.statistic)
    assert rows[0]["p_value"] == pytest.approx(expected.pvalue)
    assert (rows[0]["model_a"], rows[0]["model_b"], rows[0]["n"]) == (US, DS, 5)


@pytest.mark.parametrize(
    ("us", "ds"),
    [((0.8, 0.9), (0.75, 0.85)), ((0.8, None), (0.7, 0.8)), ((0.8,), (0.7,))],
    ids=["the same difference everywhere", "a value missing", "one part"],
)
def test_where_nothing_can_be_said_there_is_no_t_test(
    us: tuple[float | None, ...], ds: tuple[float | None, ...]
) -> None:
    assert {(row["t"], row["p_value"]) for row in t_tests(found(us, ds))} == {(None, None)}


def test_every_part_has_a_name_and_a_digest_of_its_own(tmp_path: Any) -> None:
    table = {"name": "s", "plan": {"kind": "leave-one-site-out"}, "sites": {"training": ("a", "b", "c")}}
    study = StudyConfig.model_validate(table)
    parts = parts_of(study, tmp_path)
    assert [(p.name, p.study.sites.training, p.study.sites.held_out) for p in parts] == [
        ("without-a", ("b", "c"), ("a",)),
        ("without-b", ("a", "c"), ("b",)),
        ("without-c", ("a", "b"), ("c",)),
    ]
    assert len({p.study.digest for p in parts}) == 3
    folds = parts_of(StudyConfig.model_validate({"name": "s", "plan": {"kind": "k-fold"}}), tmp_path)
    assert [p.study.fold for p in folds] == [0, 1, 2, 3, 4]
    assert {p.study.seed for p in folds} == {study.seed}
    assert len({p.study.digest for p in folds}) == 5
