"""`join`: kit, site, keys and release belong together, and every way not to reach the centre has words."""

import fcntl
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from client import connection
from client.cli import app
from client.connection import reach
from client.findings import FindingError
from client.join import connection_findings, join, join_text
from client.site import read_site
from client.site_folder import init_site
from dsan_daemon.bundle import bundle_digest, release
from server.certificates import (
    certificate_pem,
    found_authority,
    issue_client_certificate,
    load_authority,
)


@dataclass(frozen=True)
class Centre:
    """A consortium's authority, and a site that asked to take part."""

    tls: Path
    site: Path

    def kit(self, **changes: object) -> Path:
        authority = load_authority(self.tls)
        request = x509.load_pem_x509_csr((self.site / "keys" / "watch.csr").read_bytes())
        certificate = issue_client_certificate(authority, request.public_key(), "st-mary")  # type: ignore[arg-type]
        kit: dict[str, Any] = {
            "format_version": 1,
            "name": "st-mary",
            "server": "127.0.0.1:1",
            "ca_certificate": certificate_pem(authority.certificate).decode(),
            "client_certificate": certificate_pem(certificate).decode(),
            "release": release(),
            "bundle_digest": bundle_digest(),
        }
        path = self.site / "st-mary.kit.json"
        path.write_text(json.dumps(kit | changes))
        return path


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    found_authority(tmp_path / "tls", "127.0.0.1")
    init_site(tmp_path / "site", "st-mary", "127.0.0.1:1")
    return Centre(tmp_path / "tls", tmp_path / "site")


def refusal(kit: Path, centre: Centre) -> str:
    with pytest.raises(FindingError) as caught:
        join(kit, centre.site / "site.toml", lambda line: None)
    return caught.value.finding.code


def test_a_kit_of_this_site_and_release_is_kept(centre: Centre) -> None:
    assert refusal(centre.kit(), centre) == "CONNECT-REFUSED"  # nothing listens, but the kit is good
    assert (centre.site / "keys" / "ca.crt").read_bytes() == (centre.tls / "ca.crt").read_bytes()
    assert (centre.site / "keys" / "watch.crt").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "st-john"}, "KIT-NAME"),
        ({"release": "0.0.9"}, "KIT-RELEASE"),
        ({"bundle_digest": "ab" * 32}, "KIT-RELEASE"),
        ({"format_version": 2}, "KIT-FORMAT"),
        ({"extra": 1}, "KIT-FORMAT"),
        ({"server": 3}, "KIT-FORMAT"),
        ({"ca_certificate": "none"}, "KIT-FORMAT"),
    ],
)
def test_a_kit_that_does_not_fit_is_refused_and_nothing_is_kept(
    centre: Centre, changes: dict[str, object], code: str
) -> None:
    assert refusal(centre.kit(**changes), centre) == code
    assert not (centre.site / "keys" / "ca.crt").exists()


def test_another_authority_takes_the_place_of_the_one_joined_only_if_it_is_said(
    centre: Centre, tmp_path: Path
) -> None:
    assert refusal(centre.kit(), centre) == "CONNECT-REFUSED"
    joined = (centre.site / "keys" / "ca.crt").read_bytes()
    found_authority(tmp_path / "evil", "127.0.0.1")
    other = Centre(tmp_path / "evil", centre.site)
    assert refusal(other.kit(), other) == "KIT-AUTHORITY"
    assert (centre.site / "keys" / "ca.crt").read_bytes() == joined
    said: list[str] = []
    with pytest.raises(FindingError, match="CONNECT-REFUSED"):
        join(other.kit(), centre.site / "site.toml", said.append, takes_new_authority=True)
    assert (centre.site / "keys" / "ca.crt").read_bytes() == (other.tls / "ca.crt").read_bytes()
    assert said[0].startswith("authority")  # told though the centre cannot be reached


def test_a_file_that_is_no_kit_is_refused(centre: Centre) -> None:
    path = centre.site / "st-mary.kit.json"
    assert refusal(path, centre) == "KIT-FILE"
    for content in (b"", b"{", b"[]", b"\xff", b" " * 70_000):
        path.write_bytes(content)
        assert refusal(path, centre) == "KIT-FORMAT"


def test_a_certificate_of_another_authority_is_refused(centre: Centre, tmp_path: Path) -> None:
    found_authority(tmp_path / "other", "127.0.0.1")
    other = (tmp_path / "other" / "ca.crt").read_text()
    assert refusal(centre.kit(ca_certificate=other), centre) == "KIT-CERTIFICATE"


def test_a_certificate_for_other_keys_is_refused(centre: Centre) -> None:
    kit = centre.kit()
    for name in ("watch.key", "watch.csr"):
        (centre.site / "keys" / name).unlink()
    init_site(centre.site, "st-mary", "127.0.0.1:1")
    assert refusal(kit, centre) == "KIT-KEY"


def test_a_certificate_for_another_name_is_refused(centre: Centre) -> None:
    authority = load_authority(centre.tls)
    request = x509.load_pem_x509_csr((centre.site / "keys" / "watch.csr").read_bytes())
    wrong = issue_client_certificate(authority, request.public_key(), "st-john")  # type: ignore[arg-type]
    assert refusal(centre.kit(client_certificate=certificate_pem(wrong).decode()), centre) == "KIT-NAME"


# ---- the way to the centre ----


@contextmanager
def listening(tls: Path | None, status: int = 401, clock_ahead_s: float = 0.0) -> Iterator[int]:
    """A server on loopback that answers every POST with a status; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) - timedelta(seconds=clock_ahead_s), usegmt=True)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.crt", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_new_kit_is_kept_while_the_daemon_runs_and_its_node_is_left_alone(centre: Centre) -> None:
    refusal(centre.kit(), centre)  # it had joined before
    renewed = centre.kit()
    state = centre.site / "state"
    state.mkdir()
    with listening(centre.tls) as port, (state / "daemon.lock").open("w") as lock:
        settings = (centre.site / "site.toml").read_text().replace("127.0.0.1:1", f"127.0.0.1:{port}")
        (centre.site / "site.toml").write_text(settings)
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a daemon that runs; asking for its node would be refused here
        result = join(renewed, centre.site / "site.toml", lambda line: None)
    assert result.is_started
    assert "next: dsan-client start" not in join_text(result, centre.site / "site.toml")
    kept = (centre.site / "keys" / "watch.crt").read_text()
    assert kept == json.loads(renewed.read_text())["client_certificate"]


def test_a_centre_is_reached_and_the_clocks_are_compared(centre: Centre) -> None:
    with listening(centre.tls) as port:
        contact = reach(f"127.0.0.1:{port}", centre.tls / "ca.crt")
    assert contact.code is None
    assert contact.clock_ahead_s == pytest.approx(0, abs=2)


@pytest.mark.parametrize(("ahead_s", "words"), [(60.0, "60 s ahead of"), (-400.0, "400 s behind")])
def test_a_clock_that_flower_would_refuse_is_told_in_seconds(
    centre: Centre, ahead_s: float, words: str
) -> None:
    with listening(centre.tls, clock_ahead_s=ahead_s) as port:
        contact = reach(f"127.0.0.1:{port}", centre.tls / "ca.crt")
    assert contact.code == "CONNECT-CLOCK"
    assert contact.clock_ahead_s == pytest.approx(ahead_s, abs=2)
    assert words.split(" s ")[1] in contact.reason


@pytest.mark.parametrize(
    ("status", "code"), [(502, "CONNECT-CENTRE-DOWN"), (404, "CONNECT-NOT-DSAN"), (200, "CONNECT-NOT-DSAN")]
)
def test_what_else_may_answer_is_told(centre: Centre, status: int, code: str) -> None:
    with listening(centre.tls, status) as port:
        assert reach(f"127.0.0.1:{port}", centre.tls / "ca.crt").code == code


def test_the_certificate_of_another_authority_is_named(centre: Centre, tmp_path: Path) -> None:
    found_authority(tmp_path / "inspecting", "proxy.hospital.example")
    with listening(centre.tls) as port:
        contact = reach(f"127.0.0.1:{port}", tmp_path / "inspecting" / "ca.crt")
    assert contact.code == "CONNECT-CA"
    assert "dsan-federated CA of 127.0.0.1" in contact.reason


def test_a_certificate_for_another_host_is_told(centre: Centre) -> None:
    with listening(centre.tls) as port:
        assert reach(f"localhost:{port}", centre.tls / "ca.crt").code == "CONNECT-HOSTNAME"


def test_a_server_without_tls_is_told(centre: Centre) -> None:
    with listening(None) as port:
        assert reach(f"127.0.0.1:{port}", centre.tls / "ca.crt").code == "CONNECT-NOT-TLS"


def test_a_name_that_does_not_resolve_is_told(centre: Centre) -> None:
    contact = reach("centre.invalid:8443", centre.tls / "ca.crt")
    assert contact.code == "CONNECT-NAME"
    assert "centre.invalid" in contact.reason


def test_a_port_that_never_answers_is_told(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        contact = reach(f"127.0.0.1:{silent.getsockname()[1]}", centre.tls / "ca.crt")
    assert contact.code == "CONNECT-TIMEOUT"


def test_a_connection_that_is_cut_is_told(centre: Centre) -> None:
    with socket.socket() as cutting:
        cutting.bind(("127.0.0.1", 0))
        cutting.listen()
        thread = threading.Thread(target=lambda: cutting.accept()[0].close())
        thread.start()
        contact = reach(f"127.0.0.1:{cutting.getsockname()[1]}", centre.tls / "ca.crt")
        thread.join()
    assert contact.code in ("CONNECT-CUT", "CONNECT-NOT-TLS")


def test_a_proxy_that_refuses_is_named(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(None) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        contact = reach("centre.example.org:8443", centre.tls / "ca.crt")
    assert contact.code == "CONNECT-PROXY"
    assert f"127.0.0.1:{port}" in contact.reason


def test_check_warns_if_a_joined_site_cannot_reach_its_centre(centre: Centre) -> None:
    site = read_site(centre.site / "site.toml")
    assert connection_findings(site) == ()  # it has not joined
    refusal(centre.kit(), centre)
    (finding,) = connection_findings(site)
    assert (finding.code, finding.severity) == ("CONNECT-REFUSED", "warning")


def test_the_command_says_why_and_exits_69(centre: Centre) -> None:
    arguments = ["join", str(centre.kit()), "--config", str(centre.site / "site.toml")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 69
    assert "CONNECT-REFUSED" in result.stderr
