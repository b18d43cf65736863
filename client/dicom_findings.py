"""Findings about the slices of a DICOM series: one for all the slices that are bad in the same way."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from client.dicom_header import SliceHeader
from client.findings import Finding

ALL_SLICES = "the series"

Headers = Sequence[SliceHeader]


def error(code: str, where: str, message: str, fix: str) -> Finding:
    """A finding that leaves the case out; who knows the case fills it in."""
    return Finding(code, "error", where, message, fix)


def warning(code: str, where: str, message: str, fix: str) -> Finding:
    """A finding that is shown while the case goes on; who knows the case fills it in."""
    return Finding(code, "warning", where, message, fix)


def has_error(findings: Sequence[Finding]) -> bool:
    """Whether one of the findings leaves the case out."""
    return any(finding.severity == "error" for finding in findings)


def some_files(bad: Headers, headers: Headers) -> str:
    """Where a finding is: "3 of 133 files, first IM0004.dcm"."""
    if len(headers) == 1:
        return f"file {bad[0].name}"
    return f"{len(bad)} of {len(headers)} files, first {min(header.name for header in bad)}"


def each_bad(
    headers: Headers, is_bad: Callable[[SliceHeader], bool], code: str, message: str, fix: str
) -> list[Finding]:
    """One error for all the slices that `is_bad` names."""
    bad = [header for header in headers if is_bad(header)]
    return [error(code, some_files(bad, headers), message, fix)] if bad else []


def mixed_values(
    headers: Headers, value: Callable[[SliceHeader], Hashable], code: str, what: str
) -> list[Finding]:
    """One error if `value`, called `what`, is not the same in all slices."""
    values = Counter(value(header) for header in headers)
    if len(values) == 1:
        return []
    counts = ", ".join(f"{each} in {count} files" for each, count in values.most_common(4))
    fix = "Keep the slices of one reconstruction only."
    return [error(code, ALL_SLICES, f"one series must have one {what}; found {counts}", fix)]
