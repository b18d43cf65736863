"""results.json: every figure of a study, from the counts of its sites (Tables I to III, Figs. 1 and 4)."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from dsan_daemon.files import write_atomically
from dsan_model.cases import RATIO_EDGES, Label, RatioGroup, SizeGroup
from dsan_model.ensemble import BAND, score_counts_at
from dsan_model.metrics import ScoreCounts, auc, metrics_row, roc
from dsan_model.protocol import (
    AttentionSums,
    BranchCounts,
    BranchTraining,
    CaseSet,
    Demographics,
    EvaluateReply,
    SiteDescription,
    added_scores,
)
from dsan_model.sampling import DUAL_SAMPLING, Branch, site_probabilities, size_balanced_probabilities
from server.differences import differences_from_paper
from server.enrolment import Enrolled
from server.ensemble_fit import FittedEnsemble
from server.exchange import Exchange, Failure
from server.held_out import Explained, HeldOut
from server.ledger import last_statuses, read_ledger
from server.run_state import RoundRecord, RunState
from server.selection import Selection, validation_counts
from server.study import StudyConfig

RESULTS = "results.json"
FORMAT_VERSION = 1
TABLE_ORDER = (Branch.BASELINE, Branch.US, Branch.SS)
Scores = dict[CaseSet, dict[str, dict[str, ScoreCounts]]]  # set, model in the order of Table II, site
Row = dict[str, Any]  # an object of results.json: the contract of design section 3.2


@dataclass(frozen=True)
class StudyOutcome:
    """Everything that the study came to, before it is written down."""

    study: StudyConfig
    enrolled: Enrolled
    state: RunState
    unvalidated: dict[str, Failure]  # sites that did not validate the last round
    selection: dict[Branch, Selection]
    ensemble: FittedEnsemble
    held_out: HeldOut
    explained: Explained

    @property
    def scores(self) -> Scores:
        """The counts behind the tables."""
        held_out = held_out_scores(self.held_out.replies, self.selection)
        return {CaseSet.VALIDATION: _validation_scores(self), CaseSet.HELD_OUT: held_out}

    @property
    def failures(self) -> dict[str, Failure]:
        """Why a site is missing somewhere, the earliest reason of each; none of them is complete."""
        return {
            **self.explained.failures,
            **self.held_out.failures,
            **self.ensemble.failures,
            **self.unvalidated,
            **self.enrolled.failures,
        }


def study_results(run_folder: Path, outcome: StudyOutcome, exchange: Exchange, total_s: float) -> Row:
    """What results.json says; figures that are not defined are None."""
    sites = site_rows(run_folder, outcome.study, outcome.enrolled, outcome.failures)
    return {
        "format_version": FORMAT_VERSION,
        "study": study_row(outcome.study),
        "complete": all(site["complete"] for site in sites),
        "sites": sites,
        "model_selection": {
            branch.value: selection_row(chosen, "validation_auc")
            for branch, chosen in outcome.selection.items()
        },
        "controls": {"auc_infection_ratio": _ratio_control(outcome)},
        "ensemble": _ensemble(outcome.ensemble),
        **score_tables(outcome.scores),
        "attention": attention_rows(outcome.explained.attention),
        "timing": timing(outcome.state, total_s),
        "traffic": traffic(outcome.state, exchange),
        "shrunk": [difference._asdict() for difference in differences_from_paper(outcome.study)],
        "table1": table1(outcome.enrolled),
        "curves": _curves(outcome.state),
        "ratio_histogram": ratio_histogram(outcome.enrolled),
        **_sampling(outcome.state, outcome.enrolled),
        "failures": failure_rows(outcome.failures),
    }


def traffic(state: RunState, exchange: Exchange) -> Row:
    """Bytes to and from all sites, of all sessions: this one, and the finished rounds before it."""
    earlier = state.earlier_sessions
    return {
        "bytes_to_sites": exchange.bytes_to_sites + sum(record.bytes_to_sites for record in earlier),
        "bytes_from_sites": exchange.bytes_from_sites + sum(record.bytes_from_sites for record in earlier),
    }


def write_results(run_folder: Path, results: Row) -> None:
    """Write results.json, the last thing that a study writes: who finds it, finds the whole study."""
    write_atomically(run_folder / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())


def read_results(run_folder: Path) -> Row | None:
    """What results.json says, or None if the study has not got so far."""
    path = run_folder / RESULTS
    results: Row | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return results


def what_is_missing(run_folder: Path, results: Row) -> str:
    """Each site that did not do all of its part, in words: missed rounds with their codes, and failures."""
    failures = {row["site"]: f"{row['code']}: {row['message']}" for row in results["failures"]}
    codes: dict[str, dict[int, str]] = {}
    for line in read_ledger(run_folder):
        if line.get("event") == "round":
            codes.setdefault(str(line["site"]), {})[int(str(line["round"]))] = str(line.get("code") or "")
    words = []
    for site in results["sites"]:
        if site["complete"]:
            continue
        reasons = [failures[site["name"]]] if site["name"] in failures else []
        missed = site["rounds_required"] - site["rounds_completed"]
        if missed:
            of_rounds = sorted({code for code in codes.get(site["name"], {}).values() if code})
            named = f" ({', '.join(of_rounds)})" if of_rounds else ""
            reasons.insert(0, f"missed {missed} of {site['rounds_required']} rounds{named}")
        words.append(f"{site['name']}: {'; '.join(reasons) or 'did not do all of its part'}")
    return ". ".join(words)


def study_row(study: StudyConfig) -> Row:
    """What was run."""
    return {
        "name": study.name,
        "seed": study.seed,
        "preset": study.preset,
        "input_shape_dhw": list(study.input.shape_dhw),
        "positive": Label.COVID.value,
    }


def site_rows(
    run_folder: Path, study: StudyConfig, enrolled: Enrolled, failures: Mapping[str, Failure]
) -> list[Row]:
    """Every site that the study has or wanted: its role, its cases, and whether it did all of its part."""
    status = last_statuses(run_folder)
    rows = []
    for site in sorted({*study.sites.training, *enrolled.required}):
        rounds = range(1, study.rounds + 1)
        completed = sum(status.get((r, site)) == "accepted" for r in rounds)
        is_here = site in enrolled.training and site not in failures
        finished = completed == study.rounds and is_here
        rows.append(_site(site, "training", enrolled, completed, study.rounds, finished))
    for site in sorted({*study.sites.held_out, *enrolled.held_out}):
        rows.append(_site(site, "held-out", enrolled, 0, 0, site not in failures))
    return rows


def _site(site: str, role: str, enrolled: Enrolled, completed: int, required: int, complete: bool) -> Row:
    description = enrolled.descriptions.get(site) or enrolled.known.get(site)
    return {
        "name": site,
        "role": role,
        "cases": _cases(description),
        "rounds_completed": completed,
        "rounds_required": required,
        "complete": complete,
        "left_out": dict(description.left_out) if description else {},
        "lung_masks": dict(description.lung_masks) if description else {},
        "infection_masks": dict(description.infection_masks) if description else {},
        "versions": dict(description.versions) if description else {},
    }


def _cases(description: SiteDescription | None) -> Row:
    found = {row.label: row.images for row in description.demographics} if description else {}
    return {label.value: found.get(label, 0) for label in Label}


def failure_rows(failures: Mapping[str, Failure]) -> list[Row]:
    """Why a site is missing somewhere."""
    return [
        {"site": site, "code": failure.code, "message": failure.message}
        for site, failure in sorted(failures.items())
    ]


def _ratio_control(outcome: StudyOutcome) -> Row:
    held_out = outcome.held_out.replies.values()
    return {
        "validation": ratio_auc(outcome.ensemble.infection_ratio.values()),
        "held-out": ratio_auc(reply.infection_ratio for reply in held_out),
    }


def ratio_auc(counts: Iterable[ScoreCounts]) -> float | None:
    """What the infection ratio alone reaches over all sites."""
    found = auc(_pooled(counts).histogram())
    return None if found is None else found[0]


def _ensemble(ensemble: FittedEnsemble) -> Row:
    intervals = ensemble.intervals
    is_fitted = ensemble.fit.objective_value is not None
    return {
        "band": list(BAND),
        "w_inside": ensemble.fit.w_inside if is_fitted else None,
        "w_outside": ensemble.fit.w_outside if is_fitted else None,
        "objective": ensemble.fit.objective,
        "objective_value": ensemble.fit.objective_value,
        "w_inside_ci": list(intervals.w_inside) if intervals else None,
        "w_outside_ci": list(intervals.w_outside) if intervals else None,
    }


def score_tables(scores: Scores) -> Row:
    """Tables II and III, the same by site, and the ROC curves."""
    table2, table3, per_site, curves = [], [], [], []
    for case_set, by_model in scores.items():
        for model, by_site in by_model.items():
            head = {"set": case_set.value, "model": model}
            counts = _pooled(by_site.values())
            table2.append(head | metrics_row(counts.histogram()).as_json())
            for group in RatioGroup:
                row = metrics_row(counts.histogram(group)).as_json()
                table3.append(head | {"group": group.value} | row)
            for site, of_site in sorted(by_site.items()):
                per_site.append(head | {"site": site} | metrics_row(of_site.histogram()).as_json())
            curve = roc(counts.histogram())
            if curve is not None:
                area = metrics_row(counts.histogram()).auc
                curves.append(head | {"fpr": curve.fpr.tolist(), "tpr": curve.tpr.tolist(), "auc": area})
    return {"table2": table2, "table3": table3, "per_site": per_site, "roc": curves}


def _validation_scores(outcome: "StudyOutcome") -> dict[str, dict[str, ScoreCounts]]:
    """By model, in the order of Table II, and site."""
    validation: dict[str, dict[str, ScoreCounts]] = {}
    for branch in TABLE_ORDER:
        if branch in outcome.selection:
            of_round = outcome.state.validation[outcome.selection[branch].round]
            validation[branch.model_name] = _of_branch(of_round, branch)
    weights = outcome.ensemble.weights
    validation[DUAL_SAMPLING] = {
        site: score_counts_at(counts, weights) for site, counts in outcome.ensemble.counts.items()
    }
    return validation


def held_out_scores(
    replies: Mapping[str, EvaluateReply], branches: Collection[Branch]
) -> dict[str, dict[str, ScoreCounts]]:
    """By model, in the order of Table II, and site."""
    by_branch = {site: reply.branches for site, reply in replies.items()}
    held_out = {b.model_name: _of_branch(by_branch, b) for b in TABLE_ORDER if b in branches}
    held_out[DUAL_SAMPLING] = {
        site: reply.dual_sampling for site, reply in replies.items() if reply.dual_sampling is not None
    }
    return held_out


def _of_branch(
    by_site: Mapping[str, Mapping[Branch, BranchCounts]], branch: Branch
) -> dict[str, ScoreCounts]:
    return {site: added_scores([counts[branch]]) for site, counts in by_site.items()}


def _pooled(counts: Iterable[ScoreCounts]) -> ScoreCounts:
    return sum(counts, ScoreCounts.empty())


def attention_rows(attention: Mapping[CaseSet, list[AttentionSums]]) -> list[Row]:
    """Means of the attention scores by set, model and group of Table III."""
    rows = []
    for case_set, sums in attention.items():
        for branch in Branch:
            of_branch = [item for item in sums if item.branch is branch]
            for name, group in [("all", None), *((group.value, group) for group in RatioGroup)]:
                chosen = [item for item in of_branch if group is None or item.group is group]
                if of_branch:
                    rows.append(
                        {"set": case_set.value, "model": branch.model_name, "group": name} | _means(chosen)
                    )
    return rows


def _means(sums: list[AttentionSums]) -> Row:
    cases = sum(item.cases for item in sums)
    keys = ("dice_infection", "mass_in_infection", "mass_in_lung")
    return {"cases": cases} | {
        key: sum(getattr(item, key) for item in sums) / cases if cases else None for key in keys
    }


def _training_seconds(record: RoundRecord) -> float:
    return sum(branch.seconds for site in record.training.values() for branch in site.values())


def selection_row(chosen: Selection, metric: str) -> Row:
    """The selected round, its score under the metric's name, and what it was compared with and on."""
    return {
        "round": chosen.round,
        metric: chosen.validation_score,
        "compared_rounds": list(chosen.rounds),
        "compared_sites": list(chosen.sites),
    }


def timing(state: RunState, total_s: float) -> Row:
    """What took the time: the sites' training, and every round and branch."""
    training_s = sum(_training_seconds(record) for record in state.history)
    return {
        "total_s": total_s + sum(record.seconds for record in state.earlier_sessions),
        "site_training_s": training_s,
        "rounds": _round_times(state),
    }


def _round_times(state: RunState) -> list[Row]:
    rows = []
    for record in state.history:
        slowest_site = max(sum(t.seconds for t in site.values()) for site in record.training.values())
        overhead = (record.seconds - slowest_site) / len(state.weights)
        for branch in state.weights:
            slowest = max(site[branch].seconds for site in record.training.values())
            rows.append(
                {
                    "round": record.round,
                    "branch": branch.value,
                    "slowest_site_train_s": slowest,
                    "overhead_s": max(0.0, overhead),
                }
            )
    return rows


def _curves(state: RunState) -> list[Row]:
    rows = []
    for record in state.history:
        for branch in state.weights:
            training = [site[branch] for site in record.training.values()]
            attention = [
                (t.attention_loss, _covid_drawn(t)) for t in training if t.attention_loss is not None
            ]
            found = None
            if record.round < len(state.validation):
                found = auc(added_scores(validation_counts(state, record.round, branch)).histogram())
            rows.append(
                {
                    "round": record.round,
                    "branch": branch.value,
                    "classification_loss": case_weighted_mean(
                        (t.classification_loss, t.cases) for t in training
                    ),
                    "attention_loss": case_weighted_mean(attention),
                    "validation_auc": None if found is None else found[0],
                    "validation_auc_error_bound": None if found is None else found[1],
                    "learning_rate": training[0].learning_rate,
                }
            )
    return rows


def _covid_drawn(training: BranchTraining) -> int:
    """The cases that an attention loss is the mean over (Eq. 3)."""
    return training.drawn[SizeGroup.SMALL_COVID] + training.drawn[SizeGroup.LARGE_COVID]


def case_weighted_mean(values: Iterable[tuple[float, int]]) -> float | None:
    """Mean of (value, cases) over the cases; None without any."""
    pairs = list(values)
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs) if pairs else None


def table1(enrolled: Enrolled) -> list[Row]:
    """Demographics of the training sites and of the held-out ones (Table I)."""
    rows = []
    for name, sites in (("training", enrolled.training), ("held-out", enrolled.held_out)):
        found = [row for site in sites.values() for row in site.demographics]
        for label in Label:
            rows.append(
                {"set": name, "label": label.value} | _demographics([r for r in found if r.label is label])
            )
        rows.append({"set": name, "label": "total"} | _demographics(found))
    return rows


def _demographics(found: list[Demographics]) -> Row:
    ages = np.sum([row.ages for row in found], axis=0) if found else np.zeros(1, np.int64)
    years = np.repeat(np.arange(len(ages)), ages)
    return {
        "images": sum(row.images for row in found),
        "patients": sum(row.patients for row in found),
        "age_median": float(np.median(years)) if years.size else None,
        "age_range": [int(years.min()), int(years.max())] if years.size else None,
        "female": sum(row.female for row in found),
        "male": sum(row.male for row in found),
    }


def ratio_histogram(enrolled: Enrolled) -> Row:
    """Cases by infection ratio, set and class (Fig. 1)."""
    sets = {
        name: {
            label.value: np.sum([site.ratio_histogram[label] for site in sites.values()], axis=0).tolist()
            for label in Label
        }
        for name, sites in (("training", enrolled.training), ("held-out", enrolled.held_out))
        if sites
    }
    return {"edges": list(RATIO_EDGES), "sets": sets}


def _sampling(state: RunState, enrolled: Enrolled) -> Row:
    """How often each size group was drawn under SS, beside W / sum W, and the chi-square test over sites.

    A site without some of the groups draws by the renormalised probabilities, so that the test sums the
    statistics of the sites, each with its own expectation.
    """
    probabilities = size_balanced_probabilities(enrolled.training_groups())
    expected_total = dict.fromkeys(SizeGroup, 0.0)
    drawn_total = dict.fromkeys(SizeGroup, 0)
    statistic, freedom, sites = 0.0, 0, []
    for site, description in enrolled.training.items():
        drawn = _drawn(state, site)
        present = [g for g in SizeGroup if description.training_groups[g] > 0]
        if not present:
            continue  # nothing but validation cases here
        at_site = site_probabilities(probabilities, present)
        expected = {g: p * sum(drawn.values()) for g, p in at_site.items()}
        possible = [g for g in SizeGroup if expected[g] > 0]
        of_site = sum((drawn[g] - expected[g]) ** 2 / expected[g] for g in possible)
        statistic, freedom = statistic + of_site, freedom + max(0, len(possible) - 1)
        sites.append({"site": site, "chi_square": of_site, "p_value": _p_value(of_site, len(possible) - 1)})
        for group in SizeGroup:
            expected_total[group] += expected[group]
            drawn_total[group] += drawn[group]
    n_drawn = max(1, sum(drawn_total.values()))
    return {
        "sampling": [
            {
                "branch": Branch.SS.value,
                "group": group.value,
                "expected": expected_total[group] / n_drawn,
                "federation_probability": probabilities[group],
                "drawn": drawn_total[group],
            }
            for group in SizeGroup
        ],
        "sampling_test": [
            {"branch": Branch.SS.value, "chi_square": statistic, "p_value": _p_value(statistic, freedom)}
        ],
        "sampling_by_site": sites,
    }


def _drawn(state: RunState, site: str) -> dict[SizeGroup, int]:
    rounds = [record.training[site][Branch.SS] for record in state.history if site in record.training]
    return {group: sum(training.drawn[group] for training in rounds) for group in SizeGroup}


def _p_value(chi_square: float, freedom: int) -> float | None:
    return float(chi2.sf(chi_square, freedom)) if freedom > 0 else None
