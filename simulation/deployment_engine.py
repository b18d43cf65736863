"""The study as a deployment on loopback: dsan-server, and a dsan-client for each site, started here.

For trying the real transport on one machine. Nothing is encrypted, and no site has a key: it is the two
commands with `--insecure-loopback`. `dsan-simulate federation` is the same with TLS and keys.
"""

import shutil
import sys
from pathlib import Path

from dsan_daemon.processes import end_leftovers
from server.refusals import ExitCode
from simulation.federation import (
    Federation,
    FederationError,
    found_on_free_ports,
    start_on_loopback,
    stopped_at_the_end,
)


class DeploymentError(Exception):
    """A process of the deployment did not start, or the run ended without a result."""


def run_on_deployment(run_folder: Path, site_configs: tuple[Path, ...]) -> None:
    """Start everything, run the study of the folder to its end, stop everything; logs are in deployment/."""
    federation = Federation((run_folder / "deployment").resolve(), ())
    federation.folder.mkdir(exist_ok=True)
    try:
        with stopped_at_the_end(federation):
            code = _run(federation, run_folder, site_configs)
    except FederationError as error:
        raise DeploymentError(str(error)) from None
    if code not in (ExitCode.DONE, ExitCode.FAILED):
        raise DeploymentError(f"the study ended with {code}: see the logs in {federation.folder}")


def _run(federation: Federation, run_folder: Path, site_configs: tuple[Path, ...]) -> int:
    centre = federation.centre
    end_leftovers(centre / "state" / "processes.json")  # of a daemon that a killed command left
    shutil.rmtree(centre, ignore_errors=True)
    address, health_port = found_on_free_ports(federation, stdout=sys.stderr)
    (centre / "runs" / run_folder.name).symlink_to(run_folder.resolve(), target_is_directory=True)
    sites = {f"site-{number}": config for number, config in enumerate(site_configs, 1)}
    start_on_loopback(federation, sites, address, health_port)
    return federation.study("resume", run_folder.name, stdout=sys.stderr)
