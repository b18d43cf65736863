"""`dsan-server enrol` and `revoke`: which sites may take part, by the keys that were made at the sites."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict, ValidationError

from dsan_daemon.bundle import bundle_digest, release
from dsan_daemon.files import write_atomically
from dsan_daemon.fingerprints import key_fingerprint, request_fingerprint
from server.centre import Centre, ServerConfig
from server.certificates import (
    certificate_pem,
    issue_client_certificate,
    load_authority,
    revoke_certificate,
)
from server.refusals import ExitCode, RefusedError
from server.sites import EnrolledSite, Enrolment, now, sites_locked, write_site

FORMAT_VERSION = 1
LARGEST_REQUEST_BYTES = 64 * 1024
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")  # that of study.toml
_AGAIN = "Ask the site to write it again with `dsan-client init`."


class _Request(BaseModel):
    """NAME.enrol.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: int
    name: str
    public_key: str
    certificate_request: str
    fingerprint: str
    release: str


@dataclass(frozen=True)
class Admitted:
    """What the operator needs to know of a site that was just enrolled."""

    name: str
    fingerprint: str  # of the node's key
    watch_fingerprint: str  # of the key in the certificate request
    release: str
    kit: Path


def enrol_site(centre: Centre, config: ServerConfig, file: Path) -> Admitted:
    """Admit the site of a NAME.enrol.json, and write NAME.kit.json for it.

    Raises RefusedError with a code ENROL-...; then nothing is changed.
    """
    request = _read_request(file)
    signing_request = _checked_signing_request(request, file)
    fingerprint = _checked_fingerprint(request, file)
    with sites_locked(centre) as sites:
        earlier = _require_new(sites, request.name, fingerprint, file)
        authority = load_authority(centre.tls)
        key = signing_request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        certificate = issue_client_certificate(authority, key, request.name)
        site = EnrolledSite(
            name=request.name,
            public_key=request.public_key.strip(),
            fingerprint=fingerprint,
            certificate_serial=f"{certificate.serial_number:x}",
            certificate=certificate_pem(certificate).decode(),
            enrolled_at=now(),
            earlier=earlier,
        )
        write_kit(centre, config, site)
        write_site(centre, site)
    watch = request_fingerprint(request.certificate_request)
    return Admitted(request.name, fingerprint, watch, request.release, centre.kit(request.name))


def write_kit(centre: Centre, config: ServerConfig, site: EnrolledSite) -> None:
    """NAME.kit.json, the answer to a site."""
    kit = {
        "format_version": FORMAT_VERSION,
        "name": site.name,
        "server": f"{_bracketed(config.host)}:{config.port}",
        "ca_certificate": (centre.tls / "ca.crt").read_text(),
        "client_certificate": site.certificate,
        "release": release(),
        "bundle_digest": bundle_digest(),
    }
    write_atomically(centre.kit(site.name), json.dumps(kit, indent=1).encode() + b"\n")


def revoke_site(centre: Centre, name: str) -> EnrolledSite:
    """End a site's part: its certificate is revoked; a daemon that runs unregisters its node at once.

    Raises RefusedError REVOKE-UNKNOWN or REVOKE-ALREADY.
    """
    with sites_locked(centre) as sites:
        site = sites.get(name)
        if site is None:
            known = ", ".join(sites) or "none"
            raise RefusedError(
                "REVOKE-UNKNOWN",
                name,
                f"no site of this name is enrolled; there are: {known}",
                "Give the name of an enrolled site.",
                ExitCode.BAD_DATA,
            )
        if site.is_revoked:
            raise RefusedError(
                "REVOKE-ALREADY",
                name,
                f"the site was revoked on {site.revoked_at:%Y-%m-%d %H:%M} UTC",
                "Nothing is left to do.",
                ExitCode.BAD_DATA,
            )
        for serial in (*site.renewed_serials, site.certificate_serial):
            revoke_certificate(centre.tls, int(serial, 16))
        revoked = site.model_copy(update={"revoked_at": now()})
        write_site(centre, revoked)
        centre.kit(name).unlink(missing_ok=True)
    return revoked


def _read_request(file: Path) -> _Request:
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_REQUEST_BYTES + 1)
    except OSError as error:
        raise _refused("ENROL-FILE", file, f"the file cannot be read ({error.strerror})", _AGAIN) from None
    if len(content) > LARGEST_REQUEST_BYTES:
        raise _refused("ENROL-FILE", file, f"the file is larger than {LARGEST_REQUEST_BYTES} bytes", _AGAIN)
    _require_format(content, file)
    try:
        request = _Request.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole file"
        raise _refused("ENROL-FORMAT", file, f"{key}: {first['msg']}", _AGAIN) from None
    if _SITE_NAME.fullmatch(request.name) is None:
        message = f"the name {request.name!r} is not 1 to 32 letters, digits and hyphens"
        raise _refused("ENROL-NAME", file, message, _AGAIN)
    if file.name != f"{request.name}.enrol.json":
        message = f"the request is that of {request.name}, which the file's name does not say"
        raise _refused(
            "ENROL-NAME", file, message, f"Ask who sent it; then call it {request.name}.enrol.json."
        )
    return request


def _require_format(content: bytes, file: Path) -> None:
    """Of another version nothing else is looked at: its other keys may be other ones."""
    try:
        table = json.loads(content)
    except ValueError:
        raise _refused("ENROL-FORMAT", file, "this is not JSON", _AGAIN) from None
    found = table.get("format_version") if isinstance(table, dict) else None
    if found != FORMAT_VERSION or isinstance(found, bool):
        written_by = table.get("release") if isinstance(table, dict) else None
        message = (
            f"format_version is {found!r} (release {written_by!r} of the site), this release {release()} "
            f"reads {FORMAT_VERSION}"
        )
        raise _refused("ENROL-FORMAT", file, message, "Install the same release at both sides.")


def _checked_signing_request(request: _Request, file: Path) -> x509.CertificateSigningRequest:
    try:
        signing_request = x509.load_pem_x509_csr(request.certificate_request.encode())
        key = signing_request.public_key()
        is_signed = signing_request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, TypeError):
        message = "certificate_request is no certificate request"
        raise _refused("ENROL-REQUEST", file, message, _AGAIN) from None
    if not is_signed:
        message = "the signature of certificate_request is not valid: it was changed on its way"
        raise _refused("ENROL-SIGNATURE", file, message, _AGAIN)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, (ec.SECP256R1, ec.SECP384R1)
    ):
        message = "the key of certificate_request is not an elliptic curve key (P-256 or P-384)"
        raise _refused("ENROL-KEY", file, message, _AGAIN)
    names = [str(name.value) for name in signing_request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [request.name]:
        message = f"certificate_request asks for the name {', '.join(names) or 'none'}, not {request.name}"
        raise _refused("ENROL-NAME", file, message, _AGAIN)
    return signing_request


def _checked_fingerprint(request: _Request, file: Path) -> str:
    """The fingerprint of the node's key, computed here; the one in the file must agree."""
    encoded = request.public_key.strip().encode()
    try:
        key = serialization.load_ssh_public_key(encoded)
    except (ValueError, UnsupportedAlgorithm):
        raise _refused("ENROL-KEY", file, "public_key is no public key in OpenSSH form", _AGAIN) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        kind = encoded.split()[0].decode()
        raise _refused("ENROL-KEY", file, f"public_key is of kind {kind}, not ecdsa-sha2-nistp384", _AGAIN)
    found = key_fingerprint(request.public_key)
    if found != request.fingerprint:
        message = f"the fingerprint of public_key is {found}, the file says {request.fingerprint}"
        raise _refused("ENROL-FINGERPRINT", file, message, _AGAIN)
    return found


def _require_new(
    sites: dict[str, EnrolledSite], name: str, fingerprint: str, file: Path
) -> tuple[Enrolment, ...]:
    """The earlier, revoked enrolments of the site."""
    for other in sites.values():
        for enrolment in other.enrolments:
            if enrolment.fingerprint != fingerprint:
                continue
            if enrolment.revoked_at is not None:
                message = f"the key {fingerprint} was revoked, as that of {other.name}"
                raise _refused("ENROL-KEY-REVOKED", file, message, "Let the site make a new key.")
            if other.name != name:
                message = f"the key {fingerprint} is enrolled already, as that of {other.name}"
                fix = "Two sites never share a key: let the site make its own."
                raise _refused("ENROL-KEY-TWICE", file, message, fix)
    known = sites.get(name)
    if known is None:
        return ()
    if not known.is_revoked:
        same = "with this same key" if known.fingerprint == fingerprint else "with another key"
        message = f"{name} is enrolled already, {same} ({known.fingerprint})"
        fix = (
            f"Its answer is {name}.kit.json. If the site lost its key: `dsan-server revoke {name}`, then "
            "enrol it again."
        )
        raise _refused("ENROL-NAME-TWICE", file, message, fix)
    return known.enrolments


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refused(code: str, file: Path, message: str, fix: str) -> RefusedError:
    return RefusedError(code, file.name, message, fix, ExitCode.BAD_DATA)
