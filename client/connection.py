"""Can this site reach its centre, and if not, why? In words that an engineer can act on.

`reach` only looks: name, TCP, TLS, and whether dsan-federated answers; it measures the two clocks. `admit`
asks the centre for real, with the site's key, whether it takes part.
"""

import http.client
import os
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.keys import CA_CERTIFICATE, NODE_KEY

TIMEOUT_S = 10.0
PROBE_PATH = "/v1/fleet/pull-messages"  # asked without a key, which a SuperLink refuses: it was reached
HEARTBEAT_S = 30
NOT_YET_VALID, EXPIRED = 9, 10  # OpenSSL's verify codes
OTHER_NAME = (62, 64)


@dataclass(frozen=True)
class Contact:
    """What came of asking the centre; without a code it was reached (and took the site, if it was asked)."""

    code: str | None
    reason: str = ""  # in words, with values
    fix: str = ""
    clock_ahead_s: float | None = None  # of this computer, against the centre

    @property
    def is_refused(self) -> bool:
        """Whether the centre answered, and does not take this site."""
        return self.code is not None and self.code.startswith("ADMIT-")


def reach(address: str, ca_certificate: Path | None) -> Contact:
    """Look whether a centre answers at HOST:PORT; in the clear if there is no certificate to compare with."""
    host, port = split_address(address)
    tunnel = _proxy_for(host)
    try:
        context = None if ca_certificate is None else ssl.create_default_context(cafile=str(ca_certificate))
        connection = _connection(host, port, context, tunnel)
        connection.request("POST", PROBE_PATH, headers={"Content-Type": PROTOBUF_MEDIA_TYPE})
        answer = connection.getresponse()
        answer.read()
        connection.close()
    except ssl.SSLCertVerificationError as error:
        return _bad_certificate(error, host, port)
    except ssl.SSLError as error:
        return Contact(
            "CONNECT-NOT-TLS",
            f"what listens at {address} speaks no TLS ({error.reason or error})",
            "Compare the port with the operator's; something else may listen there.",
        )
    except (OSError, http.client.HTTPException) as error:
        return _no_answer(error, host, port, tunnel)
    return _answered(answer, address)


def admit(address: str, keys: Path) -> Contact:
    """Ask the centre, with the site's own key, to take its node; the node is logged off again at once."""
    key = load_ssh_private_key((keys / NODE_KEY).read_bytes(), password=None)
    public = key.public_key()
    with FleetHttpClient.from_server_address(
        address,
        insecure=False,
        root_certificates=(keys / CA_CERTIFICATE).read_bytes(),
        interceptors=[NodeAuthHttpInterceptor(key, public)],  # type: ignore[arg-type]  # an EC key, by `init`
    ) as client:
        try:
            request = ActivateNodeRequest(
                public_key=public_key_to_bytes(public),  # type: ignore[arg-type]  # as above
                heartbeat_interval=HEARTBEAT_S,
            )
            node = client.ActivateNode(request)
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
        except httpx.HTTPStatusError as error:
            return not_admitted(
                error.response.status_code, _clock_ahead_s(error.response.headers.get("date"))
            )
        except httpx.HTTPError as error:
            return Contact("CONNECT-LOST", f"the connection was lost: {error}", "Try again.")
    return Contact(None)


def clock_words(ahead_s: float) -> str:
    """How far this computer's clock is off, and what Flower accepts."""
    side = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"this computer's clock is {abs(ahead_s):.0f} s {side} the centre's; at most "
        f"{SYSTEM_TIME_TOLERANCE} s ahead or {TIMESTAMP_TOLERANCE} s behind are accepted"
    )


def is_clock_off(ahead_s: float | None) -> bool:
    """Whether Flower refuses this computer's signatures for their time."""
    return ahead_s is not None and not -TIMESTAMP_TOLERANCE <= ahead_s <= SYSTEM_TIME_TOLERANCE


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, [IPV6]:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _connection(
    host: str, port: int, context: ssl.SSLContext | None, tunnel: tuple[str, int] | None
) -> http.client.HTTPConnection:
    to_host, to_port = tunnel or (host, port)
    if context is None:
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    connection = http.client.HTTPSConnection(to_host, to_port, timeout=TIMEOUT_S, context=context)
    if tunnel is not None:
        connection.set_tunnel(host, port)
    return connection


def _proxy_for(host: str) -> tuple[str, int] | None:
    """The hospital's own way out, as the environment names it: Flower goes through it too."""
    proxy = urllib.request.getproxies().get("https")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or 3128


def _no_answer(error: Exception, host: str, port: int, tunnel: tuple[str, int] | None) -> Contact:
    if tunnel is not None:
        return Contact(
            "CONNECT-PROXY",
            f"the way to {host}:{port} goes through the proxy {tunnel[0]}:{tunnel[1]} (environment variable "
            f"HTTPS_PROXY), which says: {error}",
            f"Let the proxy pass CONNECT to {host}:{port}, or add {host} to NO_PROXY.",
        )
    if isinstance(error, socket.gaierror):
        fix = "Compare [server] address in site.toml with the operator's; ask whoever runs the DNS."
        return Contact("CONNECT-NAME", f"the name {host} does not resolve ({error.strerror})", fix)
    if isinstance(error, ConnectionRefusedError):
        fix = "Ask the operator whether `dsan-server start` runs, and compare the port."
        return Contact("CONNECT-REFUSED", f"nothing listens at {host}:{port}", fix)
    if isinstance(error, TimeoutError):
        fix = f"Let the firewall pass outbound TCP to {host}:{port}; ask the operator about theirs."
        return Contact("CONNECT-TIMEOUT", f"no answer from {host}:{port} within {TIMEOUT_S:.0f} s", fix)
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        fix = "Look at this computer's network."
        return Contact("CONNECT-NETWORK", f"no way to {host}:{port}: {os.strerror(error.errno)}", fix)
    fix = "Compare the port with the operator's; a firewall in between may cut the connection."
    return Contact("CONNECT-CUT", f"{host}:{port} ended the connection without an answer ({error})", fix)


def _bad_certificate(error: ssl.SSLCertVerificationError, host: str, port: int) -> Contact:
    seen = _certificate_at(host, port)
    now = datetime.now(UTC)
    if error.verify_code in (NOT_YET_VALID, EXPIRED) and seen is not None:
        return Contact(
            "CONNECT-CLOCK",
            f"the centre's certificate is valid from {seen.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{seen.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and this computer's clock says "
            f"{now:%Y-%m-%d %H:%M} UTC",
            "Correct the clock (timedatectl); if it is right, ask the operator for `dsan-server renew`.",
        )
    if error.verify_code in OTHER_NAME:
        fix = "Use the name that the operator gave `dsan-server init --host`."
        return Contact("CONNECT-HOSTNAME", f"the certificate of the centre is not for {host}", fix)
    issuer = "unknown" if seen is None else seen.issuer.rfc4514_string()
    return Contact(
        "CONNECT-CA",
        f"the certificate at {host}:{port} was issued by {issuer}, not by the consortium's own authority: "
        "another centre, or a proxy in between that opens TLS",
        f"Have {host}:{port} left out of TLS inspection; compare the authority with the operator.",
    )


def _certificate_at(host: str, port: int) -> x509.Certificate | None:
    """What the other side shows, believed or not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return None


def _answered(answer: http.client.HTTPResponse, address: str) -> Contact:
    ahead_s = _clock_ahead_s(answer.getheader("Date"))
    if answer.status in (502, 503, 504):
        reason = f"the centre's proxy answers at {address}, but its SuperLink does not (HTTP {answer.status})"
        return Contact("CONNECT-CENTRE-DOWN", reason, "Ask the operator; it may be starting.", ahead_s)
    if answer.status != http.HTTPStatus.UNAUTHORIZED:
        reason = f"what answers at {address} is not dsan-federated (HTTP {answer.status})"
        return Contact("CONNECT-NOT-DSAN", reason, "Compare host and port with the operator's.", ahead_s)
    if is_clock_off(ahead_s):
        assert ahead_s is not None
        return Contact("CONNECT-CLOCK", clock_words(ahead_s), "Correct the clock (timedatectl).", ahead_s)
    return Contact(None, clock_ahead_s=ahead_s)


def not_admitted(http_status: int, ahead_s: float | None) -> Contact:
    """What it means that the centre answered a site's node with an HTTP status of 400 to 499."""
    if http_status == httpx.codes.UNAUTHORIZED:
        reason = "the centre does not accept the signature of this site's key"
        fix = "Compare the key's fingerprint with the operator; if they differ, enrol the site again."
        return Contact("ADMIT-SIGNATURE", reason, fix, ahead_s)
    return Contact(
        "ADMIT-UNKNOWN",
        "the centre does not take this site's key: it is not enrolled there or was revoked, or a node with "
        f"this key is connected already (HTTP {http_status})",
        "If no other daemon of this site runs, ask the operator whether the site is enrolled; a daemon that "
        "was killed may come back after a minute.",
        ahead_s,
    )


def _clock_ahead_s(date: str | None) -> float | None:
    """Seconds by which this computer's clock is ahead of a Date header, to about a second."""
    if date is None:
        return None
    try:
        return time.time() - parsedate_to_datetime(date).timestamp() - 0.5  # the header's second has begun
    except ValueError:
        return None
