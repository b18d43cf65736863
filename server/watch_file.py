"""state/watch.json: what SiteWatch knows of every site, for status, metrics and the console."""

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dsan_model.watch_pb2 import SiteStatus

WATCH_FILE = "watch.json"
WRITE_EVERY_S = 2.0
TWOFOLD_FROM, TWOFOLD_WITHIN_S = 3, 600.0
STALE_S = 15.0  # an older file means that nobody watches


@dataclass(frozen=True)
class SiteReport:
    """What a site last said of itself: the fields of `SiteStatus` in dsan_model/watch.proto."""

    study: str = ""
    round: int = 0
    branch: str = ""
    phase: str = ""
    done: int = 0
    steps: int = 0
    eta_s: float = 0.0
    disk_free_bytes: int = 0
    last_error: str = ""
    release: str = ""
    sent_unix_s: float = 0.0
    phase_since_unix_s: float = 0.0


@dataclass(frozen=True)
class WatchedSite:
    """A site as the centre sees it; times are the centre's, in unix seconds."""

    status: SiteReport
    last_contact: float
    connected: bool
    since: float  # it is connected, or not
    clock_ahead_s: float = 0.0  # of the site's clock over ours; the way of the message counts against it
    reason: str = ""  # why it is not connected
    worked_study: str = ""  # the last study and round that it said it works on; an idle site names none
    worked_round: int = 0
    displaced: tuple[float, ...] = ()  # unix seconds: a newer stream took the place of one that stood

    def is_twofold(self, now: float) -> bool:
        """Whether two daemons seem to be this site: a line that was cut displaces a stream once."""
        return sum(now - at < TWOFOLD_WITHIN_S for at in self.displaced) >= TWOFOLD_FROM


Watched = dict[str, WatchedSite]


def site_report(status: SiteStatus) -> SiteReport:
    """A status that came over the wire, as plain data."""
    return SiteReport(**{field.name: getattr(status, field.name) for field in fields(SiteReport)})


def read_watch(state_folder: Path) -> Watched:
    """Every site that SiteWatch ever heard of; empty if there is no file or it does not read."""
    try:
        return _WATCHED.validate_json((state_folder / WATCH_FILE).read_bytes())
    except (OSError, ValidationError):
        return {}


def is_watching(state_folder: Path) -> bool:
    """Whether a SiteWatch server keeps the file: it is rewritten every few seconds."""
    try:
        written = (state_folder / WATCH_FILE).stat().st_mtime
    except OSError:
        return False
    return time.time() - written < STALE_S


def write_watch(state_folder: Path, watched: Watched) -> None:
    """Replace the file whole."""
    path = state_folder / WATCH_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({site: asdict(known) for site, known in sorted(watched.items())}, indent=1))
    partial.replace(path)


_WATCHED = TypeAdapter(Watched)
