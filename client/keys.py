"""A site's keys, made where they stay: one for Flower's node authentication, one for the TLS of SiteWatch.

`keys/` is the site's alone: the private keys never leave it, and no command overwrites them.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID

from client.findings import Finding, FindingError
from dsan_daemon.files import PRIVATE, write_atomically
from dsan_daemon.fingerprints import key_fingerprint

NODE_KEY, NODE_PUBLIC = "node.key", "node.pub"
WATCH_KEY, WATCH_REQUEST, WATCH_CERTIFICATE = "watch.key", "watch.csr", "watch.crt"
CA_CERTIFICATE = "ca.crt"


@dataclass(frozen=True)
class PublicKeys:
    """What of a site's keys may leave it."""

    node: str  # OpenSSH form, one line: "ecdsa-sha2-nistp384 AAAA..."
    certificate_request: str  # PEM, for the client certificate of SiteWatch

    @property
    def fingerprint(self) -> str:
        """Of the node's key, as `ssh-keygen -l` prints it: what two people compare over the telephone."""
        return key_fingerprint(self.node)


def make_keys(folder: Path, site: str) -> PublicKeys:
    """The site's keys; those that are missing are made, those that are there stay as they are.

    FindingError KEYS-UNREADABLE if one that is there cannot be used.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_private(folder / NODE_KEY, ec.SECP384R1(), PrivateFormat.OpenSSH)
    _make_private(folder / WATCH_KEY, ec.SECP256R1(), PrivateFormat.PKCS8)
    node = _public_line(_load_node_key(folder / NODE_KEY))
    if not (folder / NODE_PUBLIC).exists():
        (folder / NODE_PUBLIC).write_text(f"{node} {site}\n")
    request = folder / WATCH_REQUEST
    if not request.exists() or _requested_name(request) != site:
        write_atomically(request, _request(load_watch_key(folder / WATCH_KEY), site))
    return PublicKeys(node, request.read_text())


def load_watch_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key of SiteWatch's client certificate."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, error) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable(path, "it is no elliptic curve key")
    return key


def _load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, error) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable(path, "it is no elliptic curve key")
    return key


def _make_private(path: Path, curve: ec.EllipticCurve, form: PrivateFormat) -> None:
    if path.exists():
        return
    content = ec.generate_private_key(curve).private_bytes(Encoding.PEM, form, NoEncryption())
    write_atomically(path, content, PRIVATE)


def _public_line(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _request(key: ec.EllipticCurvePrivateKey, site: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def _requested_name(request: Path) -> str | None:
    """The name that a certificate request asks for; None if it does not read."""
    try:
        subject = x509.load_pem_x509_csr(request.read_bytes()).subject
    except ValueError:
        return None
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def _unreadable(path: Path, reason: object) -> FindingError:
    message = f"the key cannot be used: {reason}"
    fix = "Restore it from a backup. Without one, move keys/ away, run `init` again, and enrol anew."
    return FindingError(Finding("KEYS-UNREADABLE", "error", str(path), message, fix))
