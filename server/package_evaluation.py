"""A model package evaluated at sites, without training: the independent test of IV-D by itself."""

from pathlib import Path

from dsan_model.ensemble import BAND
from dsan_model.protocol import CaseSet
from dsan_model.traffic import Precision, pack
from server.differences import differences_from_paper
from server.enrolment import Enrolled, enrol
from server.exchange import Exchange, Failure
from server.held_out import evaluate_held_out, explain
from server.results import (
    FORMAT_VERSION,
    Row,
    attention_rows,
    failure_rows,
    held_out_scores,
    ratio_auc,
    ratio_histogram,
    score_tables,
    site_rows,
    study_row,
    table1,
)
from server.rounds import StudyPausedError
from server.scores_file import write_scores
from server.start_package import read_start_package
from server.study import StudyConfig


def evaluate_package(exchange: Exchange, study: StudyConfig, run_folder: Path) -> Row:
    """Every site scores all its cases with the package's networks and its ensemble, in full precision.

    A study that names no site takes those that are connected. StudyPausedError if no site takes part.
    """
    package = read_start_package(study, run_folder)
    enrolled = enrol(exchange, study, run_folder)
    if not study.sites.held_out:
        enrolled.held_out_names = tuple(enrolled.descriptions)
    _require_a_site(enrolled)
    models = {branch: pack(weights, Precision.FLOAT32) for branch, weights in package.weights.items()}
    held_out = evaluate_held_out(exchange, study, enrolled, models, package.ensemble)
    explained = explain(exchange, study, enrolled, models, package.ensemble)
    failures: dict[str, Failure] = {**explained.failures, **held_out.failures, **enrolled.failures}
    sites = [row for row in site_rows(run_folder, study, enrolled, failures) if row["role"] == "held-out"]
    scores = {CaseSet.HELD_OUT: held_out_scores(held_out.replies, tuple(models))}
    write_scores(run_folder, scores)
    return {
        "format_version": FORMAT_VERSION,
        "study": study_row(study) | {"plan": "evaluate"},
        "complete": bool(sites) and all(site["complete"] for site in sites),
        "sites": sites,
        "evaluated": {"study": package.study, "sha256sums": package.sha256sums},
        "controls": {
            "auc_infection_ratio": {
                "validation": None,
                "held-out": ratio_auc(reply.infection_ratio for reply in held_out.replies.values()),
            }
        },
        "ensemble": {
            "band": list(BAND),
            "w_inside": package.ensemble.w_inside,
            "w_outside": package.ensemble.w_outside,
        },
        **score_tables(scores),
        "attention": attention_rows(explained.attention),
        "traffic": {
            "bytes_to_sites": exchange.bytes_to_sites,
            "bytes_from_sites": exchange.bytes_from_sites,
        },
        "shrunk": [difference._asdict() for difference in differences_from_paper(study)],
        "table1": table1(enrolled),
        "ratio_histogram": ratio_histogram(enrolled),
        "failures": failure_rows(failures),
    }


def _require_a_site(enrolled: Enrolled) -> None:
    if not enrolled.held_out:
        reasons = "; ".join(f"{site}: {failure.code}" for site, failure in sorted(enrolled.failures.items()))
        raise StudyPausedError(
            f"no site evaluates ({reasons or 'no site is connected'}). Mend the sites and resume"
        )
