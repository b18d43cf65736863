"""The report's tables: Tables I, II and III with the paper's rows and values, and those of the federation."""

from collections.abc import Iterable, Sequence

from dsan_model.sampling import Branch
from server import paper_results
from server.paper_results import ATTENTION_DS, MODELS, RATIO_GROUPS
from server.participation import Missed
from server.report_blocks import (
    GROUP_TITLE,
    METRICS,
    SET_TITLE,
    Cell,
    Head,
    Row,
    Table,
    bytes_text,
    count_text,
    duration_text,
    p_text,
    rounds_text,
    score_text,
    undefined,
    why_undefined,
)
from server.report_figures import model_colour
from server.report_headline import BRANCH_TITLE, branches_text
from server.report_input import (
    AttentionScores,
    CohortRow,
    Ensemble,
    GroupDraws,
    Interval,
    ModelScores,
    Results,
    RunFolder,
    Score,
    Shrunk,
    Site,
    SiteSamplingTest,
    SiteScores,
    Timing,
    Traffic,
)

SETS = ("validation", "held-out")
PAPER_SET = {"validation": "TV set", "held-out": "test set", "training": "TV set"}
COVID_UNBROKEN = "COVID\u201119"  # a hyphen that does not end a line, for narrow columns
PHASE_TITLE = {"start": "Starting", "hospitals": "Writing the hospitals", "preparing": "Preparing the scans"}
Column = dict[str, ModelScores]  # model -> its scores on one set, group or site


def models_in(rows: Iterable[ModelScores | AttentionScores]) -> tuple[str, ...]:
    """The paper's models that the rows have, in the paper's order; then any other."""
    present = list(dict.fromkeys(row.model for row in rows))
    return tuple(model for model in MODELS if model in present) + tuple(
        model for model in present if model not in MODELS
    )


def headline_table(results: Results) -> Table:
    """Sets x models: AUC with its interval, and the AUC of the infection ratio alone."""
    models = models_in(results.table2)
    heads = [Head("")]
    heads += [Head(model, swatch=model_colour(model)) for model in models]
    heads.append(Head("Infection ratio", note="alone, as control"))
    rows = tuple(_headline_row(results, set_name, models) for set_name in SETS)
    return Table((tuple(heads),), rows, look="headline")


def _headline_row(results: Results, set_name: str, models: Sequence[str]) -> Row:
    column = _column(row for row in results.table2 if row.set == set_name)
    best = _best(column, "auc")
    cells = []
    for model in models:
        scores = column.get(model)
        if scores is None or scores.auc is None:
            cells.append(_score_cell(scores, "auc", best))
        else:
            cells.append(Cell(score_text(scores.auc), _interval_text(scores.auc_ci), scores.model in best))
    control = None
    if results.controls is not None:
        control = results.controls.auc_infection_ratio.get(
            "validation" if set_name == "validation" else "held-out"
        )
    any_row = next(iter(column.values()), None)
    reason = why_undefined("auc", any_row.n) if any_row is not None else "not given"
    cells.append(undefined(reason) if control is None else Cell(score_text(control)))
    n_text = f"{any_row.n.covid} COVID-19, {any_row.n.cap} CAP" if any_row is not None else ""
    return Row((Head(SET_TITLE[set_name], note=n_text),), tuple(cells))


def table2(results: Results) -> Table:
    """Table II: metric x model, validation and held-out, the paper's values beside."""
    columns = [_column(row for row in results.table2 if row.set == set_name) for set_name in SETS]
    models = models_in(results.table2)
    header = _header_beside_paper("Results", SETS)
    rows = []
    for metric, title in METRICS.items():
        best = [_best(column, metric) for column in columns]
        for i, model in enumerate(models):
            published = paper_results.TABLE2[metric].get(model, ("", ""))
            cells: list[Cell] = []
            for column, winners, paper in zip(columns, best, published, strict=True):
                cells += [_score_cell(column.get(model), metric, winners), Cell("", paper)]
            rows.append(Row(_metric_heads(title, model, i, len(models)), tuple(cells), starts_group=i == 0))
    return Table((header,), tuple(rows), look="paired")


def table3(results: Results) -> Table:
    """Table III: metric x model by group of infection ratios; each cell has the paper's value beside it."""
    places = [(set_name, group) for set_name in SETS for group in RATIO_GROUPS]
    columns = [
        _column(row for row in results.table3 if (row.set, row.group) == (set_name, group))
        for set_name, group in places
    ]
    header = (
        (Head("Results", columns=2, rows=2), *(Head(SET_TITLE[set_name], columns=3) for set_name in SETS)),
        tuple(Head(GROUP_TITLE[group]) for _, group in places),
    )
    rows = _image_rows(columns)
    models = models_in(results.table3)
    for metric, title in METRICS.items():
        for i, model in enumerate(models):
            published = paper_results.TABLE3[metric].get(model, ("",) * len(places))
            cells = tuple(
                _score_cell(column.get(model), metric, _best(column, metric), paper)
                for column, paper in zip(columns, published, strict=True)
            )
            rows.append(Row(_metric_heads(title, model, i, len(models)), cells, starts_group=i == 0))
    return Table(header, tuple(rows), look="paired", is_dense=True)


def _image_rows(columns: Sequence[Column]) -> list[Row]:
    """The first three rows of Table III: numbers of images."""
    counts = [next(iter(column.values())).n if column else None for column in columns]
    covid, cap = paper_results.TABLE3_IMAGES["COVID-19"], paper_results.TABLE3_IMAGES["CAP"]
    total = [a + b for a, b in zip(covid, cap, strict=True)]
    lines = (
        ("COVID-19", [n.covid if n else None for n in counts], covid),
        ("CAP", [n.cap if n else None for n in counts], cap),
        ("Total No.", [n.total if n else None for n in counts], total),
    )
    rows = []
    for i, (title, here, paper) in enumerate(lines):
        heads = (Head("No. of images", rows=3), Head(title)) if i == 0 else (Head(title),)
        cells = tuple(
            undefined("not given") if n is None else Cell(count_text(n), str(p))
            for n, p in zip(here, paper, strict=True)
        )
        rows.append(Row(heads, cells, starts_group=i == 0))
    return rows


def table1(rows: Sequence[CohortRow]) -> Table:
    """Table I: images, patients, age and sex of both sets, the paper's values beside."""
    found: dict[tuple[str, str], CohortRow] = {(row.set, row.label): row for row in rows}
    header = _header_beside_paper("Characteristics", ("training", "held-out"))
    titles = {
        "images (patients)": "No. (images (patients))",
        "age": "Age (years)",
        "female/male": "Female/Male",
    }
    lines = []
    for characteristic, groups in paper_results.TABLE1.items():
        for i, (label, published) in enumerate(groups.items()):
            title = Head("Total" if label == "total" else label)
            heads = (Head(titles[characteristic], rows=3), title) if i == 0 else (title,)
            cells: list[Cell] = []
            for set_name, paper in zip(("training", "held-out"), published, strict=True):
                cells += [_cohort_cell(found.get((set_name, label)), characteristic), Cell("", paper)]
            lines.append(Row(heads, tuple(cells), starts_group=i == 0))
    return Table((header,), tuple(lines), look="paired")


def _header_beside_paper(title: str, sets: Sequence[str]) -> tuple[Head, ...]:
    heads = [Head(title, columns=2)]
    for set_name in sets:
        heads += [Head(SET_TITLE[set_name]), Head("", note=f"paper, {PAPER_SET[set_name]}")]
    return tuple(heads)


def _cohort_cell(row: CohortRow | None, characteristic: str) -> Cell:
    if row is None:
        return undefined("not given")
    if characteristic == "images (patients)":
        return Cell(f"{row.images} ({row.patients})")
    if row.images == 0:
        return undefined("no case")
    if characteristic == "age":
        if row.age_median is None or row.age_range is None:
            return undefined("not recorded")
        return Cell(f"{row.age_median:.1f} ({row.age_range[0]:.0f}–{row.age_range[1]:.0f})")
    if row.female is None or row.male is None:
        return undefined("not recorded")
    return Cell(f"{row.female}/{row.male}")


def site_table(sites: Sequence[Site], per_site: Sequence[SiteScores]) -> Table:
    """Every site with its cases and rounds, and the scores of each model on its evaluated cases."""
    models = models_in(per_site)
    shown = ATTENTION_DS if ATTENTION_DS in models else (models[-1] if models else "")
    top = [Head("Site", rows=2), Head("Cases", columns=2), Head("Rounds", rows=2)]
    below = [Head(COVID_UNBROKEN), Head("CAP")]
    if models:
        top += [Head("Evaluated", columns=2), Head("AUC", columns=len(models))]
        top.append(Head(f"{shown} at 0.5", columns=4))
        below += [Head(COVID_UNBROKEN), Head("CAP")]
        below += [Head(_short(model), swatch=model_colour(model)) for model in models]
        below += [Head(title) for metric, title in METRICS.items() if metric != "auc"]
    rows = (
        _site_row(site, _column(row for row in per_site if row.site == site.name), models, shown)
        for site in sites
    )
    return Table((tuple(top), tuple(below)), tuple(rows), is_dense=True)


def _site_row(site: Site, scores: Column, models: Sequence[str], shown: str) -> Row:
    rounds = f"{site.rounds_completed} / {site.rounds_required}" if site.role == "training" else "–"
    cells = [
        Cell(count_text(site.cases.covid)),
        Cell(count_text(site.cases.cap)),
        Cell(rounds),
    ]
    if models:
        evaluated = next(iter(scores.values()), None)
        n = evaluated.n if evaluated is not None else None
        cells += (
            [undefined(""), undefined("")]
            if n is None
            else [Cell(count_text(n.covid)), Cell(count_text(n.cap))]
        )
        cells += [_score_cell(scores.get(model), "auc", frozenset()) for model in models]
        cells += [
            _score_cell(scores.get(shown), metric, frozenset()) for metric in METRICS if metric != "auc"
        ]
    role = "held-out" if site.role == "held-out" else ""
    return Row((Head(site.name, note=role, is_site=True),), tuple(cells))


def attention_table(rows: Sequence[AttentionScores]) -> Table:
    """Sets x models: Dice with the infection, mass in infection and lung, by group of infection ratios."""
    groups = [group for group in ("all", *RATIO_GROUPS) if any(row.group == group for row in rows)]
    scores: dict[tuple[str, str, str], AttentionScores] = {(r.set, r.model, r.group): r for r in rows}
    titles = ("Dice with infection", "Mass in infection", "Mass in lung")
    top = (Head("Model", columns=2, rows=2), *(Head(title, columns=len(groups)) for title in titles))
    below = tuple(Head(GROUP_TITLE[group]) for _ in titles for group in groups)
    lines = []
    for set_name in SETS:
        models = models_in(row for row in rows if row.set == set_name)
        for i, model in enumerate(models):
            here = [scores.get((set_name, model, group)) for group in groups]
            values: list[Score] = [row.dice_infection if row else None for row in here]
            values += [row.mass_in_infection if row else None for row in here]
            values += [row.mass_in_lung if row else None for row in here]
            cells = tuple(Cell(score_text(v), is_undefined=v is None) for v in values)
            lines.append(Row(_metric_heads(SET_TITLE[set_name], model, i, len(models)), cells, i == 0))
    return Table((top, below), tuple(lines), is_dense=True)


def ensemble_table(ensemble: Ensemble) -> Table:
    """The two weights with their intervals and the paper's."""
    low, high = ensemble.band
    outside, inside = f"below {low:.3f} or above {high:.3f}", f"{low:.3f} to {high:.3f}"
    lines = (
        (outside, ensemble.w_outside, ensemble.w_outside_ci, paper_results.PAPER_W_OUTSIDE),
        (inside, ensemble.w_inside, ensemble.w_inside_ci, paper_results.PAPER_W_INSIDE),
    )
    rows = tuple(
        Row(
            (Head(title),),
            (
                undefined("not fitted") if weight is None else Cell(f"{weight:.2f}"),
                Cell("–") if interval is None else Cell(f"{interval[0]:.2f} – {interval[1]:.2f}"),
                Cell(f"{paper:.2f}"),
            ),
        )
        for title, weight, interval, paper in lines
    )
    return Table(((Head("Infection ratio"), Head("w"), Head("95 % interval"), Head("paper")),), rows)


def sampling_table(draws: Sequence[GroupDraws]) -> Table:
    """Planned and drawn shares of the size groups, branch by branch."""
    has_federation = any(row.federation_probability is not None for row in draws)
    titles = (("W / sum W",) if has_federation else ()) + ("Planned share", "Drawn share", "Cases drawn")
    header = (Head("Branch"), Head("Size group"), *(Head(title) for title in titles))
    rows = []
    for branch in Branch:
        of_branch = [row for row in draws if row.branch == branch]
        total = sum(row.drawn for row in of_branch)
        for i, row in enumerate(of_branch):
            share = undefined("no draw") if total == 0 else Cell(f"{row.drawn / total:.3f}")
            heads: tuple[Head, ...] = (Head(row.group),)
            if i == 0:
                heads = (Head(BRANCH_TITLE[branch], rows=len(of_branch)), *heads)
            cells: tuple[Cell, ...] = (Cell(f"{row.expected:.3f}"), share, Cell(count_text(row.drawn)))
            if has_federation:
                cells = (Cell(score_text(row.federation_probability)), *cells)
            rows.append(Row(heads, cells, starts_group=i == 0))
    return Table((header,), tuple(rows))


def site_sampling_table(tests: Sequence[SiteSamplingTest]) -> Table:
    """The chi-square test of every site."""
    rows = tuple(
        Row(
            (Head(test.site, is_site=True),),
            (
                undefined("") if test.chi_square is None else Cell(f"{test.chi_square:.2f}"),
                undefined("one group") if test.p_value is None else Cell(p_text(test.p_value)),
            ),
        )
        for test in tests
    )
    return Table(((Head("Site"), Head("Chi-square"), Head("p")),), rows)


def shrunk_table(shrunk: Sequence[Shrunk]) -> Table:
    """What the study does otherwise than the paper."""
    header = (Head(""), Head("Paper"), Head("This study"))
    rows = tuple(Row((Head(row.what),), (Cell(_plain(row.paper)), Cell(_plain(row.here)))) for row in shrunk)
    return Table((header,), rows, look="words")


def missed_table(missed: Sequence[Missed]) -> Table:
    """Every contribution that is lacking, with the reason that the ledger gives."""
    header = (Head("Site"), Head("Branches"), Head("Rounds"), Head("Status"), Head("Code"), Head("Why"))
    rows = tuple(
        Row(
            (Head(gap.site, is_site=True),),
            (
                Cell(branches_text(gap.branches)),
                Cell(rounds_text(gap.rounds).split(" ", 1)[1]),
                Cell(gap.status),
                Cell(gap.code or "–"),
                Cell(gap.message or "no reason recorded"),
            ),
        )
        for gap in missed
    )
    return Table((header,), rows, look="words")


def mask_table(sites: Sequence[Site]) -> Table:
    """What made the masks of each site's cases, with its version, and of how many."""
    header = (Head("Site"), Head("Lung masks"), Head("Infection masks"))
    rows = tuple(
        Row(
            (Head(site.name, is_site=True),),
            (Cell(_makers(site.lung_masks)), Cell(_makers(site.infection_masks))),
        )
        for site in sites
    )
    return Table((header,), rows, look="words")


def _makers(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count_text(n)})" for name, n in sorted(counts.items())) or "not said"


def effort_table(run: RunFolder) -> Table:
    """Accepted work of each site over the study, from the ledger."""
    header = (
        Head("Site"),
        Head("Cases drawn"),
        Head("Steps"),
        Head("Training time"),
        Head("Sent to the centre"),
    )
    rows = []
    for site in dict.fromkeys(entry.site for entry in run.ledger):
        accepted = [entry for entry in run.ledger if entry.site == site and entry.status == "accepted"]
        cells = (
            Cell(count_text(sum(entry.cases or 0 for entry in accepted))),
            Cell(count_text(sum(entry.steps or 0 for entry in accepted))),
            Cell(duration_text(sum(entry.seconds or 0 for entry in accepted))),
            Cell(bytes_text(sum(entry.bytes or 0 for entry in accepted))),
        )
        rows.append(Row((Head(site, is_site=True),), cells))
    return Table((header,), tuple(rows))


def timing_table(timing: Timing) -> Table:
    """Where the seconds went: the study's rounds, the rest of the study, and the phases around it."""
    around = [(PHASE_TITLE.get(phase.name, phase.name), phase.seconds) for phase in timing.phases]
    around = [part for part, phase in zip(around, timing.phases, strict=True) if phase.name != "study"]
    study_s = next((phase.seconds for phase in timing.phases if phase.name == "study"), timing.total_s)
    training = sum(row.slowest_site_train_s for row in timing.rounds)
    on_top = sum(row.overhead_s for row in timing.rounds)
    rest = max(0.0, study_s - training - on_top)
    parts = [
        *around,
        ("Rounds: training at the slowest site", training),
        ("Rounds: waiting for other sites, sending, aggregating", on_top),
        ("Study outside the rounds: starting, enrolling, evaluating", rest),
    ]
    total_s = study_s + sum(seconds for _, seconds in around)
    rows = [Row((Head(title),), (_time_cell(s), _share_cell(s, total_s))) for title, s in parts]
    rows.append(Row((Head("Total"),), (_time_cell(total_s), Cell("")), starts_group=True))
    return Table(((Head("What took the time"), Head("Time"), Head("Share")),), tuple(rows))


def _time_cell(seconds: float) -> Cell:
    return Cell(duration_text(seconds))


def _share_cell(seconds: float, total_s: float) -> Cell:
    return Cell(f"{seconds / total_s:.2f}") if total_s > 0 else undefined("")


def traffic_table(traffic: Traffic) -> Table:
    """Bytes in both directions."""
    header = (Head("Weights and counts"), Head("Bytes"), Head(""))
    both = (("To the sites", traffic.bytes_to_sites), ("From the sites", traffic.bytes_from_sites))
    rows = tuple(Row((Head(title),), (Cell(count_text(n)), Cell(bytes_text(n)))) for title, n in both)
    return Table((header,), rows)


def _column(rows: Iterable[ModelScores]) -> Column:
    return {row.model: row for row in rows}


def _best(column: Column, metric: str) -> frozenset[str]:
    """The models with the highest value as printed; nobody where there is nothing to compare."""
    shown = {
        model: score_text(row.score_of[metric])
        for model, row in column.items()
        if row.score_of[metric] is not None
    }
    if len(shown) < 2:
        return frozenset()
    top = max(shown.values())
    return frozenset(model for model, text in shown.items() if text == top)


def _score_cell(row: ModelScores | None, metric: str, best: frozenset[str], paper: str = "") -> Cell:
    if row is None:
        return Cell("n/a", paper or "not given", is_undefined=True)
    value = row.score_of[metric]
    if value is None:
        return undefined(why_undefined(metric, row.n))
    return Cell(score_text(value), paper, is_best=row.model in best)


def _metric_heads(title: str, model: str, position: int, n_models: int) -> tuple[Head, ...]:
    name = Head(model, swatch=model_colour(model))
    return (Head(title, rows=n_models), name) if position == 0 else (name,)


def _interval_text(interval: Interval) -> str:
    return (
        "no interval" if interval is None else f"[{interval[0]:.3f},\u00a0{interval[1]:.3f}]"
    )  # on one line


def _short(model: str) -> str:
    """A model's name for a narrow column: what is special about it."""
    return "RN34" if model == paper_results.RN34_US else model.removeprefix("Attention RN34 + ")


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
