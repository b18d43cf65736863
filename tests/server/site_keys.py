"""What `dsan-client init` makes at a site, as far as the centre sees it."""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class SiteKeys:
    """Both private keys of a site."""

    node: ec.EllipticCurvePrivateKey
    watch: ec.EllipticCurvePrivateKey

    @property
    def public_key(self) -> str:
        key = self.node.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return key.decode()

    @property
    def fingerprint(self) -> str:
        blob = base64.b64decode(self.public_key.split()[1])
        return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")

    def signing_request(self, name: str) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return request.sign(self.watch, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def make_keys() -> SiteKeys:
    return SiteKeys(ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1()))


def write_request(folder: Path, name: str, keys: SiteKeys, /, **changes: object) -> Path:
    """NAME.enrol.json, with some of its values replaced."""
    request = {
        "format_version": 1,
        "name": name,
        "public_key": keys.public_key,
        "certificate_request": keys.signing_request(name),
        "fingerprint": keys.fingerprint,
        "release": "0.1.0",
    }
    path = folder / f"{name}.enrol.json"
    path.write_text(json.dumps(request | changes))
    return path


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
