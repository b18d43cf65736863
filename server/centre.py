"""The centre's folder: where everything lies, and its settings, server.toml (docs/reference/files.md)."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dsan_model.configuration import Strict, read_configuration
from server.refusals import ExitCode, RefusedError

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerConfig(Strict):
    """server.toml."""

    host: Annotated[str, Field(min_length=1)]  # in the certificate: the name by which sites reach the centre
    listen: str = "0.0.0.0"  # the proxy; nothing else is reached from outside
    port: Port = 8443
    console_listen: str = "127.0.0.1"  # elsewhere the console asks for the token in state/console.token
    console_port: Port = 8444
    health_port: Port = 8445  # on loopback
    nginx: str = "nginx"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True)
class Centre:
    """The folder that `dsan-server init` made."""

    folder: Path

    @property
    def settings(self) -> Path:
        """server.toml."""
        return self.folder / "server.toml"

    @property
    def study(self) -> Path:
        """A study with the paper's values, to be copied and changed."""
        return self.folder / "study.toml"

    @property
    def tls(self) -> Path:
        """Keys and certificates: ca.key, ca.crt, server.key, server.crt, crl.pem."""
        return self.folder / "tls"

    @property
    def sites(self) -> Path:
        """One JSON file for each enrolled site."""
        return self.folder / "sites"

    @property
    def runs(self) -> Path:
        """The run folders."""
        return self.folder / "runs"

    @property
    def state(self) -> Path:
        """The daemon's own."""
        return self.folder / "state"

    @property
    def orders(self) -> Path:
        """Orders to sites, which SiteWatch takes and passes on."""
        return self.state / "orders"

    def kit(self, site: str) -> Path:
        """The answer to a site's request to be enrolled."""
        return self.folder / f"{site}.kit.json"

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.runs / name


def open_centre(folder: Path) -> tuple[Centre, ServerConfig]:
    """The centre of a folder and its settings.

    Raises RefusedError CENTRE-MISSING or CENTRE-OWNER, or ConfigurationError that names every wrong key.
    """
    centre = Centre(folder.resolve())
    if not centre.settings.exists():
        raise RefusedError(
            "CENTRE-MISSING",
            str(folder),
            "there is no server.toml in this folder",
            "Give the centre's folder with --dir, or make one with `dsan-server init --host NAME`.",
            ExitCode.BAD_CONFIGURATION,
        )
    _require_owner(centre)
    return centre, read_configuration(centre.settings, ServerConfig)


def _require_owner(centre: Centre) -> None:
    """What another user writes, the daemon could not: it would begin a study that it cannot remember."""
    owner = centre.folder.stat().st_uid
    if owner != os.geteuid():
        name = _user_name(owner)
        raise RefusedError(
            "CENTRE-OWNER",
            str(centre.folder),
            f"the folder belongs to {name}, and this is {_user_name(os.geteuid())}",
            f"Give the command as its owner: `runuser -u {name} -- dsan-server ...`.",
            ExitCode.NOT_PERMITTED,
        )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def run_folder_of(centre: Centre, run: str) -> Path:
    """The folder of a run that is there. Raises RefusedError RUN-UNKNOWN."""
    folder = centre.run(run)
    if folder.parent != centre.runs or not (folder / "study.toml").exists():
        known = ", ".join(sorted(path.parent.name for path in centre.runs.glob("*/study.toml"))) or "none"
        raise RefusedError(
            "RUN-UNKNOWN",
            str(centre.runs),
            f"there is no run {run!r}; there are: {known}",
            "Give the name of a study that was started with `dsan-server train`.",
            ExitCode.BAD_DATA,
        )
    return folder
