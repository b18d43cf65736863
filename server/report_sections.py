"""The sections of the report, in the order of the page; one without its data says why it is left out."""

import math
from collections.abc import Iterator, Mapping, Sequence

from dsan_model.sampling import Branch
from server.ledger import LedgerEntry
from server.paper_results import ATTENTION_US, RN34_US
from server.participation import Participation, missed_rounds, participation
from server.report_blocks import (
    Block,
    Figure,
    Gallery,
    Mark,
    Matrix,
    MatrixRow,
    Note,
    Section,
    bytes_text,
    count_text,
    duration_text,
    p_text,
    score_text,
    why_undefined,
)
from server.report_figures import (
    curve_panels,
    ensemble_panel,
    histogram_panels,
    roc_panel,
    sampling_panel,
    timing_panel,
)
from server.report_headline import BRANCH_TITLE, verdicts
from server.report_input import AttentionScores, ModelScores, RunFolder, SamplingTest, Site
from server.report_parts import parts_section
from server.report_tables import (
    attention_table,
    effort_table,
    ensemble_table,
    headline_table,
    mask_table,
    missed_table,
    sampling_table,
    shrunk_table,
    site_sampling_table,
    site_table,
    table1,
    table2,
    table3,
    timing_table,
    traffic_table,
)
from server.segmentation_report import dice_section, rounds_section, selection_notes

ROUNDS_PER_MATRIX = (
    24  # more columns than this do not fit the width of the page: a longer study gets blocks of equal width
)
PAPER_NOTE = "Values of the paper stand small and grey, for orientation: other patients, scanners and scale."
MARK_SIGN = {"accepted": "✓", "rejected": "R", "missing": "M", "unrecorded": "?"}


def sections(run: RunFolder) -> tuple[Section, ...]:
    """Every section of the page."""
    if run.results.study.task == "segmentation":
        return (
            dice_section(run),
            _shrunk(run),
            rounds_section(run),
            _ratios(run),
            _cohorts(run),
            _sites(run),
            _participation(run),
            _time(run),
        )
    return (
        _headline(run),
        *parts_section(run.results.plan),
        _shrunk(run),
        _table2(run),
        _table3(run),
        _roc(run),
        _curves(run),
        _ratios(run),
        _attention(run),
        _ensemble(run),
        _sampling(run),
        _cohorts(run),
        _sites(run),
        _participation(run),
        _time(run),
    )


def figure_panels(run: RunFolder) -> Mapping[str, tuple[str, ...]]:
    """The figures that are also files of their own, by name; empty where the run has no such data."""
    results = run.results
    histogram = results.ratio_histogram
    return {
        "roc": _roc_panels(run) if results.roc else (),
        "curves": curve_panels(results.curves, results.model_selection) if results.curves else (),
        "ratio_histogram": histogram_panels(histogram) if histogram is not None else (),
    }


def _left_out(run: RunFolder, anchor: str, title: str, key: str) -> Section:
    return Section(anchor, title, left_out=_why_no(run, key))


def _why_no(run: RunFolder, key: str) -> str:
    if key in run.unreadable:
        return f"Left out: results.json could not be read here ({run.unreadable[key]})."
    return f"Left out: results.json has no “{key}”."


def _headline(run: RunFolder) -> Section:
    anchor, title = "headline", "Area under the ROC curve"
    if not run.results.table2:
        return _left_out(run, anchor, title, "table2")
    terms = (
        "US: uniform sampling. SS: size-balanced sampling. DS: dual sampling, the ensemble of both (Eq. 5). "
        "In brackets: 95 % interval. A model must beat the infection ratio alone, the mere size of the "
        "infection."
    )
    return Section(anchor, title, (headline_table(run.results), *verdicts(run.results), Note(terms, "small")))


def _shrunk(run: RunFolder) -> Section:
    anchor, title = "shrunk", "Differences from the paper"
    shrunk = run.results.shrunk
    if shrunk is None:
        return _left_out(run, anchor, title, "shrunk")
    if not shrunk:
        return Section(anchor, title, (Note("None: this study has the paper's sizes and training values."),))
    intro = Note(
        "The network, its losses, both samplings and the ensemble are the paper's. What is otherwise:"
    )
    return Section(anchor, title, (intro, shrunk_table(shrunk)))


def _table2(run: RunFolder) -> Section:
    anchor, title = "table2", "Table II: classification results"
    rows = run.results.table2
    if not rows:
        return _left_out(run, anchor, title, "table2")
    notes = [Note(f"{PAPER_NOTE} Best value of a metric in bold.", "small")]
    if all(row.model != RN34_US for row in rows):
        notes.append(Note("RN34 + US was not trained in this study (option --baseline).", "small"))
    return Section(anchor, title, (table2(run.results), *notes, *_bound_note(rows)))


def _bound_note(rows: tuple[ModelScores, ...]) -> tuple[Note, ...]:
    """Scores never leave a site: what the AUC from histograms can be off by."""
    bounds = [row.auc_error_bound for row in rows if row.auc_error_bound is not None]
    if not bounds:
        return ()
    text = "AUC comes from added-up histograms of the sites, since scores never leave them: each is exact to"
    return (Note(f"{text} within ± {max(bounds):.4f}.", "small"),)


def _table3(run: RunFolder) -> Section:
    anchor, title = "table3", "Table III: results by infection ratio"
    rows = run.results.table3
    if not rows:
        return _left_out(run, anchor, title, "table3")
    return Section(anchor, title, (table3(run.results), Note(PAPER_NOTE, "small"), *_bound_note(rows)))


def _roc(run: RunFolder) -> Section:
    anchor, title = "roc", "ROC curves"
    if not run.results.roc:
        return _left_out(run, anchor, title, "roc")
    caption = "As Fig. 4 of the paper. Rings: the operating point at a probability of 0.5."
    return Section(anchor, title, (Figure(_roc_panels(run), caption),))


def _roc_panels(run: RunFolder) -> tuple[str, ...]:
    panels = []
    for set_name in ("validation", "held-out"):
        curves = [curve for curve in run.results.roc if curve.set == set_name and curve.fpr]
        scores = [row for row in run.results.table2 if row.set == set_name]
        reason = why_undefined("auc", scores[0].n) if scores else "not given"
        panels.append(roc_panel(set_name, curves, scores if curves else [], reason))
    return tuple(panels)


def _curves(run: RunFolder) -> Section:
    anchor, title = "curves", "Training curves"
    curves, selection = run.results.curves, run.results.model_selection
    if not curves:
        return _left_out(run, anchor, title, "curves")
    caption = (
        "One panel a branch, on the same scales. Dotted vertical: the round whose weights were kept. "
        "Thick bars around the AUC: what the histograms leave open."
    )
    figure = Figure(curve_panels(curves, selection), caption)
    if selection:
        return Section(anchor, title, (figure, *selection_notes(selection, {p.round for p in curves})))
    return Section(anchor, title, (figure, Note(_why_no(run, "model_selection"), "small")))


def _ratios(run: RunFolder) -> Section:
    anchor, title = "ratios", "Infection ratios"
    histogram = run.results.ratio_histogram
    if histogram is None:
        return _left_out(run, anchor, title, "ratio_histogram")
    caption = (
        "As Fig. 1 of the paper, on a log axis. CAP above 0.001 is large, COVID-19 below 0.030 is small: "
        "the two groups that size-balanced sampling draws more often."
    )
    return Section(anchor, title, (Figure(histogram_panels(histogram), caption),))


def _attention(run: RunFolder) -> Section:
    anchor, title = "attention", "Attention"
    scores = run.results.attention
    if not scores and not run.panels:
        return _left_out(run, anchor, title, "attention")
    blocks: list[Block] = []
    if scores:
        blocks += [*_attention_verdict(scores), attention_table(scores)]
        text = (
            "COVID-19 cases. Dice: overlap of the attention map with the infection mask. Mass: share of the "
            "map's sum inside the infection, inside the lung."
        )
        blocks.append(Note(text, "small"))
    else:
        blocks.append(Note(_why_no(run, "attention"), "small"))
    blocks.append(
        Gallery(run.panels) if run.panels else Note("No attention pictures in figures/panels.", "small")
    )
    return Section(anchor, title, tuple(blocks))


def _attention_verdict(scores: tuple[AttentionScores, ...]) -> tuple[Note, ...]:
    """Whether the attention loss taught attention: the map with it against the map without."""
    dice = {row.model: row.dice_infection for row in scores if (row.set, row.group) == ("held-out", "all")}
    ours, baseline = dice.get(ATTENTION_US), dice.get(RN34_US)
    if ours is None or baseline is None:
        return ()
    text = f"On held-out COVID-19 cases the map of {ATTENTION_US} reaches a Dice of {score_text(ours)} "
    text += f"with the infection; without the attention loss ({RN34_US}) it reaches {score_text(baseline)}."
    if baseline > 0 and ours > baseline:
        text += f" That is {ours / baseline:.1f} times as much."
    return (Note(text, "good" if ours > baseline else "warning"),)


def _ensemble(run: RunFolder) -> Section:
    anchor, title = "ensemble", "Ensemble weights"
    ensemble = run.results.ensemble
    if ensemble is None:
        return _left_out(run, anchor, title, "ensemble")
    text = "Eq. 5: P = w P(US) + (1 − w) P(SS), with one w inside a band of infection ratios and one outside."
    if ensemble.objective is not None:
        is_fitted = ensemble.w_inside is not None
        text += (
            f" Chosen on validation cases by: {ensemble.objective}."
            if is_fitted
            else " Not fitted: the validation cases are of one class. Both branches count the same."
        )
    figure = Figure((ensemble_panel(ensemble),), "")
    return Section(anchor, title, (Note(text), ensemble_table(ensemble), figure))


def _sampling(run: RunFolder) -> Section:
    anchor, title = "sampling", "Sampling"
    draws, by_site = run.results.sampling, run.results.sampling_by_site
    if not draws:
        return _left_out(run, anchor, title, "sampling")
    branches = [branch for branch in Branch if any(row.branch == branch for row in draws)]
    panels = tuple(sampling_panel(b, [row for row in draws if row.branch == b]) for b in branches)
    caption = (
        "SS draws a size group with probability W / sum W, counted over all training sites (III-C); "
        "a site that lacks a group draws from those that it has."
    )
    tests = tuple(_sampling_note(test) for test in run.results.sampling_test)
    if not tests:
        tests = (Note(_why_no(run, "sampling_test"), "small"),)
    tables = (sampling_table(draws), *([site_sampling_table(by_site)] if by_site else []))
    return Section(anchor, title, (*tests, Figure(panels, caption), *tables))


def _sampling_note(test: SamplingTest) -> Note:
    name = BRANCH_TITLE[test.branch]
    if test.chi_square is None or test.p_value is None:
        return Note(f"{name}: the chi-square test is not defined.", "small")
    p_value = p_text(test.p_value)
    figures = f"chi-square {test.chi_square:.2f}, p {p_value if p_value.startswith('<') else f'= {p_value}'}"
    if test.p_value < 0.01:
        return Note(f"{name}: the cases drawn differ from the plan ({figures}).", "warning")
    return Note(f"{name}: the cases drawn agree with the plan ({figures}).", "good")


def _cohorts(run: RunFolder) -> Section:
    anchor, title = "table1", "Table I: demographics"
    rows = run.results.table1
    if not rows:
        return _left_out(run, anchor, title, "table1")
    note = "Age: median (range). Female and male count patients. Values of the paper stand small and grey."
    return Section(anchor, title, (table1(rows), Note(note, "small")))


def _sites(run: RunFolder) -> Section:
    results = run.results
    blocks: list[Block] = [site_table(results.sites, results.per_site)]
    if results.per_site:
        text = "Training sites are evaluated on their validation cases, held-out sites on all cases."
        blocks.append(Note(text, "small"))
    elif results.study.task == "classification":
        blocks.append(Note(_why_no(run, "per_site"), "small"))
    blocks += [_left_out_cases(site) for site in results.sites if site.left_out]
    blocks += [
        Note(f"{failure.site}: {failure.code}: {failure.message}", "warning") for failure in results.failures
    ]
    return Section("sites", "Sites", tuple(blocks))


def _left_out_cases(site: Site) -> Note:
    codes = ", ".join(f"{code} ({n})" for code, n in sorted(site.left_out.items()))
    return Note(f"{site.name} left out {sum(site.left_out.values())} of its cases: {codes}.", "warning")


def _participation(run: RunFolder) -> Section:
    anchor, title = "participation", "Participation"
    if not run.ledger:
        return Section(anchor, title, left_out="Left out: the run folder has no round in ledger.jsonl.")
    taken = participation(run.ledger, run.results.sites)
    missed = missed_rounds(taken)
    total = sum(entry.status == "accepted" for entry in run.ledger)
    legend = (
        "✓ accepted, R rejected, M missing, ? the round took place and the ledger has no line of the site."
    )
    blocks: list[Block] = [Note(f"{count_text(total)} contributions accepted. {legend}", "small")]
    blocks += _matrices(taken)
    blocks += [missed_table(missed)] if missed else [Note("No contribution is lacking.", "good")]
    blocks.append(effort_table(run))
    blocks += _masks(run.results.sites)
    return Section(anchor, title, tuple(blocks))


def _masks(sites: Sequence[Site]) -> list[Block]:
    """Who segments how, and a warning where the infection ratios of the study do not compare."""
    described = [site for site in sites if site.lung_masks or site.infection_masks]
    if not described:
        return []
    makers = {kind for site in described for kind in _mask_kinds(site)}
    if len(makers) == len({mask for mask, _ in makers}):
        return [mask_table(described)]
    text = (
        "Masks of this study come from different segmenters: infection ratios, and with them size groups "
        "and the choice of the ensemble weight, do not compare between them."
    )
    return [Note(text, "warning"), mask_table(described)]


def _mask_kinds(site: Site) -> Iterator[tuple[str, str]]:
    yield from (("lungs", name) for name in site.lung_masks)
    yield from (("infection", name) for name in site.infection_masks)


def _matrices(taken: Participation) -> list[Matrix]:
    n_matrices = math.ceil(len(taken.rounds) / ROUNDS_PER_MATRIX)
    width = math.ceil(len(taken.rounds) / max(1, n_matrices))
    starts = range(0, len(taken.rounds), max(1, width))
    return [_matrix(taken, taken.rounds[start : start + width]) for start in starts]


def _matrix(taken: Participation, rounds: tuple[int, ...]) -> Matrix:
    rows = [
        MatrixRow(
            site=site,
            n_branches=len(taken.branches) if i == 0 else 0,
            branch=BRANCH_TITLE[branch],
            marks=tuple(_mark(taken, site, branch, round_) for round_ in rounds),
        )
        for site in taken.sites
        for i, branch in enumerate(taken.branches)
    ]
    return Matrix(rounds, tuple(rows))


def _mark(taken: Participation, site: str, branch: Branch, round_: int) -> Mark:
    status = taken.status(site, branch, round_)
    if status is None:
        return Mark("none", "", f"no round {round_} of {BRANCH_TITLE[branch]}")
    where = f"{site}, {BRANCH_TITLE[branch]}, round {round_}: {status}"
    return Mark(status, MARK_SIGN[status], where + _mark_details(taken.entries.get((site, branch, round_))))


def _mark_details(entry: LedgerEntry | None) -> str:
    if entry is None:
        return ""
    if entry.status != "accepted":
        return f" ({entry.code or 'no code'})"
    parts = [f"{entry.cases} cases"] if entry.cases is not None else []
    parts += [f"{entry.steps} steps"] if entry.steps is not None else []
    parts += [duration_text(entry.seconds)] if entry.seconds is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def _time(run: RunFolder) -> Section:
    anchor, title = "time", "Time and traffic"
    timing, traffic = run.results.timing, run.results.traffic
    if timing is None and traffic is None:
        return _left_out(run, anchor, title, "timing")
    blocks: list[Block] = []
    if timing is None:
        blocks.append(Note(_why_no(run, "timing"), "small"))
    else:
        blocks.append(timing_table(timing))
        trained_s = sum(entry.seconds or 0 for entry in run.ledger if entry.status == "accepted")
        if trained_s > 0:
            text = f"Training added up over all sites and branches: {duration_text(trained_s)}."
            blocks.append(Note(f"{text} On one machine the sites take turns.", "small"))
        if timing.rounds:
            blocks.append(Figure((timing_panel(timing.rounds),), ""))
        if timing.peak_memory_bytes is not None:
            blocks.append(Note(f"Largest memory of a process: {bytes_text(timing.peak_memory_bytes)}."))
    blocks.append(Note(_why_no(run, "traffic"), "small") if traffic is None else traffic_table(traffic))
    return Section(anchor, title, tuple(blocks))
