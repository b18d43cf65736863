"""What a round costs beyond training, over a real SuperLink and real SuperNodes: ours, FedAvg, bare Flower.

    python benchmarks/transport.py --sites 2 --rounds 5
    python benchmarks/transport.py --sites 2 --rounds 20 --arms ours

Two branches of 63.5 million parameters each, the paper's network, over volumes so small that a step of
training is nothing beside the transport; what is left of training is subtracted. All programs run on this
machine, on loopback, in the clear, with SQLite under the SuperLink.

- ours: dsan-server and dsan-client as people start them, a study in half precision. The other two are Flower
  as it comes; with --tuned its programs have our settings of SQLite, pieces and memory
  (docs/decisions/0018), and neither our forks nor our short waits.
- fedavg: Flower's FedAvg strategy over one state dict of both branches in float32. Its round has a message
  to train and one to evaluate, as ours validates too; the time without the latter is shown beside it.
- bare: Flower's `send_and_receive` of arrays of as many bytes as ours, and nothing else. Its ClientApp
  imports torch, as any that trains must.

Printed for each: the median round after the first, its processor time, its bytes, the memory of the
ServerApp's process above what it had before its first weights (VmHWM), and how often `database is locked` is
in a log. A round of ours reaches from one finished round's folder to the next. Two sites, five rounds of
each: about 15 minutes on two idle cores, 6 GB of memory, 8 GB of disk; four sites: twice of each.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dsan_daemon.files import PRIVATE, write_atomically
from dsan_daemon.flower import flower_environment, flower_program
from dsan_daemon.processes import HUGE_PAGES, Program, Supervisor, supervised
from server.ledger import read_ledger
from server.round_files import read_rounds
from server.run_folder import study_toml
from server.study import StudyConfig, preset_study
from server.superlink import (
    GIVES_MEMORY_BACK,
    SuperLink,
    superexec_program,
    superlink_program,
    write_operator_connection,
)
from simulation.federated_study import find_hospitals, prepare_hospitals
from simulation.federation import (
    Federation,
    found_on_free_ports,
    require_done,
    start_on_loopback,
    stopped_at_the_end,
)

ARMS = ("ours", "fedavg", "bare")
LONGEST_ROUND_S = 900.0
APP = Path(__file__).parent / "transport_app"


@dataclass(frozen=True)
class Round:
    """One round of one arm."""

    seconds: float  # beyond training
    bytes: int
    memory_bytes: int  # of the ServerApp above its start, so far
    cpu_s: float  # of all processes since the start of the arm; of ours with the training
    without_evaluation_s: float | None = None


def main() -> None:
    """Run every arm and print a line for each."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # ends what it started, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument(
        "--optimiser", choices=["sgd", "adam"], default="sgd", help="adam keeps 508 MB a branch"
    )
    parser.add_argument("--tuned", action="store_true", help="Flower's arms with our settings of Flower")
    parser.add_argument("--width", type=int, default=64, help="less: to try this script")
    parser.add_argument("--folder", type=Path, default=Path("runs/transport"))
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"  # many processes share the cores of this machine
    found: dict[str, list[Round]] = {}
    for arm in options.arms:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if arm == "ours":
            study = study_of(options)
            found[arm] = ours(folder, study)
        else:
            found[arm] = flower(folder, arm, options)
        tell(arm, found[arm], locked(folder))
    if len(found) == len(ARMS):  # ratios of wall time; those of processor time say more where others work
        typical = {arm: median(rounds) for arm, rounds in found.items()}
        print("Flower with our settings" if options.tuned else "Flower as it comes")
        print(f"fedavg takes {typical['fedavg'] / typical['ours']:.2f} times as long as ours")
        print(f"ours takes {typical['ours'] / typical['bare'] - 1:+.1%} of bare")
    shutil.rmtree(folder, ignore_errors=True)


def tell(arm: str, rounds: list[Round], n_locked: int) -> None:
    """The line of an arm."""
    parts = [median(rounds), *(r.seconds for r in rounds)]
    print(f"{arm}: {parts[0]:.1f} s a round beyond training ({', '.join(f'{s:.1f}' for s in parts[1:])})")
    without = [r.without_evaluation_s for r in rounds[1:] if r.without_evaluation_s is not None]
    if without:
        print(f"  without the evaluation {statistics.median(without):.1f} s")
    used = (rounds[-1].cpu_s - rounds[0].cpu_s) / max(1, len(rounds) - 1)
    print(f"  {used:.0f} s of processor time a round, of all processes")
    print(f"  {rounds[-1].bytes / 1e6:.0f} MB a round, {rounds[-1].memory_bytes / 2**20:.0f} MiB of memory")
    print(f"  database is locked: {n_locked} times in {len(rounds)} rounds", flush=True)


def median(rounds: list[Round]) -> float:
    """Of the seconds of all rounds but the first, which waits for the sites."""
    return statistics.median(r.seconds for r in rounds[1:] or rounds)


def locked(folder: Path) -> int:
    """How often a log says that the database is locked."""
    return sum(path.read_text(errors="replace").count("database is locked") for path in folder.rglob("*.log"))


def study_of(options: argparse.Namespace) -> StudyConfig:
    """The paper's network over the volumes of the smallest preset."""
    table = preset_study("full", "transport", 0).model_dump()
    table |= {"rounds": options.rounds, "input": preset_study("tiny", "transport", 0).input.model_dump()}
    table["network"] |= {"width": options.width}
    table["training"] |= {"optimiser": options.optimiser, "learning_rate": 1e-4}
    table["sites"] = {"training": tuple(f"hospital-{n + 1}" for n in range(options.sites))}
    return StudyConfig.model_validate(table)


def ours(folder: Path, study: StudyConfig) -> list[Round]:
    """The study over dsan-server and a dsan-client for each site."""
    size = ("--cases", "6", "--preset", "tiny", "--shape", "24", "64", "64")
    n_sites = len(study.sites.training)
    command = (sys.executable, "-c", "from simulation.cli import main; main()", "hospitals")
    hospitals = folder / "hospitals"
    subprocess.run((*command, hospitals, "--sites", str(n_sites), *size), check=True, stdout=sys.stderr)
    sites = find_hospitals(hospitals)
    prepare_hospitals(sites, study, 1)
    federation = Federation(folder, ())
    with stopped_at_the_end(federation):
        address, health_port = found_on_free_ports(federation, stdout=sys.stderr)
        start_on_loopback(federation, sites.sites, address, health_port)
        path = federation.centre / "transport.toml"
        path.write_text(study_toml(study), encoding="utf-8")
        require_done(federation.server("train", path, "--detach", stdout=sys.stderr))
        return watched_rounds(federation, study)


def watched_rounds(federation: Federation, study: StudyConfig) -> list[Round]:
    """Wait for one finished round after another; looks at the memory of the ServerApp meanwhile."""
    run = federation.centre / "runs" / study.name
    pid, bare, newest = None, 0, 0
    ended = [time.monotonic()]
    found: list[Round] = []
    while len(found) < study.rounds:
        federation.require_alive()
        if time.monotonic() - ended[-1] > LONGEST_ROUND_S:
            raise TimeoutError(f"no round ended in {LONGEST_ROUND_S:.0f} s: see {run}/study.log")
        pid = pid or serverapp(federation.centre)
        newest = max(newest, peak_bytes(pid))
        if not (run / "sites.json").exists():
            bare = newest  # the sites are not known yet, and no weights are there
        if (run / "rounds" / f"{len(found) + 1:04d}" / "SHA256SUMS").exists():
            ended.append(time.monotonic())
            outline = read_rounds(run)[-1]
            seconds = ended[-1] - ended[-2] - training_s(run, outline.round)
            moved = outline.bytes_to_sites + outline.bytes_from_sites
            found.append(Round(seconds, moved, newest - bare, cpu_s(federation.folder)))
        time.sleep(0.25)
    return found


def training_s(run: Path, number: int) -> float:
    """Seconds that the slowest site trained in a round."""
    by_site: dict[str, float] = {}
    for line in read_ledger(run):
        if line["event"] == "round" and line["round"] == number:
            by_site[str(line["site"])] = by_site.get(str(line["site"]), 0.0) + float(str(line["seconds"]))
    return max(by_site.values())


def serverapp(centre: Path) -> int | None:
    """The process number of the study, if it is there."""
    marks = (b"flwr-serverapp", str(centre).encode())
    return next((pid for pid, text, _ in processes() if all(mark in text for mark in marks)), None)


def peak_bytes(pid: int | None) -> int:
    """The most memory that a process has had; 0 if there is none."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def cpu_s(folder: Path) -> float:
    """Processor time of all processes that know the folder, and of those that they have waited for."""
    mark = str(folder).encode()
    listed = [(pid, mark in text, stat) for pid, text, stat in processes() if pid != os.getpid()]
    ours = {pid for pid, is_ours, _ in listed if is_ours}
    ticks = [sum(map(int, stat[11:15])) for pid, _, stat in listed if pid in ours or int(stat[1]) in ours]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def processes() -> Iterator[tuple[int, bytes, list[str]]]:
    """Number, command line with environment, and what /proc/PID/stat has after the name; of all that run."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            yield int(path.name), (path / "cmdline").read_bytes() + (path / "environ").read_bytes(), stat
        except OSError:  # it ended meanwhile
            continue


def flower(folder: Path, arm: str, options: argparse.Namespace) -> list[Round]:
    """An arm of `transport_app` over a SuperLink and Flower's own SuperNodes."""
    out = folder / "rounds.jsonl"
    n_sites, n_rounds = options.sites, options.rounds
    found: list[Round] = []
    with programs(folder, n_sites, options.tuned) as (supervisor, environment):
        settings = f'arm="{arm}" rounds={n_rounds} sites={n_sites} width={options.width} out="{out}"'
        submit = (flower_program("flwr"), "run", APP, "local", "--run-config", settings)
        subprocess.run(submit, check=True, env=environment, stdout=sys.stderr)
        deadline = time.monotonic() + LONGEST_ROUND_S * n_rounds
        while len(found) < n_rounds:
            if supervisor.tend() or time.monotonic() > deadline:
                raise RuntimeError(f"a program ended, or no round in time: see the logs in {folder}")
            lines = out.read_text().splitlines() if out.exists() else []
            found += [round_of(json.loads(line), cpu_s(folder)) for line in lines[len(found) :]]
            time.sleep(0.25)
    return found


def round_of(line: dict[str, float | str], cpu: float) -> Round:
    """A line of transport_app. Raises RuntimeError if it says that the run failed."""
    if "failed" in line:
        raise RuntimeError(f"the ServerApp failed: {line['failed']}")
    return Round(**line, cpu_s=cpu)  # type: ignore[arg-type]


@contextmanager
def programs(folder: Path, n_sites: int, is_tuned: bool) -> Iterator[tuple[Supervisor, dict[str, str]]]:
    """SuperLink, SuperExec and SuperNodes; with them the environment in which `flwr run` finds them."""
    port, *node_ports = free_ports(1 + n_sites)
    secret = folder / "superexec.secret"
    write_atomically(secret, b"0" * 64, PRIVATE)
    write_operator_connection(folder, port)
    started = [superlink_program(folder, port, secret, False), superexec_program(folder, port, secret)]
    started += [supernode(folder, number, port, own) for number, own in enumerate(node_ports)]
    if not is_tuned:
        started = [as_it_comes(program) for program in started]
    superlink, *others = started
    with supervised(folder / "processes.json") as supervisor:
        supervisor.start(superlink)
        while not SuperLink(port).is_healthy():
            time.sleep(0.5)
        for program in others:
            supervisor.start(program)
        yield supervisor, flower_environment(folder / "flwr" / "operator")


def as_it_comes(program: Program) -> Program:
    """A program of ours as Flower's own command with Flower's own settings."""
    ours = {*HUGE_PAGES, *GIVES_MEMORY_BACK, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"}
    environment = {name: value for name, value in program.environment.items() if name not in ours}
    command = program.command
    if "server.superlink_main" in command:
        arguments = command[command.index("server.superlink_main") + 1 :]
        command = (flower_program("flower-superlink"), *arguments)
    return replace(program, command=command, environment=environment)


def supernode(folder: Path, number: int, port: int, node_port: int) -> Program:
    """Flower's SuperNode, which starts its ClientApps itself."""
    name = f"node-{number}"
    to_superlink = ("--insecure", "--superlink", f"127.0.0.1:{port}")
    command = (flower_program("flower-supernode"), *to_superlink, "--port", str(node_port))
    environment = flower_environment(folder / "flwr" / name)
    return Program(name, command, environment, folder / "logs" / f"{name}.log")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


if __name__ == "__main__":
    main()
