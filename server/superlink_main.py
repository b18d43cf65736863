"""Starts Flower's SuperLink with settings that its command line does not give.

- SQLite waits 120 s for a lock, not 5: with 5, uploads of large models end in `database is locked`.
- SQLite's log is copied to the database by a thread every second, not by whoever stores a piece of weights,
  and SQLite does not wipe what it deletes (docs/decisions/0018).
- With DSAN_NODE_AUTHENTICATION=1 only registered nodes may connect. Flower's own option for it wants TLS at
  the SuperLink itself; here TLS ends at the proxy, and between the two is loopback.
- The process of a study has time to load (dsan_daemon/task_claims.py).

They go through private names of Flower 1.41, which `private_names` looks for first.
"""

import argparse
import dataclasses
import importlib
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

from dsan_daemon.task_claims import MissingNameError, give_processes_time_to_start

SETTINGS = {
    "busy_timeout": "120000",  # ms
    "wal_autocheckpoint": "131072",  # pages: 512 MB; `copy_log` is there long before
    "journal_size_limit": "134217728",  # bytes of log that stay on disk once it was copied
    "secure_delete": "OFF",  # Debian's SQLite wipes 254 MB of each site's weights in every round
}
COPY_EVERY_S = 1.0
AUTHENTICATION = "DSAN_NODE_AUTHENTICATION"


def private_names() -> tuple[Any, Any]:
    """The two modules in which names are replaced. Raises MissingNameError if they are not as they were."""
    sql = importlib.import_module("flwr.supercore.sql_mixin")
    command = importlib.import_module("flwr.superlink.cli.flower_superlink")
    pragmas = dict(getattr(sql, "SQLITE_PRAGMAS", ()))
    settings = {field.name for field in dataclasses.fields(command.SuperLinkLifespanConfig)}
    found = {
        "flwr.supercore.sql_mixin.SQLITE_PRAGMAS with busy_timeout": "busy_timeout" in pragmas,
        "flwr.superlink.cli.flower_superlink._parse_superlink_lifespan_config": hasattr(
            command, "_parse_superlink_lifespan_config"
        ),
        "SuperLinkLifespanConfig.enable_supernode_auth": "enable_supernode_auth" in settings,
    }
    missing = [name for name, is_there in found.items() if not is_there]
    if missing:
        raise MissingNameError(f"this release of flwr has no {', '.join(missing)}: install flwr 1.41")
    return sql, command


def main() -> None:
    """Replace the names, then run Flower's own command with this process's arguments."""
    sql, command = private_names()
    give_processes_time_to_start()
    sql.SQLITE_PRAGMAS = for_weights(sql.SQLITE_PRAGMAS)
    if os.environ.get(AUTHENTICATION) == "1":
        parse = command._parse_superlink_lifespan_config

        def parse_with_authentication() -> Any:
            return dataclasses.replace(parse(), enable_supernode_auth=True)

        command._parse_superlink_lifespan_config = parse_with_authentication
    Thread(target=copy_log, args=(_database(sys.argv[1:]), Event()), daemon=True).start()
    sys.argv[0] = "flower-superlink"
    command.flower_superlink()


def for_weights(pragmas: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """SQLite's settings, as a store of weights needs them."""
    return tuple((dict(pragmas) | SETTINGS).items())


def copy_log(database: Path, stopped: Event) -> None:
    """Copy SQLite's log into the database every COPY_EVERY_S, beside the requests, until told to stop.

    Nobody waits for it, and it for nobody. What cannot be copied now is copied later, at the latest by a
    request once the log has `wal_autocheckpoint` pages.
    """
    log = database.with_name(f"{database.name}-wal")
    while not stopped.wait(COPY_EVERY_S):
        if not log.exists():  # nor perhaps a database: whoever makes it needs it for himself
            continue
        try:
            with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
                while not stopped.wait(COPY_EVERY_S):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error:  # a full disk, of which whoever writes will speak
            continue


def _database(arguments: list[str]) -> Path:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--database", type=Path, required=True)
    found: Path = parser.parse_known_args(arguments)[0].database
    return found.resolve()


if __name__ == "__main__":
    main()
