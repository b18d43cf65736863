"""The Flower app bundle: almost empty, because every side runs the code that it has installed.

The same release makes the same bytes on every computer: nothing is compressed, because what zlib makes of a
file differs between its builds. So a site computes the digest of the one bundle that it takes by itself.
"""

import hashlib
import zipfile
from functools import cache
from importlib.metadata import version
from io import BytesIO

BUNDLE_NAME = "dsan-federated"

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "Names the installed apps of dsan-federated; holds no code"
license = {{ file = "LICENSE.md" }}
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "dsan-federated"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run-dir = ""
dry-run = false
"""
_DATE = (2024, 10, 1, 0, 0, 0)  # Flower's own for bundles


@cache
def release() -> str:
    """The release of dsan-federated that this process runs.

    Another one may be installed beside it meanwhile: it is what it was when the process, or the one that it
    was forked from, asked first.
    """
    return version("dsan-federated")


def bundle_files() -> dict[str, bytes]:
    """What a bundle is made of: file name to content. The run's folder is given when it is submitted."""
    pyproject = _PYPROJECT.format(name=BUNDLE_NAME, version=release())
    return {"pyproject.toml": pyproject.encode(), "LICENSE.md": b"Apache-2.0, as dsan-federated itself.\n"}


def build_bundle() -> bytes:
    """The bundle of the installed release, as it travels: a zip with Flower's list of digests in it."""
    files = bundle_files()
    listed = [
        f"{name},{hashlib.sha256(content).hexdigest()},{8 * len(content)}" for name, content in files.items()
    ]
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in (files | {".info/CONTENT": "\n".join(listed).encode()}).items():
            bundle.writestr(zipfile.ZipInfo(name, _DATE), content)
    return archive.getvalue()


def bundle_digest() -> str:
    """SHA-256 of the bundle, as Flower says it at both ends; a site takes that of its own release alone."""
    return hashlib.sha256(build_bundle()).hexdigest()
