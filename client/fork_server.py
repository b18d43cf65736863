"""The process that this site's ClientApps are forked from: what they all import is imported once.

A ClientApp is a process for one message. Importing torch and Flower takes some seconds of a processor; a fork
has them at once, and is otherwise as new as any process. `python -P -m client.fork_server PIPE DAEMON` is
kept running by the daemon of that process number; `client/clientapp_start.py` hands it the arguments of
`flwr-clientapp`. Without it every ClientApp starts from nothing, as Flower's do. It never asks for a GPU, for
then its forks could not.
"""

import gc
import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from dsan_daemon.processes import end_with

IMPORTED = (
    "client.clientapp_program",
    "client.app",
    "torch._dynamo",  # imported by torch when the first optimiser is made: two seconds
    "scipy.special",
)


def main() -> None:
    """Fork for every message until SIGTERM; in a fork, answer the message."""
    pipe = Path(sys.argv[1])
    end_with(int(sys.argv[2]))
    for name in IMPORTED:
        importlib.import_module(name)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    arguments = fork_for_each(os.open(pipe, os.O_RDWR))
    sys.argv[1:] = arguments
    sys.modules["client.clientapp_program"].main()


def fork_for_each(pipe: int) -> list[str]:
    """Never return but in a fork, with the arguments of its message. One line of the pipe is one message."""
    signal.signal(signal.SIGCHLD, _wait_for_ended)
    gc.freeze()  # what is there now stays shared with the forks
    with os.fdopen(pipe, "rb") as lines:
        for line in lines:
            arguments: list[str] = json.loads(line)
            try:
                is_fork = os.fork() == 0
            except OSError as error:  # no memory: the daemon's watchdog finds that nobody began
                print(f"no ClientApp could be started: {error.strerror}", file=sys.stderr, flush=True)
                continue
            if is_fork:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setpgid(0, 0)  # the end of the fork server is not that of the work
                return arguments
    raise AssertionError("the pipe is open for writing here, so it never ends")


def _wait_for_ended(number: int, frame: FrameType | None) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
