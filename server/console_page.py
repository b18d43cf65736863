"""What the console shows of a run: matrix, figures, updates, events and ledger."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

from dsan_daemon.pages import page_environment
from dsan_model.watch import BRANCHES
from server.console_figures import BRANCH_NAME, Update, figure_panels
from server.ledger import read_ledger
from server.status import (
    CentreStatus,
    RunStatus,
    SiteInRun,
    centre_status,
    duration,
    shown_folder,
)
from server.status_text import MARKS, doing

TEMPLATE = "console.html.jinja"
LINES_SHOWN = 200


def console_html(folder: Path, run_name: str | None, refresh_s: int) -> str:
    """The page of a run of a centre's folder, or of the newest. Everything but our own SVG is escaped."""
    status = centre_status(folder, run_name)
    run_folder = shown_folder(folder, status.run) if status.run else None
    updates = _updates(run_folder) if run_folder else []
    return _template().render(
        status=status,
        refresh_s=refresh_s,
        clock=clock(status.now),
        facts=_facts(status),
        rounds=_rounds(status.run),
        rows=[_row(site, status) for site in status.sites],
        marks=MARKS,
        panels=figure_panels(run_folder, updates) if run_folder else {},
        updates=_last_updates(updates),
        events=[(clock(at), event, message) for at, event, message in reversed(status.events)][:LINES_SHOWN],
        ledger=_ledger(updates),
        runs=_runs(folder, status),
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
    facts += [("part", run.part)] if run.part else []
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
        "doing": doing(site, status.run),
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


def _runs(folder: Path, status: CentreStatus) -> list[dict[str, object]]:
    """Every run by name, the shown one too."""
    states = dict(status.others) | ({status.run.name: status.run.state} if status.run else {})
    return [
        {
            "name": name,
            "state": state,
            "has_report": (folder / "runs" / name / "report.html").is_file(),
            "is_shown": status.run is not None and name == status.run.name,
        }
        for name, state in sorted(states.items())
    ]


def _updates(run_folder: Path) -> list[Update]:
    """The last word of the ledger on every update, in the order of rounds and sites."""
    last = {
        (int(str(line["round"])), str(line["site"]), str(line["branch"])): line
        for line in read_ledger(run_folder)
        if line.get("event") == "round"
    }
    order = {branch: i for i, branch in enumerate(BRANCHES)}
    return [last[key] for key in sorted(last, key=lambda key: (key[:2], order.get(key[2], len(order))))]


def _last_updates(updates: list[Update]) -> list[dict[str, object]]:
    """Every site's update in the newest round that the ledger knows."""
    newest = max((int(str(entry["round"])) for entry in updates), default=None)
    return [_update_row(entry) for entry in updates if entry["round"] == newest]


def _update_row(entry: Update) -> dict[str, object]:
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


def _ledger(updates: list[Update]) -> list[dict[str, object]]:
    newest_first = reversed(updates)
    return [
        _update_row(entry) | {"time": str(entry["time"])[:19].replace("T", " ")} for entry in newest_first
    ][:LINES_SHOWN]


@cache
def _template() -> Template:
    environment = page_environment(Path(__file__).parent)
    environment.filters["svg"] = Markup
    return environment.get_template(TEMPLATE)
