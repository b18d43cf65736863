"""The console: a read-only page of the centre over HTTP, rendered here, without scripts."""

import base64
import binascii
import hmac
import ipaddress
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dsan_model.watch import STUDY_NAME
from server.console_page import console_html
from server.status_text import status_json

REFRESH_S = 10
STOP_S = 10.0
LOOPBACK_HOSTS: Final = ["127.0.0.1", "localhost", "[::1]"]
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Next = Callable[[Request], Awaitable[Response]]


def create_console(folder: Path, token: str | None) -> FastAPI:
    """The pages of a centre's folder.

    token: what a browser gives as the password (any user name) or a program as `Authorization: Bearer`.
    None: nothing is asked, and only requests addressed to loopback are answered.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def newest() -> Response:
        return HTMLResponse(console_html(folder, None, REFRESH_S))

    @app.get("/status.json")
    def newest_as_json() -> Response:
        return Response(status_json(folder), media_type="application/json")

    @app.get("/runs/{name}")
    def run(name: str) -> Response:
        if _run_folder(folder, name) is None:
            return PlainTextResponse("there is no such run\n", 404)
        return HTMLResponse(console_html(folder, name, REFRESH_S))

    @app.get("/runs/{name}/report.html")
    def report(name: str) -> Response:
        run_folder = _run_folder(folder, name)
        if run_folder is None or not (run_folder / "report.html").is_file():
            return PlainTextResponse("this run has no report yet\n", 404)
        return HTMLResponse((run_folder / "report.html").read_bytes())

    @app.middleware("http")
    async def guard(request: Request, call_next: Next) -> Response:
        if token is not None and not _knows(request.headers.get("Authorization", ""), token):
            response: Response = PlainTextResponse("the console asks for its token as the password\n", 401)
            response.headers["WWW-Authenticate"] = 'Basic realm="dsan console"'
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    if token is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_HOSTS)  # against DNS rebinding
    return app


@dataclass(frozen=True)
class Access:
    """What lets others than this computer's users in: a token, and TLS so that it is not overheard."""

    token: str
    certificate: Path
    key: Path


class ConsoleServer:
    """Serves the console from a thread of its own; anywhere but on loopback it needs `access`."""

    def __init__(
        self, folder: Path, host: str = "127.0.0.1", port: int = 0, access: Access | None = None
    ) -> None:
        if access is None and not is_loopback(host):
            raise ValueError(f"the console on {host} needs a token: without one it answers on loopback alone")
        self._address = (host, port)
        config = uvicorn.Config(
            create_console(folder, access.token if access else None),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            ssl_certfile=access.certificate if access else None,
            ssl_keyfile=access.key if access else None,
        )
        self._access = access
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen; returns the port. OSError if it cannot be bound."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listening = socket.create_server(self._address, family=family)
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="console", daemon=True
        )
        self._thread.start()
        return int(listening.getsockname()[1])

    def read_certificate(self) -> None:
        """Show new connections the certificate that the file holds now."""
        if self._access is not None and self._server.config.ssl is not None:
            self._server.config.ssl.load_cert_chain(self._access.certificate, self._access.key)

    def stop(self) -> None:
        """Stop listening."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(STOP_S)


def _run_folder(folder: Path, name: str) -> Path | None:
    path = folder / "runs" / name
    return path if re.fullmatch(STUDY_NAME, name) and (path / "study.toml").is_file() else None


def _knows(authorization: str, token: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), token.encode())


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached by this computer alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
