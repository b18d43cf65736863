"""The lock on code: the installed release's bundle is taken; of any other nothing is written or run."""

import hashlib
import importlib
import io
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import flwr.supernode.runtime.run_clientapp as flower_clientapp
import flwr.supernode.start_client_internal as flower_supernode
import pytest
from flwr.app import Context, Message
from flwr.supercore.run import Run

from client import installed_code
from client.findings import FindingError
from client.installed_code import (
    BundleGate,
    bundle_refusal,
    keep_bundle_out_of_supernode,
    lock_apps_folder,
    require_lock,
    write_programs,
)
from client.supernode_program import require_node_log
from dsan_daemon.bundle import build_bundle, bundle_files

EVIL = b"import pathlib\npathlib.Path('evil-was-here').touch()\napp = None\n"


def bundle_of(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0)), content, compression)
    return archive.getvalue()


def with_list(files: dict[str, bytes]) -> bytes:
    """A bundle as Flower builds it, with its list of digests."""
    listed = "\n".join(f"{n},{hashlib.sha256(c).hexdigest()},{8 * len(c)}" for n, c in files.items())
    return bundle_of(files | {".info/CONTENT": listed.encode()})


def with_symlink() -> bytes:
    archive = io.BytesIO(build_bundle())
    with zipfile.ZipFile(archive, "a") as bundle:
        link = zipfile.ZipInfo("link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(link, "/etc/passwd")
    return archive.getvalue()


def edited(change: Callable[[str], str]) -> dict[str, bytes]:
    files = dict(bundle_files())
    return files | {"pyproject.toml": change(files["pyproject.toml"].decode()).encode()}


def one_byte() -> bytes:
    content = bytearray(build_bundle())
    content[len(content) // 2] ^= 1
    return bytes(content)


FILES = bundle_files()
TAMPERED: dict[str, bytes] = {
    "one byte": one_byte(),
    "one byte more": build_bundle() + b"\0",
    "cut short": build_bundle()[:-1],
    "empty": b"",
    "not a zip": b"#!/bin/sh\ntouch evil-was-here\n",
    "renamed app": bundle_of(edited(lambda text: text.replace('name = "dsan-federated"', 'name = "other"'))),
    "renamed file": bundle_of({"pyproject.toml": FILES["pyproject.toml"], "LICENCE.md": FILES["LICENSE.md"]}),
    "another version": bundle_of(edited(lambda text: text.replace('version = "0', 'version = "9', 1))),
    "another publisher": bundle_of(edited(lambda t: t.replace('publisher = "dsan', 'publisher = "evil'))),
    "another client app": bundle_of(
        edited(lambda text: text.replace("client.app:app", "evil:app")) | {"evil.py": EVIL}
    ),
    "an extra file": bundle_of(FILES | {"evil.py": EVIL}),
    "a module that shadows torch": bundle_of(FILES | {"torch/__init__.py": EVIL}),
    "a module that shadows ours": bundle_of(FILES | {"client/app.py": EVIL, "client/__init__.py": b""}),
    "a path that climbs out": bundle_of(FILES | {"../../evil.py": EVIL}),
    "an absolute path": bundle_of(FILES | {"/tmp/evil.py": EVIL}),
    "a link": with_symlink(),
    "oversize": bundle_of(FILES | {"filler.md": bytes(12 << 20)}),
    "a bomb": bundle_of(FILES | {"filler.md": bytes(64 << 20)}, zipfile.ZIP_DEFLATED),
    "the same, compressed": bundle_of(FILES, zipfile.ZIP_DEFLATED),
}


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flower's own functions come back after the test."""
    for module, name, _ in installed_code.REPLACED.values():
        monkeypatch.setattr(module, name, getattr(module, name))
    return


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everywhere that Flower would write: its home, the temporary folder, the working folder."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def installed(message: Message, context: Context) -> Message:
    raise AssertionError("not called here")


def opened_by(content: bytes) -> Callable[[Message, Context], Message] | str:
    """What the functions that Flower calls end in: the installed app, or the reason of a refusal."""
    refused: list[str] = []

    def refusing(reason: str) -> Callable[[Message, Context], Message]:
        refused.append(reason)
        return installed

    BundleGate(lambda: installed, refusing).close()
    flower_clientapp.install_from_fab(content, skip_prompt=True)  # type: ignore[attr-defined]
    load = flower_clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)  # type: ignore[attr-defined]
    app: Callable[[Message, Context], Message] = load("dsan-federated/dsan-federated", "0.1.0", "ab" * 32)
    return refused[0] if refused else app


def test_the_bundle_of_the_installed_release_is_taken_and_not_unpacked(flower: None, home: Path) -> None:
    assert opened_by(build_bundle()) is installed
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_bundle_is_refused_and_nothing_of_it_is_written_or_imported(
    flower: None, home: Path, name: str
) -> None:
    modules, path = set(sys.modules), list(sys.path)
    reason = opened_by(TAMPERED[name])
    assert isinstance(reason, str)
    assert "SHA-256" in reason
    assert list(home.iterdir()) == []
    assert sys.path == path
    assert not [module for module in set(sys.modules) - modules if "evil" in module]


def test_flower_itself_would_have_run_such_a_bundle(home: Path) -> None:
    evil = edited(lambda text: text.replace("client.app:app", "evil:app")) | {"evil.py": EVIL}
    unpacked = flower_clientapp.install_from_fab(with_list(evil), skip_prompt=True)  # type: ignore[attr-defined]
    assert (unpacked / "evil.py").read_bytes() == EVIL
    sys.path.insert(0, str(unpacked))
    try:
        importlib.import_module("evil")
    finally:
        sys.path.remove(str(unpacked))
        del sys.modules["evil"]
    assert (home / "evil-was-here").exists()


@pytest.mark.parametrize("name", TAMPERED)
def test_the_supernode_reads_no_settings_of_a_tampered_bundle(flower: None, name: str) -> None:
    keep_bundle_out_of_supernode()
    assert flower_supernode.get_fused_config_from_fab(TAMPERED[name], Run.create_empty(1)) == {}  # type: ignore[attr-defined]


def test_the_supernode_reads_the_settings_of_the_installed_bundle(flower: None) -> None:
    keep_bundle_out_of_supernode()
    run = Run.create_empty(1)
    run.override_config = {"run-dir": "/runs/spring"}
    found = flower_supernode.get_fused_config_from_fab(build_bundle(), run)  # type: ignore[attr-defined]
    assert found == {"run-dir": "/runs/spring", "dry-run": False}


def test_a_refusal_names_both_bundles_and_the_release() -> None:
    reason = bundle_refusal(b"")
    assert reason is not None
    assert "e3b0c44298fc1c14" in reason  # SHA-256 of nothing
    assert installed_code.bundle_digest()[:16] in reason
    assert installed_code.release() in reason


def test_the_installed_flower_has_what_the_lock_and_the_watchdog_need() -> None:
    require_lock()
    require_node_log()


@pytest.mark.parametrize("what", installed_code.REPLACED)
def test_a_flower_without_a_name_that_is_replaced_is_refused(
    flower: None, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    module, name, _ = installed_code.REPLACED[what]
    monkeypatch.delattr(module, name)
    with pytest.raises(FindingError) as caught:
        require_lock()
    assert caught.value.finding.code == "CODE-LOCK"


@pytest.mark.parametrize("what", installed_code.REPLACED)
def test_a_flower_that_calls_it_otherwise_is_refused(
    flower: None, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setitem(installed_code.CALLS, what, (bundle_of, "install_from_fab(fab)"))
    with pytest.raises(FindingError):
        require_lock()


def test_only_the_client_app_can_be_started_and_the_rest_refuses(tmp_path: Path) -> None:
    write_programs(tmp_path / "programs", 'exec /bin/echo started "$@"')
    programs = sorted(path.name for path in (tmp_path / "programs").iterdir())
    assert programs == [
        *("flwr-agentapp", "flwr-clientapp", "flwr-connector", "flwr-model", "flwr-serverapp"),
        "flwr-simulation",
    ]
    for program in programs:
        done = subprocess.run(
            [tmp_path / "programs" / program, "--token", "x"], capture_output=True, text=True
        )
        if program == "flwr-clientapp":
            assert done.stdout == "started --token x\n"
        else:
            assert (done.returncode, done.stdout) == (77, "")
            assert "CODE-TASK" in done.stderr
    write_programs(tmp_path / "programs", "exec /bin/echo again")  # the daemon writes them at every start


def test_nothing_can_be_unpacked_into_a_locked_home_even_by_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_apps_folder(tmp_path / "flwr")
    lock_apps_folder(tmp_path / "flwr")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        flower_clientapp.install_from_fab(with_list(FILES), skip_prompt=True)  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "flwr").iterdir()] == ["apps"]


def test_a_home_with_something_unpacked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flwr" / "apps" / "evil").mkdir(parents=True)
    with pytest.raises(FindingError) as caught:
        lock_apps_folder(tmp_path / "flwr")
    assert caught.value.finding.code == "CODE-APPS"
    assert (tmp_path / "flwr" / "apps" / "evil").exists()
