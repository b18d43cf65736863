"""Sites that have nothing to do although their answer is awaited: message or answer was lost on its way.

Flower hands a message out once. If the connection breaks at that moment (a proxy that dies, a cut line), the
message counts as delivered and is never seen again; an answer whose upload breaks off at the wrong moment is
thrown away. Nobody is told. SiteWatch tells: the site is there and idle. Without SiteWatch (a simulation)
nothing is known here, and nothing is asked for again.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from server.status import SILENT_S
from server.watch_file import read_watch

IDLE_S = 60.0  # a SuperNode asks for messages every three seconds
LOOK_EVERY_S = 1.0


@dataclass
class IdleSites:
    """Since when each site says that it has nothing to do; `look` reads what SiteWatch knows."""

    centre_folder: Path | None  # None: there is no SiteWatch
    _since: dict[str, float] = field(default_factory=dict)  # site, unix seconds
    _looked: float = 0.0

    def look(self) -> None:
        """See who is idle now; at most once a second."""
        now = time.time()
        if self.centre_folder is None or now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        watched = read_watch(self.centre_folder / "state")
        idle = {
            site
            for site, known in watched.items()
            if known.connected and known.status.phase == "idle" and now - known.last_contact < SILENT_S
        }
        self._since = {site: self._since.get(site, now) for site in idle}

    def has_lost(self, site: str, sent_at: float) -> bool:
        """Whether a message that was sent to this site then (unix seconds), or its answer, is lost."""
        since = self._since.get(site)
        return since is not None and time.time() - max(since, sent_at) > IDLE_S


def centre_folder_of(run_folder: Path | None) -> Path | None:
    """The folder of the centre to which a run belongs; None in a simulation."""
    for folder in run_folder.parents if run_folder is not None else ():
        if (folder / "server.toml").exists():
            return folder
    return None
