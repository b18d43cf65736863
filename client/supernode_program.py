"""Flower's SuperNode as this site runs it: foreign bundles stay unread, its doings are noted, it ends whole.

`python -P -m client.supernode_program OPTIONS OF flower-supernode`, started by the site's daemon alone.
"""

import inspect
import logging
import os
import sys
from pathlib import Path

import flwr.supernode.start_client_internal as flower_supernode
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.logger import FLOWER_LOGGER
from flwr.supernode.cli import flower_supernode as run_supernode

from client.findings import Finding, FindingError
from client.installed_code import keep_bundle_out_of_supernode
from client.node_state import TEMPLATES, NodeRecorder
from dsan_daemon.object_pulls import look_for_pieces_often
from dsan_daemon.task_claims import give_processes_time_to_start

STATE_VARIABLE = "DSAN_NODE_STATE"  # the file that says what the SuperNode does
DAEMON_VARIABLE = "DSAN_DAEMON_PID"  # the SuperNode leaves when this process is gone


def require_node_log() -> None:
    """FindingError CODE-LOG if Flower's log no longer says what the daemon reads in it."""
    source = inspect.getsource(flower_supernode)
    missing = [template for template in TEMPLATES if f'"{template}"' not in source]
    if missing:
        message = f"the SuperNode no longer logs {missing[0]!r}, so that nobody could watch over it"
        fix = "Install the release of Flower that constraints.txt names."
        raise FindingError(Finding("CODE-LOG", "error", "the installed Flower", message, fix))


def main() -> None:
    """Run the SuperNode until it ends; the process then ends too, whatever threads Flower left behind."""
    keep_bundle_out_of_supernode()
    give_processes_time_to_start()
    look_for_pieces_often()
    recorder = NodeRecorder(Path(os.environ[STATE_VARIABLE]))
    FLOWER_LOGGER.addHandler(recorder)
    http = logging.getLogger("httpx")
    http.setLevel(logging.INFO)
    http.propagate = False
    http.addHandler(recorder)
    start_parent_process_monitor(int(os.environ[DAEMON_VARIABLE]))
    code: object = 1
    try:
        run_supernode()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
