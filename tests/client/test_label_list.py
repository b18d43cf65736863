from pathlib import Path

import pytest
from table_factory import BAD_LABEL_TABLES

from client.findings import FindingError
from client.label_list import StudyIdentity, label_studies, read_labels
from dsan_model.cases import Label

STUDIES = {
    "s1": StudyIdentity("s1", frozenset({"A1"}), frozenset({"P1"})),
    "s2": StudyIdentity("s2", frozenset({"A2"}), frozenset({"P1"})),
    "s3": StudyIdentity("s3", frozenset(), frozenset({"P2"})),
}
CASE_IDS = {uid: f"c-{uid}" for uid in STUDIES}


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def labels(folder: Path, text: str) -> tuple[dict[str, Label], list[str]]:
    lines, of_lines = read_labels(table(folder, text))
    found, of_studies = label_studies(lines, STUDIES, CASE_IDS)
    return found, [finding.code for finding in (*of_lines, *of_studies)]


def test_a_patients_label_is_that_of_all_its_studies(tmp_path: Path) -> None:
    assert labels(tmp_path, "patient_id,label\nP1,CAP\n") == ({"s1": Label.CAP, "s2": Label.CAP}, [])


def test_a_study_is_found_by_its_uid_or_its_accession(tmp_path: Path) -> None:
    text = "label,study_uid,accession\nCOVID-19,s1,\nCAP,,A2\n"
    assert labels(tmp_path, text) == ({"s1": Label.COVID, "s2": Label.CAP}, [])


def test_a_line_for_the_study_outweighs_one_for_its_patient(tmp_path: Path) -> None:
    text = "label,accession,patient_id\nCAP,,P1\nCOVID-19,A1,\n"
    assert labels(tmp_path, text) == ({"s1": Label.COVID, "s2": Label.CAP}, [])


def test_two_labels_for_one_study_are_an_error_and_give_none(tmp_path: Path) -> None:
    text = "label,patient_id\nCAP,P2\nCOVID-19,P2\nCAP,P1\n"
    found, codes = labels(tmp_path, text)
    assert codes == ["IMPORT-LABEL-CONFLICT"]
    assert set(found) == {"s1", "s2"}


def test_the_same_label_twice_is_no_conflict(tmp_path: Path) -> None:
    assert labels(tmp_path, "label,patient_id\nCAP,P2\nCAP,P2\n") == ({"s3": Label.CAP}, [])


def test_identifiers_of_different_studies_in_one_line_label_none(tmp_path: Path) -> None:
    text = "label,accession,patient_id\nCAP,A1,P2\nCAP,A2,P1\nCOVID-19,A2,P2\n"
    found, codes = labels(tmp_path, text)
    assert codes == ["IMPORT-LABEL-CONTRADICTS"] * 2
    assert found == {"s2": Label.CAP}


def test_what_the_files_of_a_study_do_not_say_contradicts_nothing(tmp_path: Path) -> None:
    text = "label,accession,patient_id,study_uid\nCAP,A77,P2,s3\n"
    assert labels(tmp_path, text) == ({"s3": Label.CAP}, [])


def test_an_accession_number_of_two_patients_needs_another_identifier(tmp_path: Path) -> None:
    studies = {
        uid: StudyIdentity(uid, frozenset({"A1"}), frozenset({patient}))
        for uid, patient in {"s1": "P1", "s2": "P2"}.items()
    }
    case_ids = {uid: f"c-{uid}" for uid in studies}
    lines, _ = read_labels(table(tmp_path, "label,accession,patient_id\nCAP,A1,\nCAP,A1,P2\n"))
    assert label_studies(lines[1:], studies, case_ids) == ({"s2": Label.CAP}, ())
    found, (finding,) = label_studies(lines[:1], studies, case_ids)
    assert (found, finding.code, finding.where) == ({}, "IMPORT-LABEL-AMBIGUOUS", "labels line 2")


@pytest.mark.parametrize("patients", [("P1", ""), ("", "")])
def test_a_study_of_nobody_is_not_taken_for_that_of_its_accession_numbers_patient(
    tmp_path: Path, patients: tuple[str, str]
) -> None:
    studies = {
        f"s{i}": StudyIdentity(f"s{i}", frozenset({"A1"}), frozenset(filter(None, [patient])))
        for i, patient in enumerate(patients)
    }
    lines, _ = read_labels(table(tmp_path, "label,accession,patient_id\nCAP,A1,P1\n"))
    found, (finding,) = label_studies(lines, studies, {uid: f"c-{uid}" for uid in studies})
    assert (found, finding.code) == ({}, "IMPORT-LABEL-AMBIGUOUS")


def test_an_invisible_character_in_an_identifier_is_named(tmp_path: Path) -> None:
    _, (finding,) = read_labels(table(tmp_path, "label,patient_id\nCAP,P\u200b1\n"))
    assert (finding.code, finding.where) == ("IMPORT-LABEL-LINE", "labels.csv line 2, column patient_id")
    assert finding.message == "the cell holds the invisible character U+200B"


def test_an_empty_accession_finds_no_study(tmp_path: Path) -> None:
    found, codes = labels(tmp_path, "label,accession,patient_id\nCAP,,\n")
    assert (found, codes) == ({}, ["IMPORT-LABEL-LINE"])


def test_lines_that_name_no_study_are_one_warning(tmp_path: Path) -> None:
    lines, _ = read_labels(table(tmp_path, "label,patient_id\nCAP,P1\nCAP,P8\nCAP,P9\n"))
    _, (finding,) = label_studies(lines, STUDIES, CASE_IDS)
    assert (finding.code, finding.severity) == ("IMPORT-LABEL-UNUSED", "warning")
    assert finding.message.endswith("line 3, 4")


def test_a_bad_label_is_an_error_with_its_line_and_the_nearest_label(tmp_path: Path) -> None:
    _, (finding,) = read_labels(table(tmp_path, "label,patient_id\ncovid19,P1\n"))
    assert finding.code == "IMPORT-LABEL-LINE"
    assert finding.where == "labels.csv line 2, column label"
    assert "did you mean COVID-19?" in finding.message


@pytest.mark.parametrize(("name", "code", "text"), BAD_LABEL_TABLES)
def test_what_is_no_table_of_labels_is_refused(name: str, code: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(FindingError, match=code):
        read_labels(table(tmp_path, text))


def test_no_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(FindingError, match=r"IMPORT-LABELS.*there is no such file"):
        read_labels(tmp_path / "labels.csv")


def test_no_finding_quotes_an_identifier(tmp_path: Path) -> None:
    text = "label,patient_id\nCANARY,CANARY-1\nCAP,CANARY-2\nCAP,P2\nCOVID-19,P2\n"
    lines, of_lines = read_labels(table(tmp_path, text))
    _, of_studies = label_studies(lines, STUDIES, CASE_IDS)
    told = " ".join(str(finding) for finding in (*of_lines, *of_studies))
    assert "CANARY" not in told
    assert "P2" not in told
