"""A hospital's daemon and its processes are killed again and again while a study runs over TLS.

    python benchmarks/site_kills.py --kills 10 --seed 1

A centre and two hospitals on this machine, by dsan-server and dsan-client as people start them (nginx is
needed), rounds of the smallest preset. At random moments one of daemon, SuperNode, SuperExec and ClientApp of
the training hospital gets SIGKILL; a daemon is started again at once, as systemd would. `--stopped S` holds
the SuperNode with SIGSTOP for S seconds before that, `--away S` then ends the centre for S seconds.

Printed: every kill with the phase that it hit, whether the study was completed, whether its weights are
those of an undisturbed study bit for bit, and how many finished results were trained again (expected: 0).
A SuperNode that was killed is back after 70 s at the earliest, so ten kills take some 15 to 20 minutes.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from client.clientapp_program import is_clientapp_alive, read_record
from client.daemon_status import read_status
from dsan_daemon.processes import started_at
from server.run_folder import study_toml
from server.study import read_study
from simulation.federation import Federation, found_on_free_ports, require_done, wait_until_ready

TARGETS = ("daemon", "supernode", "superexec", "clientapp")
FOR_A_CLIENTAPP_S = 30.0  # there is one for some seconds of each message
SITE, HELD_OUT = "hospital-1", "hospital-2"


def main() -> int:
    """Run, print, and answer 0 if everything is as expected."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # ends what it started, too
    options = _options()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected = _undisturbed(folder, options.rounds)
    chance = random.Random(options.seed)
    results = Results(folder / "hospitals" / SITE / "work")
    hospitals = (folder / "hospitals" / SITE, folder / "hospitals" / HELD_OUT)
    federation = Federation(folder / "federation", hospitals)
    try:
        _start(federation)
        training = _train(federation, folder)
        while not results.seen and results.watch(training, 1):  # the first branch is trained
            pass
        if options.stopped:
            _hold_supernode(federation, options.stopped)
        if options.away:
            _end_centre_for(federation, options.away)
        for number in range(options.kills):
            if not results.watch(training, chance.uniform(5, 60)):
                break
            print(f"kill {number + 1}: {_kill(federation, chance.choice(TARGETS))}", flush=True)
        while results.watch(training, 5):
            pass
    finally:
        federation.stop()
    (run,) = (federation.centre / "runs").iterdir()
    found = _weights(run)
    print(f"dsan-server train ended with {training.returncode} (0: complete)")
    print(f"weights {'equal' if found == expected else 'DIFFER FROM'} those of the undisturbed study")
    print(f"{len(results.seen)} finished results, {results.trained_again} of them trained again")
    return int(training.returncode != 0 or found != expected or results.trained_again > 0)


class Results:
    """The finished results of the site: one that is written anew was trained again."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.seen: dict[Path, int] = {}
        self.trained_again = 0

    def watch(self, training: "subprocess.Popen[bytes]", seconds: float) -> bool:
        """Look for so long; False as soon as the study has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for path in self.work.glob("*/*/result-*.safetensors"):
                with suppress(FileNotFoundError):
                    written = path.stat().st_mtime_ns
                    self.trained_again += self.seen.setdefault(path, written) != written
                    self.seen[path] = written
            if training.poll() is not None:
                return False
            time.sleep(0.2)
        return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--stopped", type=float, default=0.0, help="seconds of SIGSTOP")
    parser.add_argument("--away", type=float, default=0.0, help="seconds without the centre")
    parser.add_argument("--folder", type=Path, default=Path("runs/site-kills"))
    return parser.parse_args()


def _undisturbed(folder: Path, rounds: int) -> dict[str, bytes]:
    """Two hospitals, and the weights of the same study without any transport."""
    hospitals, run = folder / "hospitals", folder / "undisturbed"
    size = ("--sites", "2", "--cases", "8", "--preset", "tiny", "--shape", "24", "64", "64")
    _simulate("hospitals", hospitals, *size)
    names = ("--preset", "tiny", "--rounds", str(rounds), "--held-out", HELD_OUT)
    _simulate("run", "--hospitals", hospitals, "--out", run, *names)
    for name in (SITE, HELD_OUT):
        shutil.rmtree(hospitals / name / "work")
    return _weights(run)


def _simulate(*arguments: str | Path) -> None:
    command = [sys.executable, "-c", "from simulation.cli import main; main()", *map(str, arguments)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "model").glob("*.safetensors")}


def _start(federation: Federation) -> None:
    """Centre and hospitals, enrolled, joined and started."""
    federation.folder.mkdir()
    address, health_port = found_on_free_ports(federation)
    federation.start("centre", "server.cli", "start", "--dir", federation.centre)
    for hospital in federation.hospitals:
        require_done(federation.client("init", hospital.name, "--server", address, "--dir", hospital))
    wait_until_ready(federation, health_port)
    requests = [hospital / f"{hospital.name}.enrol.json" for hospital in federation.hospitals]
    require_done(federation.server("enrol", *requests))
    for hospital in federation.hospitals:
        kit, config = federation.centre / f"{hospital.name}.kit.json", hospital / "site.toml"
        require_done(federation.client("join", kit, "--config", config))
        federation.start(hospital.name, "client.cli", "start", "--config", config)


def _train(federation: Federation, folder: Path) -> "subprocess.Popen[bytes]":
    study = read_study(folder / "undisturbed" / "study.toml")
    path = federation.centre / "kills.toml"
    path.write_text(study_toml(study))
    command = [sys.executable, "-m", "server.cli", "train", str(path), "--dir", str(federation.centre)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _kill(federation: Federation, target: str) -> str:
    """SIGKILL to one process of the training hospital; what was hit, in words."""
    state = federation.hospitals[0] / "state"
    deadline = time.monotonic() + FOR_A_CLIENTAPP_S
    while (
        target == "clientapp" and time.monotonic() < deadline and not is_clientapp_alive(read_record(state))
    ):
        time.sleep(0.2)
    status, record = read_status(state), read_record(state)
    phase = status.work.phase if status else "unknown"
    if target == "daemon":
        federation.daemons[SITE].kill()
        federation.daemons[SITE].wait()
        config = federation.hospitals[0] / "site.toml"
        federation.start(SITE, "client.cli", "start", "--config", config)
        return f"daemon while {phase}"
    if target == "clientapp":
        if record is None or not is_clientapp_alive(record):
            return f"no ClientApp to kill while {phase}"
        os.kill(record.pid, signal.SIGKILL)
        return f"ClientApp while {phase}"
    pid = status.processes[target].pid if status and target in status.processes else None
    if pid is None or started_at(pid) is None:
        return f"no {target} to kill while {phase}"
    os.kill(pid, signal.SIGKILL)
    return f"{target} while {phase}"


def _hold_supernode(federation: Federation, seconds: float) -> None:
    status = read_status(federation.hospitals[0] / "state")
    assert status is not None
    pid = status.processes["supernode"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    print(f"SuperNode held for {seconds:.0f} s", flush=True)


def _end_centre_for(federation: Federation, seconds: float) -> None:
    process = federation.daemons["centre"]
    process.terminate()
    process.wait()
    time.sleep(seconds)
    federation.start("centre", "server.cli", "start", "--dir", federation.centre)
    print(f"centre away for {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
