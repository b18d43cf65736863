"""What the console shows of a run: matrix, curves, updates, events and ledger, as plain data and SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from dsan_model.sampling import Branch
from dsan_model.watch import BRANCHES
from server import svg
from server.ledger import read_ledger
from server.round_files import RoundOutline, ValidationCounts, read_rounds, read_validation, validation_score
from server.status import CentreStatus, RunStatus, SiteInRun, centre_status, duration, newest_run
from server.status_text import MARKS, doing
from server.svg import SOFT, Area, Axis

TEMPLATE = "console.html.jinja"
LINES_SHOWN = 200
BRANCH_NAME = {"us": "US", "ss": "SS", "baseline": "RN34 + US", "vbnet": "VB-Net"}
BRANCH_COLOUR = {"us": "#0072b2", "ss": "#d55e00", "baseline": "#6e7681", "vbnet": "#009e73"}
BRANCH_DASH = {"us": "none", "ss": "8 4", "baseline": "2 3", "vbnet": "none"}
SITE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#5b6673")
SITE_DASHES = ("none", "6 3", "2 3")  # of the second and third eight sites
Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    name: str
    points: Points
    colour: str
    dash: str = "none"


@dataclass(frozen=True)
class Look:
    """Size and scale of a panel: width, height, the smallest span of y, how many x ticks fit."""

    width: int = 524
    height: int = 250
    low: float | None = None  # of y; None: the lowest value
    high: float | None = None
    has_legend: bool = True


def console_html(folder: Path, run_name: str | None, refresh_s: int) -> str:
    """The page of a run of a centre's folder, or of the newest. Everything but our own SVG is escaped."""
    status = centre_status(folder, run_name)
    run_folder = folder / "runs" / status.run.name if status.run else None
    return _template().render(
        status=status,
        refresh_s=refresh_s,
        clock=clock(status.now),
        facts=_facts(status),
        rounds=_rounds(status.run),
        rows=[_row(site, status) for site in status.sites],
        marks=MARKS,
        panels=_panels(run_folder) if run_folder else {},
        updates=_last_updates(run_folder) if run_folder else [],
        events=[(clock(at), event, message) for at, event, message in reversed(status.events)][:LINES_SHOWN],
        ledger=_ledger(run_folder) if run_folder else [],
        runs=_runs(folder),
    )


def clock(unix: float | None) -> str:
    """A time for the page, UTC."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S") if unix is not None else ""


def _facts(status: CentreStatus) -> list[tuple[str, str]]:
    run = status.run
    facts = [("SiteWatch", "runs" if status.is_watching else "does not run")]
    connected = sum(site.is_connected for site in status.sites)
    facts.append(("connected", f"{connected} of {len(status.sites)} sites"))
    if run is None:
        return facts
    facts.append(("round", f"{run.round} of {run.rounds}"))
    if run.round_began is not None:
        facts.append(("in this round for", duration(status.now - run.round_began)))
    if run.round_seconds is not None:
        facts.append(("the last took", duration(run.round_seconds)))
    if run.round_deadline is not None:
        facts.append(("deadline", clock(run.round_deadline)))
    if run.ends_at is not None:
        facts.append(("rounds end in about", duration(run.ends_at - status.now)))
    return facts


def _rounds(run: RunStatus | None) -> range:
    return range(1, run.round + 1) if run else range(0)


def _row(site: SiteInRun, status: CentreStatus) -> dict[str, object]:
    report, age = site.report, site.last_contact_age_s(status.now)
    has_steps = site.is_connected and report.steps > 0
    return {
        "name": site.name,
        "role": site.role,
        "doing": doing(site),
        "steps": f"{report.done} of {report.steps}" if has_steps else "",
        "share": round(100 * report.done / report.steps) if has_steps else None,
        "eta": duration(report.eta_s) if has_steps and report.eta_s else "",
        "contact": "never" if age is None else f"{duration(age)} ago",
        "release": report.release,
        "disk": f"{report.disk_free_bytes / 1e9:.0f} GB" if report.disk_free_bytes else "",
        "late": site.late,
        "is_late": bool(site.late) and site.role != "enrolled",
        "cells": [
            (site.rounds.get(number, ""), site.reasons.get(number, site.rounds.get(number, "")))
            for number in _rounds(status.run)
        ],
    }


def _runs(folder: Path) -> list[dict[str, object]]:
    newest = newest_run(folder / "runs")
    found = sorted(path.parent for path in (folder / "runs").glob("*/study.toml"))
    return [
        {"name": path.name, "has_report": (path / "report.html").is_file(), "is_newest": path == newest}
        for path in found
    ]


def _panels(run_folder: Path) -> dict[str, list[str]]:
    rounds, validation = read_rounds(run_folder), list(read_validation(run_folder))
    updates = _updates(run_folder)
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


def _updates(run_folder: Path) -> list[dict[str, object]]:
    """The last word of the ledger on every update, in the order of rounds and sites."""
    last = {
        (int(str(line["round"])), str(line["site"]), str(line["branch"])): line
        for line in read_ledger(run_folder)
        if line.get("event") == "round"
    }
    order = {branch: i for i, branch in enumerate(BRANCHES)}
    return [last[key] for key in sorted(last, key=lambda key: (key[:2], order.get(key[2], len(order))))]


def _present(updates: Sequence[Mapping[str, object]]) -> list[str]:
    return [branch for branch in BRANCHES if any(entry["branch"] == branch for entry in updates)]


def _update_panel(updates: Sequence[Mapping[str, object]], branch: str, key: str) -> str:
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
    return mark + svg.text(x + 28, y, line.name if len(line.name) <= 12 else line.name[:11] + "…")


def _last_updates(run_folder: Path) -> list[dict[str, object]]:
    """Every site's update in the newest round that the ledger knows."""
    updates = _updates(run_folder)
    newest = max((int(str(entry["round"])) for entry in updates), default=None)
    return [_update_row(entry) for entry in updates if entry["round"] == newest]


def _update_row(entry: Mapping[str, object]) -> dict[str, object]:
    size, norm, cosine = entry.get("bytes"), entry.get("relative_update"), entry.get("cosine")
    seconds = entry.get("seconds")
    return {
        **{
            key: entry.get(key)
            for key in ("round", "site", "branch", "status", "cases", "steps", "code", "message")
        },
        "branch": BRANCH_NAME.get(str(entry["branch"]), entry["branch"]),
        "seconds": "" if seconds is None else duration(float(str(seconds))),
        "size": "" if size is None else f"{float(str(size)) / 1e6:.1f} MB",
        "norm": "" if norm is None else f"{float(str(norm)):.3g}",
        "cosine": "" if cosine is None else f"{float(str(cosine)):.2f}",
        "digest": str(entry.get("digest") or "")[:10],
    }


def _ledger(run_folder: Path) -> list[dict[str, object]]:
    newest_first = reversed(_updates(run_folder))
    return [
        _update_row(entry) | {"time": str(entry["time"])[:19].replace("T", " ")} for entry in newest_first
    ][:LINES_SHOWN]


@cache
def _template() -> Template:
    """Every value is escaped, and a name that the template lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template(TEMPLATE)
