"""`dsan-client join`: take the operator's answer, and try the connection that the daemon will use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.connection import Contact, admit, reach
from client.daemon_status import is_daemon_alive
from client.findings import Finding, FindingError
from client.keys import CA_CERTIFICATE, NODE_KEY
from client.kit import check_kit, read_kit, require_same_authority, store_kit
from client.site import SiteConfig, read_site
from client.site_folder import add_server
from dsan_daemon.fingerprints import certificate_fingerprint


@dataclass(frozen=True)
class JoinResult:
    """What `join` did: the site is ready to start."""

    site: SiteConfig
    changes: tuple[str, ...]
    contact: Contact
    is_started: bool  # its daemon runs, whose node must not be logged off


def join(
    kit_file: Path, config: Path, say: Callable[[str], None], *, takes_new_authority: bool = False
) -> JoinResult:
    """Check the kit against this site and this installation, keep it, and try the connection.

    `say` gets the authority's fingerprint before anything is tried. FindingError: KIT-... (nothing was
    stored), CONNECT-... or ADMIT-... (the kit was stored: `start` would go on trying).
    """
    site = read_site(config)
    kit = read_kit(kit_file)
    check_kit(kit, site, kit_file.name)
    authority = site.keys_folder / CA_CERTIFICATE
    if not takes_new_authority:
        require_same_authority(kit, authority, kit_file.name)
    say(f"authority  {certificate_fingerprint(kit.ca_certificate.encode())}")
    say("           compare it with the operator by telephone")
    is_new_authority = authority.exists() and authority.read_text() != kit.ca_certificate
    store_kit(kit, site)
    changes = [f"authority and certificate of {kit.server} are kept in {site.keys_folder}"]
    if site.server.address == "":
        changes.append(add_server(config, kit.server))
        site = read_site(config)
    elif site.server.address != kit.server:
        changes.append(
            f"the kit says {kit.server}; {config} says {site.server.address}, which stays and is used"
        )
    if not is_daemon_alive(site.state_folder):
        return JoinResult(site, tuple(changes), try_connection(site), is_started=False)
    changes.append("the daemon that runs here shows the certificate when it next connects to SiteWatch")
    if is_new_authority:
        changes.append("the authority's certificate is a new one: restart the daemon before the old one ends")
    return JoinResult(site, tuple(changes), _good(_reached(site), site), is_started=True)


def try_connection(site: SiteConfig) -> Contact:
    """Reach the centre and be taken by it, or FindingError with the code and words of `connection`."""
    contact = _reached(site)
    if contact.code is None:
        contact = admit(site.server.address, site.keys_folder)
    return _good(contact, site)


def _reached(site: SiteConfig) -> Contact:
    return reach(site.server.address, site.keys_folder / CA_CERTIFICATE)


def _good(contact: Contact, site: SiteConfig) -> Contact:
    if contact.code is not None:
        where = f"the way to {site.server.address}"
        raise FindingError(Finding(contact.code, "error", where, contact.reason, contact.fix))
    return contact


def connection_findings(site: SiteConfig) -> tuple[Finding, ...]:
    """A warning if a site that has joined cannot reach its centre now; the node is not logged on for it."""
    authority = site.keys_folder / CA_CERTIFICATE
    if site.server.address == "" or not authority.exists():
        return ()
    contact = _reached(site)
    if contact.code is None:
        return ()
    where = f"the way to {site.server.address}"
    return (Finding(contact.code, "warning", where, contact.reason, contact.fix),)


def require_joined(site: SiteConfig) -> None:
    """FindingError SITE-NOT-JOINED if keys, authority or address are missing."""
    missing = [name for name in (NODE_KEY, CA_CERTIFICATE) if not (site.keys_folder / name).exists()]
    if missing or site.server.address == "":
        message = f"missing: {', '.join(missing) or '[server] address in site.toml'}"
        fix = (
            "Run `dsan-client init`, send the request to the operator, then `dsan-client join` their answer."
        )
        raise FindingError(Finding("SITE-NOT-JOINED", "error", str(site.home), message, fix))


def join_text(result: JoinResult, config: Path) -> str:
    """What was done, and what comes next."""
    lines = [*result.changes]
    if result.is_started:
        return "\n".join([*lines, f"{result.site.server.address} answers; the daemon goes on"])
    lines += [f"connected: {result.site.server.address} takes {result.site.name}", ""]
    if result.contact.clock_ahead_s is not None:
        lines.insert(-1, f"clock      {result.contact.clock_ahead_s:+.0f} s against the centre's")
    return "\n".join([*lines, f"next: dsan-client start --config {config}"])
