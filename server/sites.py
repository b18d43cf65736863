"""The sites that the operator enrolled: one JSON file each, sites/NAME.json."""

import fcntl
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dsan_daemon.files import write_atomically
from server.centre import Centre
from server.daemon_lock import is_daemon_running
from server.refusals import ExitCode, RefusedError


class Enrolment(BaseModel):
    """One admission of a site: its key, the certificate that it got, and when that ended, if it did."""

    model_config = ConfigDict(frozen=True)

    public_key: str  # OpenSSH form
    fingerprint: str  # as ssh-keygen -l prints it
    certificate_serial: str  # hexadecimal
    certificate: str  # PEM; its key is the site's, made there
    renewed_serials: tuple[str, ...] = ()  # of the certificates that this one took the place of
    enrolled_at: datetime
    revoked_at: datetime | None = None


class EnrolledSite(Enrolment):
    """A site by the name that its certificate and its node bear, and its newest admission."""

    name: str
    node_id: int | None = None  # of Flower; None while the SuperLink does not know the key
    earlier: tuple[Enrolment, ...] = ()  # revoked ones; their keys are never taken again

    @property
    def is_revoked(self) -> bool:
        """Whether the site may take part no more."""
        return self.revoked_at is not None

    @property
    def enrolments(self) -> tuple[Enrolment, ...]:
        """All admissions, the oldest first."""
        newest = Enrolment(**{name: getattr(self, name) for name in Enrolment.model_fields})
        return (*self.earlier, newest)


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def read_sites(centre: Centre) -> dict[str, EnrolledSite]:
    """Every site that was ever enrolled, by name, in the order of names; also the revoked ones.

    Raises RefusedError SITES-DAMAGED if one of the files is not as it was written.
    """
    sites = [_read_site(path) for path in centre.sites.glob("*.json")]
    return {site.name: site for site in sorted(sites, key=lambda site: site.name)}


def revoked_names(centre_folder: Path) -> set[str]:
    """The sites of a centre that are revoked; a file that does not read revokes nobody."""
    return {path.stem for path in (centre_folder / "sites").glob("*.json") if _is_revoked(path)}


def _is_revoked(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["revoked_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_site(path: Path) -> EnrolledSite:
    try:
        return EnrolledSite.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole file"
        raise RefusedError(
            "SITES-DAMAGED",
            str(path),
            f"{key}: {first['msg']}",
            "Restore the file from a backup, or remove it and enrol the site again.",
            ExitCode.BAD_CONFIGURATION,
        ) from None


def write_site(centre: Centre, site: EnrolledSite) -> None:
    """Write sites/NAME.json; only inside of `sites_locked`."""
    write_atomically(centre.sites / f"{site.name}.json", site.model_dump_json(indent=1).encode() + b"\n")


def await_nodes(centre: Centre, names: Iterable[str], seconds: float) -> list[str]:
    """Wait until the daemon, if one runs, has made nodes of enrolled sites; the names that still wait."""
    deadline = time.monotonic() + seconds
    while True:
        sites = read_sites(centre)
        waiting = [name for name in names if sites[name].node_id is None]
        if not waiting or not _makes_nodes(centre) or time.monotonic() > deadline:
            return waiting
        time.sleep(0.1)


def who_lets_in(centre: Centre) -> str:
    """What becomes of enrolled sites that have no node yet."""
    if not is_daemon_running(centre):
        return "no daemon runs: it lets them in when it starts"
    if not _makes_nodes(centre):
        return "the daemon runs with --insecure-loopback, where no keys count"
    return "the daemon goes on trying: its log says why"


def _makes_nodes(centre: Centre) -> bool:
    """Whether a daemon runs that knows sites by their keys: without a proxy there are no keys."""
    if not is_daemon_running(centre):
        return False
    try:
        return not json.loads((centre.state / "daemon.json").read_bytes())["insecure"]
    except FileNotFoundError:  # it has just been started for the first time
        return True


@contextmanager
def sites_locked(centre: Centre) -> Iterator[dict[str, EnrolledSite]]:
    """The sites, while nobody else may change them: commands and the daemon both write."""
    with (centre.sites / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield read_sites(centre)
