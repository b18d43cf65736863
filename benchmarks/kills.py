"""What both kill scripts share: a deployment on this machine, its processes, and what a study came to.

A centre and hospitals by dsan-server and dsan-client as people start them, over TLS with node keys (nginx is
needed), rounds of the smallest preset.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from client.clientapp_program import PROCESS_NAME
from dsan_daemon.processes import MARK
from server.ledger import read_ledger
from server.run_folder import study_toml
from server.status import centre_status, is_run_in_work
from server.study import StudyConfig, preset_study
from simulation.engines import Engine, run_study_on
from simulation.federated_study import find_hospitals, prepare_hospitals
from simulation.federation import Federation, found_on_free_ports, require_done, wait_until_ready

CENTRE = "centre"
PROGRAMS = {
    "nginx": "nginx: master",
    "superlink": "server.superlink_main",
    "superexec": "flower-superexec",
    "serverapp": "flwr-serverapp",
    "supernode": "client.supernode_program",
    "fork-server": "client.fork_server",
    "clientapp": PROCESS_NAME,
}  # what the name and command line of a program have in them


@dataclass
class Deployment:
    """A centre and its hospitals, running."""

    federation: Federation
    health_port: int = 0
    results: "Results" = field(init=False)

    def __post_init__(self) -> None:
        self.results = Results([hospital / "work" for hospital in self.federation.hospitals])

    @property
    def centre(self) -> Path:
        """The centre's folder."""
        return self.federation.centre

    def start(self) -> None:
        """Found the centre, enrol the hospitals, start all daemons."""
        self.federation.folder.mkdir(parents=True)
        with (self.federation.folder / "commands.log").open("w") as said:
            address, self.health_port = found_on_free_ports(self.federation, said)
            self.start_daemon(CENTRE)
            for hospital in self.federation.hospitals:
                asked = ("init", hospital.name, "--server", address, "--dir", hospital)
                require_done(self.federation.client(*asked, stdout=said))
            wait_until_ready(self.federation, self.health_port)
            requests = [hospital / f"{hospital.name}.enrol.json" for hospital in self.federation.hospitals]
            require_done(self.federation.server("enrol", *requests, stdout=said))
            for hospital in self.federation.hospitals:
                kit = self.centre / f"{hospital.name}.kit.json"
                config = hospital / "site.toml"
                require_done(self.federation.client("join", kit, "--config", config, stdout=said))
                self.start_daemon(hospital.name)
        while not all(site.is_connected for site in centre_status(self.centre).sites):
            self.federation.require_alive()
            time.sleep(0.5)

    def start_daemon(self, name: str) -> None:
        """Start the daemon of the centre or of a hospital, as systemd would after its end."""
        if name == CENTRE:
            self.federation.start(CENTRE, "server.cli", "start", "--dir", self.centre)
        else:
            config = self.folder(name) / "site.toml"
            self.federation.start(name, "client.cli", "start", "--config", config)

    def folder(self, name: str) -> Path:
        """The folder of the centre or of a hospital."""
        return next(path for path in (self.centre, *self.federation.hospitals) if path.name == name)

    def processes(self, name: str, program: str) -> set[int]:
        """The processes of a program (PROGRAMS, or `daemon`) of the centre or of a hospital."""
        if program == "daemon":
            return {self.federation.daemons[name].pid}
        found = _supervised(self.folder(name) / "state")
        return {
            pid
            for pid, command in found.items()
            if PROGRAMS[program] in command and (program == "clientapp" or PROCESS_NAME not in command)
        }

    def everything(self, name: str) -> set[int]:
        """The daemon and all that it keeps running."""
        return {*_supervised(self.folder(name) / "state"), self.federation.daemons[name].pid}

    def kill(self, name: str, pids: set[int]) -> None:
        """SIGKILL; a daemon that was among them is waited for."""
        signal_all(pids, signal.SIGKILL)
        daemon = self.federation.daemons[name]
        if daemon.pid in pids:
            daemon.wait()

    def train(self, study: StudyConfig) -> None:
        """Ask the centre for a study."""
        path = self.centre / f"{study.name}.toml"
        path.write_text(study_toml(study), encoding="utf-8")
        with (self.federation.folder / "commands.log").open("a") as said:
            require_done(self.federation.server("train", path, "--detach", stdout=said))


class Results:
    """The finished results of sites: one that is written anew was trained again."""

    def __init__(self, works: list[Path]) -> None:
        self._works = works
        self.seen: dict[Path, int] = {}
        self.trained_again = 0

    def look(self) -> None:
        """To be called more often than a branch takes to be trained."""
        for path in (found for work in self._works for found in work.glob("*/*/result-*.safetensors")):
            with suppress(FileNotFoundError):
                written = path.stat().st_mtime_ns
                self.trained_again += self.seen.setdefault(path, written) != written
                self.seen[path] = written


def reference(folder: Path, n_sites: int, rounds: int) -> tuple[StudyConfig, dict[str, bytes]]:
    """A study over new hospitals in FOLDER/hospitals, and its weights without any transport or kill.

    Made once: the next call finds it. Every hospital trains.
    """
    hospitals, run = folder / "hospitals", folder / "undisturbed"
    sites = tuple(f"hospital-{number}" for number in range(1, n_sites + 1))
    study = preset_study("tiny", run.name, 0)
    study = study.model_copy(
        update={"rounds": rounds, "sites": study.sites.model_copy(update={"training": sites})}
    )
    if not (run / "results.json").exists():
        for left in (hospitals, run):
            shutil.rmtree(left, ignore_errors=True)
        options = ("--sites", str(n_sites), "--cases", "8", "--preset", "tiny", "--shape", "24", "64", "64")
        program = "from simulation.cli import main; main()"
        command = [sys.executable, "-c", program, "hospitals", str(hospitals), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = find_hospitals(hospitals)
        prepare_hospitals(found, study, 1)
        run.mkdir()
        (run / "study.toml").write_text(study_toml(study), encoding="utf-8")
        run_study_on(Engine.INPROCESS, run, tuple(found.sites.values()), n_sites)
        for name in sites:
            shutil.rmtree(hospitals / name / "work")
    return study, weights(run)


def weights(run: Path) -> dict[str, bytes]:
    """The files of a run's model that hold weights."""
    return {path.name: path.read_bytes() for path in (run / "model").glob("*.safetensors")}


def has_completed(run: Path) -> bool:
    """Whether a study has ended as it should, and its process too."""
    is_complete = any(line["event"] == "complete" for line in read_ledger(run))
    return is_complete and not is_run_in_work(run)


def signal_all(pids: set[int], number: signal.Signals) -> None:
    """Send a signal to processes; one that has ended is left out."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def hold(pid: int) -> None:
    """SIGSTOP, and wait until it is obeyed or the process is gone."""
    signal_all({pid}, signal.SIGSTOP)
    while _state(pid) not in ("T", "", "Z"):
        time.sleep(0.001)


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def _supervised(state: Path) -> dict[int, str]:
    """Processes that a daemon's supervisor marked, and nginx, which overwrites its mark; their commands."""
    mark = f"{MARK}={state / 'processes.json'}#".encode()
    found, groups = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            command = f"{(path / 'comm').read_text().strip()} {line}"
            if mark in (path / "environ").read_bytes() or f"{state}/nginx" in command:
                found[int(path.name)] = command
            groups[int(path.name)] = os.getpgid(int(path.name))
    leaders = {pid for pid in found if groups.get(pid) == pid}
    return found | {pid: "" for pid, group in groups.items() if group in leaders and pid not in found}
