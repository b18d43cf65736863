"""`flwr-clientapp` as this site runs it: the installed ClientApp, whatever bundle came with the run.

The SuperExec starts it, one process for one message, through the script that the daemon wrote: as a fork of
the fork server, or from nothing.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.clientapp.typing import ClientAppCallable
from flwr.supernode.cli import flwr_clientapp

from client.installed_code import BundleGate
from client.site import read_site
from dsan_daemon.object_pulls import look_for_pieces_often

SITE_VARIABLE = "DSAN_SITE"  # the site.toml that the daemon was started with
RECORD = "clientapp.json"
PROCESS_NAME = "dsan-clientapp"  # in `ps` and `top`, where a fork has the command line of the fork server


@dataclass(frozen=True)
class ClientAppRecord:
    """The newest process of a ClientApp."""

    pid: int
    started: float  # unix


def main() -> None:
    """Answer one message, with the installed code or with a refusal."""
    record = ClientAppRecord(os.getpid(), time.time())
    site = read_site(Path(os.environ[SITE_VARIABLE]))
    path = site.state_folder / RECORD
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record)))
    partial.replace(path)
    with suppress(OSError):  # Linux only
        Path("/proc/self/comm").write_text(PROCESS_NAME)
    look_for_pieces_often()
    BundleGate(_installed, _refusing).close()
    flwr_clientapp()


def read_record(state_folder: Path) -> ClientAppRecord | None:
    """The newest process, which may have ended; None before the first."""
    try:
        return ClientAppRecord(**json.loads((state_folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_clientapp_alive(record: ClientAppRecord | None) -> bool:
    """Whether the process is at work; one that ended and that nobody has asked about is not."""
    try:
        stat = Path(f"/proc/{record.pid}/stat").read_text() if record is not None else ""
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] not in ([], ["Z"])


def _installed() -> ClientAppCallable:
    from client.app import app  # torch: seconds, if nobody imported it

    return app


def _refusing(reason: str) -> ClientAppCallable:
    from client.app import refusing

    return refusing("CODE-BUNDLE", reason)


if __name__ == "__main__":
    main()
