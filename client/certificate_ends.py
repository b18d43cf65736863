"""When the certificates of a site end: that of the consortium's authority, and its own for SiteWatch."""

import time
from pathlib import Path

from cryptography import x509

from client.keys import CA_CERTIFICATE, WATCH_CERTIFICATE

SOON_S = 30 * 86400.0  # as deploy/prometheus/dsan.rules.yml
_FILES = {"ca": CA_CERTIFICATE, "watch": WATCH_CERTIFICATE}
_NAMES = {"ca": "the authority's certificate", "watch": "this site's certificate"}
_REMEDIES = {"ca": "`dsan-server renew --authority`", "watch": "`dsan-server renew {site}`"}


def certificate_ends(keys: Path) -> dict[str, float]:
    """Unix time by kind, ca and watch; what is not there, or does not read, is left out."""
    found = {}
    for kind, name in _FILES.items():
        try:
            certificate = x509.load_pem_x509_certificate((keys / name).read_bytes())
        except (OSError, ValueError):
            continue
        found[kind] = certificate.not_valid_after_utc.timestamp()
    return found


def ending_soon(keys: Path, site: str) -> list[str]:
    """What ends within 30 days, or has ended, and what to do about it, in words."""
    now = time.time()
    return [
        f"{_NAMES[kind]} {_when(ends, now)}: ask the operator for {_REMEDIES[kind].format(site=site)}, and "
        f"`dsan-client join` the {site}.kit.json that comes"
        for kind, ends in certificate_ends(keys).items()
        if ends - now < SOON_S
    ]


def _when(ends: float, now: float) -> str:
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ends))
    return f"ended on {day}" if ends < now else f"ends on {day}, in {(ends - now) / 86400:.0f} days"
