"""How often Flower looks for a piece of a message that its sender has not uploaded yet.

A message can be pulled before its pieces are there. Flower then looks after 1 s, 2 s, 4 s, up to every 10 s:
in a round of seconds whoever waits sleeps on when the piece has come. Flower's 500 tries would then end an
upload of 500 s; its two hours for all pieces stay.

Private names of Flower 1.41, which are looked for first. For SuperNode and ServerApp.
"""

import inspect
import sys

from flwr.supercore.inflatable import inflatable_utils

from dsan_daemon.task_claims import MissingNameError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 1.0
SETTINGS = {
    "initial_backoff": FIRST_PAUSE_S,
    "backoff_cap": LONGEST_PAUSE_S,
    "max_tries_per_object": sys.maxsize,
}


def look_for_pieces_often() -> None:
    """Let Flower look every second. MissingNameError if this Flower counts in another way."""
    pull = inflatable_utils.pull_objects
    missing = sorted(set(SETTINGS) - set(inspect.signature(pull).parameters))
    if missing or pull.__kwdefaults__ is None:
        names = ", ".join(missing) or "defaults"
        raise MissingNameError(f"pull_objects of this release of flwr has no {names}: install flwr 1.41")
    pull.__kwdefaults__.update(SETTINGS)
