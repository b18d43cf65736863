"""The Flower app bundle: almost empty, because every side runs the code that it has installed."""

from importlib.metadata import version
from pathlib import Path

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
flwr-version-target = "{flwr}"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run-dir = ""
"""


def write_bundle(folder: Path) -> Path:
    """Write the bundle's folder; the run's folder is given when it is submitted."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _PYPROJECT.format(name=BUNDLE_NAME, version=version("dsan-federated"), flwr=version("flwr"))
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    (folder / "LICENSE.md").write_text("Apache-2.0, as dsan-federated itself.\n", encoding="utf-8")
    return folder
