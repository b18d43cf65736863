"""Fingerprints that operator and site compare over the telephone, each as another program prints it too."""

import base64
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def key_fingerprint(public_key: str) -> str:
    """Of a public key in OpenSSH form, as `ssh-keygen -l` prints it."""
    blob = base64.b64decode(public_key.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def request_fingerprint(certificate_request: str) -> str:
    """Of the key that a certificate request (PEM) is about, in the same form."""
    key = x509.load_pem_x509_csr(certificate_request.encode()).public_key()
    return key_fingerprint(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())


def certificate_fingerprint(certificate: bytes) -> str:
    """Of a certificate (PEM), as `openssl x509 -noout -fingerprint -sha256` prints it."""
    digest = hashlib.sha256(x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER))
    text = digest.hexdigest().upper()
    return ":".join(text[i : i + 2] for i in range(0, len(text), 2))
