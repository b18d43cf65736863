"""NAME.kit.json: the operator's answer to a site that asked to take part, checked before it is believed."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from client.findings import Finding, FindingError
from client.keys import CA_CERTIFICATE, WATCH_CERTIFICATE, WATCH_KEY, load_watch_key
from client.site import SiteConfig
from dsan_daemon.bundle import bundle_digest, release
from dsan_daemon.files import write_atomically
from dsan_model.configuration import Strict

KIT_FORMAT = 1
LARGEST_KIT_BYTES = 64 * 1024
_AGAIN = "Ask the operator to send the file again."


class Kit(Strict):
    """What a site gets from the centre; nothing in it is secret."""

    format_version: int
    name: str
    server: str  # HOST:PORT, as the centre calls itself
    ca_certificate: str  # PEM
    client_certificate: str  # PEM, for the key of this site's request
    release: str
    bundle_digest: str


def read_kit(path: Path) -> Kit:
    """The kit of a file; FindingError KIT-FILE or KIT-FORMAT."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_KIT_BYTES + 1)
    except OSError as error:
        raise _refused("KIT-FILE", path.name, f"the file cannot be read ({error.strerror})", _AGAIN) from None
    try:
        if len(content) > LARGEST_KIT_BYTES:
            raise ValueError(f"it is larger than {LARGEST_KIT_BYTES} bytes")
        kit = Kit.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _refused("KIT-FORMAT", path.name, f"{key or 'the file'}: {first['msg']}", _AGAIN) from None
    except ValueError as error:
        raise _refused("KIT-FORMAT", path.name, str(error), _AGAIN) from None
    if kit.format_version != KIT_FORMAT:
        message = f"format_version is {kit.format_version}, this release reads {KIT_FORMAT}"
        raise _refused("KIT-FORMAT", path.name, message, "Install the same release at both sides.")
    return kit


def check_kit(kit: Kit, site: SiteConfig, file_name: str) -> None:
    """Kit, name, keys, certificate and installed release belong together; or FindingError, KIT-..."""
    if kit.name != site.name:
        message = f"the kit is for {kit.name}, this site is {site.name}"
        raise _refused("KIT-NAME", file_name, message, "Use the kit of this site.")
    authority, certificate = _certificates(kit, file_name)
    _require_issued(authority, certificate, file_name)
    _require_ours(certificate, site, file_name)
    _require_valid_now(certificate, site, file_name)
    if kit.release != release() or kit.bundle_digest != bundle_digest():
        message = (
            f"the centre has release {kit.release} with bundle {kit.bundle_digest[:16]}, here is "
            f"{release()} with bundle {bundle_digest()[:16]}"
        )
        raise _refused("KIT-RELEASE", file_name, message, "Install the same release at both sides.")


def require_same_authority(kit: Kit, kept: Path, file_name: str) -> None:
    """A kit never replaces the authority that this site has joined by another: FindingError KIT-AUTHORITY.

    A renewed certificate of the same authority has the same key.
    """
    if not kept.exists():
        return
    try:
        known = x509.load_pem_x509_certificate(kept.read_bytes())
    except (OSError, ValueError):
        return  # nothing that could be trusted is lost
    new = x509.load_pem_x509_certificate(kit.ca_certificate.encode())
    if known.public_key() != new.public_key():
        message = "it comes from another authority than the one that this site has joined"
        fix = "If the operator confirms by telephone that the centre was founded anew: --new-authority."
        raise _refused("KIT-AUTHORITY", file_name, message, fix)


def store_kit(kit: Kit, site: SiteConfig) -> None:
    """Keep the authority and the certificate of the site beside its keys."""
    write_atomically(site.keys_folder / CA_CERTIFICATE, kit.ca_certificate.encode())
    write_atomically(site.keys_folder / WATCH_CERTIFICATE, kit.client_certificate.encode())


def _certificates(kit: Kit, file_name: str) -> tuple[x509.Certificate, x509.Certificate]:
    try:
        authority = x509.load_pem_x509_certificate(kit.ca_certificate.encode())
        return authority, x509.load_pem_x509_certificate(kit.client_certificate.encode())
    except ValueError:
        message = "ca_certificate or client_certificate is no certificate"
        raise _refused("KIT-FORMAT", file_name, message, _AGAIN) from None


def _require_issued(authority: x509.Certificate, certificate: x509.Certificate, file_name: str) -> None:
    try:
        authority.verify_directly_issued_by(authority)
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        message = "the site's certificate is not signed by the authority of the kit"
        raise _refused("KIT-CERTIFICATE", file_name, message, _AGAIN) from None


def _require_ours(certificate: x509.Certificate, site: SiteConfig, file_name: str) -> None:
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [site.name]:
        message = f"the certificate is for {', '.join(names) or 'nobody'}, this site is {site.name}"
        raise _refused("KIT-NAME", file_name, message, "Use the kit of this site.")
    own = load_watch_key(site.keys_folder / WATCH_KEY).public_key()
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*form) != own.public_bytes(*form):
        message = f"the certificate is for another key than {site.keys_folder / WATCH_KEY}"
        fix = f"The keys changed since the request was sent: send {site.name}.enrol.json again."
        raise _refused("KIT-KEY", file_name, message, fix)


def _require_valid_now(certificate: x509.Certificate, site: SiteConfig, file_name: str) -> None:
    now = datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        message = (
            f"the certificate is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, this computer's clock "
            f"says {now:%Y-%m-%d %H:%M} UTC"
        )
        fix = f"Correct the clock, or ask the operator for `dsan-server renew {site.name}` and its kit."
        raise _refused("KIT-EXPIRED", file_name, message, fix)


def _refused(code: str, file_name: str, message: str, fix: str) -> FindingError:
    return FindingError(Finding(code, "error", file_name, message, fix))
