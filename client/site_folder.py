"""`dsan-client init`: a site's settings, its keys, and the request that it sends to the centre's operator."""

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from client.findings import Finding, FindingError
from client.keys import PublicKeys, make_keys
from client.site import SITE_FILE, SiteConfig, read_site
from dsan_daemon.bundle import release
from dsan_daemon.files import write_atomically
from dsan_daemon.fingerprints import request_fingerprint

ENROL_FORMAT = 1


@dataclass(frozen=True)
class EnrolRequest:
    """NAME.enrol.json: who asks to take part; nothing in it is secret."""

    format_version: int
    name: str
    public_key: str
    certificate_request: str
    fingerprint: str
    release: str


@dataclass(frozen=True)
class InitResult:
    """What `init` made of a folder."""

    request: EnrolRequest
    request_file: Path
    changes: tuple[str, ...]  # in words, of files that were there or are new
    address: str  # of the centre, as site.toml has it now


def init_site(folder: Path, name: str, address: str) -> InitResult:
    """Make the folder a site's; what the engineer wrote and the keys that are there stay as they are.

    address: HOST:PORT of the centre. FindingError if the folder is another site's, or a setting is wrong.
    """
    was_there = folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = folder / SITE_FILE
    try:
        changes = [] if config.exists() else [_write_settings(config, name, address)]
    except FindingError as error:  # what was given is none; the settings are not written
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
        where = "NAME" if error.finding.where.endswith("key name") else "option --server"
        raise FindingError(
            replace(error.finding, where=where, fix="Correct it; nothing was written.")
        ) from None
    site = read_site(config)
    if site.name != name:
        message = f"the site of this folder is called {site.name}, not {name}"
        fix = f"Use that name (`init {site.name}`), correct `name` in it, or give another folder with --dir."
        raise FindingError(Finding("SITE-OTHER-NAME", "error", str(config), message, fix))
    if site.server.address == "":
        changes.append(add_server(config, address))
        site = read_site(config)
    elif site.server.address != address:
        changes.append(f"{config}: [server] says {site.server.address}; that stays, {address} was not taken")
    request_file, request, is_new = _write_request(site)
    if is_new:
        changes.append(f"{request_file}: written; keys are in {site.keys_folder}")
    return InitResult(request, request_file, tuple(changes), site.server.address)


def init_text(result: InitResult) -> str:
    """What was done, the fingerprint to compare, and what comes next."""
    name = result.request.name
    lines = [*(result.changes or ["nothing was changed"]), ""]
    lines.append(f"node key     {result.request.fingerprint}")
    lines.append(f"watch key    {request_fingerprint(result.request.certificate_request)}")
    lines.append("")
    lines.append(f"next: send {result.request_file} to the operator of {result.address}, and compare both")
    lines.append("      fingerprints with them by telephone. They answer with a file:")
    lines.append(f"      dsan-client join {name}.kit.json --config {result.request_file.parent / SITE_FILE}")
    return "\n".join(lines)


def add_server(config: Path, address: str) -> str:
    """Add the centre's address to settings that have none; returns what was done, in words."""
    lines = config.read_text(encoding="utf-8-sig").rstrip().splitlines()
    setting = f'address = "{address}"'
    header = next((i for i, line in enumerate(lines) if re.match(r"\s*\[\s*server\s*\]", line)), None)
    if header is None:
        lines += ["", "[server]", setting]
    else:  # a table without an address, or with an empty one
        rest = lines[header + 1 :]
        empty = next((i for i, line in enumerate(rest) if re.match(r"\s*address\s*=", line)), None)
        lines = [*lines[: header + 1], setting, *(r for i, r in enumerate(rest) if i != empty)]
    text = "\n".join(lines) + "\n"
    write_checked(config, text)
    return f"{config}: [server] with the address {address} was added; nothing else was changed"


def write_checked(config: Path, text: str) -> None:
    """Replace site.toml; if the new text is not accepted the old one is put back."""
    before = config.read_bytes() if config.exists() else None
    write_atomically(config, text.encode())
    try:
        read_site(config)
    except FindingError:
        if before is None:
            config.unlink()
        else:
            write_atomically(config, before)
        raise


def _write_settings(config: Path, name: str, address: str) -> str:
    text = f'name = "{name}"\ncohort = "cohort.csv"\nstore = "store"\n\n[server]\naddress = "{address}"\n'
    write_checked(config, text)
    return f"{config}: written"


def _write_request(site: SiteConfig) -> tuple[Path, EnrolRequest, bool]:
    keys = make_keys(site.keys_folder, site.name)
    request = _request(site.name, keys)
    path = site.home / f"{site.name}.enrol.json"
    content = json.dumps(asdict(request), indent=1).encode() + b"\n"
    is_new = not path.exists() or path.read_bytes() != content
    if is_new:
        write_atomically(path, content)
    return path, request, is_new


def _request(name: str, keys: PublicKeys) -> EnrolRequest:
    return EnrolRequest(ENROL_FORMAT, name, keys.node, keys.certificate_request, keys.fingerprint, release())
