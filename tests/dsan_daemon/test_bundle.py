"""The one bundle of a release: the same bytes everywhere, and such that Flower takes it."""

import hashlib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.config_utils import get_fab_config, get_fab_metadata
from flwr.cli.install import install_from_fab

from dsan_daemon.bundle import build_bundle, bundle_digest, bundle_files, release


def test_the_digest_is_that_of_the_bytes_and_always_the_same() -> None:
    assert build_bundle() == build_bundle()
    assert bundle_digest() == hashlib.sha256(build_bundle()).hexdigest()


def test_nothing_is_compressed_so_that_the_bytes_depend_on_no_zlib() -> None:
    with zipfile.ZipFile(BytesIO(build_bundle())) as bundle:
        assert {info.compress_type for info in bundle.infolist()} == {zipfile.ZIP_STORED}


def test_it_holds_no_code() -> None:
    assert sorted(bundle_files()) == ["LICENSE.md", "pyproject.toml"]


def test_flower_reads_and_installs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = get_fab_config(build_bundle())["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    assert get_fab_metadata(build_bundle()) == ("dsan-federated/dsan-federated", release())
    installed = install_from_fab(build_bundle(), tmp_path, skip_prompt=True)
    assert (installed / "pyproject.toml").read_bytes() == bundle_files()["pyproject.toml"]
