"""Each program of the centre gets SIGKILL in each phase of a study; the matrix of what came of it is printed.

    python benchmarks/centre_kills.py
    python benchmarks/centre_kills.py --targets serverapp everything --phases training fitting

Phases are told by the run folder: `describing` before the sites are known, `training` in round 2, `writing`
while a round is in the ledger and not yet on disk, `fitting` after the last round (validation, ensemble),
`testing` after the ensemble (held-out site, attention scores).

A centre and three hospitals on this machine, by dsan-server and dsan-client as people start them (nginx is
needed), four rounds of the smallest preset. One study for each target; it is hit once in every phase. A
daemon that was killed is started again at once, as systemd would; `everything` is a power cut of the centre:
the daemon and all its programs at the same moment.

A cell says how many seconds passed until the study was at work again. Expected: every study complete, its
weights those of an undisturbed study bit for bit, no round done more than twice. About four minutes for each
target on two idle cores.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from server.ledger import read_ledger
from server.run_folder import study_toml
from server.status import is_run_in_work
from server.study import read_study
from simulation.federation import (
    Federation,
    found_on_free_ports,
    require_done,
    stopped_at_the_end,
    wait_until_ready,
)

TARGETS = ("nginx", "superlink", "superexec", "serverapp", "daemon", "everything")
PHASES = ("describing", "training", "writing", "fitting", "testing")
PAUSE_S = 3.0  # after what marks the beginning of a phase in the run folder: the sites are at work then
SITES = ("hospital-1", "hospital-2", "hospital-3")
ROUNDS = 4
LONGEST_S = 900.0


def main() -> int:
    """Run, print, and answer 0 if everything is as expected."""
    options = _options()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected = _undisturbed(folder)
    federation = Federation(folder / "federation", tuple(folder / "hospitals" / name for name in SITES))
    federation.folder.mkdir()
    is_good = True
    with stopped_at_the_end(federation):
        health_port = _start(federation)
        for target in options.targets:
            study = Study(federation, folder, target, health_port)
            cells = [study.hit(phase) for phase in options.phases]
            is_good &= study.end(expected, cells)
    return int(not is_good)


class Study:
    """One study, in which a target is killed in every phase."""

    def __init__(self, federation: Federation, folder: Path, target: str, health_port: int) -> None:
        self.federation = federation
        self.target = target
        self.health_port = health_port
        self.run = federation.centre / "runs" / f"kills-{target}"
        study = read_study(folder / "undisturbed" / "study.toml").model_copy(update={"name": self.run.name})
        path = federation.centre / f"{self.run.name}.toml"
        path.write_text(study_toml(study), encoding="utf-8")
        require_done(federation.server("train", path, "--detach"))

    def hit(self, phase: str) -> str:
        """Wait for the phase, kill, and wait until the study is at work again: the cell of the matrix."""
        deadline = time.monotonic() + LONGEST_S
        while not self._is_in(phase):
            if self._has_ended() or time.monotonic() > deadline:
                return "not reached"
            time.sleep(0.05)
        began = time.monotonic()
        self._kill()
        while not (self._is_answering() and is_run_in_work(self.run)) and not self._has_ended():
            if time.monotonic() > deadline:
                return "NOT BACK"
            time.sleep(0.1)
        return f"{time.monotonic() - began:.0f} s"

    def end(self, expected: dict[str, bytes], cells: list[str]) -> bool:
        """Print the line of the matrix; whether it is as it should be."""
        deadline = time.monotonic() + LONGEST_S
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(1)
        events = Counter(str(line["event"]) for line in read_ledger(self.run))
        rounds = Counter(
            line["round"]
            for line in read_ledger(self.run)
            if (line.get("site"), line.get("branch")) == (SITES[0], "us")
        )
        is_equal = _weights(self.run) == expected
        times = max(rounds.values(), default=0)
        print(
            f"{self.target:<11} | {' | '.join(f'{cell:>11}' for cell in cells)} | "
            f"{'complete' if events['complete'] else 'NOT COMPLETE'}, weights "
            f"{'equal' if is_equal else 'DIFFER'}, no round more than {times} times",
            flush=True,
        )
        return bool(events["complete"]) and is_equal and times <= 2 and "NOT BACK" not in cells

    def _is_in(self, phase: str) -> bool:
        if not is_run_in_work(self.run):
            return False
        log = self.run / "study.log"
        match phase:
            case "describing":
                return not (self.run / "sites.json").exists()
            case "training":
                return _is_older(self.run / "rounds" / "0001")
            case "writing":
                events = [line for line in read_ledger(self.run) if line.get("event") == "round"]
                newest = max((int(str(line["round"])) for line in events), default=0)
                return newest > 0 and not (self.run / "rounds" / f"{newest:04d}").exists()
            case "fitting":
                return _is_older(self.run / "rounds" / f"{ROUNDS:04d}")
        return log.exists() and "ensemble" in log.read_text() and _is_older(log)

    def _has_ended(self) -> bool:
        return any(line["event"] == "complete" for line in read_ledger(self.run))

    def _is_answering(self) -> bool:
        wait_until_ready(self.federation, self.health_port)
        return True

    def _kill(self) -> None:
        daemon = self.federation.daemons["centre"]
        state = self.federation.centre / "state"
        marks = [self.target] if self.target != "everything" else list(TARGETS[:4])
        hit = [pid for mark in marks for pid in _programs(state, mark)]
        if self.target in ("daemon", "everything"):
            hit.append(daemon.pid)
        for pid in hit:
            os.kill(pid, signal.SIGKILL)
        if daemon.pid in hit:
            daemon.wait()
            self.federation.start("centre", "server.cli", "start", "--dir", self.federation.centre)


def _is_older(path: Path) -> bool:
    """Whether it is there, and has been for a while."""
    return path.exists() and time.time() - path.stat().st_mtime > PAUSE_S


def _programs(state: Path, name: str) -> list[int]:
    """Process numbers of a program of this centre."""
    words = {
        "superlink": "server.superlink_main",
        "superexec": "flower-superexec",
        "serverapp": "flwr-serverapp",
    }
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode(errors="replace")
            environment = (path / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(state) in environment + command and words.get(name, name) in command:
            found.append(int(path.name))
    return found


def _start(federation: Federation) -> int:
    """Centre and hospitals, enrolled, joined and started; the port of the centre's health."""
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
    return health_port


def _undisturbed(folder: Path) -> dict[str, bytes]:
    """Three hospitals, and the weights of the same study without any transport."""
    hospitals, run = folder / "hospitals", folder / "undisturbed"
    _simulate(
        "hospitals", hospitals, "--sites", "3", "--cases", "8", "--preset", "tiny", "--shape", 24, 64, 64
    )
    _simulate("run", "--hospitals", hospitals, "--out", run, "--preset", "tiny", "--rounds", ROUNDS)
    for name in SITES:
        shutil.rmtree(hospitals / name / "work")
    return _weights(run)


def _simulate(*arguments: str | int | Path) -> None:
    command = [sys.executable, "-c", "from simulation.cli import main; main()", *map(str, arguments)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "model").glob("*.safetensors")}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--folder", type=Path, default=Path("runs/centre-kills"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
