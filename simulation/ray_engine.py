"""The study on Flower's Ray engine: one actor process for each core, for many cores, GPUs or sites."""

import importlib.util
import os
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.supercore.telemetry import EventType

from client.app import SITES_VARIABLE
from client.app import app as client_app
from server.app import app as server_app


class MissingRayError(Exception):
    """Ray is not installed."""


def require_ray() -> None:
    """MissingRayError, with what to do, if the extra is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingRayError(
            "the engine `ray` needs Ray: install it with `pip install 'dsan-federated[ray]'`"
        )


def run_on_ray(run_folder: Path, site_configs: tuple[Path, ...], workers: int) -> None:
    """Run the study with `workers` CPU slots; virtual node i is the site of the i-th configuration."""
    require_ray()
    os.environ[SITES_VARIABLE] = os.pathsep.join(map(str, site_configs))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # Ray's coming default; without it, it warns
    # needs Ray, which is an extra; a private name, because the public one gives an empty run configuration
    from flwr.simulation.run_simulation import _run_simulation

    _run_simulation(
        num_supernodes=len(site_configs),
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        server_app_context=Context(
            run_id=1,
            node_id=0,
            node_config={},
            state=RecordDict(),
            run_config={"run-dir": str(run_folder)},
        ),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
        },
    )
