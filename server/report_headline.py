"""The head of the report: what was run, whether it is complete, and what the headline figures mean."""

from dataclasses import dataclass

from dsan_model.sampling import Branch
from server.paper_results import ATTENTION_DS, ATTENTION_US
from server.participation import Missed, missed_rounds, participation
from server.report_blocks import (
    Note,
    classes_text,
    count_text,
    rounds_text,
    score_text,
    why_undefined,
)
from server.report_input import ModelScores, Results, RunFolder, Site, Study

BRANCH_TITLE = {Branch.US: "US", Branch.SS: "SS", Branch.BASELINE: "baseline", Branch.VBNET: "VB-Net"}


@dataclass(frozen=True)
class State:
    """Complete or not, in words that cannot be missed."""

    is_complete: bool
    title: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Banner:
    """What the data are and what the report may be used for."""

    title: str
    text: str


def state(run: RunFolder) -> State:
    """The state as results.json says it, with the sites and rounds that explain it."""
    results = run.results
    gaps = _gaps(run)
    if not results.complete:
        reasons = gaps or ("results.json does not say which site missed which round.",)
        warning = "The figures below are those of an incomplete study: do not report them as its result."
        return State(False, "INCOMPLETE", (*reasons, warning))
    n_training = sum(site.role == "training" for site in results.sites)
    if gaps:
        warning = "results.json calls the study complete, but this does not agree with it:"
        return State(True, "COMPLETE", (warning, *gaps))
    return State(True, "COMPLETE", (f"All {n_training} training sites took part in every required round.",))


def _gaps(run: RunFolder) -> tuple[str, ...]:
    """What is missing: from the ledger; of sites that fell short without a trace there, from results.json."""
    missed = missed_rounds(participation(run.ledger, run.results.sites))
    named = {gap.site for gap in missed}
    failed = {failure.site: failure.code for failure in run.results.failures}
    short = tuple(
        _shortfall(site, failed.get(site.name, ""))
        for site in run.results.sites
        if site.name not in named and (site.rounds_completed < site.rounds_required or site.complete is False)
    )
    return tuple(_missed_sentence(gap) for gap in missed) + short


def _shortfall(site: Site, code: str) -> str:
    reason = f": {code}" if code else ""
    if site.rounds_completed < site.rounds_required:
        rounds = f"{site.rounds_completed} of {site.rounds_required} required rounds"
        return f"{site.name} completed {rounds}{reason}."
    return f"{site.name} ({site.role}) did not deliver its evaluation{reason}."


def _missed_sentence(gap: Missed) -> str:
    verb = {"missing": "missed", "rejected": "was rejected in", "unrecorded": "has no record of"}[gap.status]
    reason = f": {gap.code}" if gap.code else ""
    return f"{gap.site} {verb} {rounds_text(gap.rounds)} of {branches_text(gap.branches)}{reason}."


def branches_text(branches: tuple[Branch, ...]) -> str:
    """Branches in a sentence: "US, SS and baseline"."""
    *others, last = (BRANCH_TITLE[branch] for branch in branches)
    return f"{', '.join(others)} and {last}" if others else last


def banner(study: Study) -> Banner:
    """Synthetic data say nothing about patients; anything else is for research."""
    if study.synthetic:
        return Banner(
            "Synthetic data",
            "Every scan of this study was made by program. The figures show that the method works as "
            "described; they say nothing about patients and are not comparable with the paper's.",
        )
    return Banner(
        "Research use only",
        "Not a medical device. The model is not approved for diagnosis, and no figure here supports a "
        "decision about a patient.",
    )


def facts(results: Results) -> tuple[tuple[str, str], ...]:
    """Terms and values that identify the study."""
    study = results.study
    training = [site for site in results.sites if site.role == "training"]
    held_out = [site for site in results.sites if site.role == "held-out"]
    n_cases = sum(site.cases.total for site in results.sites)
    facts = [("Preset", study.preset), ("Seed", str(study.seed))]
    if study.input_shape_dhw is not None:
        facts.append(("Input (D × H × W)", " × ".join(str(n) for n in study.input_shape_dhw)))
    facts.append(("Sites", f"{len(training)} training, {len(held_out)} held-out"))
    facts.append(("Cases", count_text(n_cases)))
    if study.task == "classification":
        facts.append(("Positive class", study.positive))
    if study.spacing_mm_xyz is not None and study.patch_dhw is not None:
        facts.append(("Spacing (x × y × z)", " × ".join(f"{mm:g}" for mm in study.spacing_mm_xyz) + " mm"))
        facts.append(("Patch (D × H × W)", " × ".join(str(n) for n in study.patch_dhw)))
    return tuple(facts)


def verdicts(results: Results) -> tuple[Note, ...]:
    """One plain sentence a set: does DS beat the infection ratio alone, and how does it stand to US."""
    if not results.table2:
        return ()
    notes = []
    for set_name in ("held-out", "validation"):
        rows = {row.model: row for row in results.table2 if row.set == set_name}
        if ATTENTION_DS in rows:
            control = None
            if results.controls is not None:
                control = results.controls.auc_infection_ratio.get(set_name)
            notes.append(_verdict(rows, control))
    return tuple(notes)


def _verdict(rows: dict[str, ModelScores], control: float | None) -> Note:
    ds = rows[ATTENTION_DS]
    where = f"On {ds.set} cases ({classes_text(ds.n)})"
    if ds.auc is None:
        return Note(
            f"{where} the AUC is not defined: {why_undefined('auc', ds.n)}. {_at_half(ds)}", "warning"
        )
    beside_us = _beside_us(ds, rows.get(ATTENTION_US))
    if control is None:
        text = (
            f"{where} DS reaches an AUC of {score_text(ds.auc)}; the infection ratio alone was not measured."
        )
        return Note(f"{text}{beside_us}", "warning")
    gain = _shown(ds.auc) - _shown(control)
    against = f"(AUC {score_text(ds.auc)} against {score_text(control)})"
    if gain <= 0:
        text = (
            f"{where} DS does not beat the infection ratio alone {against}: "
            f"the mere size of the infection tells {'more' if gain < 0 else 'as much'}."
        )
        return Note(f"{text}{beside_us}", "warning")
    text = f"{where} DS beats the infection ratio alone by {gain:.3f} {against}."
    if ds.auc_ci is not None and ds.auc_ci[0] <= control:
        text += f" Its interval starts at {score_text(ds.auc_ci[0])}, so the gain may be chance."
        return Note(f"{text}{beside_us}", "warning")
    return Note(f"{text}{beside_us}", "good")


def _beside_us(ds: ModelScores, us: ModelScores | None) -> str:
    if us is None or us.auc is None or ds.auc is None:
        return ""
    gain = _shown(ds.auc) - _shown(us.auc)
    if round(gain, 3) == 0:
        return " It equals US alone."
    return f" It is {abs(gain):.3f} {'above' if gain > 0 else 'below'} US alone."


def _at_half(row: ModelScores) -> str:
    """What is defined for a set with one class."""
    if row.specificity is not None:
        return f"At a probability of 0.5 the specificity of DS is {score_text(row.specificity)}."
    if row.sensitivity is not None:
        return f"At a probability of 0.5 the sensitivity of DS is {score_text(row.sensitivity)}."
    return ""


def _shown(value: float) -> float:
    """As printed, so that a reader who subtracts the printed figures finds the printed difference."""
    return round(value, 3)
