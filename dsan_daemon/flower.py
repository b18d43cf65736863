"""Flower's programs as child processes: where they lie, and what keeps them from calling out."""

import os
import sys
from pathlib import Path

from dsan_daemon.processes import HUGE_PAGES

# Of weights, in one request: each costs Flower the same, however small it is. A site must send two in 180 s.
PIECE_BYTES = 8 * 1024 * 1024


def flower_program(name: str) -> str:
    """The path of a program of this Python environment, e.g. flower-supernode."""
    return str(Path(sys.executable).parent / name)


def flower_environment(home: Path, first_on_path: Path | None = None) -> dict[str, str]:
    """The environment of a Flower process with an FLWR_HOME of its own: no telemetry, no update check, no uv.

    Weights travel in large pieces, through memory of huge pages where glibc and kernel have them.

    first_on_path: a folder whose programs go before those of the Python environment.
    """
    folders = [*([first_on_path] if first_on_path else []), Path(sys.executable).parent]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    return (
        HUGE_PAGES
        | os.environ
        | {
            "FLWR_HOME": str(home),
            "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(PIECE_BYTES),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": path,
        }
    )
