"""The site's end of SiteWatch: one outbound stream that says how far the work is, and takes orders.

Training does not depend on it. The stream is opened again for ever, with growing pauses.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from dsan_model.watch import SITE_HEADER, clean_status
from dsan_model.watch_pb2 import Order, SiteStatus
from dsan_model.watch_pb2_grpc import SiteWatchStub

SPEAK_EVERY_S = 5.0
LOOK_EVERY_S = 1.0  # whether the phase is another, which is said at once
LONGEST_SILENCE_S = 45.0  # of the centre, which speaks every fifteen seconds
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STEADY_S = 60.0  # after a stream that held this long the pauses begin small again
STOP_S = 5.0
LARGEST_ORDER_BYTES = 4096

log = logging.getLogger("dsan.client.watch")

REASONS = {
    grpc.StatusCode.UNAUTHENTICATED: "the centre does not know this site, or no longer: ask its operator",
    grpc.StatusCode.PERMISSION_DENIED: "the centre refuses this site's certificate: ask its operator",
    grpc.StatusCode.UNIMPLEMENTED: "what answers there is no SiteWatch: check [server] address in site.toml",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the centre says that this site speaks too often",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the centre heard nothing from this site for too long",
    grpc.StatusCode.ABORTED: "the centre has a newer stream of a site with this name",
}


@dataclass(frozen=True)
class WatchCredentials:
    """TLS files of the site: the consortium's CA, and the certificate and key that prove its name."""

    ca_certificate: Path
    certificate: Path
    key: Path


class SiteWatchClient:
    """Holds the stream to the centre in a thread of its own.

    address: HOST:PORT of the centre's proxy. credentials: None only on loopback, in the clear. status and
    on_order are called in its threads and must return at once; on_order may be called twice for one order.
    """

    def __init__(
        self,
        address: str,
        credentials: WatchCredentials | None,
        site: str,
        status: Callable[[], SiteStatus],
        on_order: Callable[[Order], None],
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._site = site
        self._status = status
        self._on_order = on_order
        self._thread: threading.Thread | None = None
        self._call: grpc.Call | None = None
        self._ended = threading.Event()
        self._last_heard = 0.0
        self.connected_since: float | None = None  # unix time; None while there is no stream
        self.reason = "not started"  # why there is no stream; empty while there is one

    def start(self) -> None:
        """Begin to hold the stream."""
        self._thread = threading.Thread(target=self._hold, name="site-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the stream for good."""
        self._ended.set()
        if self._call is not None:
            self._call.cancel()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _hold(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._ended.is_set():
            began = time.monotonic()
            self._lost(self._converse())
            pause_s = FIRST_PAUSE_S if time.monotonic() - began >= STEADY_S else pause_s
            self._ended.wait(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _converse(self) -> str:
        """One stream from its opening to its end; returns why it ended."""
        try:
            channel = self._channel()
        except OSError as error:
            return f"{error.filename}: {error.strerror}: run `dsan-client join` again"
        over = threading.Event()
        self._last_heard = time.monotonic()
        with channel:
            call = SiteWatchStub(channel).Watch(self._statuses(over), metadata=((SITE_HEADER, self._site),))
            self._call = call
            try:
                for order in call:
                    self._heard(order)
            except grpc.RpcError:
                pass  # the call has its code and words
            except Exception:
                log.exception("SiteWatch: a mistake of this program")
            finally:
                over.set()
                call.cancel()
            return self._why(call)

    def _statuses(self, over: threading.Event) -> Iterator[SiteStatus]:
        """What the site says, every few seconds, until the stream is over or the centre is silent."""
        said, said_at = SiteStatus(), -SPEAK_EVERY_S
        while not (over.is_set() or self._ended.is_set()):
            if self._is_centre_silent() and self._call is not None:
                self._call.cancel()
                return
            status = SiteStatus()
            status.CopyFrom(self._status())
            if _what(status) != _what(said) or time.monotonic() - said_at >= SPEAK_EVERY_S:
                said, said_at = status, time.monotonic()
                status.sent_unix_s = time.time()
                yield clean_status(status)
            over.wait(min(LOOK_EVERY_S, SPEAK_EVERY_S))

    def _is_centre_silent(self) -> bool:
        return time.monotonic() - self._last_heard >= LONGEST_SILENCE_S

    def _why(self, call: grpc.Call) -> str:
        if self._ended.is_set():
            return "stopped"
        if self._is_centre_silent():
            return f"no word from the centre for {LONGEST_SILENCE_S:.0f} s"
        return reason_in_words(call.code(), call.details() or "", self._address)

    def _heard(self, order: Order) -> None:
        self._last_heard = time.monotonic()
        if self.connected_since is None:
            self.connected_since, self.reason = time.time(), ""
            log.info("the centre at %s watches", self._address, extra={"site": self._site})
        if order.kind != Order.NONE:
            log.warning(
                "the centre orders: %s %s",
                Order.Kind.Name(order.kind),
                order.study,
                extra={"study": order.study, "site": self._site},
            )
            self._on_order(order)

    def _lost(self, reason: str) -> None:
        if reason != self.reason:
            log.warning("not watched by the centre: %s", reason, extra={"site": self._site})
        self.connected_since, self.reason = None, reason

    def _channel(self) -> grpc.Channel:
        options = (
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", LARGEST_ORDER_BYTES),
        )
        if self._credentials is None:
            return grpc.insecure_channel(self._address, options=options)
        files = self._credentials
        credentials = grpc.ssl_channel_credentials(
            files.ca_certificate.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
        )
        return grpc.secure_channel(self._address, credentials, options=options)


def _what(status: SiteStatus) -> tuple[str, int, str, str]:
    return status.study, status.round, status.branch, status.phase


def reason_in_words(code: grpc.StatusCode, details: str, address: str) -> str:
    """Why a stream ended, for a person at the hospital."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the centre cannot be reached at {address}: {details}"
    return REASONS.get(code, f"the stream to {address} ended: {code.name}: {details}")
