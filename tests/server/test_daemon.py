"""The centre's daemon with real nginx, SuperLink and SuperExec: what hospitals reach, and what nobody can."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from debian_programs import debian_program
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from typer.testing import CliRunner

from client.findings import FindingError
from client.join import join
from client.site_folder import init_site
from dsan_model.watch_pb2 import Order, SiteStatus
from dsan_model.watch_pb2_grpc import SiteWatchStub
from server.admittance import enrol_site, revoke_site
from server.certificates import certificate_pem, found_authority, issue_client_certificate, load_authority
from server.cli import app as cli
from server.founding import found_centre
from server.proxy import MOST_REQUESTS
from server.renewal import renew_server, renew_sites
from server.watch_file import read_watch

Stream = Iterator[Order]


@pytest.fixture(scope="module")
def running(running_centre: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    debian_program("nginx")
    running = running_centre.RunningCentre(tmp_path_factory.mktemp("centre"))
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def enrolled(running: Any, site_keys: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Keys of enrolled sites by name; `south` is going to be revoked."""
    folder = tmp_path_factory.mktemp("requests")
    keys = {name: site_keys.make_keys() for name in ("north", "south")}
    for name, pair in keys.items():
        enrol_site(running.centre, running.config, site_keys.write_request(folder, name, pair))
    return keys


def tls(running: Any, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(running.centre.tls / "ca.crt"))
    if certificate is not None:
        context.load_cert_chain(*map(str, certificate))
    return context


def raw_status(running: Any, request_line: str) -> int:
    """The status of a request whose first line goes over the wire exactly as it is given."""
    with (
        socket.create_connection(("127.0.0.1", running.config.port), timeout=10) as plain,
        tls(running).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        head = f"{request_line}\r\nHost: {running.address}\r\nContent-Type: application/x-protobuf\r\n"
        connection.sendall(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])


HIDDEN = (
    *("/v1/control/list-runs", "/v1/runtime/get-nodes", "/docs", "/openapi.json", "/health", "/", "/v1/"),
    *("//v1/control/list-runs", "/v1//control/list-runs", "/./v1/control/list-runs"),
    *("/v1/fleet/../control/list-runs", "/v1/fleet/../../docs", "/v1/fleet/./../control/list-runs"),
    *("/v1/fleet/%2e%2e/control/list-runs", "/v1/fleet/%2E%2E/control/list-runs"),
    *("/v1/fleet/..%2fcontrol/list-runs", "/v1/fleet%2f..%2fcontrol%2flist-runs", "/v1%2fcontrol/list-runs"),
    *("/v1/control/%2e%2e/fleet/pull-messages", "/v1/control/../fleet/pull-messages"),
    *("/docs/%2e%2e/v1/fleet/pull-messages", "/v1/control/..%2ffleet/pull-messages"),
    *("/v1/fleet/..;/control/list-runs", "/v1/fleet/pull-messages;/../../control/list-runs"),
    *("/v1/fleet/%252e%252e/control/list-runs", "/v1/fleet/\\..\\control\\list-runs"),
    *("/V1/CONTROL/list-runs", "/v1/Control/list-runs", "/%76%31/control/list-runs"),
    *("/v1/fleet/pull-messages/", "/v1/fleet/pull-messages?a=b", "/v1/fleet/pull-messages#x", "/v1/fleet/"),
    *("/v1/fleet/pull-messages%00", "/v1/fleet/pull-messages%20HTTP/1.1"),
    *("https://127.0.0.1/v1/control/list-runs", "http://x/v1/fleet/../control/list-runs"),
)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nobody_reaches_anything_but_the_fleet_interface_from_outside(running: Any, method: str) -> None:
    """And the SuperLink itself sees none of these requests."""
    mark = f"POST /v1/control/list-nodes?mark={time.time_ns()}"
    httpx.post(f"http://127.0.0.1:{running.about()['superlink_port']}{mark.removeprefix('POST ')}")
    found = {path: raw_status(running, f"{method} {path} HTTP/1.1") for path in HIDDEN}
    assert {path: status for path, status in found.items() if status not in (404, 400)} == {}
    assert found["/v1/control/list-runs"] == 404
    time.sleep(0.5)
    log = running.superlink_log()
    assert mark in log
    requests = [line for line in log[log.index(mark) :].splitlines()[1:] if "uvicorn.access" in line]
    ours = ("/v1/runtime/acquire-task", "/v1/control/list-")  # SuperExec and daemon, from inside
    assert [line for line in requests if not any(f"POST {path}" in line for path in ours)] == []


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("PUT", 404), ("OPTIONS", 404), ("TRACE", 405)])
def test_the_fleet_interface_takes_no_other_method_than_post(running: Any, method: str, status: int) -> None:
    """A site knocks with GET: 405 is the SuperLink's own answer, by which it knows that it is there."""
    assert raw_status(running, f"{method} /v1/fleet/activate-node HTTP/1.1") == status


def test_nothing_is_served_in_the_clear(running: Any) -> None:
    answer = httpx.get(f"http://{running.address}/v1/fleet/pull-messages")
    assert answer.status_code == 400
    assert "HTTPS" in answer.text


@pytest.mark.parametrize(("version", "is_taken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_below_1_2_is_refused(running: Any, version: str, is_taken: bool) -> None:
    option = {"TLSv1_1": "-tls1_1", "TLSv1_2": "-tls1_2", "TLSv1_3": "-tls1_3"}[version]
    command = ["openssl", "s_client", "-connect", running.address, option, "-cipher", "ALL:@SECLEVEL=0"]
    done = subprocess.run(command, input="", capture_output=True, text=True)
    assert ("Cipher is (NONE)" not in done.stdout) is is_taken


def fleet(running: Any, keys: Any) -> FleetHttpClient:
    return FleetHttpClient.from_server_address(
        running.address,
        insecure=False,
        root_certificates=(running.centre.tls / "ca.crt").read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(keys.node, keys.node.public_key()),
        ],
    )


def activate(running: Any, keys: Any) -> int:
    key = public_key_to_bytes(keys.node.public_key())
    with fleet(running, keys) as client:
        request = ActivateNodeRequest(public_key=key, heartbeat_interval=30)
        return int(client.ActivateNode(request).node_id)


def pull(running: Any, keys: Any, node_id: int) -> int:
    """The status of the answer to a node that asks for messages; 0: nobody listens."""
    with fleet(running, keys) as client:
        try:
            client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id)))
        except httpx.HTTPStatusError as error:
            return error.response.status_code
        except httpx.TransportError:
            return 0
    return 200


def test_an_enrolled_site_reaches_the_fleet_interface_by_its_key(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any]
) -> None:
    running_centre.wait_until(lambda: running.node_id("north"))
    node_id = activate(running, enrolled["north"])
    assert node_id == running.node_id("north")
    assert pull(running, enrolled["north"], node_id) == 200


@pytest.mark.parametrize(("megabytes", "status"), [(15, 415), (17, 413)])
def test_a_large_piece_of_weights_passes_and_a_larger_one_than_flower_sends_does_not(
    running: Any, megabytes: int, status: int
) -> None:
    """415 is the SuperLink's own answer to a body that is no message: it has come through."""
    body = b"\0" * (megabytes << 20)
    url = f"https://{running.address}/v1/fleet/push-object"
    answer = httpx.post(url, content=body, verify=tls(running))
    assert answer.status_code == status


def what_came(lines: list[ssl.SSLSocket]) -> list[bytes]:
    came = []
    for line in lines:
        with suppress(ssl.SSLWantReadError):
            came.append(line.recv(12))
    return came


def test_one_address_cannot_have_the_proxy_keep_ever_more_bodies(
    running: Any, running_centre: ModuleType
) -> None:
    """Each request announces a body and sends a byte of it: nginx waits for the rest."""
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: {15 << 20}\r\n\r\n0".encode()
    context = tls(running)
    host, port = running.address.split(":")
    with ExitStack() as opened:
        lines = []
        for _ in range(MOST_REQUESTS + 1):
            line = context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host)
            lines.append(opened.enter_context(line))
            line.sendall(head)
            line.setblocking(False)
        came: list[bytes] = []
        running_centre.wait_until(lambda: came.extend(what_came(lines)) or came)
        assert came == [b"HTTP/1.1 503"]


def test_the_console_answers_on_loopback(running: Any) -> None:
    assert httpx.get(f"http://127.0.0.1:{running.config.console_port}/").status_code == 200


def test_a_site_cannot_act_as_another_node(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any]
) -> None:
    running_centre.wait_until(lambda: running.node_id("south"))
    assert pull(running, enrolled["north"], running.node_id("south")) == 401


def test_an_unknown_key_cannot_come_in_nor_register_itself(running: Any, site_keys: ModuleType) -> None:
    stranger = site_keys.make_keys()
    with pytest.raises(httpx.HTTPStatusError):
        activate(running, stranger)
    key = public_key_to_bytes(stranger.node.public_key())
    with fleet(running, stranger) as client, pytest.raises(httpx.HTTPStatusError) as refused:
        client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
    assert refused.value.response.status_code == 412


def site_watch(running: Any, certificate: tuple[bytes, bytes] | None) -> grpc.Channel:
    """A channel to SiteWatch; certificate: key and certificate, PEM."""
    key, chain = certificate or (None, None)
    credentials = grpc.ssl_channel_credentials((running.centre.tls / "ca.crt").read_bytes(), key, chain)
    return grpc.secure_channel(running.address, credentials)


def join_code(kit: Path, config: Path) -> str | None:
    """The code with which a hospital's `join` is refused, or None."""
    try:
        return join(kit, config, lambda line: None).contact.code
    except FindingError as error:
        return error.finding.code


def test_a_hospital_joins_through_the_proxy_and_is_refused_in_words_once_it_is_revoked(
    running: Any, running_centre: ModuleType, tmp_path: Path
) -> None:
    config = tmp_path / "east" / "site.toml"
    request = init_site(tmp_path / "east", "east", running.address).request_file
    kit = tmp_path / "east.kit.json"
    said = CliRunner().invoke(cli, ["enrol", str(request), "--dir", str(running.centre.folder)])
    assert said.exit_code == 0
    assert "not let in" not in said.output
    kit.write_bytes(running.centre.kit("east").read_bytes())
    assert join_code(kit, config) is None  # at once: `enrol` waited for the daemon
    revoke_site(running.centre, "east")
    running_centre.wait_until(lambda: join_code(kit, config) == "ADMIT-UNKNOWN")


def client_certificate(running: Any, keys: Any, name: str, site_keys: ModuleType) -> tuple[bytes, bytes]:
    kit = json.loads(running.centre.kit(name).read_text())
    return site_keys.private_pem(keys.watch), kit["client_certificate"].encode()


def statuses() -> Iterator[SiteStatus]:
    while True:
        yield SiteStatus(phase="idle")
        time.sleep(1)


def refusal(running: Any, certificate: tuple[bytes, bytes] | None) -> grpc.StatusCode:
    metadata = (("x-dsan-site", "north"), ("x-dsan-proxy", "guess"))
    with site_watch(running, certificate) as channel, pytest.raises(grpc.RpcError) as error:
        next(SiteWatchStub(channel).Watch(statuses(), metadata=metadata, timeout=15))
    code: grpc.StatusCode = error.value.code()
    return code


def test_site_watch_knows_a_site_by_its_certificate_whatever_it_says(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any], site_keys: ModuleType
) -> None:
    certificate = client_certificate(running, enrolled["north"], "north", site_keys)
    metadata = (("x-dsan-site", "south"), ("x-dsan-proxy", "guess"))
    with site_watch(running, certificate) as channel:
        stream = SiteWatchStub(channel).Watch(statuses(), metadata=metadata)
        assert next(stream).kind == Order.NONE
        running_centre.wait_until(lambda: "north" in read_watch(running.centre.state))
        assert "south" not in read_watch(running.centre.state)
        stream.cancel()


def test_site_watch_without_a_certificate_of_the_consortium_is_refused(
    running: Any, enrolled: dict[str, Any], site_keys: ModuleType, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    found_authority(tmp_path / "tls", "127.0.0.1")  # of somebody else, with the same name
    foreign = issue_client_certificate(load_authority(tmp_path / "tls"), key.public_key(), "north")
    self_made = (site_keys.private_pem(key), certificate_pem(foreign))
    servers_own = tuple((running.centre.tls / name).read_bytes() for name in ("server.key", "server.crt"))
    refused = grpc.StatusCode.PERMISSION_DENIED
    assert refusal(running, None) == refused
    assert refusal(running, self_made) == refused
    assert refusal(running, servers_own) == refused  # type: ignore[arg-type]


def test_no_other_grpc_method_passes_not_even_with_a_certificate(
    running: Any, enrolled: dict[str, Any], site_keys: ModuleType
) -> None:
    certificate = client_certificate(running, enrolled["north"], "north", site_keys)
    with site_watch(running, certificate) as channel:
        for path in (
            "/flwr.proto.Control/ListRuns",
            "/dsan.watch.v1.SiteWatch/Other",
            "/v1/control/list-runs",
        ):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(path)(b"", timeout=10)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED, path  # gRPC's word for 404


def seconds_until_it_breaks(stream: Iterator[Order]) -> float:
    began = time.monotonic()
    with suppress(grpc.RpcError):
        for _ in stream:
            assert time.monotonic() - began < 60
    return time.monotonic() - began


def test_a_revoked_site_is_cut_off_within_seconds(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any], site_keys: ModuleType
) -> None:
    certificate = client_certificate(running, enrolled["south"], "south", site_keys)
    running_centre.wait_until(lambda: running.node_id("south"))
    node_id = activate(running, enrolled["south"])
    with site_watch(running, certificate) as channel:
        stream = SiteWatchStub(channel).Watch(statuses())
        assert next(stream).kind == Order.NONE
        revoke_site(running.centre, "south")
        assert seconds_until_it_breaks(stream) < 20
    running_centre.wait_until(lambda: running.node_id("south") is None, 20)
    assert pull(running, enrolled["south"], node_id) == 401
    running_centre.wait_until(
        lambda: refusal(running, certificate) == grpc.StatusCode.PERMISSION_DENIED, seconds=20
    )
    assert pull(running, enrolled["north"], running.node_id("north")) == 200


def test_a_renewed_certificate_of_the_server_is_shown_at_once_and_the_sites_old_ones_stay_good(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any], site_keys: ModuleType
) -> None:
    old = client_certificate(running, enrolled["north"], "north", site_keys)
    ends = renew_server(running.centre, running.config)
    renew_sites(running.centre, running.config, ["north"])
    running_centre.wait_until(lambda: end_of_shown_certificate(running) == ends, seconds=20)
    for certificate in (old, client_certificate(running, enrolled["north"], "north", site_keys)):
        with site_watch(running, certificate) as channel:
            stream = SiteWatchStub(channel).Watch(statuses(), wait_for_ready=True, timeout=15)
            assert next(stream).kind == Order.NONE
            stream.cancel()


def end_of_shown_certificate(running: Any) -> datetime:
    with (
        socket.create_connection(("127.0.0.1", running.config.port), timeout=10) as plain,
        tls(running).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        shown = connection.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(shown or b"").not_valid_after_utc


def test_a_damaged_file_of_a_site_is_said_and_ends_nothing(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any]
) -> None:
    (running.centre.sites / "bad.json").write_text("{")
    running_centre.wait_until(lambda: "bad.json" in running.readiness()[1])
    assert pull(running, enrolled["north"], running.node_id("north")) == 200
    (running.centre.sites / "bad.json").unlink()
    running.wait_until_ready()


def test_a_port_that_another_program_has_is_named(running: Any, tmp_path: Path) -> None:
    found_centre(tmp_path, "127.0.0.1")
    settings = (tmp_path / "server.toml").read_text()
    (tmp_path / "server.toml").write_text(settings.replace("port = 8443", f"port = {running.config.port}"))
    command = [sys.executable, "-m", "server.cli", "start", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 78
    assert f"DAEMON-PORT: server.toml, key port: port {running.config.port} cannot be used" in done.stderr


def test_what_a_program_said_before_it_ended_is_in_the_readiness(
    running_centre: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nginx").write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    (tmp_path / "nginx").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    centre = running_centre.RunningCentre(tmp_path / "centre")
    try:
        running_centre.wait_until(
            lambda: "nginx ended (exit status 3) and is started again" in centre.readiness()[1]
        )
        running_centre.wait_until(lambda: "its log ends: the disk is on fire" in centre.readiness()[1])
    finally:
        centre.stop()


def test_a_second_daemon_in_the_folder_is_refused(running: Any) -> None:
    command = [sys.executable, "-m", "server.cli", "start", "--dir", str(running.centre.folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 77
    assert "DAEMON-RUNS" in done.stderr


def pid_of(running: Any, command: str) -> int | None:
    """The recorded process whose command line has this word."""
    for pid in json.loads((running.centre.state / "processes.json").read_text()):
        with suppress(OSError):
            if command.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


@pytest.mark.parametrize("command", ["nginx", "flower-superexec", "server.superlink_main"])
def test_a_program_that_is_killed_comes_back(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any], command: str
) -> None:
    killed = pid_of(running, command)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    running_centre.wait_until(lambda: pid_of(running, command) not in (None, killed))
    running.wait_until_ready()
    running_centre.wait_until(lambda: pull(running, enrolled["north"], running.node_id("north")) == 200)


def test_a_daemon_that_is_killed_leaves_nothing_in_the_way_of_the_next(
    running: Any, running_centre: ModuleType, enrolled: dict[str, Any]
) -> None:
    node_id = running.node_id("north")
    running.kill()
    running.start()
    running.wait_until_ready()
    assert running.node_id("north") == node_id  # the database outlived it
    assert pull(running, enrolled["north"], node_id) == 200


def test_sigterm_ends_it_and_its_programs_within_30_s(running: Any) -> None:
    """The last test of this file: the daemon is gone after it."""
    pids = [int(pid) for pid in json.loads((running.centre.state / "processes.json").read_text())]
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 30
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
