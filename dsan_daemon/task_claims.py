"""How long Flower waits for the process of a task: a ClientApp's or a ServerApp's, until it reports itself.

A SuperExec claims a task and starts a process for it. If the process has not reported itself within 30 s,
Flower gives the task away again: on a machine where Python needs longer to load (a cold disk, busy cores) no
process is ever in time, and one more is started every 30 s. The claim alone is made longer here; that a
process which has begun died is still noticed after 60 s without its heartbeat.

Private names of Flower 1.41, which are looked for first. For SuperNode and SuperLink, before they start.
"""

import importlib

START_S = 150  # from the claim to the process's first word
HEARTBEAT_S = 60  # what Flower allows between two heartbeats of a process that runs
STORES = ("flwr.supercore.corestate.in_memory_corestate", "flwr.supercore.corestate.sql_corestate")


class MissingNameError(Exception):
    """This Flower lacks a private name that we replace."""


def give_processes_time_to_start() -> None:
    """Let claims last for START_S. MissingNameError if this Flower counts in another way."""
    for name in STORES:
        store = importlib.import_module(name)
        interval = getattr(store, "HEARTBEAT_DEFAULT_INTERVAL", None)
        patience = getattr(store, "HEARTBEAT_PATIENCE", None)
        if interval is None or patience is None or interval * patience != HEARTBEAT_S:
            raise MissingNameError(
                f"{name}: expected an interval and a patience that give {HEARTBEAT_S} s, found {interval} "
                f"and {patience}: install flwr 1.41"
            )
        # a claim lasts for the interval, a heartbeat for the interval times the patience
        vars(store).update(HEARTBEAT_DEFAULT_INTERVAL=START_S, HEARTBEAT_PATIENCE=HEARTBEAT_S / START_S)
