"""The centre's end of SiteWatch: hears every site, names who is silent, delivers orders.

It listens on loopback, behind the proxy. Who a site is, the proxy says, from the certificate of the site.
"""

import hmac
import json
import logging
import math
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from dsan_model.watch import PROXY_HEADER, SITE_HEADER, SITE_NAME, clean_status
from dsan_model.watch_pb2 import Order, SiteStatus
from dsan_model.watch_pb2_grpc import SiteWatchServicer, add_SiteWatchServicer_to_server
from server.orders import mark_taken, waiting_orders
from server.watch_file import (
    TWOFOLD_FROM,
    WRITE_EVERY_S,
    SiteReport,
    Watched,
    WatchedSite,
    read_watch,
    site_report,
    write_watch,
)

SPEAK_EVERY_S = 15.0
LOOK_FOR_ORDERS_EVERY_S = 1.0
LONGEST_SILENCE_S = 30.0  # a site speaks every five seconds
TAKEN_AFTER_S = 1.0  # a site that speaks this long after an order was sent, on the same stream, has it
BURST, PER_S, STREAM_COST = (
    30.0,
    2.0,
    3.0,
)  # messages at once, messages a second; a new stream counts as three
LARGEST_STATUS_BYTES = 4096
MOST_SITES, MOST_STREAMS = 1000, 128
STOP_S = 5.0
OPTIONS = (
    ("grpc.so_reuseport", 0),  # or a second server would silently share the port
    ("grpc.max_receive_message_length", LARGEST_STATUS_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
KINDS = {"stop": Order.STOP, "drain": Order.DRAIN, "undrain": Order.UNDRAIN}

log = logging.getLogger("dsan.server.watch")
StatusCode = grpc.StatusCode


class RefusedStreamError(Exception):
    """The stream is not taken, or no longer: a gRPC status and words for the site."""

    def __init__(self, code: StatusCode, words: str) -> None:
        super().__init__(words)
        self.code = code


class SiteWatchServer:
    """Serves SiteWatch from a thread of its own and keeps state/watch.json.

    address: HOST:PORT on loopback; port 0: one that the system chooses. proxy_secret: what the proxy must
    say; None: there is no proxy, and every site says its own name (`--insecure-loopback`).
    """

    def __init__(self, address: str, proxy_secret: str | None, state_folder: Path) -> None:
        self._address = address
        self._service = _Service(proxy_secret, state_folder)
        self._server: grpc.Server | None = None
        self._ended = threading.Event()
        self._trouble = ""  # why the file cannot be written
        self._keeping_file = threading.Thread(target=self._keep_file, name="site-watch-file", daemon=True)

    def start(self) -> int:
        """Listen; returns the port. RuntimeError if the address cannot be bound."""
        workers = ThreadPoolExecutor(MOST_STREAMS, thread_name_prefix="site-watch")
        server = grpc.server(workers, options=OPTIONS, maximum_concurrent_rpcs=MOST_STREAMS)
        add_SiteWatchServicer_to_server(self._service, server)
        port = server.add_insecure_port(self._address)
        server.start()
        self._server = server
        self._keeping_file.start()
        return port

    def stop(self) -> None:
        """Close every stream and stop listening."""
        self._ended.set()
        if self._server is not None:
            self._service.close_streams()
            self._server.stop(grace=STOP_S).wait()
            self._keeping_file.join()
            self._write_file()

    def _keep_file(self) -> None:
        self._write_file()
        while not self._ended.wait(WRITE_EVERY_S):
            self._write_file()

    def _write_file(self) -> None:
        trouble = ""
        try:
            self._service.write_file()
        except OSError as error:
            trouble = f"SiteWatch cannot write its file: {error}"
        if trouble != self._trouble:  # said once, not every two seconds
            self._trouble = trouble
            log.log(logging.ERROR if trouble else logging.INFO, trouble or "SiteWatch writes its file again")


@dataclass
class _Budget:
    """How much a site may still say now; it grows again with time."""

    left: float = BURST
    counted_at: float = field(default_factory=time.monotonic)

    def spend(self, cost: float) -> bool:
        """Whether the site may; a site that floods is refused until it has been quiet for a while."""
        now = time.monotonic()
        self.left = min(BURST, self.left + PER_S * (now - self.counted_at))
        self.counted_at = now
        if self.left < cost:
            return False
        self.left -= cost
        return True


@dataclass
class _Stream:
    """One open stream: when its site spoke last, the orders sent on it, and why it is to end."""

    heard_at: float = field(default_factory=time.monotonic)
    sent: dict[Path, float] = field(default_factory=dict)  # order, time.monotonic()
    over: threading.Event = field(default_factory=threading.Event)
    reason: str = "its connection broke"
    refusal: RefusedStreamError | None = None

    def end(self, reason: str) -> None:
        if not self.over.is_set():
            self.reason = reason
            self.over.set()

    def refuse(self, code: grpc.StatusCode, words: str) -> None:
        if not self.over.is_set():
            self.refusal = RefusedStreamError(code, words)
            self.end(words)


def _heard(known: WatchedSite, status: SiteStatus) -> WatchedSite:
    """What is known of a site after its next word."""
    now = time.time()
    known = replace(
        known,
        status=site_report(status),
        last_contact=now,
        clock_ahead_s=round(status.sent_unix_s - now, 1) if status.sent_unix_s else 0.0,
    )
    if status.study:
        known = replace(known, worked_study=status.study, worked_round=status.round)
    return known


class _Service(SiteWatchServicer):
    """Every stream has a thread that speaks and one that listens; `_lock` guards what they share."""

    def __init__(self, proxy_secret: str | None, state_folder: Path) -> None:
        self._proxy_secret = proxy_secret
        self._state_folder = state_folder
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._budgets: dict[str, _Budget] = {}
        now = time.time()
        self._watched: Watched = {
            site: replace(known, connected=False, since=now, reason="the centre was started again")
            if known.connected
            else known
            for site, known in read_watch(state_folder).items()
        }

    def Watch(self, requests: Iterator[SiteStatus], context: grpc.ServicerContext) -> Iterator[Order]:
        """One site's stream, from its opening to its end."""
        try:
            site = self._admit(context)
        except RefusedStreamError as refusal:
            log.warning("SiteWatch refused a stream: %s", refusal)
            context.abort(refusal.code, str(refusal))
        stream = self._open(site)
        context.add_callback(stream.over.set)
        threading.Thread(target=self._listen, args=(site, stream, requests), daemon=True).start()
        try:
            yield from self._orders(site, stream)
        finally:
            self._close(site, stream)
        if stream.refusal is not None:
            context.abort(stream.refusal.code, str(stream.refusal))

    def close_streams(self) -> None:
        """End every stream; the sites come back when there is a centre again."""
        with self._lock:
            for stream in self._streams.values():
                stream.refuse(StatusCode.UNAVAILABLE, "the centre is being stopped")

    def write_file(self) -> None:
        """Write state/watch.json."""
        with self._lock:
            watched = dict(self._watched)
        write_watch(self._state_folder, watched)

    def _admit(self, context: grpc.ServicerContext) -> str:
        said = [(key, value) for key, value in context.invocation_metadata()]
        secrets = [str(value) for key, value in said if key == PROXY_HEADER]
        if self._proxy_secret is not None and not (
            len(secrets) == 1 and hmac.compare_digest(secrets[0].encode(), self._proxy_secret.encode())
        ):
            raise RefusedStreamError(
                StatusCode.UNAUTHENTICATED, "this did not come through the centre's proxy"
            )
        names = [str(value) for key, value in said if key == SITE_HEADER]
        if len(names) != 1 or not re.fullmatch(SITE_NAME, names[0]):
            raise RefusedStreamError(StatusCode.UNAUTHENTICATED, "a site has one name, of 1 to 32 letters")
        self._require_enrolled(names[0])
        self._require_few(names[0])
        return names[0]

    def _require_enrolled(self, site: str) -> None:
        """Refuse a site that is revoked, and behind a proxy one that nobody enrolled."""
        try:
            entry = json.loads((self._state_folder.parent / "sites" / f"{site}.json").read_bytes())
        except OSError:
            if self._proxy_secret is None:
                return
            raise RefusedStreamError(StatusCode.PERMISSION_DENIED, f"{site} is not enrolled") from None
        except ValueError:
            raise RefusedStreamError(
                StatusCode.PERMISSION_DENIED, f"the centre cannot read its file on {site}"
            ) from None
        if entry.get("revoked_at"):
            raise RefusedStreamError(StatusCode.PERMISSION_DENIED, f"{site} was revoked")

    def _require_few(self, site: str) -> None:
        with self._lock:
            if site not in self._watched and len(self._watched) >= MOST_SITES:
                raise RefusedStreamError(StatusCode.RESOURCE_EXHAUSTED, f"more than {MOST_SITES} sites")
            if not self._budgets.setdefault(site, _Budget()).spend(STREAM_COST):
                raise RefusedStreamError(StatusCode.RESOURCE_EXHAUSTED, f"{site} opens too many streams")

    def _open(self, site: str) -> _Stream:
        stream, now = _Stream(), time.time()
        with self._lock:
            older = self._streams.get(site)
            if older is not None:
                older.refuse(StatusCode.ABORTED, f"{site} has opened a newer stream")
            self._streams[site] = stream
            known = self._watched.get(site, WatchedSite(SiteReport(), now, True, now))
            displaced = (*known.displaced, now)[-TWOFOLD_FROM:] if older is not None else known.displaced
            self._watched[site] = replace(
                known, last_contact=now, connected=True, since=now, reason="", displaced=displaced
            )
        log.info("%s is connected", site, extra={"site": site})
        return stream

    def _close(self, site: str, stream: _Stream) -> None:
        stream.over.set()
        with self._lock:
            if self._streams.get(site) is not stream:
                return
            del self._streams[site]
            self._watched[site] = replace(
                self._watched[site], connected=False, since=time.time(), reason=stream.reason
            )
        log.warning("%s is not connected any more: %s", site, stream.reason, extra={"site": site})

    def _listen(self, site: str, stream: _Stream, requests: Iterator[SiteStatus]) -> None:
        try:
            for status in requests:
                if stream.over.is_set():
                    return
                self._hear(site, stream, clean_status(status))
            stream.end("it left")
        except Exception as error:  # grpc raises a bare Exception where a stream breaks
            log.debug("%s: %s", site, error)
            stream.end("its connection broke")

    def _hear(self, site: str, stream: _Stream, status: SiteStatus) -> None:
        stream.heard_at = time.monotonic()
        with self._lock:
            if not self._budgets[site].spend(1):
                stream.refuse(StatusCode.RESOURCE_EXHAUSTED, f"{site} speaks too often")
            elif self._streams.get(site) is stream:
                self._watched[site] = _heard(self._watched[site], status)
            taken = [path for path, at in stream.sent.items() if stream.heard_at - at >= TAKEN_AFTER_S]
        for path in taken:
            mark_taken(path, site)
            stream.sent[path] = math.inf  # once is enough

    def _orders(self, site: str, stream: _Stream) -> Iterator[Order]:
        """What the centre says, until the stream is over."""
        spoken_at = -SPEAK_EVERY_S
        while not stream.over.wait(LOOK_FOR_ORDERS_EVERY_S if spoken_at > 0 else 0):
            if time.monotonic() - stream.heard_at > LONGEST_SILENCE_S:
                stream.refuse(StatusCode.DEADLINE_EXCEEDED, f"silent for {LONGEST_SILENCE_S:.0f} s")
                return
            try:
                self._require_enrolled(site)
            except RefusedStreamError as refusal:
                stream.refuse(refusal.code, str(refusal))
                return
            for path, order in waiting_orders(self._state_folder).items():
                if order.waits_for(site) and path not in stream.sent:
                    log.info("%s is told: %s %s", site, order.order, order.study, extra={"site": site})
                    with self._lock:
                        stream.sent[path] = time.monotonic()
                    yield Order(kind=KINDS[order.order], study=order.study)
            if time.monotonic() - spoken_at >= SPEAK_EVERY_S:
                spoken_at = time.monotonic()
                yield Order()
