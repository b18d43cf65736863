"""The study on a real SuperLink and a real SuperNode for each site on loopback, started and stopped here.

For trying the real transport on one machine. Nothing is encrypted: it listens on 127.0.0.1 alone.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.bundle import write_bundle
from server.ledger import read_ledger

END_EVENTS = {"complete", "incomplete", "paused"}
START_S = 60.0
CHECK_RUN_EVERY_S = 15.0
STOP_S = 10.0


class DeploymentError(Exception):
    """A process of the deployment did not start, or the run ended without a result."""


def run_on_deployment(run_folder: Path, site_configs: tuple[Path, ...]) -> None:
    """Start everything, submit the study, wait for its end, stop everything; logs stay in deployment/."""
    folder = run_folder / "deployment"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = _free_port()
    with ExitStack() as processes:
        superlink = ["flower-superlink", "--insecure", "--port", str(port)]
        processes.enter_context(_process(superlink, folder / "superlink"))
        _wait_for_port(port, folder / "superlink.log")
        for number, config in enumerate(site_configs):
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            command += ["--port", str(_free_port()), "--node-config", f'site-config="{config}"']
            processes.enter_context(_process(command, folder / f"supernode-{number}"))
        events_before = sum(1 for _ in read_ledger(run_folder))
        _submit(folder, port, run_folder)
        _wait_for_end(run_folder, folder, events_before)


@contextmanager
def _process(command: list[str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own with its own FLWR_HOME; its output goes to HOME.log."""
    home.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [_program(command[0]), *command[1:]],
            env=_environment(home),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _submit(folder: Path, port: int, run_folder: Path) -> None:
    home = folder / "operator"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n\n[superlink.local]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    bundle = write_bundle(folder / "dsan-federated")
    command = [_program("flwr"), "run", str(bundle), "local", "--format", "json"]
    command += ["--run-config", f'run-dir="{run_folder}"']
    done = subprocess.run(command, env=_environment(home), capture_output=True, text=True, timeout=120)
    answer = _last_json(done.stdout)
    if done.returncode != 0 or not answer.get("success", False):
        raise DeploymentError(
            f"the SuperLink did not take the study: {done.stdout.strip()} {done.stderr.strip()}"
        )


def _last_json(text: str) -> dict[str, object]:
    start = text.find("{")
    try:
        found: dict[str, object] = json.loads(text[start:])
    except json.JSONDecodeError:
        return {}
    return found


def _wait_for_end(run_folder: Path, folder: Path, events_before: int) -> None:
    """Until the study's ledger says that it ended, or Flower says that its process did."""
    told, next_check = 0, time.monotonic() + CHECK_RUN_EVERY_S
    while True:
        told = _tell(run_folder / "study.log", told)
        lines = list(read_ledger(run_folder))[events_before:]
        if any(line.get("event") in END_EVENTS for line in lines):
            return
        if time.monotonic() > next_check:
            _require_running(folder)
            next_check = time.monotonic() + CHECK_RUN_EVERY_S
        time.sleep(0.5)


def _tell(log: Path, told: int) -> int:
    """Repeat what the ServerApp logged since; its process is not ours."""
    if not log.exists():
        return told
    with log.open(encoding="utf-8") as file:
        file.seek(told)
        sys.stderr.write(file.read())
        return file.tell()


def _require_running(folder: Path) -> None:
    command = [_program("flwr"), "ls", "local", "--format", "json"]
    done = subprocess.run(
        command, env=_environment(folder / "operator"), capture_output=True, text=True, timeout=60
    )
    runs = _last_json(done.stdout).get("runs", [])
    status = str(runs[0].get("status", "")) if isinstance(runs, list) and runs else ""
    if status.startswith("finished"):
        raise DeploymentError(f"the ServerApp ended ({status}) without a result: see {folder}/superlink.log")


def _wait_for_port(port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise DeploymentError(
        f"the SuperLink does not listen on 127.0.0.1:{port} after {START_S:.0f} s: see {log}"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
