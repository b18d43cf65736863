"""The Flower app bundle as a folder, for `flwr run`."""

from pathlib import Path

from dsan_daemon.bundle import bundle_files


def write_bundle(folder: Path) -> Path:
    """Write the bundle's folder; the run's folder is given when it is submitted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in bundle_files().items():
        (folder / name).write_bytes(content)
    return folder
