"""The code that a site runs is the code that it installed; what comes with a run is compared, never run.

Flower unpacks the bundle of a run and puts it first on the path of imports. A site replaces that step: a
bundle is taken only if it is, byte for byte, the one of the installed release, and even then it is neither
unpacked nor imported, because the release itself is loaded. docs/decisions/0010-installed-code-only.md.
"""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import flwr.supernode.runtime.run_clientapp as flower_clientapp
import flwr.supernode.start_client_internal as flower_supernode
from flwr.app import Context, Message
from flwr.app.user_config import UserConfig
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.run import Run

from client.findings import Finding, FindingError
from dsan_daemon.bundle import bundle_digest, release

ClientAppFunction = Callable[[Message, Context], Message]

# the names of Flower 1.41 that are replaced, with the parameters that they are called with
REPLACED: dict[str, tuple[object, str, tuple[str, ...]]] = {
    "install": (flower_clientapp, "install_from_fab", ("fab_file", "install_dir", "skip_prompt")),
    "load": (flower_clientapp, "get_load_client_app_fn", ("default_app_ref", "app_path", "multi_app")),
    "configure": (flower_supernode, "get_fused_config_from_fab", ("fab_file", "run")),
}
CALLS: dict[
    str, tuple[Callable[..., object], str]
] = {  # and how Flower calls them: if it did so otherwise, the lock would not be in the way
    "install": (flower_clientapp.run_clientapp, "install_from_fab(fab.content, skip_prompt=True)"),
    "load": (flower_clientapp.run_clientapp, "load_client_app_fn(run.fab_id,"),
    "configure": (
        flower_supernode._pull_and_store_message,
        "get_fused_config_from_fab(fab.content, run_info)",
    ),
}
REFUSED_PROGRAM = """\
#!/bin/sh
echo 'refused: {code}: this site runs the ClientApp of its installed release, and no {program}' >&2
exit 77
"""
APPS_LOCK = "A site runs installed code only; nothing is unpacked here. dsan-federated, decision 0010.\n"


def require_lock() -> None:
    """FindingError CODE-LOCK unless Flower still has what the lock replaces, and calls it as it did."""
    for what, (module, name, parameters) in REPLACED.items():
        function = getattr(module, name, None)
        caller, call = CALLS[what]
        if (
            function is None
            or tuple(inspect.signature(function).parameters) != parameters
            or "".join(call.split()) not in "".join(inspect.getsource(caller).split())
        ):
            message = f"{name} is not where it was in Flower 1.41, so that the bundle cannot be kept out"
            fix = "Install the release of Flower that constraints.txt names."
            raise FindingError(Finding("CODE-LOCK", "error", "the installed Flower", message, fix))


def bundle_refusal(content: bytes) -> str | None:
    """Why a bundle is not taken, naming both sides; None if it is the one of the installed release."""
    found, expected = hashlib.sha256(content).hexdigest(), bundle_digest()
    if found == expected:
        return None
    return (
        f"the bundle of the run has SHA-256 {found[:16]} ({len(content)} bytes), that of the release "
        f"{release()} installed here has {expected[:16]}: install the same release at centre and site"
    )


class BundleGate:
    """Stands in for Flower's unpacking and loading of a bundle, in the process of a ClientApp."""

    def __init__(
        self, installed: Callable[[], ClientAppFunction], refusing: Callable[[str], ClientAppFunction]
    ) -> None:
        self._installed = installed  # loads the ClientApp of the release
        self._refusing = refusing  # a ClientApp that answers with a reason only
        self._refusal: str | None = "no bundle was looked at"

    def close(self) -> None:
        """Put the gate in Flower's way; for good, in this process."""
        require_lock()
        _replace("install", self.look_at)
        _replace("load", self.loader)

    def look_at(
        self, fab_file: Path | bytes, install_dir: Path | None = None, skip_prompt: bool = False
    ) -> Path:
        """In the place of unpacking: compare the bundle, and write nothing."""
        content = fab_file if isinstance(fab_file, bytes) else fab_file.read_bytes()
        self._refusal = bundle_refusal(content)
        return Path()

    def loader(
        self, default_app_ref: str, app_path: str | None, multi_app: bool
    ) -> Callable[[str, str, str], ClientAppFunction]:
        """In the place of importing what was unpacked: the installed ClientApp, or one that refuses."""
        return lambda fab_id, fab_version, fab_hash: (
            self._installed() if self._refusal is None else self._refusing(self._refusal)
        )


def keep_bundle_out_of_supernode() -> None:
    """The SuperNode reads the settings in a bundle: let it do so of the installed release's bundle alone.

    Of any other it takes none, so that one that is no archive does not end it; the ClientApp then refuses.
    """
    require_lock()

    def configure(fab_file: Path | bytes, run: Run) -> UserConfig:
        content = fab_file if isinstance(fab_file, bytes) else fab_file.read_bytes()
        return {} if bundle_refusal(content) else get_fused_config_from_fab(content, run)

    _replace("configure", configure)


def _replace(what: str, function: object) -> None:
    module, name, _ = REPLACED[what]
    setattr(module, name, function)


def write_programs(folder: Path, client_app_script: str) -> None:
    """The only programs that the SuperExec finds: `flwr-clientapp` is ours, in sh, and the others refuse."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for task, program in TASK_TYPE_TO_COMMAND.items():
        is_ours = task is TaskType.CLIENT_APP
        ours, refused = (
            f"#!/bin/sh\n{client_app_script}\n",
            REFUSED_PROGRAM.format(program=program, code="CODE-TASK"),
        )
        text = ours if is_ours else refused
        path = folder / program
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o500)


def lock_apps_folder(flower_home: Path) -> None:
    """Put a read-only file where Flower would unpack bundles: nobody can make that folder, root neither."""
    flower_home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = flower_home / "apps"
    if lock.is_file() and lock.read_text() == APPS_LOCK:
        return
    if lock.exists():
        message = "there is something unpacked where nothing may be"
        fix = "Look who wrote it; remove it, and start again."
        raise FindingError(Finding("CODE-APPS", "error", str(lock), message, fix))
    lock.write_text(APPS_LOCK)
    lock.chmod(0o400)
