from datetime import date
from pathlib import Path

import pytest
from table_factory import (
    BAD_LINES,
    BAD_SHAPES,
    BAD_TABLES,
    BAD_TWINS,
    GOOD,
    HEADER,
    BadLine,
    BadTable,
)

from client.cohort import COLUMNS, CohortCase, count_lines, read_cohort
from client.findings import Finding, FindingError
from dsan_model.cases import Label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hospital's folder with three scans, a mask for each of two, and a DICOM folder."""
    site = tmp_path / "site"
    (site / "ct").mkdir(parents=True)
    (site / "dicom").mkdir()
    for name in ("good", "a", "b", "a_lung", "a_infection", "b_lung"):
        (site / "ct" / f"{name}.nii.gz").write_bytes(b"x")
    (tmp_path / "outside.nii.gz").write_bytes(b"x")
    return site


def cohort(folder: Path, *lines: str, header: str = HEADER) -> Path:
    manifest = folder / "cohort.csv"
    manifest.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return manifest


def refusal(manifest: Path) -> Finding:
    with pytest.raises(FindingError) as caught:
        read_cohort(manifest)
    return caught.value.finding


def only_finding(folder: Path, line: str) -> Finding:
    """The finding on a bad second line, after a good first one that must go on."""
    cases, findings = read_cohort(cohort(folder, GOOD, line))
    assert [case.case_id for case in cases] == ["good"]
    assert len(findings) == 1, findings
    return findings[0]


# ---- what is right ----


def test_a_full_line_becomes_a_case_with_absolute_paths(folder: Path) -> None:
    line = "a,p1,COVID-19,ct/a.nii.gz,ct/a_lung.nii.gz,ct/a_infection.nii.gz,53.5,F,2020-02-03,uCT 780"
    cases, findings = read_cohort(cohort(folder, line))
    home = folder.resolve() / "ct"
    assert findings == ()
    assert cases == (
        CohortCase(
            "a",
            "p1",
            Label.COVID,
            home / "a.nii.gz",
            home / "a_lung.nii.gz",
            home / "a_infection.nii.gz",
            53.5,
            "F",
            date(2020, 2, 3),
            "uCT 780",
            line=2,
        ),
    )


def test_empty_optional_cells_are_none_and_an_image_may_be_a_folder(folder: Path) -> None:
    ((case,), findings) = read_cohort(cohort(folder, "a,p1,CAP,dicom,,,,,,"))
    assert findings == ()
    assert case.image == folder.resolve() / "dicom"
    optional = (case.lung_mask, case.infection_mask, case.age, case.sex, case.acquired_on, case.scanner)
    assert optional == (None,) * 6


def test_columns_may_come_in_any_order(folder: Path) -> None:
    header = ",".join(reversed(COLUMNS))
    ((case,), _) = read_cohort(cohort(folder, ",,M,40,,,ct/a.nii.gz,CAP,p1,a", header=header))
    assert (case.case_id, case.sex, case.age, case.label) == ("a", "M", 40.0, Label.CAP)


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_line_end_and_a_byte_order_mark_are_read(folder: Path, newline: str, encoding: str) -> None:
    text = newline.join(
        [HEADER, GOOD, "", "bad,p1,flu,ct/a.nii.gz,,,,,,", ",,,,,,,,,", "a,p2,CAP,ct/a.nii.gz,,,,,,"]
    )
    (folder / "cohort.csv").write_bytes(text.encode(encoding))
    cases, (finding,) = read_cohort(folder / "cohort.csv")
    assert [(case.case_id, case.line) for case in cases] == [("good", 2), ("a", 6)]
    assert finding.where == "cohort.csv line 4, column label"


def test_cells_may_be_quoted_and_padded(folder: Path) -> None:
    ((case,), _) = read_cohort(cohort(folder, ' a ,p1,CAP, ct/a.nii.gz ,,,,,,"uCT 780, room 3"'))
    assert (case.case_id, case.scanner) == ("a", "uCT 780, room 3")


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    (folder / "link.nii.gz").symlink_to(folder / "ct" / "a.nii.gz")
    ((case,), _) = read_cohort(cohort(folder, "a,p1,CAP,link.nii.gz,,,,,,"))
    assert case.image == folder.resolve() / "ct" / "a.nii.gz"


def test_lines_are_counted_whether_usable_or_not(folder: Path) -> None:
    assert count_lines(cohort(folder, GOOD, "", "bad,,flu,,,,,,,")) == 2


# ---- what is wrong with the table ----


@pytest.mark.parametrize("bad", BAD_TABLES, ids=lambda bad: bad.name)
def test_a_file_that_is_no_such_table_is_refused(folder: Path, bad: BadTable) -> None:
    (folder / "cohort.csv").write_bytes(bad.content)
    if bad.code == "COHORT-NO-CASE":
        _, (finding,) = read_cohort(folder / "cohort.csv")
    else:
        finding = refusal(folder / "cohort.csv")
    assert (finding.code, finding.severity) == (bad.code, "error")
    assert bad.says in finding.message


def test_an_encoding_error_and_an_open_quote_name_their_line(folder: Path) -> None:
    (folder / "cohort.csv").write_bytes(f"{HEADER}\n{GOOD}\nx,M\xfcller".encode("latin-1"))
    assert refusal(folder / "cohort.csv").where == "cohort.csv line 3"
    (folder / "cohort.csv").write_bytes(f'{HEADER}\n{GOOD}\na,"p1,CAP\n\n'.encode())
    assert refusal(folder / "cohort.csv").where == "cohort.csv line 3"


def test_a_missing_table_is_refused(folder: Path) -> None:
    finding = refusal(folder / "nowhere.csv")
    assert finding.code == "COHORT-FILE"
    assert "nowhere.csv" in finding.where


def test_all_faults_of_a_header_are_named_at_once(folder: Path) -> None:
    message = refusal(
        cohort(folder, header=HEADER.replace("label", "lable").replace("sex", "gender"))
    ).message
    assert all(part in message for part in ("label is missing", "sex is missing", "'lable'", "'gender'"))


# ---- what is wrong with a line ----


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda bad: bad.name)
def test_a_bad_cell_has_its_code_line_and_column_and_the_good_line_goes_on(
    folder: Path, bad: BadLine
) -> None:
    (folder / "out.nii.gz").symlink_to(folder.parent / "outside.nii.gz")
    (folder / "loop").symlink_to(folder / "loop")
    finding = only_finding(folder, bad.line)
    assert (finding.code, finding.severity) == (bad.code, "error")
    assert finding.where == f"cohort.csv line 3, column {bad.column}"
    assert bad.says in finding.message
    assert finding.fix


@pytest.mark.parametrize("bad", BAD_SHAPES, ids=lambda bad: bad.name)
def test_a_line_with_too_few_or_too_many_cells_is_left_out(folder: Path, bad: BadLine) -> None:
    finding = only_finding(folder, bad.line)
    assert finding.code == bad.code
    assert finding.where.startswith("cohort.csv line 3, column ")
    assert "the header has 10" in finding.message


@pytest.mark.parametrize("bad", BAD_TWINS, ids=lambda bad: bad.name)
def test_lines_that_contradict_each_other_are_left_out(folder: Path, bad: BadLine) -> None:
    assert only_finding(folder, bad.line).code == bad.code


def test_a_line_break_in_a_cell_does_not_shift_the_numbers_of_later_lines(folder: Path) -> None:
    _, findings = read_cohort(
        cohort(folder, GOOD, 'a,"p\n1",CAP,ct/a.nii.gz,,,,,,', "b,p1,flu,ct/b.nii.gz,,,,,,")
    )
    assert [finding.where for finding in findings] == [
        "cohort.csv line 3, column patient_id",
        "cohort.csv line 5, column label",
    ]


def test_every_fault_of_a_line_is_found_and_names_the_case(folder: Path) -> None:
    _, findings = read_cohort(cohort(folder, GOOD, "a,,flu,ct/none.nii.gz,,,200,x,then,"))
    columns = [finding.where.rpartition(" ")[2] for finding in findings]
    assert columns == ["patient_id", "label", "image", "age", "sex", "acquired_on"]
    assert {finding.case_id for finding in findings} == {"a"}


# ---- what is wrong between lines ----


def test_of_lines_with_one_case_id_none_is_used_and_both_are_named(folder: Path) -> None:
    lines = ("a,p1,CAP,ct/a.nii.gz,,,,,,", GOOD, "a,p2,COVID-19,ct/b.nii.gz,,,,,,")
    cases, (finding,) = read_cohort(cohort(folder, *lines))
    assert [case.case_id for case in cases] == ["good"]
    assert (finding.code, finding.case_id) == ("COHORT-CASE-TWICE", "a")
    assert "line 2, column case_id and line 4, column case_id" in finding.message


def test_of_lines_with_one_image_none_is_used(folder: Path) -> None:
    lines = ("a,p1,CAP,ct/a.nii.gz,,,,,,", "b,p2,CAP,ct/../ct/a.nii.gz,,,,,,", GOOD)
    cases, (finding,) = read_cohort(cohort(folder, *lines))
    assert [case.case_id for case in cases] == ["good"]
    assert finding.code == "COHORT-FILE-TWICE"
    assert "line 2, column image and line 3, column image name the same file 'a.nii.gz'" in finding.message


def test_of_lines_with_one_mask_none_is_used(folder: Path) -> None:
    mask = "ct/a_lung.nii.gz"
    lines = (f"a,p1,CAP,ct/a.nii.gz,{mask},,,,,", f"b,p2,CAP,ct/b.nii.gz,{mask},,,,,", GOOD)
    cases, (finding,) = read_cohort(cohort(folder, *lines))
    assert [case.case_id for case in cases] == ["good"]
    assert finding.code == "COHORT-FILE-TWICE"
    assert "line 2, column lung_mask and line 3, column lung_mask" in finding.message


def test_one_file_cannot_be_both_masks_of_a_case(folder: Path) -> None:
    finding = only_finding(folder, "a,p1,CAP,ct/a.nii.gz,ct/a_lung.nii.gz,ct/a_lung.nii.gz,,,,")
    assert finding.code == "COHORT-FILE-TWICE"
    assert "line 3, column lung_mask and line 3, column infection_mask" in finding.message


def test_a_patient_with_two_labels_is_a_warning_and_stays(folder: Path) -> None:
    lines = ("a,p1,CAP,ct/a.nii.gz,,,,,,", "b,p1,COVID-19,ct/b.nii.gz,,,,,,")
    cases, (finding,) = read_cohort(cohort(folder, *lines))
    assert len(cases) == 2
    assert (finding.code, finding.severity) == ("COHORT-TWO-LABELS", "warning")
    assert "line 2 CAP, line 3 COVID-19" in finding.message
