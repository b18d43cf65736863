"""`dsan-server status`: the same in words, as JSON, and live in a terminal."""

import json
import time
from dataclasses import asdict
from io import StringIO
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.status import UNFINISHED, CentreStatus, RunStatus, SiteInRun, centre_status, duration

WIDTH = 160
REFRESH_S = 2.0
ROUNDS_SHOWN = 40  # the newest; a study of hundreds of rounds has no room for all
MARKS = {"accepted": "✓", "rejected": "R", "missing": "–", "working": "▶", "answered": "●", "waiting": "·"}
STYLES = {
    "accepted": "green",
    "rejected": "bold red",
    "missing": "bold red",
    "working": "cyan",
    "answered": "cyan",
}
LEGEND = "✓ accepted  ● answered  ▶ working  · waiting  R rejected  – missing"


def status_text(folder: Path, run: str | None = None) -> str:
    """The status of a centre's folder as plain text."""
    out = StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(status_view(centre_status(folder, run)))
    return out.getvalue()


def status_json(folder: Path, run: str | None = None) -> str:
    """The same as JSON; null is what there is not. Keys: docs/reference/commands.md."""
    status = centre_status(folder, run)
    return json.dumps(
        {
            "format_version": 1,
            "centre": {"time": status.now, "site_watch": status.is_watching},
            "run": asdict(status.run) if status.run else None,
            "other_runs": [{"name": name, "state": state} for name, state in status.others],
            "sites": [_site_json(site, status.now) for site in status.sites],
            "certificates": [asdict(ending) for ending in status.certificates],
        },
        indent=1,
    )


def watch_status(folder: Path, run: str | None) -> None:
    """Show the status in the terminal and keep it up to date until the user ends it (KeyboardInterrupt)."""
    with Live(screen=False, auto_refresh=False, console=Console()) as live:
        while True:
            live.update(status_view(centre_status(folder, run)), refresh=True)
            time.sleep(REFRESH_S)


def status_view(status: CentreStatus) -> Group:
    """What is shown: a line on the run, a table of sites, and who needs a look."""
    parts: list[Text | Table] = [_headline(status)]
    if others := [f"{name} ({state})" for name, state in status.others if state in UNFINISHED]:
        parts.append(Text(f"other studies: {', '.join(others)}; `dsan-server status NAME` shows one"))
    if not status.is_watching:
        parts.append(
            Text("SiteWatch does not run: start `dsan-server start` to see the sites' progress", "yellow")
        )
    if status.sites:
        parts += [_site_table(status), Text(LEGEND, "dim")]
    else:
        parts.append(Text("no site is enrolled"))
    parts += [Text(f"! {site.name}: {site.late}", "bold yellow") for site in status.sites if site.late]
    parts += [Text(f"! {words}", "bold yellow") for words in status.warnings]
    return Group(*parts)


def _headline(status: CentreStatus) -> Text:
    run = status.run
    if run is None:
        return Text("no run yet: `dsan-server train STUDY.toml` begins one")
    part = f"{run.part}, " if run.part else ""
    if run.state == "estimated":
        return Text(f"{run.name}: estimated, not begun: `dsan-server train STUDY.toml` begins it", "bold")
    parts = [f"{run.name}: {run.state}, {part}round {run.round} of {run.rounds}"]
    if run.round_began is not None:
        parts.append(f"{duration(status.now - run.round_began)} in this round")
    if run.round_seconds is not None:
        parts.append(f"the last took {duration(run.round_seconds)}")
    if run.ends_at is not None:
        parts.append(f"rounds end in about {duration(run.ends_at - status.now)}")
    if run.state not in ("running", "waiting", "estimated", "complete") and run.message:
        parts.append(run.message)
    return Text("; ".join(parts), "bold")


def _site_table(status: CentreStatus) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("site", "role", "now", "step", "ETA", "last contact", _rounds_shown(status.run)):
        table.add_column(heading, no_wrap=heading != "now")
    for site in status.sites:
        age = site.last_contact_age_s(status.now)
        table.add_row(
            Text(site.name, "bold" if site.late else ""),
            site.role,
            doing(site, status.run),
            f"{site.report.done}/{site.report.steps}" if site.report.steps else "",
            duration(site.report.eta_s) if site.report.eta_s and site.report.steps else "",
            "never" if age is None else f"{duration(age)} ago",
            _marks(site, status.run),
        )
    return table


def doing(site: SiteInRun, run: RunStatus | None) -> str:
    """What a site does, by its own last word, and for which study if not for the run that is shown."""
    report = site.report
    if not site.is_connected:
        return "not connected" if site.known else ""
    elsewhere = (
        f"for {report.study}" if report.study and (run is None or report.study != run.asked_as) else ""
    )
    return " ".join(
        part for part in (report.phase or "?", report.branch, elsewhere, report.last_error) if part
    )


def _marks(site: SiteInRun, run: RunStatus | None) -> Text:
    marks = Text()
    for number in _numbers(run) if site.rounds else ():
        state = site.rounds.get(number, "")
        marks.append(MARKS.get(state, " "), STYLES.get(state, ""))
    return marks


def _numbers(run: RunStatus | None) -> range:
    return range(max(1, run.round - ROUNDS_SHOWN + 1), run.round + 1) if run else range(0)


def _rounds_shown(run: RunStatus | None) -> str:
    numbers = _numbers(run)
    if len(numbers) < 2:
        return "round 1" if numbers else ""
    return f"rounds {numbers[0]} to {numbers[-1]}"


def _site_json(site: SiteInRun, now: float) -> dict[str, object]:
    age = site.last_contact_age_s(now)
    return {
        "name": site.name,
        "role": site.role,
        "connected": site.is_connected,
        "last_contact_age_s": None if age is None else round(age, 1),
        "clock_ahead_s": site.known.clock_ahead_s if site.known else None,
        "late": site.late or None,
        "now": asdict(site.report) if site.known else None,
        "rounds": {str(number): state for number, state in sorted(site.rounds.items())},
        "reasons": {str(number): reason for number, reason in sorted(site.reasons.items())},
    }
