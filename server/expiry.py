"""When the certificates of a centre end: its own, and those that it gave to sites."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

SOON_S = 30 * 86400.0  # as deploy/prometheus/dsan.rules.yml
_WHAT = {
    "ca": "the authority's certificate",
    "server": "the server's certificate",
    "crl": "the list of revoked certificates",
}
_REMEDY = {
    "ca": "`dsan-server renew --authority`",
    "server": "`dsan-server renew`",
    "crl": "`dsan-server renew --authority`",
    "site": "`dsan-server renew {site}`, and send it {site}.kit.json for `dsan-client join`",
}
_OWN = (("ca", "ca.crt"), ("server", "server.crt"), ("crl", "crl.pem"))


@dataclass(frozen=True)
class Ending:
    """What ends, and when."""

    kind: str  # ca, server, crl (the list of revoked certificates), site
    site: str  # of kind "site"; else empty
    ends: float  # unix

    def in_words(self, now: float) -> str:
        """What ends or has ended, when, and the command that gives a later end."""
        what = _WHAT[self.kind] if self.kind != "site" else f"the certificate of {self.site}"
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.ends))
        left_s = self.ends - now
        when = f"ended on {day}" if left_s < 0 else f"ends on {day}, in {left_s / 86400:.0f} days"
        return f"{what} {when}: {_REMEDY[self.kind].format(site=self.site)}"


def endings(folder: Path) -> list[Ending]:
    """Of every certificate of a centre's folder; what is not there, or does not read, is left out."""
    found = [Ending(kind, "", ends) for kind, name in _OWN if (ends := _ends(folder / "tls" / name))]
    for path in sorted((folder / "sites").glob("*.json")):
        ends = _end_of_site(path)
        if ends is not None:
            found.append(Ending("site", path.stem, ends))
    return found


def _end_of_site(path: Path) -> float | None:
    try:
        site = json.loads(path.read_bytes())
        if site["revoked_at"] is not None:
            return None
        return _end(site["certificate"].encode())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _ends(path: Path) -> float | None:
    try:
        return _end(path.read_bytes())
    except (OSError, ValueError):
        return None


def _end(pem: bytes) -> float | None:
    if b"X509 CRL" in pem:
        update = x509.load_pem_x509_crl(pem).next_update_utc
        return update.timestamp() if update else None
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
