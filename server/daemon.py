"""`dsan-server start`: keeps SuperLink, SuperExec, proxy and SiteWatch running, and the studies as well."""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dsan_daemon.files import PRIVATE, write_atomically
from dsan_daemon.health import HealthServer
from dsan_daemon.notify import notify_alive, notify_ready, notify_stopping
from dsan_daemon.processes import Supervisor, supervised
from server.centre import Centre, ServerConfig
from server.console import Access, ConsoleServer, is_loopback
from server.daemon_lock import alone
from server.membership import reconcile_nodes
from server.proxy import Behind, write_proxy
from server.refusals import ExitCode, RefusedError
from server.site_watch import SiteWatchServer
from server.status import disk_trouble
from server.study_keeper import StudyKeeper
from server.superlink import (
    LOOPBACK,
    SuperLink,
    SuperLinkError,
    superexec_program,
    superlink_program,
    write_operator_connection,
)
from server.telemetry import centre_registry

TEND_S = 0.5
LOOK_EVERY_S = 2.0  # at the SuperLink and the studies
DEAF_S = 90.0  # a SuperLink that does not answer for so long is started anew
START_S = 120.0
LAST_LINE_BYTES = 500
LONGEST_LOG_BYTES = 100 << 20

log = logging.getLogger("dsan.server")


def run_daemon(centre: Centre, config: ServerConfig, is_insecure: bool) -> None:
    """Run until SIGTERM or SIGINT. RefusedError DAEMON-RUNS if another one works in this folder."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with alone(centre), supervised(centre.state / "processes.json") as supervisor:
        _Daemon(centre, config, is_insecure, supervisor).run(stopping)
    log.info("stopped")


class _Daemon:
    def __init__(
        self, centre: Centre, config: ServerConfig, is_insecure: bool, supervisor: Supervisor
    ) -> None:
        self._centre = centre
        self._config = config
        self._is_insecure = is_insecure
        self._supervisor = supervisor
        self._superlink_port = config.port if is_insecure else _free_port()
        self._superlink = SuperLink(self._superlink_port)
        self._keeper = StudyKeeper(centre, self._superlink)
        self._console = self._new_console()
        self._answered_at = time.monotonic()
        self._is_ready = False
        self._reason = "the SuperLink does not answer yet"
        self._members_seen = 0
        self._tls_seen: tuple[int, ...] = ()

    def run(self, stopping: threading.Event) -> None:
        """Start everything, tend it until told to stop; the supervisor ends the processes."""
        site_watch = self._site_watch()
        health = HealthServer(self._config.health_port, self.readiness, centre_registry(self._centre.folder))
        try:
            listen = LOOPBACK if self._is_insecure else self._config.listen
            _listening("port", self._config.port, lambda: _probe(listen, self._config.port))
            site_watch_port = _listening("port", self._config.port + 1, site_watch.start)
            _listening("health_port", self._config.health_port, health.start)
            _listening("console_port", self._config.console_port, self._console.start)
            self._start_programs(site_watch_port)
            self._tend_until(stopping)
            notify_stopping("stopping")
            log.info("stopping")
        finally:
            site_watch.stop()
            self._console.stop()
            health.stop()
            self._superlink.close()

    def readiness(self) -> tuple[bool, str]:
        """Whether sites and studies are served, and if not, why."""
        reason = self._reason or self._missing_program() or disk_trouble(self._centre.folder)
        return self._is_ready and not reason, reason or "ready"

    def _site_watch(self) -> SiteWatchServer:
        if self._is_insecure:
            return SiteWatchServer(f"{LOOPBACK}:{self._config.port + 1}", None, self._centre.state)
        return SiteWatchServer(f"{LOOPBACK}:0", self._proxy_secret(), self._centre.state)

    def _new_console(self) -> ConsoleServer:
        listen, port = self._config.console_listen, self._config.console_port
        if is_loopback(listen):
            return ConsoleServer(self._centre.folder, listen, port)
        token, tls = self._centre.state / "console.token", self._centre.tls
        access = Access(_secret(token), tls / "server.crt", tls / "server.key")
        log.info("the console on https://%s:%d asks for the token in %s", listen, port, token)
        return ConsoleServer(self._centre.folder, listen, port, access)

    def _start_programs(self, site_watch_port: int) -> None:
        state, port = self._centre.state, self._superlink_port
        secret = state / "superexec.secret"
        _secret(secret)
        os.environ["FLWR_HOME"] = str(state / "flwr" / "operator")
        write_operator_connection(state, port)
        self._supervisor.start(superlink_program(state, port, secret, not self._is_insecure))
        self._supervisor.start(superexec_program(state, port, secret))
        if self._is_insecure:
            log.warning(
                "insecure: SuperLink and SiteWatch are on 127.0.0.1, in the clear, open to any program"
            )
        else:
            behind = Behind(port, site_watch_port, self._proxy_secret())
            self._tls_seen = self._tls_version()
            self._supervisor.start(write_proxy(self._centre, self._config, behind))
        self._tell(site_watch_port)

    def _tell(self, site_watch_port: int) -> None:
        about = {
            "pid": os.getpid(),
            "start": time.time(),
            "insecure": self._is_insecure,
            "public_port": self._config.port,
            "superlink_port": self._superlink_port,
            "site_watch_port": site_watch_port,
            "console_port": self._config.console_port,
            "health_port": self._config.health_port,
        }
        write_atomically(self._centre.state / "daemon.json", json.dumps(about, indent=1).encode())

    def _tend_until(self, stopping: threading.Event) -> None:
        next_look = 0.0
        while not stopping.wait(TEND_S):
            self._tend_programs()
            if time.monotonic() >= next_look:
                self._look()
                notify_alive(self._reason or "ready")
                next_look = time.monotonic() + LOOK_EVERY_S

    def _tend_programs(self) -> None:
        try:
            for name in self._supervisor.tend():
                log.error("%s ended; it is started again: see state/logs/%s.log", name, name)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if str(error) != self._reason:
            log.error("%s", error)
        self._reason = str(error)

    def _look(self) -> None:
        try:
            self._tend_superlink()
            self._reason = ""
        except SuperLinkError as error:
            self._tend_deaf(error)
        except (OSError, ValueError, RefusedError) as error:  # a full disk, a damaged file: the rest goes on
            self._complain(error)
        if not self._is_insecure and self._tls_version() != self._tls_seen:
            self._reload_certificates()
        for path in (*(self._centre.state / "logs").glob("*.log"), self._centre.state / "nginx/refused.log"):
            _shorten_log(path)

    def _tend_superlink(self) -> None:
        if not self._superlink.is_healthy():
            raise SuperLinkError("the SuperLink does not answer")
        if not self._is_ready:
            self._keeper.begin()
        if self._keeper.tend():
            self._supervisor.restart("superexec")
        members = _version(self._centre.sites)
        if not self._is_insecure and members != self._members_seen:
            reconcile_nodes(self._centre, self._superlink)
            self._members_seen = members  # what was written since is looked at next time
        if not self._is_ready:
            self._is_ready = True
            notify_ready("ready")
            log.info("ready: sites reach %s:%d", self._config.host, self._config.port)
        self._answered_at = time.monotonic()

    def _tend_deaf(self, error: SuperLinkError) -> None:
        self._reason = str(error)
        silent_s = time.monotonic() - self._answered_at
        if self._is_ready:
            log.warning("%s (for %.0f s)", error, silent_s)
        if silent_s > (DEAF_S if self._is_ready else START_S):
            log.error("the SuperLink is started anew")
            self._supervisor.restart("superlink")
            self._answered_at = time.monotonic()

    def _missing_program(self) -> str:
        """The programs that are down, each with the end of its log."""
        logs = self._centre.state / "logs"
        return "; ".join(
            f"{name} ended (exit status {status.last_exit}) and is started again; its log ends: "
            f"{_last_line(logs / f'{name}.log')}"
            for name, status in self._supervisor.status().items()
            if status.pid is None
        )

    def _reload_certificates(self) -> None:
        pid, version = self._supervisor.status()["nginx"].pid, self._tls_version()
        if pid is not None:
            os.kill(pid, signal.SIGHUP)
            self._tls_seen = version
            try:
                self._console.read_certificate()
            except OSError as error:  # a key and a certificate that do not belong together
                self._complain(error)
            log.info("certificates and the list of revoked ones are read again")

    def _tls_version(self) -> tuple[int, ...]:
        return tuple(_version(self._centre.tls / name) for name in ("crl.pem", "server.crt", "ca.crt"))

    def _proxy_secret(self) -> str:
        return _secret(self._centre.state / "proxy.secret")


def _listening(key: str, port: int, start: Callable[[], int]) -> int:
    try:
        return start()
    except (OSError, RuntimeError) as error:
        raise RefusedError(
            "DAEMON-PORT",
            f"server.toml, key {key}",
            f"port {port} cannot be used ({error})",
            "Give another one, or end the program that has it.",
            ExitCode.BAD_CONFIGURATION,
        ) from None


def _probe(listen: str, port: int) -> int:
    """OSError where nginx, or the SuperLink, could not listen: they would say so in their logs alone."""
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.create_server((listen, port), family=family):
        return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _secret(path: Path) -> str:
    """A random secret, made once and kept in a file."""
    if not path.exists():
        write_atomically(path, secrets.token_hex(32).encode(), PRIVATE)
    return path.read_text()


def _last_line(log_file: Path) -> str:
    with suppress(OSError), log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - LAST_LINE_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "nothing")
    return "nothing"


def _version(path: Path) -> int:
    """Changes when a file, or the list of files of a folder, does; 0: there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _shorten_log(path: Path) -> None:
    """A log that has grown too long goes to NAME.log.1; its process goes on writing at the new end."""
    if path.exists() and path.stat().st_size > LONGEST_LOG_BYTES:
        with suppress(OSError):  # a full disk: the log is cut all the same
            shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
