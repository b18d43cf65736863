"""A real PACS for tests: Orthanc of Debian with its DICOMweb plugin, on loopback, in a folder of its own."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PLUGIN = Path("usr/share/orthanc/plugins/libOrthancDicomWeb.so")
AE_TITLE = "ORTHANC"


@dataclass(frozen=True)
class Orthanc:
    """Where it listens, and where it sends to."""

    http_port: int
    dicom_port: int
    receive_port: int  # of the modality DSAN that it knows

    @property
    def web(self) -> str:
        """Its DICOMweb service."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    @property
    def dimse(self) -> str:
        """Its address by DIMSE."""
        return f"dimse://{AE_TITLE}@127.0.0.1:{self.dicom_port}"

    def upload(self, files: Iterable[Path]) -> None:
        """Store DICOM files."""
        for path in files:
            self._ask("/instances", path.read_bytes())

    def delete(self, resource: str) -> None:
        """Delete an instance, a series or a study by its path in the REST interface."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{resource}", method="DELETE")
        urllib.request.urlopen(request, timeout=10).close()

    def instances(self) -> list[str]:
        """The identifiers that Orthanc gives to what it stores."""
        return list(json.loads(self._ask("/instances")))

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", body, timeout=10) as answer:
            return bytes(answer.read())


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_orthanc(program: Path, folder: Path, **settings: object) -> Iterator[Orthanc]:
    """Start Orthanc with an empty store in `folder`; it is stopped at the end."""
    pacs = Orthanc(free_port(), free_port(), free_port())
    root = Path("/") if program.is_relative_to("/usr") else program.parents[2]
    if not (root / PLUGIN).is_file():
        pytest.skip("Orthanc's DICOMweb plugin is not installed: apt-get install orthanc-dicomweb")
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": pacs.http_port,
        "DicomPort": pacs.dicom_port,
        "DicomAet": AE_TITLE,
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"dsan": ["DSAN", "127.0.0.1", pacs.receive_port]},
        "Plugins": [str(root / PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            _wait(pacs, process, folder / "orthanc.log")
            yield pacs
        finally:
            process.terminate()
            process.wait(20)


def _wait(pacs: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{pacs.http_port}/system", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"Orthanc did not start: {log.read_text()}")
