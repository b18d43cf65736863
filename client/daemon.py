"""`dsan-client start`: one hospital's daemon. start -> tend twice a second -> stop.

It keeps Flower's SuperNode and SuperExec and the fork server of the ClientApps running, watches the message
in work, tells the centre how far it is, takes the centre's orders, and says in words why it is not connected.
Training runs in a process of its own for each message; nothing of it is kept in memory between two.
"""

import fcntl
import logging
import os
import queue
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from client.clientapp_program import is_clientapp_alive, read_record
from client.connection_watch import ConnectionWatch
from client.daemon_programs import FORK_SERVER, SUPEREXEC, SUPERNODE, Centre, daemon_programs
from client.daemon_status import (
    LOCK,
    STATUS_FORMAT,
    ConnectionStatus,
    DaemonStatus,
    Event,
    ProcessLine,
    WorkStatus,
    prepared_counts,
    write_status,
)
from client.drained import DRAINED, EVERY_STUDY, Drained, after_order, read_drained, write_drained
from client.egress import last_refusal
from client.findings import Finding, FindingError
from client.installed_code import require_lock
from client.join import require_joined
from client.keys import CA_CERTIFICATE, WATCH_CERTIFICATE, WATCH_KEY
from client.node_state import NODE_STATE, NodeState, read_node_state
from client.progress import read_progress
from client.site import SITE_FILE, SiteConfig, read_site
from client.site_watch import SiteWatchClient, WatchCredentials
from client.supernode_program import require_node_log
from client.telemetry import site_registry
from client.watchdog import Work, trouble
from dsan_daemon.bundle import release
from dsan_daemon.health import HealthServer
from dsan_daemon.notify import notify_alive, notify_ready, notify_stopping
from dsan_daemon.processes import Supervisor, await_leftovers
from dsan_model.watch import is_about
from dsan_model.watch_pb2 import Order, SiteStatus

TEND_EVERY_S = 0.5
STATUS_EVERY_S = 1.0
COUNT_EVERY_S = 60.0
COMPLAIN_EVERY_S = 300.0
LEAVE_S = 8.0  # what a process gets to leave by itself
NODE_PAUSE_S = 10.0  # after ending the SuperNode: the centre must see that it was gone
NODE_SILENCE_S = 300.0  # of a SuperNode whose centre can be reached
EVENTS_KEPT = 20
RECORD = "processes.json"
DRAINED_WORDS = "drained: no message is taken until the centre's operator says so (`dsan-server undrain`)"

log = logging.getLogger("dsan.client")


def run_daemon(config: Path, loopback: Centre | None) -> None:
    """Run until SIGTERM or SIGINT. FindingError if it cannot begin; later it goes on whatever happens.

    loopback: a SuperLink in the clear on this computer, instead of the centre of site.toml.
    """
    site = read_site(config)
    require_lock()
    require_node_log()
    if loopback is None:
        require_joined(site)
    centre = loopback or Centre(site.server.address, site.server.address, is_secure=True)
    with _only_daemon(site.state_folder), _told_to_stop() as is_told:
        daemon = Daemon(site, config.resolve(), centre)
        daemon.start()
        try:
            while not is_told:
                daemon.tend()
                time.sleep(TEND_EVERY_S)
        finally:
            daemon.stop()


class Daemon:
    """What the daemon of a site holds: its processes, its threads, and what it remembers of the work."""

    def __init__(self, site: SiteConfig, config: Path, centre: Centre) -> None:
        self.site = site
        self.centre = centre
        self.state = site.state_folder
        self.started = time.time()
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self.drained = read_drained(self.state)
        self.last_message = ""  # that was in work when the order to drain came
        self.is_drained = self.is_draining  # no message is in work, and no SuperNode takes one
        self.node_back_at: float | None = None  # monotonic, while the SuperNode is kept down
        self.status_due = self.count_due = 0.0
        self.work_told = ""
        self.complaint_due = 0.0
        self.counts = prepared_counts(site)
        await_leftovers(self.state / RECORD, LEAVE_S)  # a killed daemon's processes log off by themselves
        self.supervisor = Supervisor(self.state / RECORD)
        self.supernode, *self.clientapp_programs = daemon_programs(site, config, centre)
        certificate = site.keys_folder / CA_CERTIFICATE if centre.is_secure else None
        self.connection = ConnectionWatch(centre.address, certificate, self.state / NODE_STATE)
        self.watch = _site_watch(site, centre, self._site_status, self.orders.put)
        registry = site_registry(site, self._site_status, self._connection)
        self.health = HealthServer(site.daemon.health_port, self.readiness, registry)
        self.health_port = 0

    def start(self) -> None:
        """Start the processes and the threads. FindingError DAEMON-PORT if the health port is taken."""
        self.health_port = _listen(self.health, self.site)
        if not self.is_drained:
            self.supervisor.start(self.supernode)
            self._start_clientapp_programs()
        self.connection.start()
        if self.watch is not None:
            self.watch.start()
        drained = f", {DRAINED_WORDS}" if self.is_drained else ""
        self._tell(f"daemon of {self.site.name} started, centre {self.centre.address}{drained}")
        notify_ready("started")

    def tend(self) -> None:
        """Once around: restart what ended, obey orders, watch the work, write the status.

        What the operating system refuses, as on a full disk, is told now and then, and tried again.
        """
        for step in (self._tend_processes, self._tend_work, self._tell_status):
            try:
                step()
            except OSError as error:
                if time.monotonic() >= self.complaint_due:
                    self.complaint_due = time.monotonic() + COMPLAIN_EVERY_S
                    self._tell(f"the operating system refused: {error}")

    def _tend_processes(self) -> None:
        for name in self.supervisor.tend():
            self._ended(name)
        self._bring_node_back()

    def _tend_work(self) -> None:
        while not self.orders.empty():
            self._obey(self.orders.get())
        if not self.is_drained:
            self._watch_work()
            self._watch_node()

    def _tell_status(self) -> None:
        if time.monotonic() < self.status_due:
            return
        self.status_due = time.monotonic() + STATUS_EVERY_S
        work = self.work_status()
        notify_alive(work.phase)
        self._log_work(work)
        write_status(self.state, self.status())

    def stop(self) -> None:
        """End everything within half a minute; what was finished is on disk."""
        notify_stopping("leaving")
        self._tell("told to leave")
        if self.watch is not None:
            self.watch.stop()
        self.connection.stop()
        self.health.stop()
        self.supervisor.stop_all(LEAVE_S)
        with suppress(OSError):  # a full disk
            write_status(self.state, self.status())

    @property
    def is_draining(self) -> bool:
        """Whether the message in work is the last one, of whatever study."""
        return EVERY_STUDY in self.drained

    def status(self) -> DaemonStatus:
        """What status.json says."""
        if time.monotonic() >= self.count_due:
            self.count_due = time.monotonic() + COUNT_EVERY_S
            self.counts = prepared_counts(self.site)
        processes = self.supervisor.status().items()
        return DaemonStatus(
            format_version=STATUS_FORMAT,
            site=self.site.name,
            release=release(),
            pid=os.getpid(),
            started=self.started,
            written=time.time(),
            centre=self.centre.address,
            is_secure=self.centre.is_secure,
            is_drained=self.is_drained,
            drained_studies=tuple(sorted(self.drained)),
            health_port=self.health_port,
            connection=self._connection(),
            work=self.work_status(),
            cases=self.counts[0],
            left_out=self.counts[1],
            disk_free_bytes=shutil.disk_usage(self.site.home).free,
            processes={n: ProcessLine(p.pid, p.restarts, p.last_exit) for n, p in processes},
            events=tuple(self.events),
        )

    def readiness(self) -> tuple[bool, str]:
        """Whether messages of the centre are taken, and if not, why."""
        if self.is_drained:
            return False, DRAINED_WORDS
        connection = self._connection()
        return connection.is_connected, connection.reason or "connected"

    def work_status(self) -> WorkStatus:
        """How far the message in work is."""
        node, line = self._node(), read_progress(self.site.progress_file)
        if node is None or node.taken is None:
            return WorkStatus("idle", "", None, None, 0, 0, None, None, "")
        if line is None or line.time < node.taken:
            return WorkStatus("starting", "", None, None, 0, 0, None, node.taken, node.message_kind)
        about = (line.study, line.round)
        if node.sending is not None or line.phase == "idle":
            since = node.sending or line.time
            return WorkStatus("sending", *about, None, 0, 0, None, since, node.message_kind)
        if not is_clientapp_alive(read_record(self.state)):
            return WorkStatus("stopping", *about, None, 0, 0, None, line.time, node.message_kind)
        return WorkStatus(
            line.phase,
            line.study,
            line.round,
            line.branch,
            line.done,
            line.steps,
            line.eta_s,
            line.since,
            node.message_kind,
        )

    def _log_work(self, work: WorkStatus) -> None:
        """A line for every phase of the work."""
        round_words = f"round {work.round}" if work.round else ""
        parts = (work.study or work.message_kind, round_words, work.phase, work.branch)
        words = " ".join(part for part in parts if part)
        if words != self.work_told:
            about = {"study": work.study, "round": work.round, "site": self.site.name}
            log.info("%s", words, extra={name: value for name, value in about.items() if value})
            self.work_told = words

    def _connection(self) -> ConnectionStatus:
        return self.connection.status(self.watch)

    def _node(self) -> NodeState | None:
        """What the SuperNode that runs now says."""
        node, process = read_node_state(self.state / NODE_STATE), self.supervisor.status().get(SUPERNODE)
        return node if node is not None and process is not None and node.pid == process.pid else None

    def _site_status(self) -> SiteStatus:
        """What SiteWatch tells the centre; called in its thread."""
        work = self.work_status()
        phase = "drained" if self.is_draining and work.phase == "idle" else work.phase
        trouble = self._connection().code if phase == "idle" else None
        return SiteStatus(
            study=work.study,
            round=work.round or 0,
            branch=work.branch or "",
            phase=phase,
            done=work.done,
            steps=work.steps,
            eta_s=work.eta_s or 0.0,
            disk_free_bytes=shutil.disk_usage(self.site.home).free,
            last_error=trouble or last_refusal(self.state) or "",
            release=release(),
            phase_since_unix_s=work.since or 0.0,
        )

    def _ended(self, name: str) -> None:
        code = self.supervisor.status()[name].last_exit
        self._tell(f"{name} ended ({_exit_words(code)}) and is started again after a pause")
        if name != FORK_SERVER:
            self._end_clientapp()  # it cannot answer the new one, and may hang where it is

    def _obey(self, order: Order) -> None:
        work = self.work_status()
        if order.kind in (Order.DRAIN, Order.UNDRAIN):
            self._drain(after_order(self.drained, order, time.time()))
        elif order.kind == Order.STOP and work.phase != "idle" and is_about(order, work.study):
            self._tell(f"the centre ordered to stop {work.study or 'the work'}: the ClientApp is ended")
            self._end_clientapp()

    def _drain(self, drained: Drained) -> None:
        """From now on these studies are drained."""
        if drained == self.drained:
            return
        node = self._node()
        self.drained, self.last_message = drained, node.message_id if node is not None else ""
        try:
            write_drained(self.state, drained)
        except OSError as error:
            log.error(
                "%s cannot be written, so that the order ends with the daemon: %s", DRAINED, error.strerror
            )
        if self.is_draining:
            self._tell("the centre ordered to drain: the message in work is the last one")
            return
        except_of = f", but of {', '.join(sorted(drained))}" if drained else ""
        self._tell(f"by order of the centre, messages are taken{except_of}")
        if self.is_drained:
            self.is_drained, self.node_back_at = False, time.monotonic() + NODE_PAUSE_S
            self._start_clientapp_programs()

    def _watch_work(self) -> None:
        node, record = self._node(), read_record(self.state)
        line = read_progress(self.site.progress_file)
        work = Work(
            taken=node.taken if node else None,
            sending=node.sending if node else None,
            pushed=node.pushed if node else None,
            contact=node.contact if node else None,
            began=record.started if record else None,
            is_alive=is_clientapp_alive(record),
            progress=line.time if line else None,
        )
        is_last_answered = work.taken is None or (node is not None and node.message_id != self.last_message)
        if self.is_draining and is_last_answered:
            self.is_drained, self.node_back_at = True, None
            self.supervisor.stop_all(LEAVE_S)
            self._tell(DRAINED_WORDS)
        elif (reason := trouble(work, self.site.daemon, time.time())) is not None:
            self._restart_work(reason)

    def _watch_node(self) -> None:
        """A SuperNode that is silent although its centre can be reached is ended."""
        node = self._node()
        if node is None or not self.connection.is_reachable:
            return
        silent_s = time.time() - max(node.started, node.contact or 0.0)
        if silent_s > NODE_SILENCE_S:
            self._restart_work(f"the SuperNode has had no contact for {silent_s:.0f} s")

    def _restart_work(self, reason: str) -> None:
        """End SuperNode and ClientApp: the centre sees the node go, and asks again."""
        self._tell(f"{reason}: SuperNode, SuperExec and fork server are started again")
        self.supervisor.stop(SUPERNODE, LEAVE_S)
        self._end_clientapp()
        self.node_back_at = time.monotonic() + NODE_PAUSE_S

    def _start_clientapp_programs(self) -> None:
        for program in self.clientapp_programs:
            self.supervisor.start(program)

    def _end_clientapp(self) -> None:
        """End it, whichever of the two started it."""
        self.supervisor.restart(SUPEREXEC)
        self.supervisor.restart(FORK_SERVER)

    def _bring_node_back(self) -> None:
        if self.node_back_at is not None and time.monotonic() >= self.node_back_at and not self.is_drained:
            self.node_back_at = None
            self.supervisor.start(self.supernode)

    def _tell(self, what: str) -> None:
        log.info("%s", what, extra={"site": self.site.name})
        self.events.append(Event(time.time(), what))


def _site_watch(
    site: SiteConfig, centre: Centre, status: Callable[[], SiteStatus], on_order: Callable[[Order], None]
) -> SiteWatchClient | None:
    if centre.watch_address is None:
        return None
    keys = site.keys_folder
    credentials = WatchCredentials(keys / CA_CERTIFICATE, keys / WATCH_CERTIFICATE, keys / WATCH_KEY)
    return SiteWatchClient(
        centre.watch_address, credentials if centre.is_secure else None, site.name, status, on_order
    )


def _listen(health: HealthServer, site: SiteConfig) -> int:
    try:
        return health.start()
    except OSError as error:
        where, port = str(site.home / SITE_FILE), site.daemon.health_port
        message = f"[daemon] health_port: port {port} cannot be used ({error.strerror})"
        fix = "Give another one, or 0 for any free one, or end the program that has it."
        raise FindingError(Finding("DAEMON-PORT", "error", where, message, fix)) from None


@contextmanager
def _only_daemon(state: Path) -> Iterator[None]:
    """One daemon for a site's folder, or FindingError DAEMON-RUNNING."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            message = f"another daemon of this site runs, process {lock.read().strip() or 'unknown'}"
            fix = "Use that one (`dsan-client status`), or end it first."
            raise FindingError(Finding("DAEMON-RUNNING", "error", str(state), message, fix)) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """A list that gets the number of a SIGTERM or SIGINT when it comes."""
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit {code}"
