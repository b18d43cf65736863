"""Findings as a person reads them: grouped by code, errors first, with the first cases and the cure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from client.findings import Finding, Severity

CASES_SHOWN, PLACES_SHOWN = 5, 30
LONGEST_MESSAGE = 400

EXIT_OK, EXIT_BAD_DATA, EXIT_FAILED, EXIT_BAD_CONFIGURATION = 0, 65, 70, 78
EXIT_UNREACHABLE, EXIT_REFUSED = 69, 77

_EXIT_OF = {  # by a code, or the first part of one; every other error is about data
    "PACS-UNREACHABLE": EXIT_UNREACHABLE,
    "PACS-TIMEOUT": EXIT_UNREACHABLE,
    "PACS-REJECTED": EXIT_REFUSED,
    "PACS-REFUSED": EXIT_REFUSED,
    "PACS-LOGIN": EXIT_REFUSED,
    "PACS-AE-UNKNOWN": EXIT_REFUSED,
    "PACS-ADDRESS": EXIT_BAD_CONFIGURATION,
    "PACS-PORT": EXIT_BAD_CONFIGURATION,
    "PACS-EXTRA": EXIT_BAD_CONFIGURATION,
    "SITE": EXIT_BAD_CONFIGURATION,
    "PREPARE": EXIT_FAILED,
    "GOLDEN": EXIT_FAILED,
    "MACHINE": EXIT_BAD_CONFIGURATION,
    "OUTPUT": EXIT_FAILED,
    "VBNET": EXIT_BAD_CONFIGURATION,
    "KEYS": EXIT_BAD_CONFIGURATION,
    "KIT": EXIT_BAD_CONFIGURATION,
    "CONNECT": EXIT_UNREACHABLE,
    "ADMIT": EXIT_REFUSED,
    "DAEMON": EXIT_FAILED,
    "DAEMON-RUNNING": EXIT_REFUSED,
}
_BY_RANK = (*(EXIT_OK, EXIT_BAD_DATA, EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_FAILED, EXIT_BAD_CONFIGURATION),)


@dataclass(frozen=True)
class FindingGroup:
    """All findings of one code and severity; place, message and cure are those of the first."""

    code: str
    severity: Severity
    count: int
    n_cases: int
    first_cases: tuple[str, ...]
    where: str
    message: str
    fix: str
    also: tuple[str, ...]  # where else, if none of them is about a case


def group_findings(findings: Iterable[Finding]) -> tuple[FindingGroup, ...]:
    """Errors before warnings, then the most frequent code first."""
    by_code: dict[tuple[Severity, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_code[finding.severity, finding.code].append(finding)
    ordered = sorted(by_code.values(), key=lambda same: (same[0].severity, -len(same), same[0].code))
    return tuple(_group(same) for same in ordered)


def findings_text(findings: Iterable[Finding]) -> str:
    """The groups as text of three lines each; "no findings" if there are none."""
    groups = group_findings(findings)
    return "\n".join(_group_text(group) for group in groups) if groups else "no findings"


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without errors; else the gravest: 65 bad data, 69 unreachable, 77 refused, 70 failed, 78 settings."""
    codes = [
        _EXIT_OF.get(finding.code) or _EXIT_OF.get(finding.code.partition("-")[0], EXIT_BAD_DATA)
        for finding in findings
        if finding.severity == "error"
    ]
    return max(codes, key=_BY_RANK.index, default=EXIT_OK)


def _group(same: list[Finding]) -> FindingGroup:
    first = same[0]
    cases = tuple(dict.fromkeys(finding.case_id for finding in same if finding.case_id))
    return FindingGroup(
        first.code,
        first.severity,
        len(same),
        len(cases),
        cases[:CASES_SHOWN],
        first.where,
        first.message,
        first.fix,
        () if cases else tuple(dict.fromkeys(f.where for f in same if f.where != first.where)),
    )


def _group_text(group: FindingGroup) -> str:
    cases = ", ".join(group.first_cases) + (", ..." if group.n_cases > len(group.first_cases) else "")
    of_cases = f"{group.count}x" + (f", cases {cases}" if cases else "")
    message = (
        group.message if len(group.message) <= LONGEST_MESSAGE else group.message[:LONGEST_MESSAGE] + "..."
    )
    places = [f"\n        also: {'; '.join(group.also[:PLACES_SHOWN])}"] if group.also else []
    if len(group.also) > PLACES_SHOWN:
        places.append("; ...")
    return (
        f"{group.severity:<8}{group.code}  ({of_cases})\n"
        f"        {group.where}: {message}{''.join(places)}\n"
        f"        fix: {group.fix}"
    )
