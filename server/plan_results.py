"""results.json of a study of several parts: pooled figures, means with deviations, paired t-tests (IV-D)."""

import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel

from dsan_model.metrics import ScoreCounts
from dsan_model.protocol import CaseSet
from server.differences import differences_from_paper
from server.plans import Part, part_results
from server.results import FORMAT_VERSION, Row, score_tables, study_row
from server.scores_file import read_scores
from server.study import StudyConfig

METRICS = ("auc", "accuracy", "sensitivity", "specificity", "f1")
POOLED = {"k-fold": CaseSet.VALIDATION, "leave-one-site-out": CaseSet.HELD_OUT}  # each case scored once


def plan_results(run_folder: Path, study: StudyConfig, parts: list[Part]) -> Row:
    """Where every case is scored by one part, the parts are pooled; elsewhere means over parts are told.

    Table II does so: the training-validation set combined from five validation sets, the test set as mean and
    standard deviation of five models.
    """
    found = part_results(parts, run_folder)
    pooled = POOLED[study.plan.kind]
    scores = [read_scores(part.folder(run_folder)) for part in parts if part.name in found]
    means = table2_means(found)
    tables = score_tables({pooled: _added(of_part.get(pooled, {}) for of_part in scores)})
    tables["table2"] += [_mean_row(row) for row in means if row["set"] != pooled.value]
    return {
        "format_version": FORMAT_VERSION,
        "study": study_row(study) | {"plan": study.plan.kind},
        "complete": len(found) == len(parts) and all(results["complete"] for results in found.values()),
        "sites": _sites(found),
        "plan": {
            "kind": study.plan.kind,
            "pooled": pooled.value,
            "parts": [
                {"name": name, "folder": f"parts/{name}", "complete": r["complete"], "table2": r["table2"]}
                for name, r in found.items()
            ],
            "table2_means": means,
            "t_tests": t_tests(found),
        },
        **tables,
        "controls": {"auc_infection_ratio": _controls(found, pooled)},
        "timing": {
            key: sum(r["timing"][key] for r in found.values()) for key in ("total_s", "site_training_s")
        }
        | {"rounds": []},
        "traffic": {
            key: sum(r["traffic"][key] for r in found.values())
            for key in ("bytes_to_sites", "bytes_from_sites")
        },
        "shrunk": [difference._asdict() for difference in differences_from_paper(study)],
        "table1": next((r["table1"] for r in found.values()), []),
        "ratio_histogram": next((r["ratio_histogram"] for r in found.values()), None),
        "failures": [failure for r in found.values() for failure in r["failures"]],
    }


def table2_means(found: dict[str, Row]) -> list[Row]:
    """Mean, standard deviation (n - 1) and values over the parts, by set, model and metric."""
    rows: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    n: dict[tuple[str, str], Row] = {}
    for results in found.values():
        for row in results["table2"]:
            key = (row["set"], row["model"])
            n.setdefault(key, row["n"])
            for metric in METRICS:
                rows.setdefault(key, {}).setdefault(metric, []).append(row[metric])
    return [
        {"set": set_name, "model": model, "n": n[set_name, model]}
        | {metric: _moments(values) for metric, values in metrics.items()}
        for (set_name, model), metrics in rows.items()
    ]


def t_tests(found: dict[str, Row]) -> list[Row]:
    """Paired t-tests over the parts between every two models, by set and metric, as in IV-D."""
    rows = []
    means = table2_means(found)
    for set_name in dict.fromkeys(row["set"] for row in means):
        for a, b in combinations([row for row in means if row["set"] == set_name], 2):
            for metric in METRICS:
                t, p = _paired(a[metric]["values"], b[metric]["values"])
                row = {"set": set_name, "metric": metric, "model_a": a["model"], "model_b": b["model"]}
                rows.append(row | {"t": t, "p_value": p, "n": len(a[metric]["values"])})
    return rows


def _controls(found: dict[str, Row], pooled: CaseSet) -> Row:
    """What the infection ratio alone reaches: the mean over the parts where there is one for each."""
    values = [r["controls"]["auc_infection_ratio"] for r in found.values()]
    other = CaseSet.HELD_OUT if pooled is CaseSet.VALIDATION else CaseSet.VALIDATION
    return {s.value: _moments([v[s.value] for v in values])["mean"] for s in (pooled, other)}


def _moments(values: list[float | None]) -> Row:
    defined = [value for value in values if value is not None]
    if len(defined) < len(values) or not defined:
        return {"mean": None, "std": None, "values": values}
    std = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
    return {"mean": float(np.mean(defined)), "std": std, "values": values}


def _paired(a: list[float | None], b: list[float | None]) -> tuple[float | None, float | None]:
    """Statistic and p-value; None where a value is missing or all differences are the same."""
    if len(a) != len(b) or len(a) < 2 or None in a or None in b:
        return None, None
    differences = np.subtract(a, b)  # type: ignore[arg-type] # None was excluded above
    if float(np.ptp(differences)) == 0.0:
        return None, None
    found = ttest_rel(a, b)
    t, p = float(found.statistic), float(found.pvalue)
    return (t, p) if math.isfinite(t) and math.isfinite(p) else (None, None)


def _mean_row(row: Row) -> Row:
    """A row of Table II whose figures are means over the parts: no interval, no bound."""
    head = {"set": row["set"], "model": row["model"], "n": row["n"], "auc_ci": None, "auc_error_bound": None}
    return head | {metric: row[metric]["mean"] for metric in METRICS}


def _added(parts: Iterable[dict[str, dict[str, ScoreCounts]]]) -> dict[str, dict[str, ScoreCounts]]:
    """Counts of all parts together, by model and site."""
    total: dict[str, dict[str, ScoreCounts]] = {}
    for by_model in parts:
        for model, by_site in by_model.items():
            for site, counts in by_site.items():
                of_model = total.setdefault(model, {})
                of_model[site] = of_model[site] + counts if site in of_model else counts
    return total


def _sites(found: dict[str, Row]) -> list[Row]:
    """Every site once; rounds are those of all parts that it trained in."""
    sites: dict[str, Row] = {}
    for results in found.values():
        for site in results["sites"]:
            known = sites.setdefault(site["name"], site | {"rounds_completed": 0, "rounds_required": 0})
            known["rounds_completed"] += site["rounds_completed"]
            known["rounds_required"] += site["rounds_required"]
            known["complete"] = known["complete"] and site["complete"]
            if site["role"] == "training":
                known["role"] = "training"
    return [sites[name] for name in sorted(sites)]
