"""How often Flower looks for a piece of a message that its sender has not handed over yet.

A message can be pulled before its pieces are there. Flower then looks after 1 s, 2 s, 4 s, up to every 10 s:
in a round of seconds whoever waits sleeps on when the piece has come. Flower's 500 tries would then end an
upload of 500 s; its two hours for all pieces stay.

Private names of Flower 1.41, which are looked for first. For SuperNode, ClientApp and ServerApp.
"""

from typing import Any

from flwr.supercore.inflatable import inflatable_utils

from dsan_daemon.task_claims import MissingNameError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 1.0
SETTINGS = {
    "initial_backoff": FIRST_PAUSE_S,
    "backoff_cap": LONGEST_PAUSE_S,
    "max_tries_per_object": None,
}
# The second hands its own defaults to the first.
PULLS = ("pull_objects", "pull_and_inflate_object_from_tree")


def look_for_pieces_often() -> None:
    """Let Flower look every second. MissingNameError if this Flower counts in another way."""
    pulls: dict[str, Any] = {name: getattr(inflatable_utils, name, None) for name in PULLS}
    for name, pull in pulls.items():
        missing = sorted(SETTINGS.keys() - (getattr(pull, "__kwdefaults__", None) or {}))
        if missing:
            names = ", ".join(missing)
            raise MissingNameError(
                f"{name} of this release of flwr has no default of {names}: install flwr 1.41"
            )
    for pull in pulls.values():
        pull.__kwdefaults__.update(SETTINGS)
