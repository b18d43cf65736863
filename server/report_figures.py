"""The report's figures as SVG text: ROC (Fig. 4), infection ratios (Fig. 1), training curves and the rest."""

import math
from collections.abc import Mapping, Sequence

from dsan_model.cases import LARGE_CAP_ABOVE, SMALL_COVID_BELOW, Label
from dsan_model.sampling import Branch
from server import svg
from server.paper_results import (
    ATTENTION_DS,
    ATTENTION_SS,
    ATTENTION_US,
    MODELS,
    PAPER_W_INSIDE,
    PAPER_W_OUTSIDE,
    RN34_US,
)
from server.report_blocks import SET_TITLE, rounds_text, score_text
from server.report_input import (
    CohortSet,
    CurvePoint,
    Ensemble,
    GroupDraws,
    Interval,
    ModelScores,
    RatioHistogram,
    RocCurve,
    RoundTime,
    Score,
    SelectedRound,
)
from server.svg import FRAME, GRID, INK, SOFT, Area, Axis

# One colour a model (and its branch) on the whole page, from Okabe and Ito's palette, which readers with
# any colour vision tell apart; dashes say the same again for a black-and-white print.
MODEL_COLOUR = {RN34_US: "#6e7681", ATTENTION_US: "#0072b2", ATTENTION_SS: "#d55e00", ATTENTION_DS: "#009e73"}
MODEL_DASH = {RN34_US: "2 3", ATTENTION_US: "none", ATTENTION_SS: "8 4", ATTENTION_DS: "none"}
MODEL_WIDTH = {ATTENTION_DS: 3.0}
CLASS_COLOUR = {Label.COVID: "#aa3377", Label.CAP: "#4a9fd4"}
OTHER_COLOUR = "#111111"


def model_colour(model: str) -> str:
    """The model's colour; black for a model that the paper does not name."""
    return MODEL_COLOUR.get(model, OTHER_COLOUR)


def roc_panel(set_name: str, curves: Sequence[RocCurve], scores: Sequence[ModelScores], reason: str) -> str:
    """ROC of every model on one set (Fig. 4), with the operating point at a probability of 0.5.

    Without curves the panel says why: `reason`.
    """
    ticks = tuple((i / 5, f"{i / 5:.1f}") for i in range(6))
    area = Area(Axis(0, 1, 56, 516), Axis(0, 1, 496, 36), ticks, ticks)
    body = [
        svg.title(56, 20, SET_TITLE[set_name]),
        area.frame(),
        svg.axis_names(area, "1 − specificity", "sensitivity"),
    ]
    body.append(svg.line((area.x.px(0), area.y.px(0)), (area.x.px(1), area.y.px(1)), FRAME, dash="1 4"))
    if not curves:
        body.append(svg.text(286, 260, f"No curve: {reason}", "middle", size=14, colour=SOFT))
    for curve in sorted(curves, key=lambda curve: _drawing_order(curve.model)):
        colour, dash = model_colour(curve.model), MODEL_DASH.get(curve.model, "none")
        points = list(zip(curve.fpr, curve.tpr, strict=True))
        body.append(area.curve(points, colour, dash, MODEL_WIDTH.get(curve.model, 1.8)))
    body += [_operating_point(area, row) for row in scores]
    body.append(_roc_legend(sorted(curves, key=lambda curve: _paper_order(curve.model))))
    return svg.panel(530, 544, f"ROC curves, {SET_TITLE[set_name]}", body)


def _operating_point(area: Area, row: ModelScores) -> str:
    if row.sensitivity is None or row.specificity is None:
        return ""
    at = (area.x.px(1 - row.specificity), area.y.px(row.sensitivity))
    return svg.dot(at, 4.5, "#fff", stroke=model_colour(row.model))


def _roc_legend(curves: Sequence[RocCurve]) -> str:
    if not curves:
        return ""
    top = 484 - 21 * len(curves)
    parts = [svg.rect(266, top - 20, 246, 21 * len(curves) + 28, "#fff", opacity=0.9)]
    parts.append(svg.text(508, top - 4, "AUC", "end", colour=SOFT))
    for i, curve in enumerate(curves):
        y = top + 16 + 21 * i
        dash, width = MODEL_DASH.get(curve.model, "none"), MODEL_WIDTH.get(curve.model, 1.8)
        parts.append(svg.line((274, y - 4), (304, y - 4), model_colour(curve.model), dash=dash, width=width))
        parts.append(svg.text(312, y, curve.model, size=13))
        parts.append(svg.text(508, y, score_text(curve.auc), "end", size=13))
    return "".join(parts)


def curve_panels(points: Sequence[CurvePoint], selection: Mapping[Branch, SelectedRound]) -> tuple[str, ...]:
    """Losses, validation AUC with the chosen round, learning rate: a panel a branch, on the same scales."""
    rounds = Axis(*_span([p.round for p in points], 0.5), 52, 334)
    losses = [v for p in points for v in (p.classification_loss, p.attention_loss) if v is not None]
    aucs = [p.validation_auc for p in points if p.validation_auc is not None]
    rates = [p.learning_rate for p in points if p.learning_rate]
    x_ticks = tuple((float(r), str(r)) for r in _some_rounds([p.round for p in points], 8))
    loss_high = svg.nice_top(max(losses, default=1.0))
    auc_low = max(0.0, min(0.5, math.floor(min(aucs, default=1.0) * 10 - 1) / 10))  # room for a label below
    rate_span = (min(rates, default=1e-4) / 2, max(rates, default=1e-4) * 2)
    areas = (
        Area(rounds, Axis(0, loss_high, 196, 66), (), svg.ticks(0, loss_high)),
        Area(rounds, Axis(auc_low, 1, 362, 232), (), svg.ticks(auc_low, 1)),
        Area(rounds, Axis(*rate_span, 448, 398, is_log=True), x_ticks, _rate_ticks(rates)),
    )
    branches = [branch for branch in Branch if any(p.branch == branch for p in points)]
    return tuple(
        _curve_panel(branch, [p for p in points if p.branch == branch], selection.get(branch), areas)
        for branch in branches
    )


def _curve_panel(
    branch: Branch, points: Sequence[CurvePoint], chosen: SelectedRound | None, areas: tuple[Area, Area, Area]
) -> str:
    colour = model_colour(branch.model_name)
    points = sorted(points, key=lambda point: point.round)
    loss, auc, rate = areas
    body = [svg.rect(52, 8, 12, 12, colour), svg.title(70, 19, branch.model_name)]
    body += [area.frame() for area in areas]
    body += [
        svg.text(52, 54, "training loss", colour=SOFT),
        svg.text(52, 220, "AUC on validation cases", colour=SOFT),
        svg.text(52, 388, "learning rate", colour=SOFT),
        svg.text(193, 484, "round", "middle", size=13),
    ]
    body.append(_loss_lines(loss, points, colour))
    body.append(_auc_line(auc, points, colour))
    body.append(_rate_steps(rate, points, colour))
    if chosen is not None and rate.x.low <= chosen.round <= rate.x.high:
        body.append(_chosen_round(areas, chosen, colour))
    return svg.panel(346, 492, f"Training of {branch.model_name}", body)


def _loss_lines(area: Area, points: Sequence[CurvePoint], colour: str) -> str:
    classification = [(float(p.round), p.classification_loss) for p in points]
    attention = [(float(p.round), p.attention_loss) for p in points]
    parts = [area.curve(classification, colour, "none", 2), area.curve(attention, colour, "2 3", 2)]
    parts += [svg.line((146, 50), (168, 50), colour, width=2), svg.text(173, 54, "classification")]
    if any(value is not None for _, value in attention):
        parts += [svg.line((262, 50), (284, 50), colour, dash="2 3", width=2), svg.text(289, 54, "attention")]
    return "".join(parts)


def _auc_line(area: Area, points: Sequence[CurvePoint], colour: str) -> str:
    values = [(float(p.round), p.validation_auc) for p in points]
    if all(value is None for _, value in values):
        return svg.text(
            (area.x.start_px + area.x.end_px) / 2, 300, "not defined", "middle", size=13, colour=SOFT
        )
    bounds = (
        svg.line(
            (area.x.px(p.round), area.y.px(max(area.y.low, p.validation_auc - p.validation_auc_error_bound))),
            (area.x.px(p.round), area.y.px(min(1.0, p.validation_auc + p.validation_auc_error_bound))),
            colour,
            width=5,
            opacity=0.35,
        )
        for p in points
        if p.validation_auc is not None and p.validation_auc_error_bound is not None
    )
    return area.curve(values, colour, "none", 2) + "".join(bounds)


def _rate_steps(area: Area, points: Sequence[CurvePoint], colour: str) -> str:
    """The rate holds from half a round before to half a round after."""
    steps = [
        (p.round + side, p.learning_rate if p.learning_rate and p.learning_rate > 0 else None)
        for p in points
        for side in (-0.5, 0.5)
    ]
    return area.curve(steps, colour, "none", 2)


def _chosen_round(areas: tuple[Area, Area, Area], chosen: SelectedRound, colour: str) -> str:
    loss, auc, rate = areas
    x = auc.x.px(chosen.round)
    parts = [
        svg.line((x, area.y.start_px), (x, area.y.end_px), INK, dash="1 3") for area in (loss, auc, rate)
    ]
    is_right = x > (auc.x.start_px + auc.x.end_px) / 2
    label = f"chosen: {rounds_text((chosen.round,))}"
    label += f", {score_text(chosen.validation_auc)}" if chosen.validation_auc is not None else ""
    anchor, shift = ("end", -7) if is_right else ("start", 7)
    parts.append(svg.text(x + shift, auc.y.start_px - 8, label, anchor, colour=INK, halo=True))
    if chosen.validation_auc is not None:
        parts.append(svg.dot((x, auc.y.px(max(auc.y.low, chosen.validation_auc))), 5, "#fff", stroke=colour))
    return "".join(parts)


def histogram_panels(histogram: RatioHistogram) -> tuple[str, ...]:
    """Cases by infection ratio and class on a log axis (Fig. 1, right), a panel for each set."""
    return tuple(_histogram_panel(name, classes, histogram.edges) for name, classes in histogram.sets.items())


def _histogram_panel(
    set_name: CohortSet, classes: Mapping[Label, tuple[int, ...]], bins: Sequence[float]
) -> str:
    edges = _log_edges(bins)
    area = _ratio_area(
        edges, bins[0] == 0, max((n for counts in classes.values() for n in counts), default=1)
    )
    body = [svg.title(56, 20, SET_TITLE[set_name]), area.frame()]
    body.append(svg.axis_names(area, "infection ratio (infection volume / lung volume)", "cases"))
    for x, label in zip((180, 345), Label, strict=True):
        counts = classes.get(label, (0,) * (len(edges) - 1))
        body.append(_steps(area, edges, counts, CLASS_COLOUR[label]))
        body.append(svg.rect(x, 9, 12, 12, CLASS_COLOUR[label], opacity=0.75))
        body.append(svg.text(x + 18, 20, f"{label}, n = {sum(counts):,}", size=13))
    for bound in (LARGE_CAP_ABOVE, SMALL_COVID_BELOW):
        if edges[0] < bound < edges[-1]:
            at = area.x.px(bound)
            body.append(svg.line((at, 262), (at, 46), INK, dash="4 3"))
            body.append(svg.text(at, 40, f"{bound:.3f}", "middle", colour=INK))
    return svg.panel(530, 310, f"Infection ratios, {SET_TITLE[set_name]}", body)


def _ratio_area(edges: Sequence[float], starts_at_zero: bool, highest_count: int) -> Area:
    """A tick at every power of ten; "0" stands at the start of a first bin that begins there."""
    first = edges[1] * 1.001 if starts_at_zero else edges[0] * 0.999
    decades = range(math.ceil(math.log10(first)), math.floor(math.log10(edges[-1] * 1.001)) + 1)
    x_ticks = tuple((10.0**k, f"{10.0**k:.{max(0, -k)}f}") for k in decades)
    if starts_at_zero:
        x_ticks = ((edges[0], "0"), *x_ticks)
    top = svg.nice_top(highest_count, smallest_step=1)
    return Area(
        Axis(edges[0], edges[-1], 56, 516, is_log=True), Axis(0, top, 262, 52), x_ticks, svg.ticks(0, top, 1)
    )


def _steps(area: Area, edges: Sequence[float], counts: Sequence[int], colour: str) -> str:
    corners: list[svg.Point] = [(area.x.px(edges[0]), area.y.px(0))]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        corners += [(area.x.px(low), area.y.px(count)), (area.x.px(high), area.y.px(count))]
    corners.append((area.x.px(edges[-1]), area.y.px(0)))
    path = svg.path_data(corners)
    return f'<path d="{path}Z" fill="{colour}" fill-opacity="0.28" stroke="{colour}" stroke-width="1.6"/>'


def _log_edges(bins: Sequence[float]) -> tuple[float, ...]:
    """A first edge of 0 has no place on a log axis: its bin is drawn as wide as the next one."""
    return tuple(bins) if bins[0] > 0 else (bins[1] ** 2 / bins[2], *bins[1:])


def ensemble_panel(ensemble: Ensemble) -> str:
    """The two weights of Eq. 5 between all SS and all US, with the paper's."""
    axis = Axis(0, 1, 208, 578)
    low, high = ensemble.band
    rows = (
        (f"below {low:.3f} or above {high:.3f}", ensemble.w_outside, ensemble.w_outside_ci, PAPER_W_OUTSIDE),
        (f"{low:.3f} to {high:.3f}", ensemble.w_inside, ensemble.w_inside_ci, PAPER_W_INSIDE),
    )
    body = [
        svg.text(200, 24, "infection ratio", "end", colour=SOFT),
        svg.text(208, 24, "w = 0: SS alone", colour=model_colour(ATTENTION_SS)),
        svg.text(578, 24, "w = 1: US alone", "end", colour=model_colour(ATTENTION_US)),
    ]
    for i, (label, weight, interval, paper) in enumerate(rows):
        body.append(_weight_row(axis, 54 + 42 * i, label, weight, interval, paper))
    for i in range(6):
        body.append(svg.text(axis.px(i / 5), 134, f"{i / 5:.1f}", "middle", colour=SOFT))
    body += [
        svg.dot((218, 154), 5, model_colour(ATTENTION_DS)),
        svg.text(229, 158, "this study, with its 95 % interval"),
    ]
    body += [svg.diamond((454, 154)), svg.text(465, 158, "the paper")]
    return svg.panel(600, 170, "Ensemble weights", body)


def _weight_row(axis: Axis, y: float, label: str, weight: Score, interval: Interval, paper: float) -> str:
    colour = model_colour(ATTENTION_DS)
    parts = [
        svg.text(200, y + 5, label, "end", size=13),
        svg.line((axis.px(0), y), (axis.px(1), y), GRID, width=6),
    ]
    if interval is not None:
        parts.append(
            svg.line((axis.px(interval[0]), y), (axis.px(interval[1]), y), colour, width=6, opacity=0.4)
        )
    parts.append(svg.diamond((axis.px(paper), y)))
    if weight is None:
        parts.append(svg.text(axis.px(0.5), y - 8, "n/a", "middle", colour=SOFT))
    else:
        parts.append(svg.dot((axis.px(weight), y), 6, colour))
        parts.append(svg.text(axis.px(weight), y - 10, f"{weight:.2f}", "middle", size=13, bold=True))
    return "".join(parts)


def sampling_panel(branch: Branch, draws: Sequence[GroupDraws]) -> str:
    """Drawn share of each size group as a bar, the planned share as a stroke."""
    total = sum(row.drawn for row in draws)
    shares = [row.drawn / total if total else 0.0 for row in draws]
    axis = Axis(0, svg.nice_top(max([*shares, *(row.expected for row in draws), 0.1])), 130, 440)
    colour = model_colour(branch.model_name)
    body = [svg.rect(130, 8, 12, 12, colour), svg.title(148, 19, branch.model_name)]
    for i, (row, share) in enumerate(zip(draws, shares, strict=True)):
        y, planned = 38 + 30 * i, axis.px(row.expected)
        body.append(svg.text(122, y + 14, row.group, "end", size=13))
        body.append(svg.rect(130, y, axis.px(share) - 130, 19, colour, opacity=0.55))
        body.append(svg.line((planned, y - 4), (planned, y + 23), INK, width=2.5))
        body.append(svg.text(max(axis.px(share), planned) + 7, y + 14, f"{share:.3f}", size=12))
    height = 44 + 30 * len(draws)
    body += [svg.rect(130, height, 12, 12, colour, opacity=0.55), svg.text(147, height + 10, "share drawn")]
    body += [
        svg.line((232, height - 1), (232, height + 13), INK, width=2.5),
        svg.text(240, height + 10, "plan"),
    ]
    return svg.panel(500, height + 22, f"Size groups drawn, {branch.model_name}", body)


def timing_panel(rounds: Sequence[RoundTime]) -> str:
    """Seconds of every round and branch: training at the slowest site, and what came on top."""
    numbers = sorted({row.round for row in rounds})
    branches = [branch for branch in Branch if any(row.branch == branch for row in rounds)]
    top = svg.nice_top(max(row.slowest_site_train_s + row.overhead_s for row in rounds))
    x = Axis(*_span(numbers, 0.5), 56, 1040)
    x_ticks = tuple((float(r), str(r)) for r in _some_rounds(numbers, 24))
    area = Area(x, Axis(0, top, 190, 34), x_ticks, svg.ticks(0, top))
    slot = (x.px(numbers[0] + 1) - x.px(numbers[0])) * 0.8
    width = min(26.0, slot / len(branches))
    body = [
        svg.text(8, 16, "seconds", colour=SOFT),
        area.frame(),
        svg.text(548, 224, "round", "middle", size=13),
    ]
    for row in rounds:
        left = x.px(row.round) + width * (branches.index(row.branch) - len(branches) / 2)
        body.append(_time_bar(area, row, left, width))
    body.append(_timing_legend(branches))
    return svg.panel(1052, 232, "Seconds of each round", body)


def _time_bar(area: Area, row: RoundTime, left: float, width: float) -> str:
    base, train = area.y.px(0), area.y.px(row.slowest_site_train_s)
    top = area.y.px(row.slowest_site_train_s + row.overhead_s)
    colour = model_colour(row.branch.model_name)
    training = svg.rect(left, train, width * 0.92, base - train, colour, opacity=0.75)
    return training + svg.rect(left, top, width * 0.92, train - top, INK, opacity=0.3)


def _timing_legend(branches: Sequence[Branch]) -> str:
    names = [(f"training, {branch.model_name}", model_colour(branch.model_name), 0.75) for branch in branches]
    names.append(("on top: other sites, sending, aggregating", INK, 0.3))
    parts, x = [], 90.0
    for name, colour, opacity in names:
        parts += [svg.rect(x, 6, 12, 12, colour, opacity=opacity), svg.text(x + 17, 16, name)]
        x += 34 + 6.4 * len(name)
    return "".join(parts)


def _rate_ticks(rates: Sequence[float]) -> tuple[tuple[float, str], ...]:
    distinct = sorted(set(rates))
    shown = distinct if len(distinct) <= 3 else [distinct[0], distinct[-1]]
    return tuple((rate, f"{rate:.0e}".replace("e-0", "e-")) for rate in shown)


def _some_rounds(rounds: Sequence[int], at_most: int) -> list[int]:
    low, high = min(rounds), max(rounds)
    step = max(1, math.ceil(svg.round_step((high - low + 1) / at_most))) if high > low else 1
    return [r for r in range(low, high + 1) if r % step == 0 or step == 1]


def _span(values: Sequence[int], margin: float) -> tuple[float, float]:
    return min(values) - margin, max(values) + margin


def _paper_order(model: str) -> tuple[int, str]:
    return (MODELS.index(model) if model in MODELS else len(MODELS), model)


def _drawing_order(model: str) -> tuple[int, str]:
    """DS lies below the lines that it is made of, so that it does not hide them; it is the widest."""
    return (-1, model) if model == ATTENTION_DS else _paper_order(model)
