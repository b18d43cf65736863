"""Every process of a deployment is killed in every phase of a study, and the matrix of it is printed.

    python benchmarks/kill_matrix.py            all of it, about 46 minutes on two cores
    python benchmarks/kill_matrix.py --targets centre-serverapp --phases training writing
    python benchmarks/kill_matrix.py --table    print what was measured so far

A centre and two hospitals over TLS, eight rounds of the smallest preset. One study for each target, hit once
in each phase; then the study must be complete, its weights those of an undisturbed study bit for bit, nothing
that a site had finished trained again, and no cell may cost more than one round that was in the ledger.
Targets are processes that get SIGKILL. `centre-power` and `site-power` are power cuts: the daemon and all its
processes at the same moment; `site-frozen` holds all of a site by SIGSTOP, as if its line were cut. A daemon
is started again at once, as systemd does; a site without power or line comes back when the centre has named
it, which must take at most 90 s.

So that a cell is what it says, the process that makes the phase is held (SIGSTOP) while the target is killed:

  idle         no study runs; it is begun after the kill
  unpulled     the message of a round lies at the centre, the site's SuperNode has not pulled it
  training     the site's ClientApp trains
  pushing      the site's SuperNode sends a round's answer (for the ClientApp: it hands it to the SuperNode)
  aggregating  the ServerApp has taken the site's answer and waits for that of the other one
  writing      the round is in the ledger and not yet in rounds/
  evaluating   the site validates the weights of the last round
  fitting      the site counts for the ensemble

A cell says after how many seconds the study was at work again (at the centre: programs back, and the run held
by a ServerApp; at a site: the next message in work), how many rounds of the ledger were repeated, and for
targets at a site after how many seconds `dsan-server status` named it.

Each cell is appended to kills.jsonl in the folder; the same command again runs what is missing or was not
good. Rows run in lanes, each with a deployment of its own: a SuperNode that was killed waits for 70 s.
"""

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGCONT, SIGSTOP

from kill_table import (
    CENTRE_PROGRAMS,
    LONGEST_FIRST,
    NAMED_S,
    NO_SUCH_CELL,
    PHASES,
    RESULTS,
    TARGETS,
    Cell,
    in_seconds,
    read_cells,
    table_text,
)
from kills import CENTRE, Deployment, has_completed, hold, reference, signal_all, weights

from client.clientapp_program import is_clientapp_alive, read_record
from client.node_state import NodeState, read_node_state
from client.progress import read_progress
from server.ledger import LEDGER, read_ledger
from server.status import centre_status, is_run_in_work
from server.study import StudyConfig
from simulation.federation import Federation, stopped_at_the_end, wait_until_ready

AFTER_ROUNDS = ("evaluating", "fitting")
SITE, OTHER = "hospital-1", "hospital-2"
ROUNDS = 8  # a kill in each of five, and some that go by while a site comes back
POLL_S = 0.005
LOOK_EVERY_S = 0.5  # at all processes of the machine
PULL_S = 5.0  # how long a SuperNode is held to see whether a message comes meanwhile
STEADY_S = 3.0  # the centre is back when it has been so for this long
LONGEST_S = 900.0


def main() -> int:
    """Run what is missing, print the matrix, and answer 0 if every cell is good."""
    options = _options()
    folder = options.folder.resolve()
    targets = [target for target in LONGEST_FIRST if target in options.targets]
    if options.lane is not None:
        return _run_lane(folder, options.lane, targets, options.phases)
    if not options.table:
        reference(folder, 2, ROUNDS)
        _run_lanes(folder, targets, options)
    cells = read_cells(folder)
    print(table_text(cells, options.targets, options.phases))
    wanted = [(t, p) for t in options.targets for p in options.phases if (t, p) not in NO_SUCH_CELL]
    return int(not all(key in cells and cells[key].is_good for key in wanted))


def _run_lanes(folder: Path, targets: list[str], options: argparse.Namespace) -> None:
    """Each lane is this script again, with a part of the targets."""
    lanes = []
    for number in range(options.lanes):
        if part := targets[number :: options.lanes]:
            command = [sys.executable, __file__, "--folder", str(folder), "--lane", str(number)]
            command += ["--targets", *part, "--phases", *options.phases]
            lanes.append(subprocess.Popen(command))
    try:
        for lane in lanes:
            lane.wait()
    finally:
        for lane in lanes:
            lane.terminate()
            lane.wait()


def _run_lane(folder: Path, number: int, targets: list[str], phases: list[str]) -> int:
    study, expected = reference(folder, 2, ROUNDS)
    cells = read_cells(folder)
    missing = {
        target: [
            phase
            for phase in PHASES
            if phase in phases
            and (target, phase) not in NO_SUCH_CELL
            and not ((target, phase) in cells and cells[target, phase].is_good)
        ]
        for target in targets
    }
    if not any(missing.values()):
        return 0
    lane = folder / f"lane-{number}"
    federation = Federation(lane / "federation", (lane / "hospitals" / SITE, lane / "hospitals" / OTHER))
    with stopped_at_the_end(federation):
        shutil.rmtree(lane, ignore_errors=True)
        shutil.copytree(folder / "hospitals", lane / "hospitals")
        deployment = Deployment(federation)
        deployment.start()
        for target, of_target in missing.items():
            if of_target:
                found = Row(deployment, study, target).run(of_target, expected)
                with (folder / RESULTS).open("a") as file:
                    file.write("".join(json.dumps(asdict(cell)) + "\n" for cell in found))
    return 0


class Row:
    """One study, in which a target is killed once in every phase."""

    def __init__(self, deployment: Deployment, study: StudyConfig, target: str) -> None:
        self.deployment = deployment
        self.target = target
        self.where, _, self.program = target.partition("-")
        self.name = CENTRE if self.where == "centre" else SITE
        number = sum(1 for _ in (deployment.centre / "runs").glob("*"))
        self.study = study.model_copy(update={"name": f"kills-{target}-{number}"})
        self.run_folder = deployment.centre / "runs" / self.study.name
        self.is_begun = False
        self.hit_in = -1  # rounds in the ledger at the last kill
        self.hits: list[datetime] = []
        self.ledger = (0, 0)  # its size, and the newest round in it

    def run(self, phases: list[str], expected: dict[str, bytes]) -> list[Cell]:
        """Kill in every phase, wait for the study's end; the cells, with what became of the study."""
        trained_again = self.deployment.results.trained_again
        cells = [self._hit(phase) for phase in phases]
        self._begin()
        self._wait(lambda: has_completed(self.run_folder), LONGEST_S)
        self.deployment.results.look()
        complete, equal = has_completed(self.run_folder), weights(self.run_folder) == expected
        if not complete:
            self.deployment.federation.server("stop", self.study.name)
        again = self.deployment.results.trained_again - trained_again
        ends = [*self.hits[1:], datetime.now(UTC)]
        repeated = [self._repeated(*span) for span in zip(self.hits, ends, strict=True)]
        _say(f"{self.target}: complete {complete}, weights equal {equal}, trained again {again}")
        return [
            Cell(self.target, phase, at.isoformat(timespec="seconds"), *cell, n, complete, equal, again)
            for phase, cell, n, at in zip(phases, cells, repeated, self.hits, strict=True)
        ]

    def _hit(self, phase: str) -> tuple[bool, float | None, float | None]:
        """Whether the phase was reached; seconds until the study was at work again; until it was named."""
        with self._held_in(phase) as is_reached:
            self.hits.append(datetime.now(UTC))
            if not is_reached:
                _say(f"{self.target} {phase}: NOT REACHED")
                return False, None, None
            self.hit_in = self._rounds()
            began = time.monotonic()
            hit = self._kill()
        named_s = back_s = None
        killed_at = time.time()
        if self.program in ("power", "frozen") and self.where == "site":
            named_s = self._wait(self._is_named, 2 * NAMED_S)
            killed_at = time.time()
        self._revive(hit)
        self._begin()
        is_back = self._is_centre_back(hit) if self.where == "centre" else self._is_site_back(killed_at)
        while back_s is None and time.monotonic() - began < LONGEST_S:
            back_s = time.monotonic() - began if is_back() else None
            if self.where == "site" and named_s is None and self._is_named():
                named_s = time.monotonic() - began
            self.deployment.results.look()
            time.sleep(LOOK_EVERY_S)
        if self.where == "centre" and back_s is not None:
            back_s -= STEADY_S
        _say(f"{self.target} {phase}: at work after {in_seconds(back_s)}, named after {in_seconds(named_s)}")
        return True, back_s, named_s

    def _begin(self) -> None:
        if not self.is_begun:
            wait_until_ready(self.deployment.federation, self.deployment.health_port)
            self.deployment.train(self.study)
            self.is_begun = True

    def _kill(self) -> set[int]:
        """What was hit."""
        if self.program in ("power", "frozen"):
            pids = self.deployment.everything(self.name)
        else:
            pids = self.deployment.processes(self.name, self.program)
        if self.program == "frozen":
            signal_all(pids, SIGSTOP)
        else:
            self.deployment.kill(self.name, pids)
        return pids

    def _revive(self, hit: set[int]) -> None:
        """Start a daemon that was killed; let go on what was frozen."""
        if self.program == "frozen":
            signal_all(hit, SIGCONT)
        elif self.deployment.federation.daemons[self.name].pid in hit:
            self.deployment.start_daemon(self.name)

    def _is_centre_back(self, hit: set[int]) -> Callable[[], bool]:
        """For STEADY_S: the program is there anew, all is ready, and a ServerApp holds the run."""
        since: list[float] = []

        def look() -> bool:
            programs = CENTRE_PROGRAMS[:3] if self.program in ("power", "daemon") else (self.program,)
            found = [self.deployment.processes(CENTRE, program) for program in programs]
            wait_until_ready(self.deployment.federation, self.deployment.health_port)
            if all(pids and not pids & hit for pids in found) and is_run_in_work(self.run_folder):
                since.append(time.monotonic())
            else:
                since.clear()
            return bool(since) and (since[-1] - since[0] >= STEADY_S or has_completed(self.run_folder))

        return look

    def _is_site_back(self, killed_at: float) -> Callable[[], bool]:
        """A ClientApp that began after the kill is at work on a message; a frozen one may be the old one."""

        def look() -> bool:
            record, line = read_record(self._state()), read_progress(self._progress())
            if record is None or line is None or line.time < killed_at:
                return has_completed(self.run_folder)
            return self.program == "frozen" or line.time > record.started > killed_at

        return look

    def _is_named(self) -> bool:
        """Whether `dsan-server status` says that the site is away, or silent."""
        status = centre_status(self.deployment.centre)
        return any(
            site.name == SITE and site.late.startswith(("not connected", "silent")) for site in status.sites
        )

    @contextmanager
    def _held_in(self, phase: str) -> Iterator[bool]:
        """The study in a phase, and the process that makes the phase held; False if it did not come to it."""
        if phase == "idle":
            yield True
            return
        self._begin()
        deadline = time.monotonic() + LONGEST_S
        with self._slower_other(phase):
            while not self._is_past(phase) and time.monotonic() < deadline:
                self.deployment.results.look()
                for _ in range(50):
                    pid = self._holder(phase)
                    if pid is None:
                        time.sleep(POLL_S)
                        continue
                    hold(pid)
                    try:
                        if self._is_in(phase):
                            yield True
                            return
                    finally:
                        signal_all({pid}, SIGCONT)
                    time.sleep(0.3)
            yield False

    @contextmanager
    def _slower_other(self, phase: str) -> Iterator[None]:
        """For `aggregating`: the other site's ClientApp is held while it trains, so that the centre waits."""
        held = None
        if phase == "aggregating":
            self._wait(lambda: self._is_new_round() and self._is_in_work(OTHER, "training"), LONGEST_S)
            record = read_record(self._state(OTHER))
            held = record.pid if record is not None else None
        if held is None:
            yield
            return
        hold(held)
        try:
            yield
        finally:
            signal_all({held}, SIGCONT)

    def _holder(self, phase: str) -> int | None:
        """The process to hold in this phase, if the study seems to be in it."""
        if phase not in AFTER_ROUNDS and not self._is_new_round():
            return None
        if not self._seems_to_be_in(phase):
            return None
        if phase in ("aggregating", "writing"):
            return self._serverapp()
        if phase == "unpulled" or (phase == "pushing" and self.program != "clientapp"):
            node = self._node()
            return node.pid if node is not None else None
        record = read_record(self._state())
        return record.pid if record is not None else None

    def _serverapp(self) -> int | None:
        """The process that holds the run: /proc/locks names it, and quickly."""
        inode = str((self.run_folder / ".lock").stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return int(words[4])
        return None

    def _is_in(self, phase: str) -> bool:
        """The same, now that its process is held; for a message that is to come, wait a while."""
        if phase == "unpulled":
            return self._wait(self._is_message_waiting, PULL_S) is not None
        return self._seems_to_be_in(phase)

    def _seems_to_be_in(self, phase: str) -> bool:
        match phase:
            case "unpulled":
                return self._is_idle_node() and (self.run_folder / "size_groups.json").exists()
            case "pushing" if self.program == "clientapp":
                return self._is_in_work(SITE, "idle") and not self._is_sending()
            case "pushing":
                return self._is_sending()
            case "aggregating":
                return self._is_taken()
            case "writing":
                newest = self._rounds()
                return newest > 0 and not (self.run_folder / "rounds" / f"{newest:04d}").exists()
        return self._is_in_work(SITE, phase)

    def _is_in_work(self, site: str, phase: str) -> bool:
        """Whether a ClientApp of the site lives and says that it is in this phase of the study."""
        line = read_progress(self._progress(site))
        is_said = line is not None and (line.study, line.phase) == (self.study.name, phase)
        is_of_round = line is not None and line.round is not None
        is_now = (phase in AFTER_ROUNDS) != is_of_round
        return is_said and is_now and is_clientapp_alive(read_record(self._state(site)))

    def _is_idle_node(self) -> bool:
        node = self._node()
        return node is not None and node.taken is None

    def _is_sending(self) -> bool:
        """Whether the site's SuperNode sends the answer to a round."""
        node = self._node()
        return node is not None and node.sending is not None and node.message_kind == "train.round"

    def _is_taken(self) -> bool:
        """Whether the ServerApp has taken the site's answer to the round in work.

        Flower then forgets the message and its answer.
        """
        line = read_progress(self._progress())
        is_answered = line is not None and (line.study, line.phase, line.round) == (
            self.study.name,
            "idle",
            self._rounds() + 1,
        )
        return is_answered and self._is_idle_node() and not self._messages()

    def _is_new_round(self) -> bool:
        """Whether a round was finished since the last kill: no round is hit twice."""
        return self._rounds() > self.hit_in

    def _is_past(self, phase: str) -> bool:
        if has_completed(self.run_folder):
            return True
        is_after_rounds = (self.run_folder / "rounds" / f"{ROUNDS:04d}").exists()
        return is_after_rounds and phase not in AFTER_ROUNDS

    def _is_message_waiting(self) -> bool:
        """Whether a round's message lies at the centre, and the site's node has not pulled it."""
        return any(delivered == "" for delivered in self._messages())

    def _messages(self) -> list[str]:
        """Of the messages of rounds to the site that the SuperLink keeps: when each was pulled."""
        node = self._node()
        if node is None or node.node_id is None:
            return []
        signed = node.node_id - (1 << 64) if node.node_id >= 1 << 63 else node.node_id
        query = "SELECT delivered_at FROM message_ins WHERE dst_node_id = ? AND message_type = 'train.round'"
        address = f"file:{self.deployment.centre / 'state' / 'superlink.db'}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            return [str(row[0]) for row in database.execute(query, (signed,))]

    def _rounds(self) -> int:
        """The newest round in the ledger; read again only when it has grown."""
        path = self.run_folder / LEDGER
        size = path.stat().st_size if path.exists() else 0
        if size != self.ledger[0]:
            found = (int(str(line["round"])) for line in read_ledger(self.run_folder) if "round" in line)
            self.ledger = size, max(found, default=0)
        return self.ledger[1]

    def _repeated(self, since: datetime, until: datetime) -> int:
        """Rounds that were in the ledger before and were written into it again."""
        written: dict[int, list[datetime]] = {}
        for line in read_ledger(self.run_folder):
            if (line.get("site"), line.get("branch")) == (SITE, "us"):
                at = datetime.fromisoformat(str(line["time"]))
                written.setdefault(int(str(line["round"])), []).append(at)
        return sum(any(since <= at < until for at in times[1:]) for times in written.values())

    def _wait(self, happened: Callable[[], bool], at_most_s: float) -> float | None:
        """Seconds until it happened; None if it did not."""
        began = time.monotonic()
        while not happened():
            if time.monotonic() - began > at_most_s:
                return None
            self.deployment.results.look()
            time.sleep(0.02)
        return time.monotonic() - began

    def _node(self) -> NodeState | None:
        return read_node_state(self._state() / "node.json")

    def _state(self, site: str = SITE) -> Path:
        return self.deployment.folder(site) / "state"

    def _progress(self, site: str = SITE) -> Path:
        return self.deployment.folder(site) / "work" / "progress.jsonl"


def _say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill-matrix"))
    parser.add_argument("--lanes", type=int, default=3, help="deployments at a time")
    parser.add_argument("--table", action="store_true", help="print the matrix so far, run nothing")
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
