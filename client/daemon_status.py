"""`dsan-client status`: what the site's daemon does, from the files that it keeps."""

import fcntl
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.certificate_ends import certificate_ends, ending_soon
from client.egress import EgressSums, sum_egress
from client.keys import CA_CERTIFICATE
from client.site import SITE_FILE, SiteConfig

STATUS, LOCK = "status.json", "daemon.lock"
STATUS_FORMAT = 1


@dataclass(frozen=True)
class Event:
    """Something that happened to the daemon, in words."""

    time: float
    what: str


@dataclass(frozen=True)
class ConnectionStatus:
    """How the way to the centre is."""

    is_connected: bool
    last_contact: float | None  # unix
    code: str | None  # why not: CONNECT-..., ADMIT-...
    reason: str  # in words; empty if connected
    fix: str
    clock_ahead_s: float | None
    watched_since: float | None  # by SiteWatch
    not_watched: str  # why not


@dataclass(frozen=True)
class WorkStatus:
    """The message in work; phase "idle" without one."""

    phase: str
    study: str
    round: int | None
    branch: str | None
    done: int
    steps: int
    eta_s: float | None
    since: float | None  # unix, when the phase began
    message_kind: str


@dataclass(frozen=True)
class ProcessLine:
    """One of the daemon's processes."""

    pid: int | None
    restarts: int
    last_exit: int | None


@dataclass(frozen=True)
class DaemonStatus:
    """state/status.json, rewritten every second."""

    format_version: int
    site: str
    release: str
    pid: int
    started: float
    written: float
    centre: str
    is_secure: bool
    is_drained: bool
    drained_studies: tuple[str, ...]  # "": every one
    health_port: int
    connection: ConnectionStatus
    work: WorkStatus
    cases: dict[str, int]  # prepared, by label
    left_out: dict[str, int]  # not usable, by code
    disk_free_bytes: int
    processes: dict[str, ProcessLine]
    events: tuple[Event, ...]  # the newest last


def write_status(state_folder: Path, status: DaemonStatus) -> None:
    """Replace state/status.json; not forced to disk, as it is written anew every second."""
    path = state_folder / STATUS
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(status), indent=1))
    partial.replace(path)


def read_status(state_folder: Path) -> DaemonStatus | None:
    """What the daemon wrote last; None if none ever ran here."""
    try:
        found = json.loads((state_folder / STATUS).read_text())
        return DaemonStatus(
            **found
            | {
                "connection": ConnectionStatus(**found["connection"]),
                "work": WorkStatus(**found["work"]),
                "processes": {name: ProcessLine(**line) for name, line in found["processes"].items()},
                "drained_studies": tuple(found["drained_studies"]),
                "events": tuple(Event(**event) for event in found["events"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_daemon_alive(state_folder: Path) -> bool:
    """Whether a daemon holds this site's lock."""
    with suppress(OSError), (state_folder / LOCK).open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def prepared_counts(site: SiteConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Prepared cases by label, and cases left out by code, as the last `prepare` left them."""
    try:
        index = json.loads((site.store_folder / "index.json").read_text())
        labels = [case["label"] for case in index["cases"]]
        return {label: labels.count(label) for label in sorted(set(labels))}, dict(index["left_out"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def status_json(site: SiteConfig) -> dict[str, Any]:
    """Everything that is known, for programs."""
    status = read_status(site.state_folder)
    return {
        "format_version": STATUS_FORMAT,
        "site": site.name,
        "is_running": is_daemon_alive(site.state_folder),
        "daemon": None if status is None else asdict(status),
        "egress": asdict(sum_egress(site.state_folder)),
        "certificate_ends": certificate_ends(site.keys_folder),
    }


def status_text(site: SiteConfig) -> str:
    """The same for a person."""
    status, is_alive = read_status(site.state_folder), is_daemon_alive(site.state_folder)
    if status is None:
        is_joined = (site.keys_folder / CA_CERTIFICATE).exists()
        step = "start" if is_joined else f"join {site.name}.kit.json"
        command = f"dsan-client {step} --config {site.home / SITE_FILE}"
        return f"site       {site.name}: no daemon ever ran here\n\nnext: {command}"
    lines = [
        _daemon_line(site, status, is_alive),
        f"centre     {status.centre}{'' if status.is_secure else ' (in the clear, loopback)'}",
        *(_drained_lines(status) if is_alive else []),
        *(_connection_lines(status) if is_alive else []),
        *[f"renew      {words}" for words in ending_soon(site.keys_folder, site.name)],
        f"work       {_work_text(status, is_alive)}",
        f"cases      {_counts(status.cases) or 'none prepared'}",
        *([f"left out   {_counts(status.left_out)}"] if status.left_out else []),
        f"health     http://127.0.0.1:{status.health_port}/readyz, /metrics",
        f"disk       {status.disk_free_bytes / 1e9:.1f} GB free",
        *_egress_lines(sum_egress(site.state_folder)),
        *[f"event      {_clock(event.time)}  {event.what}" for event in status.events[-5:]],
    ]
    return "\n".join(lines)


def _daemon_line(site: SiteConfig, status: DaemonStatus, is_alive: bool) -> str:
    if not is_alive:
        return (
            f"site       {site.name}: the daemon is DEAD; its last word was {_ago(status.written)} "
            "(start it again: what was finished is kept)"
        )
    running = f"daemon {status.pid} runs since {_clock(status.started)}"
    return f"site       {site.name}: {running}, release {status.release}"


def _drained_lines(status: DaemonStatus) -> list[str]:
    if not status.drained_studies:
        return []
    until = f"until the operator says `dsan-server undrain {status.site}`"
    if status.is_drained:
        return [f"drained    takes no message {until}"]
    if "" in status.drained_studies:
        return [f"drained    the message in work is the last one {until}"]
    return [f"drained    takes no message of {', '.join(status.drained_studies)} {until}"]


def _connection_lines(status: DaemonStatus) -> list[str]:
    connection = status.connection
    last = "never" if connection.last_contact is None else _ago(connection.last_contact)
    watched = (
        f"since {_clock(connection.watched_since)}" if connection.watched_since else connection.not_watched
    )
    if status.is_drained:
        return [f"connection none, while drained; last contact {last}", f"watched    {watched or 'no'}"]
    lines = [f"connection {'connected' if connection.is_connected else 'NOT CONNECTED'}; last contact {last}"]
    if connection.reason:
        code = f"{connection.code}: " if connection.code else ""
        lines.append(f"           {code}{connection.reason}")
    if connection.fix:
        lines.append(f"           fix: {connection.fix}")
    return [*lines, f"watched    {watched or 'no'}"]


def _work_text(status: DaemonStatus, is_alive: bool) -> str:
    work = status.work
    if not is_alive or work.phase == "idle":
        return "idle"
    round_text = f" round {work.round}" if work.round else ""
    steps = f" {work.done}/{work.steps}" if work.steps else ""
    eta = f", {work.eta_s:.0f} s left" if work.eta_s is not None else ""
    study = work.study or work.message_kind
    branch = f" {work.branch}" if work.branch else ""
    return f"{study}{round_text}: {work.phase}{branch}{steps}{eta}"


def _egress_lines(sums: EgressSums) -> list[str]:
    kinds = _counts(sums.messages_by_kind)
    lines = [f"left       {sums.messages} messages, {sums.bytes / 1e6:.2f} MB: {kinds or 'nothing yet'}"]
    if sums.refusals_by_code:
        lines.append(f"refused    {_counts(sums.refusals_by_code)}")
    return lines + [
        f"           {_clock(line.time)}  {line.kind} of {line.study or 'an unknown study'}: {line.code}"
        + (" (by [policy] of site.toml)" if (line.code or "").startswith("POLICY-") else "")
        for line in sums.recent_refusals[-3:]
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def _clock(unix: float | None) -> str:
    return "" if unix is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def _ago(unix: float) -> str:
    seconds = max(0, int(time.time() - unix))
    return f"{seconds} s ago" if seconds < 120 else f"{seconds // 60} min ago ({_clock(unix)})"
