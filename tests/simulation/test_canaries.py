"""No identifier leaves a hospital: canaries in tags, names and lists, and a search for them everywhere else.

Forty tags of every slice and its UIDs, the folders and files of the export and of the masks, and cells of
cohort.csv hold a canary each. The export is imported and prepared, and two studies run over the hospital and
another one: a good one, and one in which the hospital cannot write: the error that the system raises names
its folder. What left is then searched for each canary: as text, in UTF-16, hexadecimal, percent-encoded, and
in base64 at each of its three alignments.
"""

import base64
import io
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import SimpleITK as sitk
from cohort_factory import NETWORK, RECIPE, line, write_case, write_site
from dicom_factory import chest_hu, good_slices, write_series
from flwr.app import Message
from typer.testing import CliRunner

from client.cli import app
from dsan_model.preprocessing import Recipe
from server.ledger import read_ledger
from simulation.engines import Engine, InProcessGrid, run_study_on

TAGS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName"),
    *("PatientAddress", "PatientTelephoneNumbers", "PatientComments", "PatientReligiousPreference"),
    *("MilitaryRank", "BranchOfService", "EthnicGroup", "Occupation", "AdditionalPatientHistory"),
    *("CountryOfResidence", "RegionOfResidence", "IssuerOfPatientID", "ResponsiblePerson"),
    *("ResponsibleOrganization", "MedicalAlerts", "Allergies", "AccessionNumber", "StudyID"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName"),
    *("ReferringPhysicianName", "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers"),
    *("PhysiciansOfRecord", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "OperatorsName"),
    *("RequestingPhysician", "StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments"),
    *("AdmittingDiagnosesDescription", "DeviceSerialNumber"),
)
N_SLICES = 26  # 33 mm: less is no chest
IN_NAMES = ("patient folder", "study folder", "file", "mask file", "hospital's folder")
IN_THE_LIST = ("patient of cohort.csv", "scanner of cohort.csv")


def canary(number: int) -> str:
    """At most 16 signs, as the shortest of the tags takes; a blank and a caret are escaped in addresses."""
    return f"QX{number:02d}^wj zk{number:02d}"


UIDS = {
    "StudyInstanceUID": "73190481265",
    "SeriesInstanceUID": "58203917746",
    "SOPInstanceUID": "91746028353",
}
CANARIES = {name: canary(n) for n, name in enumerate((*TAGS, *IN_NAMES, *IN_THE_LIST))} | UIDS


# ---- the search ----


def forms(text: str) -> dict[str, bytes]:
    """What a text looks like under the encodings that it could leave in."""
    raw = text.encode()
    found = {
        "text": raw,
        "UTF-16 LE": text.encode("utf-16-le"),
        "UTF-16 BE": text.encode("utf-16-be"),
        "hexadecimal": raw.hex().encode(),
        "HEXADECIMAL": raw.hex().upper().encode(),
        "percent": quote(text).encode(),
        "percent, plus": quote(text).replace("%20", "+").encode(),
    }
    for shift in range(3):  # what stands before it decides which of three texts it becomes
        encoded = base64.b64encode(bytes(shift) + raw)
        first = -(-shift * 8 // 6)
        found[f"base64 +{shift}"] = encoded[first : (shift + len(raw)) * 8 // 6]
    return found


FORMS = {name: forms(text) for name, text in CANARIES.items()}


def found_in(haystacks: Iterable[tuple[str, bytes]]) -> set[tuple[str, str, str]]:
    """Where, which canary, in which form."""
    return {
        (where, name, form)
        for where, content in haystacks
        for name, encoded in FORMS.items()
        for form, needle in encoded.items()
        if needle in content
    }


def files_below(*folders: Path, but: tuple[Path, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Every file's content, and its own name."""
    for folder in folders:
        for path in folder.rglob("*"):
            if any(path.is_relative_to(kept) for kept in but):
                continue
            name = str(path.relative_to(folder))
            yield name, name.encode()
            if path.is_file():
                yield name, path.read_bytes()


def message_bytes(message: Message) -> bytes:
    """All of a message that travels: metadata, texts, arrays, and the reason of an error."""
    if message.has_error():
        return f"{message.metadata} {message.error}".encode()
    parts = [str(message.metadata).encode()]
    for record in message.content.values():
        parts += [str(record).encode()]
    for arrays in message.content.array_records.values():
        parts += [array.data for array in arrays.values()]
    return b"\n".join(parts)


# ---- the hospital ----


def write_export(root: Path) -> list[str]:
    """Eight studies of canaries, in folders and files of canaries; lines of labels.csv for them."""
    labels = []
    for number in range(8):
        slices = good_slices(N_SLICES)
        for index, data in enumerate(slices):
            for keyword in TAGS:
                setattr(data, keyword, CANARIES[keyword])
            data.PatientID = f"{CANARIES['PatientID']}{number}"
            data.StudyInstanceUID = study = f"1.9.{UIDS['StudyInstanceUID']}.{number}"
            data.SeriesInstanceUID = f"1.9.{UIDS['SeriesInstanceUID']}.{number}.1"
            uid = f"1.9.{UIDS['SOPInstanceUID']}.{number}.{index + 1}"
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid
        folder = root / CANARIES["patient folder"] / f"{CANARIES['study folder']} {number}"
        for index, path in enumerate(sorted(write_series(folder, slices).iterdir())):
            path.rename(folder / f"{CANARIES['file']} {index}.dcm")
        labels.append(f"{study},{'COVID-19' if number % 2 else 'CAP'}")
    return labels


def name_masks(hospital: Path) -> None:
    """Masks under names of canaries, and cells of cohort.csv, as a hospital fills them in by hand."""
    lung = ((chest_hu(N_SLICES) < -600) & (chest_hu(N_SLICES) > -950)).astype(np.uint8)
    infection = np.zeros_like(lung)
    infection[3:8, 12:18, 8:11] = lung[3:8, 12:18, 8:11]
    manifest = hospital / "cohort.csv"
    header, *rows = manifest.read_text().splitlines()
    (hospital / "masks").mkdir()
    filled = []
    for number, row in enumerate(rows):
        cells = dict(zip(header.split(","), row.split(","), strict=True))
        for column, array in (("lung_mask", lung), ("infection_mask", infection)):
            cells[column] = f"masks/{CANARIES['mask file']} {column}{number}.nii.gz"
            made = sitk.GetImageFromArray(array)
            made.SetSpacing((10.0, 10.0, 1.25))
            made.SetOrigin((-155.0, -155.0, -200.0))
            sitk.WriteImage(made, str(hospital / cells[column]))
        cells["patient_id"] = f"{CANARIES['patient of cohort.csv']} {number}"
        cells["scanner"] = CANARIES["scanner of cohort.csv"]
        filled.append(",".join(cells.values()))
    manifest.write_text("\n".join([header, *filled]) + "\n")


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return str(result.output)


def write_study(folder: Path, seed: int) -> Path:
    """A study of one round over both hospitals that goes on if one of them fails."""
    folder.mkdir(parents=True)
    network = f"blocks = {list(NETWORK.blocks)}\nwidth = 2\nstem_kernel = 3\nstem_pool = false\n"
    (folder / "study.toml").write_text(
        f'name = "canaries"\nseed = {seed}\nrounds = 1\nfolds = 2\n'
        f"[input]\nshape_dhw = {list(RECIPE.shape_DHW)}\n[network]\n{network}"
        '[training]\nbatch_size = 2\n[sites]\ntraining = ["a", "north"]\n'
        "[participation]\nquorum = 1\ndeadline_h = 0.05\n"
    )
    return folder


@dataclass(frozen=True)
class Aftermath:
    """What is left when all is done."""

    inside: tuple[Path, ...]  # the export and the hospital's folder
    outside: Path  # everything else
    logs: str
    messages: list[bytes]
    ledgers: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    """Import, prepare, a study, and a study with failures at the hospital."""
    home = tmp_path_factory.mktemp("canaries")
    export, hospital = home / "export", home / "sites" / CANARIES["hospital's folder"]
    outside = home / "outside"
    outside.mkdir()
    log, messages = io.StringIO(), []
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    level_before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        answer = InProcessGrid._answer

        def overheard(self: InProcessGrid, message: Message, context: Any) -> Message:
            reply = answer(self, message, context)
            messages.extend((message_bytes(message), message_bytes(reply)))
            return reply

        patch.setattr(InProcessGrid, "_answer", overheard)
        try:
            ledgers = _live(export, hospital, outside)
        finally:
            root.removeHandler(handler)
            root.setLevel(level_before)
    return Aftermath((export, home / "sites"), outside, log.getvalue(), messages, ledgers)


def _live(export: Path, hospital: Path, outside: Path) -> list[list[dict[str, Any]]]:
    labels = export.parent / "labels.csv"
    labels.write_text("\n".join(["study_uid,label", *write_export(export)]) + "\n")
    told = command("import", export, "--labels", labels, "--out", hospital, "--name", "north", "--workers", 1)
    with (hospital / "site.toml").open("a") as settings:
        settings.write(f"[recipe]\nshape_dhw = {list(RECIPE.shape_DHW)}\n")
    name_masks(hospital)
    told += command("prepare", "--config", hospital / "site.toml", "--workers", 1)
    (outside / "told.txt").write_text(told.replace(str(hospital), "HOSPITAL"))  # as the user called it
    other = _other_hospital(outside / "other")
    sites = (other / "site.toml", hospital / "site.toml")
    good = write_study(outside / "runs" / "good", seed=1)
    run_study_on(Engine.INPROCESS, good, sites, workers=1)
    shutil.rmtree(hospital / "work")
    (hospital / "work").write_text("a file where finished rounds go: the error of the system names its path")
    bad = write_study(outside / "runs" / "bad", seed=2)
    run_study_on(Engine.INPROCESS, bad, sites, workers=1)
    return [list(read_ledger(good)), list(read_ledger(bad))]


def _other_hospital(folder: Path) -> Path:
    for number in range(6):
        write_case(folder, f"c{number}", infection_rows=number)
    write_site(folder, *(line(f"c{n}", "COVID-19" if n % 2 else "CAP") for n in range(6)))
    command("prepare", "--config", folder / "site.toml", "--workers", 1)
    return folder


# ---- what must be, so that the search means something ----


def test_there_are_forty_tags_and_a_canary_for_each() -> None:
    assert len(TAGS) >= 40
    assert len(set(CANARIES.values())) == len(CANARIES)
    assert Recipe((14, 22, 26)) == RECIPE


@pytest.mark.parametrize("form", forms("x"))
def test_a_canary_that_leaks_is_found_in_every_form(form: str) -> None:
    name = "PatientName"
    leak = b"reason: " + FORMS[name][form] + b" could not be read"
    assert ("message", name, form) in found_in([("message", leak)])


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
def test_base64_is_seen_through_at_every_alignment(before: str) -> None:
    leak = base64.b64encode(f"{before}{CANARIES['PatientName']} and more".encode())
    assert {name for _, name, _ in found_in([("message", leak)])} == {"PatientName"}


def test_every_canary_is_in_the_hospital(aftermath: Aftermath) -> None:
    inside = found_in(files_below(*aftermath.inside))
    assert {name for _, name, _ in inside} == set(CANARIES)


def test_the_hospital_took_part_and_then_failed(aftermath: Aftermath) -> None:
    good, bad = (
        {(row["site"], row["status"]) for row in ledger if row["event"] == "round"}
        for ledger in aftermath.ledgers
    )
    assert good == {("a", "accepted"), ("north", "accepted")}
    assert bad == {("a", "accepted"), ("north", "missing")}
    assert "refused" in aftermath.logs or "could not be answered" in aftermath.logs
    assert len(aftermath.messages) > 20


# ---- what must not be ----


def test_no_canary_is_in_any_message(aftermath: Aftermath) -> None:
    assert found_in(("message", content) for content in aftermath.messages) == set()


def test_no_canary_is_in_the_logs(aftermath: Aftermath) -> None:
    assert found_in([("logs", aftermath.logs.encode())]) == set()


def test_no_canary_is_outside_of_the_hospital(aftermath: Aftermath) -> None:
    assert found_in(files_below(aftermath.outside)) == set()
