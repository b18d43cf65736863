"""One daemon for each centre's folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from server.centre import Centre
from server.refusals import ExitCode, RefusedError


@contextmanager
def alone(centre: Centre) -> Iterator[None]:
    """Keep a second daemon off the folder; the lock goes with this process, however it ends."""
    centre.state.mkdir(mode=0o700, exist_ok=True)
    with (centre.state / "daemon.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                "DAEMON-RUNS",
                str(centre.folder),
                "a daemon runs in this folder already",
                "Stop it first (SIGTERM, or `systemctl stop dsan-server`).",
                ExitCode.NOT_PERMITTED,
            ) from None
        yield


def is_daemon_running(centre: Centre) -> bool:
    """Whether a daemon holds the folder."""
    try:
        with (centre.state / "daemon.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
