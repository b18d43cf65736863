import pytest

from client.finding_table import exit_code, findings_text, group_findings
from client.findings import Finding, Severity


def finding(code: str, severity: Severity = "error", case_id: str | None = None) -> Finding:
    return Finding(code, severity, f"where {case_id}", f"why {case_id}", "cure", case_id)


def test_errors_come_first_then_the_most_frequent_code() -> None:
    found = [
        finding("A", "warning", "c1"),
        finding("B", case_id="c2"),
        finding("C", case_id="c3"),
        finding("C", case_id="c4"),
    ]
    assert [(group.code, group.count) for group in group_findings(found)] == [("C", 2), ("B", 1), ("A", 1)]


def test_a_group_shows_the_first_five_cases_and_the_first_message() -> None:
    text = findings_text([finding("A", case_id=f"c{i}") for i in range(7)])
    assert text == (
        "error   A  (7x, cases c0, c1, c2, c3, c4, ...)\n        where c0: why c0\n        fix: cure"
    )


def test_one_code_as_error_and_as_warning_are_two_groups() -> None:
    found = [finding("A", "warning", "c1"), finding("A", "error", "c2")]
    assert [group.severity for group in group_findings(found)] == ["error", "warning"]


def test_a_case_with_one_finding_twice_counts_once() -> None:
    (group,) = group_findings([finding("A", case_id="c1"), finding("A", case_id="c1"), finding("A")])
    assert (group.count, group.n_cases) == (3, 1)


def test_no_findings_is_said() -> None:
    assert findings_text([]) == "no findings"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], 0),
        (["DICOM-GAP"], 65),
        (["COHORT-FILE"], 65),
        (["PREPARE-DISK-FULL", "DICOM-GAP"], 70),
        (["GOLDEN-MISMATCH"], 70),
        (["SITE-KEY", "PREPARE-STORE", "DICOM-GAP"], 78),
    ],
)
def test_the_gravest_error_decides_the_exit_code(codes: list[str], expected: int) -> None:
    assert exit_code([finding(code) for code in codes]) == expected


def test_warnings_do_not_change_the_exit_code() -> None:
    assert exit_code([finding("SITE-KEY", "warning"), finding("DICOM-GAP", "warning")]) == 0
