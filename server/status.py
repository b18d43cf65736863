"""How a study stands, from the files of the centre: sites x rounds, who works on what, who is late and why.

Status, console and metrics all read this. Nothing here needs the daemon to live.
"""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import median

from server.expiry import SOON_S, Ending, endings
from server.ledger import read_events, read_ledger
from server.round_files import StudyOutline, read_outline, read_rounds
from server.sites import revoked_names
from server.watch_file import (
    TWOFOLD_FROM,
    TWOFOLD_WITHIN_S,
    SiteReport,
    Watched,
    WatchedSite,
    is_watching,
    read_watch,
)

SILENT_S = 30.0  # a connected site speaks every five seconds
LEAST_DISK_BYTES = 1 << 30  # a round of two branches at full size takes about as much
SLOW_FACTOR = 2.0  # a site is slow when it works for more than so many times its usual time in a round
CLOCK_AHEAD_S, CLOCK_BEHIND_S = 5.0, 300.0  # Flower refuses a site whose clock is further off
ENDS = ("complete", "incomplete", "paused", "stopped")
BEGINNINGS = ("started", "resumed")
RUN_STATES = ("waiting", "estimated", "running", "interrupted", "unreadable", *ENDS)
UNFINISHED = ("waiting", "running", "interrupted", "paused", "unreadable")  # still to be brought to an end
MISSED = ("missing", "rejected")
PARTS = "parts"  # of a study of several parts, each with its own rounds

LedgerLine = dict[str, object]


@dataclass(frozen=True)
class RunStatus:
    """A run as a whole; times are unix seconds, None where there is none yet.

    Of a study of several parts (folds, sites left out) rounds and times are those of the newest part.
    """

    name: str
    study: str
    state: str  # see RUN_STATES
    round: int  # the one in work, or the last one that the ledger knows
    rounds: int
    began: float | None = None
    changed: float | None = None  # the last line of the ledger
    round_began: float | None = None
    round_deadline: float | None = None
    round_seconds: float | None = None  # of the last finished round
    ends_at: float | None = None  # of the rounds, as the last ones took
    message: str = ""  # why it ended, or the newest of what happened to it
    part: str = ""  # e.g. fold-2; empty: the study has one part
    asked_as: str = ""  # the study that messages to the sites name


@dataclass(frozen=True)
class SiteInRun:
    """A site in the run: what the ledger knows of its rounds and SiteWatch of its work."""

    name: str
    role: str  # training, held-out, enrolled
    known: WatchedSite | None  # None: SiteWatch never heard of it
    rounds: dict[int, str] = field(default_factory=dict)  # accepted, ...; see MARKS of status_text.py
    reasons: dict[int, str] = field(default_factory=dict)  # code: message, of what was not accepted
    usual_seconds: float | None = None  # of its accepted rounds
    late: str = ""  # why it needs a look, in words; empty: it does not

    @property
    def report(self) -> SiteReport:
        """What it last said of itself."""
        return self.known.status if self.known else SiteReport()

    @property
    def is_connected(self) -> bool:
        """Whether its stream stands."""
        return self.known is not None and self.known.connected

    def last_contact_age_s(self, now: float) -> float | None:
        """Seconds since it was heard."""
        return max(0.0, now - self.known.last_contact) if self.known else None


@dataclass(frozen=True)
class CentreStatus:
    """Everything that `dsan-server status` shows."""

    now: float
    is_watching: bool  # SiteWatch runs
    run: RunStatus | None
    sites: tuple[SiteInRun, ...]
    events: tuple[tuple[float, str, str], ...] = ()  # time, event, message; oldest first
    certificates: tuple[Ending, ...] = ()

    disk: str = ""  # what is wrong with it, in words
    others: tuple[tuple[str, str], ...] = ()  # every other run by name, and its state

    @property
    def warnings(self) -> list[str]:
        """What to mend at the centre itself: its disk, certificates that end within 30 days."""
        soon = [ending for ending in self.certificates if ending.ends - self.now < SOON_S]
        return [*([self.disk] if self.disk else []), *(ending.in_words(self.now) for ending in soon)]


def centre_status(folder: Path, run_name: str | None = None) -> CentreStatus:
    """How the centre of a folder stands; run_name None: the run that `shown_run` chooses."""
    now = time.time()
    state = folder / "state"
    watched = read_watch(state)
    run_folder = folder / "runs" / run_name if run_name else shown_run(folder / "runs")
    if run_folder is None:
        sites = tuple(_idle(name, watched, now) for name in _members(folder, watched))
        found = CentreStatus(now, is_watching(state), None, sites)
    else:
        found = _with_run(folder, run_folder, watched, now)
    states = run_states(folder / "runs")
    others = tuple(
        (name, state) for name, state in states.items() if run_folder is None or name != run_folder.name
    )
    return replace(found, certificates=tuple(endings(folder)), disk=disk_trouble(folder), others=others)


def disk_trouble(folder: Path) -> str:
    """In words, if too little is free where the centre's folder lies."""
    free = shutil.disk_usage(folder).free
    if free >= LEAST_DISK_BYTES:
        return ""
    return f"{free / 1e9:.1f} GB of disk are free in {folder}: a round that cannot be written stops the study"


def run_states(runs: Path) -> dict[str, str]:
    """Every run of a centre by name, in the order of names, and how it stands (one of RUN_STATES)."""
    return {folder.name: _state_of(folder) for folder in _runs(runs)}


def _state_of(run_folder: Path) -> str:
    """One run that cannot be read leaves the others to be seen."""
    try:
        return _state(run_folder, read_events(run_folder))
    except OSError:
        return "unreadable"


def shown_run(runs: Path) -> Path | None:
    """The run to look at where none is named: one in work, or else the one that changed last.

    One of which there is only an estimate comes after all others.
    """

    def importance(run: Path) -> tuple[bool, bool, float]:
        in_work = is_run_in_work(run)
        return in_work, in_work or _state_of(run) != "estimated", _changed(run)

    return max(_runs(runs), key=importance, default=None)


def _runs(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob("*/study.toml"))


def is_run_in_work(run_folder: Path) -> bool:
    """Whether a ServerApp holds the run; /proc/locks is read, so that looking never gets in its way."""
    try:
        inode = (run_folder / ".lock").stat().st_ino
        held = Path("/proc/locks").read_text()
    except OSError:
        return False
    return any(
        line.split()[5].rpartition(":")[2] == str(inode) for line in held.splitlines() if "FLOCK" in line
    )


def _with_run(folder: Path, run_folder: Path, watched: Watched, now: float) -> CentreStatus:
    part = max(_runs(run_folder / PARTS), key=_changed, default=None)
    shown = part or run_folder
    try:
        name, study = read_outline(run_folder).name, read_outline(shown)
        lines = list(read_ledger(shown))
        events = _events(lines)
        of_whole = events if part is None else list(read_events(run_folder))
    except (OSError, ValueError) as error:
        run = RunStatus(run_folder.name, run_folder.name, "unreadable", 0, 0, message=str(error))
        return CentreStatus(now, is_watching(folder / "state"), run, ())
    run = _run_status(shown, study, lines, _state(run_folder, of_whole), now)
    run = replace(run, name=run_folder.name, study=name, part=part.name if part else "")
    names = _roles(shown, study, _members(folder, watched), lines)
    sites = tuple(_site_status(name, role, run, lines, watched, now) for name, role in names.items())
    told = sorted(events if part is None else [*of_whole, *events], key=_unix)
    shown_events = tuple((_unix(e), str(e.get("event")), str(e.get("message") or "")) for e in told)
    return CentreStatus(now, is_watching(folder / "state"), run, sites, shown_events)


def shown_folder(folder: Path, run: RunStatus) -> Path:
    """Where the rounds lie that a status is about: the run's folder, or that of its newest part."""
    run_folder = folder / "runs" / run.name
    return run_folder / PARTS / run.part if run.part else run_folder


def _events(lines: Iterable[LedgerLine]) -> list[LedgerLine]:
    return [line for line in lines if line.get("event") != "round"]


def _run_status(
    shown: Path, study: StudyOutline, lines: list[LedgerLine], state: str, now: float
) -> RunStatus:
    seconds = [entry.seconds for entry in read_rounds(shown)]
    finished, events = len(seconds), _events(lines)
    in_rounds = state == "running" and finished < study.rounds
    began_anew = max((_unix(line) for line in events if line["event"] in BEGINNINGS), default=None)
    entries = [line for line in lines if line.get("event") == "round"]
    round_began = max(filter(None, (began_anew, _unix(entries[-1]) if entries else None)), default=None)
    last_asked = max(
        (int(str(line["round"])) for line in entries), default=0
    )  # a paused round is not finished
    ends_at = None
    if in_rounds and seconds and round_began is not None:
        ends_at = round_began + median(seconds[-5:]) * (study.rounds - finished)
    return RunStatus(
        name=shown.name,
        study=study.name,
        state=state,
        round=min(finished + 1 if in_rounds else max(finished, last_asked), study.rounds),
        rounds=study.rounds,
        began=next((_unix(line) for line in events if line["event"] == "started"), None),
        changed=_unix(lines[-1]) if lines else None,
        round_began=round_began if in_rounds else None,
        round_deadline=round_began + study.deadline_h * 3600 if in_rounds and round_began else None,
        round_seconds=seconds[-1] if seconds else None,
        ends_at=ends_at if ends_at is not None and ends_at > now else None,
        message=_last_word(events, state),
        asked_as=study.name,
    )


def _last_word(events: list[LedgerLine], state: str) -> str:
    """Why a run ended, or else the newest of what happened to it."""
    telling = [line for line in events if state not in ENDS or line["event"] == state]
    return str(telling[-1].get("message") or "") if telling else ""


def _state(run_folder: Path, events: Iterable[LedgerLine]) -> str:
    """Of a run that nobody works on: how it ended; interrupted if it began and did not; else waiting."""
    if is_run_in_work(run_folder):
        return "running"
    names = [str(line["event"]) for line in events]
    decisive = [name for name in names if name in (*ENDS, *BEGINNINGS)]
    if not decisive:
        return "estimated" if "estimated" in names else "waiting"
    return decisive[-1] if decisive[-1] in ENDS else "interrupted"


def _roles(
    run_folder: Path,
    study: StudyOutline,
    members: Iterable[str],
    lines: list[LedgerLine],
) -> dict[str, str]:
    """Every site that belongs to the run, then the other ones of the centre."""
    training = set(study.training) | {str(line["site"]) for line in lines if line.get("event") == "round"}
    if not study.training and not study.held_out:
        training |= set(read_described(run_folder))
    roles = dict.fromkeys(sorted(training), "training")
    roles |= dict.fromkeys(sorted(set(study.held_out) - set(roles)), "held-out")
    return roles | dict.fromkeys((name for name in members if name not in roles), "enrolled")


def read_described(run_folder: Path) -> list[str]:
    """The sites that the study has ever had, by name."""
    try:
        found = json.loads((run_folder / "sites.json").read_bytes())
    except (OSError, ValueError):
        return []
    return list(found) if isinstance(found, dict) else []


def _members(folder: Path, watched: Watched) -> list[str]:
    """The sites that are enrolled or were heard of, and are not revoked."""
    enrolled = {path.stem for path in (folder / "sites").glob("*.json")}
    return sorted({*enrolled, *watched} - revoked_names(folder))


def _site_status(
    name: str,
    role: str,
    run: RunStatus,
    lines: list[LedgerLine],
    watched: Watched,
    now: float,
) -> SiteInRun:
    rounds, reasons, seconds = _ledger_of(name, lines)
    known = watched.get(name)
    if role == "training" and run.state == "running" and run.round_began is not None:
        rounds[run.round] = _in_work(known, run)
        reasons.pop(run.round, None)
    site = SiteInRun(name, role, known, rounds, reasons, median(seconds[-5:]) if seconds else None)
    return replace(site, late=_why_late(site, run, now))


def _in_work(known: WatchedSite | None, run: RunStatus) -> str:
    """How far a site is with the round in work, by its own word: waiting, working or answered."""
    if known is None or (known.worked_study, known.worked_round) != (run.asked_as, run.round):
        return "waiting"
    if known.status.phase in ("idle", "drained"):
        return "answered"
    return "working" if known.connected else "waiting"


def _idle(name: str, watched: Watched, now: float) -> SiteInRun:
    site = SiteInRun(name, "enrolled", watched.get(name))
    return replace(site, late=_why_away(site, now))


def _ledger_of(site: str, lines: list[LedgerLine]) -> tuple[dict[int, str], dict[int, str], list[float]]:
    """Status by round (accepted only if every branch was), reason by round, seconds of accepted rounds."""
    by_branch: dict[int, dict[str, LedgerLine]] = {}
    for line in lines:
        if line.get("event") == "round" and line.get("site") == site:
            by_branch.setdefault(int(str(line["round"])), {})[str(line["branch"])] = line
    rounds, reasons, seconds = {}, {}, []
    for number, entries in by_branch.items():
        failed = [entry for entry in entries.values() if entry["status"] != "accepted"]
        rounds[number] = str(failed[0]["status"]) if failed else "accepted"
        if failed:
            reasons[number] = f"{failed[0].get('code')}: {failed[0].get('message')}"
        else:
            seconds.append(sum(float(str(entry.get("seconds") or 0)) for entry in entries.values()))
    return rounds, reasons, seconds


def _why_late(site: SiteInRun, run: RunStatus, now: float) -> str:
    if run.state == "running" and site.role != "enrolled":
        return _why_away(site, now) or _why_slow(site, run, now)
    missed = _what_it_missed(site, run)
    return missed or (_why_away(site, now) if site.known is not None else "")


def _what_it_missed(site: SiteInRun, run: RunStatus) -> str:
    """Of a run that has ended, or stands still: the rounds that went on, or could not, without the site."""
    missed = [number for number, state in sorted(site.rounds.items()) if state in MISSED]
    if run.state == "incomplete" and missed:
        last = f"round {missed[-1]}: {site.reasons.get(missed[-1], '')}"
        return f"missed {len(missed)} of {run.rounds} rounds; {'the last, ' if missed[1:] else ''}{last}"
    if run.state in ("paused", "interrupted", "stopped") and missed[-1:] == [run.round]:
        return f"round {run.round} {site.rounds[run.round]}: {site.reasons.get(run.round, '')}"
    return ""


def _why_away(site: SiteInRun, now: float) -> str:
    known = site.known
    if known is None:
        return "never heard of: its daemon has not connected to SiteWatch"
    if not known.connected:
        return f"not connected for {duration(now - known.since)}: {known.reason or 'no reason known'}"
    age = now - known.last_contact
    if age > SILENT_S:
        return f"silent for {duration(age)} on a connection that stands"
    if not -CLOCK_BEHIND_S <= known.clock_ahead_s <= CLOCK_AHEAD_S:
        off = f"{abs(known.clock_ahead_s):.0f} s {'ahead' if known.clock_ahead_s > 0 else 'behind'}"
        return f"its clock is {off}: Flower refuses it until that is mended"
    if known.is_twofold(now):
        return (
            f"its stream was displaced {TWOFOLD_FROM} times within {duration(TWOFOLD_WITHIN_S)}: two daemons "
            "use its name or key, or its line breaks often"
        )
    if known.status.last_error.startswith(("CONNECT-", "ADMIT-")):
        return f"its daemon is there, its SuperNode is not connected ({known.status.last_error})"
    if known.status.phase == "drained":
        return f"drained: it takes no message until `dsan-server undrain {site.name}`"
    return ""


def _why_slow(site: SiteInRun, run: RunStatus, now: float) -> str:
    last = max((number for number in site.rounds if number < run.round), default=None)
    if last is not None and site.rounds[last] in MISSED:
        return f"round {last} {site.rounds[last]}: {site.reasons.get(last, '')}"
    worked = now - run.round_began if run.round_began is not None else 0.0
    usual = max(site.usual_seconds or 0.0, run.round_seconds or 0.0)
    is_at_it = site.rounds.get(run.round) in ("waiting", "working")
    if is_at_it and usual and worked > SLOW_FACTOR * usual:
        return f"slow: {duration(worked)} in round {run.round}, which usually takes {duration(usual)}"
    return ""


def duration(seconds: float) -> str:
    """Seconds for a person: 42 s, 5 min, 3.2 h."""
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _unix(line: LedgerLine) -> float:
    return datetime.fromisoformat(str(line["time"])).timestamp()


def _changed(run_folder: Path) -> float:
    found = [*run_folder.glob("ledger.jsonl"), *run_folder.glob(f"{PARTS}/*/ledger.jsonl")]
    return max(path.stat().st_mtime for path in found or [run_folder / "study.toml"])
