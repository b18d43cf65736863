"""The console's figures: validation and loss by round, norm and cosine of every update, as SVG text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsan_model.sampling import Branch
from dsan_model.watch import BRANCHES
from server import svg
from server.round_files import RoundOutline, ValidationCounts, read_rounds, read_validation, validation_score
from server.svg import SOFT, Area, Axis

BRANCH_NAME = {"us": "US", "ss": "SS", "baseline": "RN34 + US", "vbnet": "VB-Net"}
BRANCH_COLOUR = {"us": "#0072b2", "ss": "#d55e00", "baseline": "#6e7681", "vbnet": "#009e73"}
BRANCH_DASH = {"us": "none", "ss": "8 4", "baseline": "2 3", "vbnet": "none"}
SITE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#5b6673")
SITE_DASHES = ("none", "6 3", "2 3")  # of the second and third eight sites
LONGEST_NAME = 12  # that fits into a legend
Points = Sequence[tuple[float, float | None]]  # round, value
Update = Mapping[str, object]  # a line of the ledger on a site's update


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    name: str
    points: Points
    colour: str
    dash: str = "none"


@dataclass(frozen=True)
class Look:
    """Size of a panel, and the ends of its y axis; None: as the values have it."""

    width: int = 524
    height: int = 250
    low: float | None = None
    high: float | None = None
    has_legend: bool = True


def figure_panels(run_folder: Path, updates: Sequence[Update]) -> dict[str, list[str]]:
    """Panels by name: pooled, sites, norms, cosines; what has no data yet is left out."""
    rounds, validation = read_rounds(run_folder), list(read_validation(run_folder))
    found = {
        "pooled": [_pooled_score(validation), _pooled_loss(rounds)] if rounds else [],
        "sites": _site_scores(validation),
        "norms": [_update_panel(updates, branch, "relative_update") for branch in _present(updates)],
        "cosines": [
            _update_panel(updates, branch, "cosine")
            for branch in _present(updates)
            if any(entry.get("cosine") is not None for entry in updates)
        ],
    }
    return {name: panels for name, panels in found.items() if panels}


def _pooled_score(validation: Sequence[tuple[int, ValidationCounts]]) -> str:
    """Of all sites' validation cases; round r has that of the weights after r - 1 rounds."""
    lines = [
        Line(
            BRANCH_NAME[branch],
            [(float(number), validation_score(counts, branch)) for number, counts in validation],
            BRANCH_COLOUR[branch],
            BRANCH_DASH[branch],
        )
        for branch in BRANCHES
    ]
    return _panel(f"{_measure(validation)} on the validation cases of all sites", lines, Look(high=1.0))


def _measure(validation: Sequence[tuple[int, ValidationCounts]]) -> str:
    branches = {branch for _, counts in validation for _, branch in counts}
    return "Dice" if Branch.VBNET in branches else "AUC"


def _pooled_loss(rounds: Sequence[RoundOutline]) -> str:
    lines = []
    for branch in BRANCHES:
        points = []
        for entry in rounds:
            cases = {site: n for (site, of), n in entry.cases.items() if of == branch}
            total = sum(cases.values())
            mean = sum(entry.losses[site, branch] * n for site, n in cases.items()) / total if total else None
            points.append((float(entry.round), mean))
        lines.append(Line(BRANCH_NAME[branch], points, BRANCH_COLOUR[branch], BRANCH_DASH[branch]))
    return _panel("training loss, mean over all cases", lines, Look(low=0.0))


def _site_scores(validation: Sequence[tuple[int, ValidationCounts]]) -> list[str]:
    sites = sorted({site for _, counts in validation for site, _ in counts})
    panels = []
    for site in sites:
        lines = [
            Line(
                BRANCH_NAME[branch],
                [(float(number), validation_score(counts, branch, site)) for number, counts in validation],
                BRANCH_COLOUR[branch],
                BRANCH_DASH[branch],
            )
            for branch in BRANCHES
        ]
        panels.append(_panel(site, lines, Look(254, 150, low=0.0, high=1.0, has_legend=False)))
    return panels


def _present(updates: Sequence[Update]) -> list[str]:
    return [branch for branch in BRANCHES if any(entry["branch"] == branch for entry in updates)]


def _update_panel(updates: Sequence[Update], branch: str, key: str) -> str:
    by_site: dict[str, list[tuple[float, float | None]]] = {}
    for entry in updates:
        if entry["branch"] == branch:
            value = entry.get(key)
            point = (float(str(entry["round"])), None if value is None else float(str(value)))
            by_site.setdefault(str(entry["site"]), []).append(point)
    lines = [
        Line(site, points, SITE_COLOURS[i % 8], SITE_DASHES[i // 8 % 3])
        for i, (site, points) in enumerate(sorted(by_site.items()))
    ]
    words = {
        "relative_update": "norm of the update over that of the weights",
        "cosine": "cosine with the mean",
    }
    look = Look(low=0.0) if key == "relative_update" else Look(high=1.0)
    return _panel(f"{BRANCH_NAME[branch]}: {words[key]}", lines, look)


def _panel(title: str, lines: Sequence[Line], look: Look) -> str:
    """Lines over rounds, with a legend on the right; a panel without any value says so."""
    drawn = [line for line in lines if any(value is not None for _, value in line.points)]
    values = [value for line in drawn for _, value in line.points if value is not None]
    body = [svg.title(44, 18, title)]
    if not values:
        body.append(svg.text(44, look.height / 2, "nothing yet", colour=SOFT))
        return svg.panel(look.width, look.height, title, body)
    numbers = [at for line in drawn for at, _ in line.points]
    right = look.width - (122 if look.has_legend else 12)
    x = Axis(min(numbers) - 0.5, max(numbers) + 0.5, 44, right)
    low, high = _span(values, look)
    y = Axis(low, high, look.height - 26, 34)
    area = Area(
        x,
        y,
        svg.ticks(x.low, x.high, 1),
        svg.ticks(low, high),
    )
    body.append(area.frame())
    body += [area.curve(line.points, line.colour, line.dash, 2) for line in drawn]
    if look.has_legend:
        body += [_legend(line, right + 14, 44 + 17 * i) for i, line in enumerate(drawn)]
    return svg.panel(look.width, look.height, title, body)


def _span(values: Sequence[float], look: Look) -> tuple[float, float]:
    low = min(values) if look.low is None else look.low
    high = svg.nice_top(max(values)) if look.high is None else look.high
    step = svg.round_step(max(high - low, 1e-6) / 4)
    return (low // step * step, high) if low < high else (low - 0.5, high + 0.5)


def _legend(line: Line, x: float, y: float) -> str:
    mark = svg.line((x, y - 4), (x + 22, y - 4), line.colour, line.dash, 2)
    return mark + svg.text(x + 28, y, _short(line.name))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
