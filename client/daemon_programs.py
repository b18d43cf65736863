"""The processes of a site's daemon: Flower's SuperNode and SuperExec, and what ClientApps are forked from."""

import os
import secrets
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from client import clientapp_start
from client.clientapp_program import SITE_VARIABLE
from client.installed_code import lock_apps_folder, write_programs
from client.keys import CA_CERTIFICATE, NODE_KEY
from client.node_state import NODE_STATE
from client.site import SiteConfig
from client.supernode_program import DAEMON_VARIABLE, STATE_VARIABLE
from dsan_daemon.files import PRIVATE, write_atomically
from dsan_daemon.flower import flower_environment, flower_program
from dsan_daemon.processes import Program

TASK_POLL_S = 0.25  # how often the SuperExec asks the SuperNode beside it for a message; Flower: 1 s
SUPERNODE, SUPEREXEC, FORK_SERVER = "supernode", "superexec", "fork-server"
PIPE = "fork-server.pipe"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"  # without Python's: no other flwr-clientapp may be found
BACK_AFTER_S = 70.0  # Flower keeps a node that died for 60 s, and its centre must see that it is gone
BACK_AFTER_LOOPBACK_S = 5.0  # without node authentication every start is a new node


@dataclass(frozen=True)
class Centre:
    """Where the centre is."""

    address: str  # HOST:PORT: the proxy, or on loopback in the clear the SuperLink itself
    watch_address: str | None  # of SiteWatch; None: there is none
    is_secure: bool


def daemon_programs(site: SiteConfig, config: Path, centre: Centre) -> tuple[Program, Program, Program]:
    """SuperNode, SuperExec and fork server, with what they need on disk: secret, programs, locked homes."""
    state = site.state_folder
    homes = {name: state / "flwr" / name for name in (SUPERNODE, SUPEREXEC)}
    for home in homes.values():
        lock_apps_folder(home)
    secret = state / "superexec.secret"
    write_atomically(secret, secrets.token_hex(32).encode(), PRIVATE)
    programs = state / "programs"
    write_programs(programs, clientapp_script(state / PIPE))
    address = f"127.0.0.1:{_free_port()}"
    logs = {name: _log(state, name) for name in (SUPERNODE, SUPEREXEC, FORK_SERVER)}
    node_environment = {STATE_VARIABLE: str(state / NODE_STATE), DAEMON_VARIABLE: str(os.getpid())}
    supernode = Program(
        SUPERNODE,
        _supernode_command(site, config, centre, address, secret),
        flower_environment(homes[SUPERNODE]) | node_environment,
        logs[SUPERNODE],
        first_pause_s=BACK_AFTER_S if centre.is_secure else BACK_AFTER_LOOPBACK_S,
    )
    of_clientapps = flower_environment(homes[SUPEREXEC]) | {
        SITE_VARIABLE: str(config),
        "PATH": f"{programs}{os.pathsep}{SYSTEM_PATH}",
        "OPENBLAS_NUM_THREADS": "1",  # of numpy: what is forked should have no threads
    }
    superexec = Program(
        SUPEREXEC,
        (
            flower_program("flower-superexec"),
            *("--insecure", "--runtime-api-address", address),
            *("--superexec-auth-secret-file", str(secret), "--parent-pid", str(os.getpid())),
        ),
        of_clientapps | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S)},
        logs[SUPEREXEC],
    )
    fork_server = Program(
        FORK_SERVER,
        (sys.executable, "-P", "-m", "client.fork_server", str(state / PIPE), str(os.getpid())),
        of_clientapps,
        logs[FORK_SERVER],
    )
    return supernode, superexec, fork_server


def clientapp_script(pipe: Path) -> str:
    """`flwr-clientapp` in a line of sh: a fork of the fork server, or a process from nothing."""
    python, start = shlex.quote(sys.executable), shlex.quote(clientapp_start.__file__)
    from_nothing = f'exec {python} -P -m client.clientapp_program "$@"'
    return f'{python} -I -S {start} {shlex.quote(str(pipe))} "$@" || {from_nothing}'


def _supernode_command(
    site: SiteConfig, config: Path, centre: Centre, address: str, secret: Path
) -> tuple[str, ...]:
    host, _, port = address.partition(":")
    keys = site.keys_folder
    tls = ("--root-certificates", str(keys / CA_CERTIFICATE))
    node_key = ("--auth-supernode-private-key", str(keys / NODE_KEY))
    return (
        *(sys.executable, "-P", "-m", "client.supernode_program"),
        *("--superlink", centre.address, "--isolation", "process", "--host", host, "--port", port),
        *("--superexec-auth-secret-file", str(secret), "--node-config", f'site-config="{config}"'),
        *((*tls, *node_key) if centre.is_secure else ("--insecure",)),
    )


def _log(state: Path, name: str) -> Path:
    """The log of a program; that of the last run is kept beside it."""
    path = state / "logs" / f"{name}.log"
    if path.exists():
        path.replace(path.with_suffix(".log.1"))
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
