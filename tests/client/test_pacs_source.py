"""Studies of a real PACS (Orthanc) become a cohort, by DIMSE and by DICOMweb; and how this fails."""

import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from debian_programs import debian_program
from dicom_factory import good_slices, write_series
from orthanc import Orthanc, free_port, running_orthanc
from typer.testing import CliRunner

from client.cli import app
from client.cohort import COLUMNS
from client.findings import Finding, FindingError
from client.pacs_source import COMPLETE, Fetched, PacsRequest, fetch_studies

pytest.importorskip("pynetdicom")
pytest.importorskip("dicomweb_client")

# pynetdicom drops the socket of a connection that was refused, and leaves closing it to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CANARY = "CANARY"
WAYS = ("dimse", "web")


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Two studies of one patient, the first with a scout; and one of another patient, an MR."""
    home = tmp_path_factory.mktemp("pacs")
    with running_orthanc(debian_program("Orthanc"), home / "orthanc") as orthanc:
        orthanc.upload(study(home / "1", "1.1", "1.1.1"))
        orthanc.upload(study(home / "scout", "1.1", "1.1.9", n_slices=1))
        orthanc.upload(study(home / "2", "1.2", "1.2.1"))
        orthanc.upload(study(home / "3", "1.3", "1.3.1", Modality="MR", PatientID="CANARY-2"))
        yield orthanc


def study(folder: Path, uid: str, series: str, n_slices: int = 12, **tags: object) -> list[Path]:
    slices = good_slices(n_slices)
    for index, data in enumerate(slices):
        data.StudyInstanceUID, data.SeriesInstanceUID = uid, series
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{series}.{index + 1}"
        data.PatientID, data.AccessionNumber = "CANARY-1", f"CANARYACC{uid[-1]}"
        data.StudyDescription = CANARY
        for keyword, value in tags.items():
            setattr(data, keyword, value)
    return sorted(write_series(folder, slices).iterdir())


def request(pacs: Orthanc, folder: Path, way: str, *labels: str, column: str = "accession") -> PacsRequest:
    folder.mkdir(exist_ok=True)
    (folder / "labels.csv").write_text("\n".join([f"{column},label", *labels]) + "\n")
    address = pacs.dimse if way == "dimse" else pacs.web
    return PacsRequest(address, folder / "labels.csv", folder / "out", "DSAN", pacs.receive_port, 20.0)


def files(fetched: Fetched) -> list[Path]:
    return sorted(fetched.root.rglob("*.dcm"))


def refusal(asked: PacsRequest) -> Finding:
    with pytest.raises(FindingError) as caught:
        fetch_studies(asked)
    return caught.value.finding


# ---- what is right ----


@pytest.mark.parametrize("way", WAYS)
def test_labelled_studies_of_a_pacs_become_cases(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    asked = request(pacs, tmp_path, way, "CANARYACC1,COVID-19", "CANARYACC2,CAP")
    command = ["import", asked.address, "--labels", asked.labels, "--out", asked.out, "--workers", 1]
    command += ["--receive-port", asked.receive_port, "--timeout", 20]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "cases     2 (1 COVID-19, 1 CAP); 2 new" in result.output
    assert CANARY not in result.output
    assert len(list((asked.out / "images").rglob("*.dcm"))) == 24


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("column", "value", "n_series"), [("study_uid", "1.2", 1), ("patient_id", "CANARY-1", 2)]
)
def test_a_study_is_found_by_each_identifier_and_scouts_stay_in_the_pacs(
    pacs: Orthanc, tmp_path: Path, way: str, column: str, value: str, n_series: int
) -> None:
    fetched = fetch_studies(request(pacs, tmp_path, way, f"{value},CAP", column=column))
    assert (fetched.n_series, fetched.findings) == (n_series, ())
    assert len(files(fetched)) == 12 * n_series


@pytest.mark.parametrize("way", WAYS)
def test_files_are_those_of_the_pacs_under_names_that_tell_nothing(
    pacs: Orthanc, tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fetched = fetch_studies(request(pacs, tmp_path, way, "CANARYACC1,CAP"))
    names = " ".join(str(path.relative_to(fetched.root)) for path in fetched.root.rglob("*"))
    assert CANARY not in names
    assert "1.1.1" not in names
    assert all(CANARY.encode() in path.read_bytes() for path in files(fetched))  # the control
    assert CANARY not in caplog.text
    assert "1.1.1" not in caplog.text


@pytest.mark.parametrize("way", WAYS)
def test_a_transfer_that_broke_off_goes_on(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    asked = request(pacs, tmp_path, way, "CANARYACC1,CAP", "CANARYACC2,CAP")
    fetched = fetch_studies(asked)
    first, *_ = folders = sorted(path.parent for path in fetched.root.rglob(COMPLETE))
    (first / COMPLETE).unlink()
    lost = sorted(first.glob("*.dcm"))[:5]
    for path in lost:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in folders[1].glob("*.dcm")}
    again = fetch_studies(asked)
    assert (again.n_series, again.findings) == (1, ())
    assert all(path.exists() for path in lost)
    assert {path: path.stat().st_mtime_ns for path in folders[1].glob("*.dcm")} == before
    assert fetch_studies(asked).n_series == 0


# ---- what is wrong ----


@pytest.mark.parametrize("way", WAYS)
def test_a_study_that_the_pacs_lacks_is_told_by_its_line_and_the_others_come(
    pacs: Orthanc, tmp_path: Path, way: str
) -> None:
    fetched = fetch_studies(request(pacs, tmp_path, way, "CANARYNONE,CAP", "CANARYACC2,CAP"))
    (finding,) = fetched.findings
    assert (finding.code, finding.where) == ("PACS-NO-STUDY", "labels.csv")
    assert finding.message.endswith("line 2")
    assert CANARY not in str(finding)
    assert len(files(fetched)) == 12


@pytest.mark.parametrize("way", WAYS)
def test_an_identifier_with_a_wildcard_is_not_asked_for(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    fetched = fetch_studies(request(pacs, tmp_path, way, "CANARY*,CAP"))
    (finding,) = fetched.findings
    assert (finding.code, finding.where, fetched.n_series) == ("PACS-WILDCARD", "labels.csv", 0)
    assert CANARY not in str(finding)


@pytest.mark.parametrize("way", WAYS)
def test_a_study_without_ct_brings_nothing(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    fetched = fetch_studies(request(pacs, tmp_path, way, "1.3,CAP", column="study_uid"))
    assert (fetched.n_series, files(fetched)) == (0, [])


def test_a_series_that_came_in_part_is_told_and_asked_for_again(
    pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client import pacs_dimse

    taken = []
    take = pacs_dimse._take

    def lose_some(event: object, inbox: object) -> int:
        taken.append(event)
        return 0xA900 if len(taken) % 3 == 0 else take(event, inbox)

    asked = request(pacs, tmp_path, "dimse", "CANARYACC1,CAP")
    with monkeypatch.context() as patch:
        patch.setattr(pacs_dimse, "_take", lose_some)
        fetched = fetch_studies(asked)
    (finding,) = fetched.findings
    assert finding.code == "PACS-PARTIAL"
    assert "of 12 images" in finding.message
    assert fetch_studies(asked).findings == ()
    assert len(files(fetched)) == 12


def test_a_wrong_called_title_is_a_rejected_association(pacs: Orthanc, tmp_path: Path) -> None:
    asked = request(pacs, tmp_path, "dimse", "CANARYACC1,CAP")
    finding = refusal(replace(asked, address=asked.address.replace("ORTHANC", "OTHER")))
    assert finding.code == "PACS-REJECTED"
    assert "OTHER at 127.0.0.1" in finding.message
    assert "title" in finding.message.lower()


def test_a_title_that_the_pacs_does_not_know_gets_no_images(pacs: Orthanc, tmp_path: Path) -> None:
    asked = request(pacs, tmp_path, "dimse", "CANARYACC1,CAP")
    finding = refusal(replace(asked, ae_title="STRANGER"))
    assert finding.code in ("PACS-AE-UNKNOWN", "PACS-REFUSED")
    assert finding.severity == "error"


def test_a_key_that_is_gone_is_not_made_anew_for_a_pacs(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("accession,label\nA1,CAP\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "cohort.csv").write_text(f"{','.join(COLUMNS)}\nc-0123456789abcdef{',' * (len(COLUMNS) - 1)}\n")
    asked = PacsRequest(f"http://127.0.0.1:{free_port()}/x", tmp_path / "labels.csv", out, "DSAN", 11112, 2.0)
    assert refusal(asked).code == "IMPORT-KEY"
    assert not (out / "pseudonym.key").exists()


@pytest.mark.parametrize("address", ["dimse://ORTHANC@127.0.0.1:{port}", "http://127.0.0.1:{port}/dicom-web"])
def test_nobody_at_the_address_is_unreachable(pacs: Orthanc, tmp_path: Path, address: str) -> None:
    asked = request(pacs, tmp_path, "web", "CANARYACC1,CAP")
    finding = refusal(replace(asked, address=address.format(port=free_port())))
    assert finding.code == "PACS-UNREACHABLE"
    assert CANARY not in str(finding)


@pytest.mark.parametrize("scheme", ["dimse://ORTHANC@127.0.0.1:{port}", "http://127.0.0.1:{port}/dicom-web"])
def test_a_pacs_that_says_nothing_is_not_waited_for_for_ever(
    pacs: Orthanc, tmp_path: Path, scheme: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        asked = request(pacs, tmp_path, "web", "CANARYACC1,CAP")
        address = scheme.format(port=silent.getsockname()[1])
        finding = refusal(replace(asked, address=address, timeout_s=1.0))
    assert finding.code in ("PACS-TIMEOUT", "PACS-UNREACHABLE")


def test_a_port_that_is_taken_is_named(pacs: Orthanc, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        asked = request(pacs, tmp_path, "dimse", "CANARYACC1,CAP")
        finding = refusal(replace(asked, receive_port=other.getsockname()[1]))
    assert finding.code == "PACS-PORT"


@pytest.mark.parametrize(
    "address", ["dimse://ORTHANC", "dimse://ORTHANC@host", "dimse://@host:104", "dimse://A@host:70000"]
)
def test_an_address_that_is_none_is_refused(pacs: Orthanc, tmp_path: Path, address: str) -> None:
    asked = request(pacs, tmp_path, "dimse", "CANARYACC1,CAP")
    assert refusal(replace(asked, address=address)).code == "PACS-ADDRESS"


def test_an_address_of_another_service_is_refused(pacs: Orthanc, tmp_path: Path) -> None:
    asked = request(pacs, tmp_path, "web", "CANARYACC1,CAP")
    other = replace(asked, address=asked.address.replace("/dicom-web", "/nowhere"))
    assert refusal(other).code in ("PACS-REFUSED", "PACS-ADDRESS")


def test_a_service_that_wants_a_password_says_so(tmp_path: Path) -> None:
    """A server of two lines: Orthanc's own check of passwords has no page to wait for."""

    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Closed) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "labels.csv").write_text("accession,label\nCANARYACC1,CAP\n")
        address = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
        finding = refusal(PacsRequest(address, tmp_path / "labels.csv", tmp_path / "out"))
        server.shutdown()
    assert finding.code == "PACS-LOGIN"
    assert "netrc" in finding.fix


@pytest.mark.parametrize("package", ["pynetdicom", "dicomweb_client"])
def test_without_the_extra_it_is_named(tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith((package, "client.pacs_dimse", "client.pacs_web"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "labels.csv").write_text("accession,label\nA,CAP\n")
    address = "dimse://A@127.0.0.1:104" if package == "pynetdicom" else "http://127.0.0.1:1/dicom-web"
    finding = refusal(PacsRequest(address, tmp_path / "labels.csv", tmp_path / "out"))
    assert finding.code == "PACS-EXTRA"
    assert "dsan-federated[pacs]" in finding.fix
