"""A daemon's health over HTTP on loopback: /healthz, /readyz and /metrics."""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

REQUEST_S = 10.0
POLL_S = 0.1  # how soon `stop` is noticed


class HealthServer:
    """Answers on 127.0.0.1 from a thread of its own.

    /healthz answers 200 while the process lives; /readyz 200 or 503 with the reason in words; /metrics what
    the registry holds. port 0: one that the system chooses.
    """

    def __init__(
        self, port: int, is_ready: Callable[[], tuple[bool, str]], registry: CollectorRegistry
    ) -> None:
        self._port = port
        self._is_ready = is_ready
        self._registry = registry
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> int:
        """Listen; returns the port. OSError if it is taken."""
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", self._port), _handler(self._is_ready, self._registry)
        )
        threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="health", daemon=True
        ).start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _handler(
    is_ready: Callable[[], tuple[bool, str]], registry: CollectorRegistry
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/healthz":
                self._answer(HTTPStatus.OK, "ok\n")
            elif path == "/readyz":
                ready, reason = is_ready()
                self._answer(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, reason + "\n")
            elif path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, encode(registry).decode(), content_type)
            else:
                self._answer(HTTPStatus.NOT_FOUND, "there are /healthz, /readyz and /metrics\n")

        def _answer(
            self, status: HTTPStatus, text: str, content_type: str = "text/plain; charset=utf-8"
        ) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A scrape every few seconds is nothing to log."""

    return Handler
