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

from dsan_daemon.processes import end_with, signals_held

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
    sys.modules["client.work"].installed_versions()  # of what was imported, whatever is installed later
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    arguments = fork_for_each(os.open(pipe, os.O_RDWR))
    sys.argv[1:] = arguments
    sys.modules["client.clientapp_program"].main()


def fork_for_each(pipe: int) -> list[str]:
    """Never return but in a fork, with the arguments of its message. One line of the pipe is one message.

    SIGTERM reaches the forks too, and is obeyed when they have ended.
    """
    forks: set[int] = set()

    def forget_ended(number: int, frame: FrameType | None) -> None:
        with suppress(ChildProcessError):
            while ended := os.waitpid(-1, os.WNOHANG)[0]:
                forks.discard(ended)

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fork in forks:
            with suppress(ProcessLookupError):
                os.kill(fork, signal.SIGTERM)
        with suppress(ChildProcessError):
            while True:
                os.wait()
        os._exit(0)

    signal.signal(signal.SIGCHLD, forget_ended)
    signal.signal(signal.SIGTERM, leave)
    gc.freeze()  # what is there now stays shared with the forks
    with os.fdopen(pipe, "rb") as lines:
        for line in lines:
            arguments: list[str] = json.loads(line)
            # until the fork is known, or knows that it is one
            with signals_held(signal.SIGCHLD, signal.SIGTERM):
                try:
                    fork = os.fork()
                except OSError as error:  # no memory: Flower sees that nobody began
                    print(f"no ClientApp could be started: {error.strerror}", file=sys.stderr, flush=True)
                    continue
                if fork == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    os.setpgid(0, 0)  # the end of the fork server is not that of the work
                    return arguments
                forks.add(fork)
    raise AssertionError("the pipe is open for writing here, so it never ends")


if __name__ == "__main__":
    main()
