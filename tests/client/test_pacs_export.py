import csv
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from client.cohort import read_cohort
from client.finding_table import exit_code
from client.findings import FindingError
from client.import_report import import_text
from client.pacs_export import ImportRequest, ImportResult, import_export
from dsan_model.cases import Label

CANARY = "CANARY"


@pytest.fixture
def export(dicom_factory: ModuleType, tmp_path: Path) -> Path:
    """Two studies of one patient in folders of a vendor's shape, the first with three series."""
    root = tmp_path / "export"
    study(
        dicom_factory,
        root / "DISK1" / "CANARY_JOHN" / "ST1" / "SE1",
        uid="1.1",
        series="1.1.1",
        kernel="B30f",
    )
    study(
        dicom_factory,
        root / "DISK1" / "CANARY_JOHN" / "ST1" / "SE2",
        uid="1.1",
        series="1.1.2",
        kernel="B70f",
    )
    scout = root / "DISK1" / "CANARY_JOHN" / "ST1" / "SE0"
    study(
        dicom_factory,
        scout,
        uid="1.1",
        series="1.1.0",
        n_slices=1,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    study(dicom_factory, root / "DISK2", uid="1.2", series="1.2.1", patient="CANARY-2")
    (root / "DICOMDIR").write_bytes(b"index")
    (root / "DISK2" / "report.pdf").write_bytes(b"%PDF CANARY")
    return root


def study(
    factory: ModuleType, folder: Path, uid: str, series: str, patient: str = "CANARY-1", n_slices: int = 12,
    kernel: str = "", **tags: object,
) -> Path:  # fmt: skip
    slices = factory.good_slices(n_slices)
    for index, data in enumerate(slices):
        data.StudyInstanceUID, data.SeriesInstanceUID = uid, series
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{series}.{index + 1}"
        data.PatientID, data.AccessionNumber = patient, f"CANARY-ACC-{uid}"
        data.PatientAge, data.PatientSex, data.StudyDate = "053Y", "F", "20200203"
        data.ConvolutionKernel, data.ManufacturerModelName = kernel, "uCT 780"
        data.InstitutionName = data.ReferringPhysicianName = data.StudyDescription = CANARY
        for keyword, value in tags.items():
            setattr(data, keyword, value)
    return Path(factory.write_series(folder, slices))


def run(tmp_path: Path, root: Path, *labels: str, **options: Any) -> ImportResult:
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["study_uid,label", *labels]) + "\n")
    return import_export(ImportRequest(root, table, tmp_path / "out", workers=1, **options))


def run_refused(tmp_path: Path, root: Path, code: str) -> None:
    with pytest.raises(FindingError) as refused:
        run(tmp_path, root, "1.2,CAP")
    assert refused.value.finding.code == code


def codes(result: ImportResult) -> list[str]:
    return [finding.code for finding in result.findings]


def report(tmp_path: Path) -> Sequence[dict[str, str]]:
    with (tmp_path / "out" / "import-report.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_labelled_study_becomes_one_case_that_the_cohort_reads(export: Path, tmp_path: Path) -> None:
    result = run(tmp_path, export, "1.1,COVID-19", "1.2,CAP", segment=True)
    assert codes(result) == []
    assert (result.n_images, result.n_studies, result.n_labelled, result.n_new) == (37, 2, 2, 2)
    cases, findings = read_cohort(tmp_path / "out" / "cohort.csv")
    assert findings == ()
    assert [case.label for case in cases] == [Label.COVID, Label.CAP]
    assert len({case.patient_id for case in cases}) == 2
    assert {(case.age, case.sex, str(case.acquired_on), case.scanner) for case in cases} == {
        (53.0, "F", "2020-02-03", "uCT 780")
    }
    assert (
        '[segmentation]\nlungs = "classical"\ninfection = "crude"'
        in (tmp_path / "out" / "site.toml").read_text()
    )


def test_folders_that_are_linked_are_read_too_and_each_once(export: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for disk in ("DISK1", "DISK2"):
        (links / disk).symlink_to(export / disk)
    (export / "DISK2" / "round").symlink_to(links)
    result = run(tmp_path, links, "1.1,COVID-19", "1.2,CAP")
    assert codes(result) == []
    assert (result.n_images, result.n_studies, result.n_new) == (37, 2, 2)


def test_a_link_to_a_folder_above_the_export_is_not_followed(export: Path, tmp_path: Path) -> None:
    (export / "up").symlink_to(tmp_path)
    study_elsewhere = tmp_path / "elsewhere"
    shutil.copytree(export / "DISK2", study_elsewhere)
    assert run(tmp_path, export, "1.2,CAP").n_images == 37


def test_a_study_of_two_patients_has_no_case(dicom_factory: ModuleType, tmp_path: Path) -> None:
    root = tmp_path / "export"
    study(dicom_factory, root / "a", uid="1.1", series="1.1.1", patient="PAT_A", SliceThickness=8)
    study(dicom_factory, root / "b", uid="1.1", series="1.1.2", patient="PAT_B")
    study(dicom_factory, root / "c", uid="1.2", series="1.2.1", patient="PAT_C")
    (tmp_path / "labels.csv").write_text("patient_id,label\nPAT_A,COVID-19\nPAT_B,CAP\nPAT_C,CAP\n")
    result = import_export(ImportRequest(root, tmp_path / "labels.csv", tmp_path / "out", workers=1))
    assert codes(result) == ["IMPORT-MIXED-PATIENTS"]
    assert len(result.cases) == 1


def test_an_identifier_in_utf_8_is_found(dicom_factory: ModuleType, tmp_path: Path) -> None:
    study(
        dicom_factory,
        tmp_path / "export",
        uid="1.1",
        series="1.1.1",
        patient="M\u00fc-77",
        SpecificCharacterSet="ISO_IR 192",
    )
    (tmp_path / "labels.csv").write_text("patient_id,label\nM\u00fc-77,CAP\n", encoding="utf-8")
    request = ImportRequest(tmp_path / "export", tmp_path / "labels.csv", tmp_path / "out", workers=1)
    assert len(import_export(request).cases) == 1


def test_columns_that_a_hospital_keeps_beside_the_labels_are_passed_over(
    export: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("study_uid,comment,label\n1.2,see letter,CAP\n")
    request = ImportRequest(export, tmp_path / "labels.csv", tmp_path / "out", workers=1)
    assert [case.label for case in import_export(request).cases] == [Label.CAP]


def test_every_bad_line_of_the_labels_is_told(export: Path, tmp_path: Path) -> None:
    result = run(tmp_path, export, "1.1,covid", "1.2,CAP", "1.3,cap?", "1.4,none")
    text = import_text(result, ImportRequest(export, tmp_path / "labels.csv", tmp_path / "out"))
    assert "labels.csv line 2, column label:" in text
    assert "also: labels.csv line 4, column label; labels.csv line 5, column label" in text


def test_packed_files_are_counted(export: Path, tmp_path: Path) -> None:
    (export / "CANARY.zip").write_bytes(b"PK\x03\x04")
    (export / "IM0001.dcm.gz").write_bytes(b"\x1f\x8b")
    result = run(tmp_path, export, "1.2,CAP")
    assert codes(result) == ["IMPORT-PACKED", "IMPORT-NO-LABEL"]
    assert "1 .gz, 1 .zip" in result.findings[0].message


def test_what_the_report_says_of_a_file_names_it(dicom_factory: ModuleType, tmp_path: Path) -> None:
    folder = study(dicom_factory, tmp_path / "export", uid="1.1", series="1.1.1")
    lost = sorted(folder.iterdir())[5]
    neighbours = sorted(folder.iterdir())[4].name, sorted(folder.iterdir())[6].name
    lost.unlink()
    result = run(tmp_path, tmp_path / "export", "1.1,CAP")
    assert "DICOM-GAP" in codes(result)
    (row,) = report(tmp_path)
    assert all(name in row["findings"] for name in neighbours)
    assert not any(name in finding.message for finding in result.findings for name in neighbours)


def test_the_lung_kernel_is_chosen_and_the_report_says_why(export: Path, tmp_path: Path) -> None:
    run(tmp_path, export, "1.1,COVID-19")
    rows = {row["place"].rsplit("/", 1)[-1]: row for row in report(tmp_path) if row["case_id"]}
    assert {name: row["decision"] for name, row in rows.items()} == {
        "SE0": "refused",
        "SE1": "not chosen",
        "SE2": "chosen",
    }
    assert rows["SE0"]["reason"] == "refused by the gate: DICOM-LOCALIZER"
    assert rows["SE1"]["reason"] == "soft kernel, and there is a better one"
    assert rows["SE2"]["reason"].startswith("chosen: axial, original, 12 slices of 1.25 mm")
    assert rows["SE2"]["kernel"] == "B70f"


def test_the_files_are_linked_from_the_feet_up_under_neutral_names(
    export: Path, dicom_factory: ModuleType, tmp_path: Path
) -> None:
    result = run(tmp_path, export, "1.2,CAP")
    images = tmp_path / "out" / "images" / result.cases[0].case_id
    assert sorted(path.name for path in images.iterdir()) == [f"IM{i:04d}.dcm" for i in range(1, 13)]
    for index in range(12):
        original = export / "DISK2" / dicom_factory.file_name(index)
        assert (images / f"IM{index + 1:04d}.dcm").samefile(original)
    assert not result.copied


def test_what_cannot_be_linked_is_copied(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    result = run(tmp_path, export, "1.2,CAP")
    assert result.copied
    images = sorted((tmp_path / "out" / "images" / result.cases[0].case_id).iterdir())
    assert len(images) == 12
    assert all(path.stat().st_nlink == 1 for path in images)


def test_nothing_that_names_a_patient_is_shown_or_named(export: Path, tmp_path: Path) -> None:
    shutil.copy(export / "DISK2" / "IM0094.dcm", export / "CANARY.dcm")  # a copy, under a patient's name
    (export / "DISK2" / "CANARY.dcm").write_bytes(b"")
    result = run(tmp_path, export, "1.1,COVID-19", "1.2,CAP", "9.9,CAP")
    request = ImportRequest(export, tmp_path / "labels.csv", tmp_path / "out")
    told = import_text(result, request) + str(result) + "".join(str(finding) for finding in result.findings)
    out = tmp_path / "out"
    listed = (out / "cohort.csv").read_text() + (out / "site.toml").read_text()
    names = " ".join(str(path.relative_to(out)) for path in out.rglob("*"))
    for text in (told, listed, names):
        assert CANARY not in text
        assert "1.1.2" not in text
    assert CANARY in (out / "import-report.csv").read_text()  # the control: the report says where, and stays
    assert stat.S_IMODE((out / "import-report.csv").stat().st_mode) == 0o600


def test_a_patient_has_one_pseudonym_in_all_studies(dicom_factory: ModuleType, tmp_path: Path) -> None:
    for number in (1, 2):
        study(dicom_factory, tmp_path / "export" / str(number), uid=f"1.{number}", series=f"1.{number}.1")
    result = run(tmp_path, tmp_path / "export", "1.1,CAP", "1.2,CAP")
    assert len({case.case_id for case in result.cases}) == 2
    assert len({case.patient_id for case in result.cases}) == 1


def test_a_series_in_several_folders_and_copied_twice_is_one(
    dicom_factory: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "export"
    study(dicom_factory, root / "a", uid="1.1", series="1.1.1")
    (root / "b").mkdir()
    for index, path in enumerate(sorted((root / "a").iterdir())):
        if index % 2:
            shutil.copy(path, root / "b")
        elif index % 3 == 0:
            path.rename(root / "b" / path.name)
    result = run(tmp_path, root, "1.1,CAP")
    assert codes(result) == ["IMPORT-COPIES"]
    assert result.findings[0].message.startswith("6 files")
    assert len(list((tmp_path / "out" / "images" / result.cases[0].case_id).iterdir())) == 12


def test_a_slice_that_is_there_twice_with_other_content_is_refused(
    dicom_factory: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "export"
    folder = study(dicom_factory, root / "a", uid="1.1", series="1.1.1")
    path = folder / dicom_factory.file_name(5)
    (folder / "other.dcm").write_bytes(path.read_bytes()[:-2] + b"\1\1")
    result = run(tmp_path, root, "1.1,CAP")
    assert codes(result) == ["DICOM-DUPLICATE", "IMPORT-NO-CASE"]


def test_bad_studies_are_reported_with_their_code_and_the_others_go_on(
    export: Path, dicom_factory: ModuleType, tmp_path: Path
) -> None:
    study(dicom_factory, export / "thick", uid="1.3", series="1.3.1", SliceThickness=8)
    gap = study(dicom_factory, export / "gap", uid="1.4", series="1.4.1")
    (gap / dicom_factory.file_name(5)).unlink()
    result = run(tmp_path, export, "1.2,CAP", "1.3,CAP", "1.4,CAP")
    errors = {finding.code: finding for finding in result.findings if finding.severity == "error"}
    assert set(errors) == {"DICOM-THICKNESS", "DICOM-GAP"}
    assert errors["DICOM-GAP"].where.startswith("series 1 of 1")
    assert len(result.cases) == 1
    assert {finding.case_id for finding in errors.values()}.isdisjoint({result.cases[0].case_id})


def test_lost_slices_and_files_of_no_study_are_counted(
    export: Path, dicom_factory: ModuleType, tmp_path: Path
) -> None:
    (export / "empty.dcm").write_bytes(b"")
    nameless = study(dicom_factory, export / "x", uid="1.5", series="1.5.1")
    for path in nameless.iterdir():
        path.write_bytes(dicom_factory.with_element(path.read_bytes(), "StudyInstanceUID", b""))
    result = run(tmp_path, export, "1.2,CAP")
    found = {finding.code: finding.where for finding in result.findings}
    assert found["DICOM-EMPTY-FILE"] == "1 files of the export"
    assert found["IMPORT-NO-IDENTITY"] == "12 files of the export"
    assert found["IMPORT-NO-LABEL"] == "labels"
    assert len(result.cases) == 1


def test_a_second_export_is_added_and_what_the_hospital_filled_in_stays(
    export: Path, dicom_factory: ModuleType, tmp_path: Path
) -> None:
    first = run(tmp_path, export, "1.2,CAP")
    manifest = tmp_path / "out" / "cohort.csv"
    edited = manifest.read_text().replace(",,,53", ",masks/a.nii.gz,masks/b.nii.gz,53")
    manifest.write_text(edited)
    second = run(tmp_path, export, "1.1,COVID-19", "1.2,CAP")
    assert (first.n_new, second.n_new, len(second.cases)) == (1, 1, 2)
    assert manifest.read_text().startswith(edited)
    assert len(manifest.read_text().splitlines()) == 3
    third = run(tmp_path, export, "1.1,COVID-19", "1.2,CAP")
    assert third.n_new == 0
    assert [case.case_id for case in third.cases] == [case.case_id for case in second.cases]


def test_a_label_that_changed_is_reported_and_not_overwritten(export: Path, tmp_path: Path) -> None:
    run(tmp_path, export, "1.2,CAP")
    before = (tmp_path / "out" / "cohort.csv").read_bytes()
    assert codes(run(tmp_path, export, "1.2,COVID-19")) == ["IMPORT-NO-LABEL", "IMPORT-LABEL-CHANGED"]
    assert (tmp_path / "out" / "cohort.csv").read_bytes() == before


def test_a_series_that_is_whole_now_is_told_and_taken_when_its_folder_is_deleted(
    export: Path, tmp_path: Path
) -> None:
    slices = sorted((export / "DISK2").glob("*.dcm"))
    hidden = tmp_path / "later"
    hidden.mkdir()
    for path in slices[9:]:
        shutil.move(path, hidden)
    case_id = run(tmp_path, export, "1.2,CAP").cases[0].case_id
    for path in hidden.iterdir():
        shutil.move(path, export / "DISK2")
    result = run(tmp_path, export, "1.2,CAP")
    (changed,) = [finding for finding in result.findings if finding.code == "IMPORT-IMAGES-CHANGED"]
    assert "9 images, its series has 12" in changed.message
    images = tmp_path / "out" / "images" / case_id
    shutil.rmtree(images)
    assert "IMPORT-IMAGES-CHANGED" not in codes(run(tmp_path, export, "1.2,CAP"))
    assert len(list(images.iterdir())) == 12


def test_what_comes_next_is_what_site_toml_asks_for(export: Path, tmp_path: Path) -> None:
    request = ImportRequest(export, tmp_path / "labels.csv", tmp_path / "out", workers=1)
    run(tmp_path, export, "1.2,CAP")
    assert "IMPORT-SEGMENTATION-KEPT" in codes(run(tmp_path, export, "1.2,CAP", segment=True))
    text = import_text(run(tmp_path, export, "1.2,CAP"), request)
    assert "next: name the masks" in text
    assert "0 new\n" in text
    (tmp_path / "out" / "site.toml").write_text('name = "a"\n[segmentation]\nlungs = "classical"\n')
    text = import_text(run(tmp_path, export, "1.2,CAP"), request)
    assert "next: dsan-client prepare" in text


def test_another_series_of_as_many_slices_that_is_chosen_now_is_told(
    dicom_factory: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "export"
    study(dicom_factory, root / "soft", uid="1.1", series="1.1.1", kernel="B30f")
    assert codes(run(tmp_path, root, "1.1,CAP")) == []
    assert codes(run(tmp_path, root, "1.1,CAP")) == []
    study(dicom_factory, root / "lung", uid="1.1", series="1.1.2", kernel="B70f")
    changed = run(tmp_path, root, "1.1,CAP")
    assert codes(changed) == ["IMPORT-IMAGES-CHANGED"]
    assert "of another series" in changed.findings[0].message
    shutil.rmtree(tmp_path / "out" / "images" / changed.cases[0].case_id)
    assert codes(run(tmp_path, root, "1.1,CAP")) == []
    assert codes(run(tmp_path, root, "1.1,CAP")) == []


def test_a_damaged_image_of_a_case_does_not_end_the_import_of_the_others(
    export: Path, tmp_path: Path
) -> None:
    first = run(tmp_path, export, "1.2,CAP").cases[0].case_id
    image = tmp_path / "out" / "images" / first / "IM0001.dcm"
    image.unlink()
    image.write_bytes(b"torn")
    result = run(tmp_path, export, "1.1,CAP", "1.2,CAP")
    assert "IMPORT-IMAGES-CHANGED" in codes(result)
    assert result.n_new == 1


def test_a_key_that_is_gone_is_not_made_anew_beside_its_cases(export: Path, tmp_path: Path) -> None:
    run(tmp_path, export, "1.2,CAP")
    (tmp_path / "out" / "pseudonym.key").unlink()
    with pytest.raises(FindingError, match="IMPORT-KEY") as refused:
        run(tmp_path, export, "1.2,CAP")
    assert "cohort.csv lists 1 cases under its pseudonyms" in refused.value.finding.message
    assert not (tmp_path / "out" / "pseudonym.key").exists()


def test_a_key_that_could_not_be_written_is_made_by_the_next_import(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dsan_daemon.files.os.fsync", full)
        run_refused(tmp_path, export, "OUTPUT-DISK-FULL")
    assert codes(run(tmp_path, export, "1.2,CAP")) == ["IMPORT-NO-LABEL"]


def test_two_imports_at_once_do_not_list_a_case_twice(export: Path, tmp_path: Path) -> None:
    run(tmp_path, export, "1.2,CAP")
    with (tmp_path / "out" / ".import.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_refused(tmp_path, export, "IMPORT-RUNNING")
    assert run(tmp_path, export, "1.2,CAP").n_new == 0


def test_a_folder_that_cannot_be_listed_is_told_and_in_the_report(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By scandir, as whoever is root may list every folder."""
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if Path(path).name == "DISK1":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    result = run(tmp_path, export, "1.2,CAP")
    assert "IMPORT-FOLDER" in codes(result)
    assert exit_code(result.findings) == 65
    assert [line["place"] for line in report(tmp_path) if "listed" in line["reason"]] == ["DISK1"]


@pytest.mark.parametrize(
    ("patients", "labels", "code"),
    [
        (["", ""], "COVID-19 CAP", "IMPORT-NO-PATIENT"),
        (["ANONYMOUS"] * 3, "CAP CAP CAP", "IMPORT-ONE-PATIENT"),
        (["P1", "P1"], "CAP COVID-19", "IMPORT-BOTH-LABELS"),
    ],
)
def test_patients_who_may_be_others_than_they_seem_are_a_warning(
    patients: list[str], labels: str, code: str, dicom_factory: ModuleType, tmp_path: Path
) -> None:
    for i, patient in enumerate(patients):
        folder = tmp_path / "export" / str(i)
        study(dicom_factory, folder, uid=f"1.{i}", series=f"1.{i}.1", patient=patient)
    lines = [f"1.{i},{label}" for i, label in enumerate(labels.split())]
    result = run(tmp_path, tmp_path / "export", *lines)
    assert codes(result) == [code]
    assert len({case.patient_id for case in result.cases}) == len(set(filter(None, patients)) or patients)


def test_a_cohort_that_others_changed_is_read_and_kept_to_its_owner(export: Path, tmp_path: Path) -> None:
    run(tmp_path, export, "1.2,CAP")
    manifest = tmp_path / "out" / "cohort.csv"
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o600
    header, line = manifest.read_text().splitlines()
    first, rest = header.split(",", 1), line.split(",", 1)
    manifest.write_text(f"{first[1]},{first[0]}\n{rest[1]},{rest[0]}\nshort\n")
    assert run(tmp_path, export, "1.2,CAP").n_new == 0


def test_an_import_that_was_killed_is_done_again(export: Path, tmp_path: Path) -> None:
    result = run(tmp_path, export, "1.2,CAP")
    case_id = result.cases[0].case_id
    images = tmp_path / "out" / "images"
    (tmp_path / "out" / "cohort.csv").unlink()  # killed before the list was written
    (images / case_id / "IM0001.dcm").unlink()
    (images / f".{case_id}.partial").mkdir()
    run(tmp_path, export, "1.2,CAP")
    assert len(list((images / case_id).iterdir())) == 12
    assert [path.name for path in images.iterdir()] == [case_id]


def test_an_export_that_holds_the_output_does_not_import_itself(export: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("study_uid,label\n1.2,CAP\n")
    request = ImportRequest(export, labels, export / "out", workers=1)
    first, second = import_export(request), import_export(request)
    assert (first.n_images, second.n_images) == (37, 37)


def test_the_limit_of_slice_thickness_is_that_of_site_toml(dicom_factory: ModuleType, tmp_path: Path) -> None:
    study(dicom_factory, tmp_path / "export", uid="1.1", series="1.1.1", SliceThickness=8)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "site.toml").write_text('name = "a"\n[audit]\nmax_slice_thickness_mm = 8.0\n')
    assert len(run(tmp_path, tmp_path / "export", "1.1,CAP").cases) == 1


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda root, out: shutil.rmtree(root), "IMPORT-ROOT"),
        (lambda root, out: (out / "site.toml").write_text("name = 1"), "SITE-VALUE"),
        (lambda root, out: (out / "cohort.csv").write_text("nonsense\n"), "COHORT-COLUMNS"),
        (lambda root, out: (out / "pseudonym.key").chmod(0o644), "IMPORT-KEY"),
    ],
)
def test_what_cannot_begin_is_refused(spoil: Any, code: str, export: Path, tmp_path: Path) -> None:
    run(tmp_path, export, "1.2,CAP")
    spoil(export, tmp_path / "out")
    with pytest.raises(FindingError, match=code):
        run(tmp_path, export, "1.2,CAP")


def test_a_name_that_no_site_may_have_leaves_no_site_toml(export: Path, tmp_path: Path) -> None:
    with pytest.raises(FindingError, match="SITE-VALUE"):
        run(tmp_path, export, "1.2,CAP", name="St. Mary")
    assert not (tmp_path / "out" / "site.toml").exists()


def test_a_full_disk_is_one_coded_line_and_leaves_no_half_case(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(FindingError, match="OUTPUT-DISK-FULL"):
        run(tmp_path, export, "1.2,CAP")
    assert list((tmp_path / "out" / "images").iterdir()) == []


@pytest.mark.parametrize("name", ["cohort.csv", "import-report.csv"])
def test_a_full_disk_at_the_end_is_one_coded_line_too(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(self: Path, *arguments: object, **options: object) -> None:
        if name in self.name:
            raise OSError(28, "No space left on device")
        touch(self, *arguments, **options)

    def never_there(write: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path | None]:
        return lambda self, target: full(target) if name in target.name else write(self, target)

    touch = Path.touch
    monkeypatch.setattr(Path, "touch", full)
    monkeypatch.setattr(Path, "replace", never_there(Path.replace))
    monkeypatch.setattr(Path, "rename", never_there(Path.rename))
    with pytest.raises(FindingError, match="OUTPUT-DISK-FULL"):
        run(tmp_path, export, "1.2,CAP")


def test_an_output_that_is_a_file_is_refused(export: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FindingError, match="OUTPUT-FILES"):
        run(tmp_path, export, "1.2,CAP")
