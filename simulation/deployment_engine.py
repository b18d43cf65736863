"""The study on a real SuperLink and a real SuperNode for each site on loopback, started and stopped here.

For trying the real transport on one machine. Nothing is encrypted: it listens on 127.0.0.1 alone.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from dsan_daemon.flower import flower_environment, flower_program
from dsan_daemon.processes import Program, end_leftovers, supervised
from server.bundle import write_bundle
from server.ledger import read_ledger

END_EVENTS = {"complete", "incomplete", "paused"}
START_S = 60.0
CHECK_RUN_EVERY_S = 15.0
FLWR_S = 120.0
RECORD = "processes.json"


class DeploymentError(Exception):
    """A process of the deployment did not start, or the run ended without a result."""


def run_on_deployment(run_folder: Path, site_configs: tuple[Path, ...]) -> None:
    """Start everything, submit the study, wait for its end, stop everything; logs stay in deployment/."""
    folder = run_folder / "deployment"
    end_leftovers(folder / RECORD)  # of a command that was killed
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = _free_port()
    with supervised(folder / RECORD) as processes:
        superlink = ("flower-superlink", "--insecure", "--port", str(port))
        processes.start(_program(superlink, folder / "superlink"))
        _wait_for_port(port, folder / "superlink.log")
        for number, config in enumerate(site_configs):
            node = (
                "--port",
                str(_free_port()),
                "--node-config",
                f'site-config="{config}" site-name="{config.parent.name}"',
            )
            supernode = ("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", *node)
            processes.start(_program(supernode, folder / f"supernode-{number}"))
        events_before = sum(1 for _ in read_ledger(run_folder))
        _submit(folder, port, run_folder)
        _wait_for_end(run_folder, folder, events_before)


def _program(command: tuple[str, ...], home: Path) -> Program:
    """A Flower program with its own FLWR_HOME; its output goes to HOME.log."""
    home.mkdir()
    path, *arguments = command
    return Program(
        home.name, (flower_program(path), *arguments), flower_environment(home), home.with_suffix(".log")
    )


def _submit(folder: Path, port: int, run_folder: Path) -> None:
    home = folder / "operator"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n\n[superlink.local]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    bundle = write_bundle(folder / "dsan-federated")
    command = ["run", str(bundle), "local", "--format", "json", "--run-config", f'run-dir="{run_folder}"']
    answer, said = _flwr(command, home)
    if not answer.get("success", False):
        raise DeploymentError(f"the SuperLink did not take the study: {said}")


def _flwr(arguments: list[str], home: Path) -> tuple[dict[str, object], str]:
    """What `flwr` answers as JSON (empty if it failed), and all that it said."""
    command = [flower_program("flwr"), *arguments]
    try:
        done = subprocess.run(
            command, env=flower_environment(home), capture_output=True, text=True, timeout=FLWR_S
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {FLWR_S:.0f} s"
    answer = _last_json(done.stdout) if done.returncode == 0 else {}
    return answer, f"{done.stdout.strip()} {done.stderr.strip()}"


def _last_json(text: str) -> dict[str, object]:
    start = text.find("{")
    try:
        found: dict[str, object] = json.loads(text[start:])
    except json.JSONDecodeError:
        return {}
    return found


def _wait_for_end(run_folder: Path, folder: Path, events_before: int) -> None:
    """Until the study's ledger says that it ended, or Flower says that its process did."""
    told, next_check, has_finished = 0, time.monotonic() + CHECK_RUN_EVERY_S, ""
    while True:
        told = _tell(run_folder / "study.log", told)
        lines = list(read_ledger(run_folder))[events_before:]
        if any(line.get("event") in END_EVENTS for line in lines):
            return
        if has_finished:  # and the ledger, read after Flower said so, has no end of the study
            raise DeploymentError(
                f"the ServerApp ended ({has_finished}) without a result: see {folder}/superlink.log"
            )
        if time.monotonic() > next_check:
            has_finished = _finished_status(folder)
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


def _finished_status(folder: Path) -> str:
    """How Flower says that the run ended; empty while it runs, or if Flower does not answer."""
    answer, _ = _flwr(["ls", "local", "--format", "json"], folder / "operator")
    runs = answer.get("runs", [])
    status = str(runs[0].get("status", "")) if isinstance(runs, list) and runs else ""
    return status if status.startswith("finished") else ""


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
