"""`dsan-server renew`: certificates with the same keys and a later end; nobody is enrolled anew.

The daemon sees the new files and has the proxy read them; a site takes its new kit with `dsan-client join`.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from server.admittance import write_kit
from server.centre import Centre, ServerConfig
from server.certificates import (
    certificate_pem,
    issue_client_certificate,
    load_authority,
    renew_authority,
    renew_server_certificate,
)
from server.refusals import ExitCode, RefusedError
from server.sites import EnrolledSite, sites_locked, write_site


@dataclass(frozen=True)
class RenewedSite:
    """A site whose kit was written again."""

    name: str
    kit: Path
    ends: datetime  # of its certificate


def renew_server(centre: Centre, config: ServerConfig) -> datetime:
    """A new certificate for the server's key and the host of server.toml; returns its end."""
    with sites_locked(centre):
        return renew_server_certificate(centre.tls, config.host).not_valid_after_utc


def renew_sites(centre: Centre, config: ServerConfig, names: list[str]) -> list[RenewedSite]:
    """New certificates for the keys of these sites, in kits to send to them.

    The old certificates stay good until they end, or until the site is revoked. Raises RefusedError
    RENEW-UNKNOWN if one of them is not enrolled; then nothing is changed.
    """
    with sites_locked(centre) as sites:
        members = {name: site for name, site in sites.items() if not site.is_revoked}
        unknown = sorted(set(names) - set(members))
        if unknown:
            raise RefusedError(
                "RENEW-UNKNOWN",
                ", ".join(unknown),
                f"not enrolled, or revoked; enrolled are: {', '.join(members) or 'none'}",
                "Give names of enrolled sites; one that was revoked is enrolled anew.",
                ExitCode.BAD_DATA,
            )
        return [_renew(centre, config, members[name]) for name in names]


def renew_consortium(centre: Centre, config: ServerConfig) -> tuple[datetime, list[RenewedSite]]:
    """A new certificate for the authority's key, one for the server, and kits for every enrolled site.

    Sites that have only the old one trust the server until that ends. Returns the authority's end.
    """
    with sites_locked(centre) as sites:
        authority = renew_authority(centre.tls)
        members = [name for name, site in sites.items() if not site.is_revoked]
    renew_server(centre, config)
    return authority.certificate.not_valid_after_utc, renew_sites(centre, config, members)


def _renew(centre: Centre, config: ServerConfig, site: EnrolledSite) -> RenewedSite:
    key = x509.load_pem_x509_certificate(site.certificate.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    certificate = issue_client_certificate(load_authority(centre.tls), key, site.name)
    renewed = site.model_copy(
        update={
            "certificate": certificate_pem(certificate).decode(),
            "certificate_serial": f"{certificate.serial_number:x}",
            "renewed_serials": (*site.renewed_serials, site.certificate_serial),
        }
    )
    write_kit(centre, config, renewed)
    write_site(centre, renewed)
    return RenewedSite(site.name, centre.kit(site.name), certificate.not_valid_after_utc)
