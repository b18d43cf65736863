"""SiteWatch through a real nginx: TLS, the consortium's own CA, names that come from certificates alone."""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from socket import socket

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from debian_programs import debian_program

import client.site_watch
import server.site_watch
from client.site_watch import SiteWatchClient, WatchCredentials
from dsan_model.watch_pb2 import Order, SiteStatus
from dsan_model.watch_pb2_grpc import SiteWatchStub
from server.orders import give_order, waiting_orders
from server.site_watch import SiteWatchServer
from server.watch_file import read_watch

WAIT_S = 20.0
SECRET = "of-the-proxy"
# The parts of the proxy's configuration that SiteWatch depends on.
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $ssl_client_s_dn $dsan_site {{ default ""; "~^CN=(?<cn>[A-Za-z0-9-]+)$" $cn; }}
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {folder}/server.crt; ssl_certificate_key {folder}/server.key;
    ssl_client_certificate {folder}/ca.crt; ssl_verify_client optional;
    location /dsan.watch.v1.SiteWatch/ {{
      if ($ssl_client_verify != SUCCESS) {{ return 403; }}
      grpc_set_header x-dsan-site $dsan_site;
      grpc_set_header x-dsan-proxy {secret};
      grpc_read_timeout 60s; grpc_send_timeout 60s; client_body_timeout 60s; client_max_body_size 0;
      grpc_pass grpc://127.0.0.1:{upstream};
    }}
    location / {{ return 404; }}
  }}
}}
"""


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass(frozen=True)
class Authority:
    """A CA that writes certificates and keys into a folder."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey

    def issue(self, stem: str, name: str, address: str | None = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self._write(stem, certificate(name, key, self.name, self.key, address), key)

    def certify_itself(self) -> "Authority":
        self._write(
            self.name, certificate(self.name, self.key, self.name, self.key, None, is_ca=True), self.key
        )
        return self

    def _write(self, stem: str, issued: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        (self.folder / f"{stem}.crt").write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        (self.folder / f"{stem}.key").write_bytes(pem)


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    address: str | None,
    is_ca: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if address is not None:
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        builder = builder.add_extension(alternative, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


class Proxied:
    """A SiteWatch server behind nginx."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "state").mkdir()
        (folder / "sites").mkdir()
        (folder / "sites" / "north.json").write_text("{}")
        self.server = SiteWatchServer("127.0.0.1:0", SECRET, folder / "state")
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._certify()
        text = NGINX.format(folder=folder, port=self.port, upstream=self.server.start(), secret=SECRET)
        (folder / "nginx.conf").write_text(text)
        command = [
            str(debian_program("nginx")),
            "-e",
            "stderr",
            "-p",
            str(folder),
            "-c",
            str(folder / "nginx.conf"),
        ]
        self.nginx = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_until(self._listens)

    def _certify(self) -> None:
        ours = Authority(self.folder, "ca", ec.generate_private_key(ec.SECP256R1())).certify_itself()
        ours.issue("server", "centre", "127.0.0.1")
        ours.issue("north", "north")
        theirs = Authority(self.folder, "strangers", ec.generate_private_key(ec.SECP256R1())).certify_itself()
        theirs.issue("forged", "north")

    def _listens(self) -> bool:
        with socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def credentials(self, stem: str, authority: str = "ca") -> WatchCredentials:
        at = self.folder
        return WatchCredentials(at / f"{authority}.crt", at / f"{stem}.crt", at / f"{stem}.key")

    def close(self) -> None:
        self.nginx.terminate()
        self.nginx.wait()
        self.server.stop()


@pytest.fixture
def proxied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxied]:
    monkeypatch.setattr(client.site_watch, "SPEAK_EVERY_S", 0.3)
    monkeypatch.setattr(server.site_watch, "WRITE_EVERY_S", 0.1)
    monkeypatch.setattr(server.site_watch, "LOOK_FOR_ORDERS_EVERY_S", 0.1)
    proxied = Proxied(tmp_path)
    yield proxied
    proxied.close()


def watch(proxied: Proxied, site: str, files: WatchCredentials, orders: list[Order]) -> SiteWatchClient:
    said = SiteStatus(phase="training", done=3, steps=8)
    return SiteWatchClient(f"127.0.0.1:{proxied.port}", files, site, lambda: said, orders.append)


def test_status_and_orders_pass_and_the_name_is_that_of_the_certificate(proxied: Proxied) -> None:
    orders: list[Order] = []
    site = watch(proxied, "south", proxied.credentials("north"), orders)  # it claims to be another
    site.start()
    wait_until(lambda: "north" in read_watch(proxied.folder / "state"))
    wait_until(lambda: read_watch(proxied.folder / "state")["north"].status.done == 3)
    give_order(proxied.folder / "state", "*", "stop", "eight")
    wait_until(lambda: orders)
    wait_until(
        lambda: [o.taken_by for o in waiting_orders(proxied.folder / "state").values()] == [("north",)]
    )
    assert orders[0].kind == Order.STOP
    assert "south" not in read_watch(proxied.folder / "state")
    site.stop()


def test_a_certificate_of_another_authority_is_refused_in_words(proxied: Proxied) -> None:
    site = watch(proxied, "north", proxied.credentials("forged"), [])
    site.start()
    wait_until(lambda: site.reason not in ("", "not started"))
    site.stop()
    assert read_watch(proxied.folder / "state") == {}


def test_a_centre_of_another_authority_is_not_spoken_to(proxied: Proxied) -> None:
    site = watch(proxied, "north", proxied.credentials("north", "strangers"), [])
    site.start()
    wait_until(lambda: "cannot be reached" in site.reason)
    site.stop()
    assert read_watch(proxied.folder / "state") == {}


def test_a_key_that_is_missing_is_named(proxied: Proxied) -> None:
    site = watch(proxied, "north", proxied.credentials("absent"), [])
    site.start()
    wait_until(lambda: "absent.key" in site.reason)
    assert "dsan-client join" in site.reason
    site.stop()


def test_without_a_certificate_nobody_passes_whatever_headers_they_send(proxied: Proxied) -> None:
    trust = grpc.ssl_channel_credentials((proxied.folder / "ca.crt").read_bytes())
    forged = (("x-dsan-site", "north"), ("x-dsan-proxy", SECRET))
    with grpc.secure_channel(f"127.0.0.1:{proxied.port}", trust) as channel:
        call = SiteWatchStub(channel).Watch(iter([SiteStatus()]), metadata=forged, timeout=WAIT_S)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert read_watch(proxied.folder / "state") == {}
