"""The result of `prepare` as text and as JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.finding_table import findings_text, group_findings
from client.preparation import PreparationResult
from client.terminal import duration_text
from dsan_model.cases import Label, SizeGroup

PREPARATION_FORMAT = 1


def preparation_text(result: PreparationResult, page: Path, config: Path, *, has_centre: bool) -> str:
    """What came of the cohort, the findings by code, where to look, and what to do next.

    `has_centre`: the site knows its centre's address, so that the daemon can be started.
    """
    cases = [entry.case for entry in result.entries]
    labels = ", ".join(f"{sum(case.label is label for case in cases)} {label}" for label in Label)
    groups = ", ".join(f"{sum(case.size_group is group for case in cases)} {group}" for group in SizeGroup)
    lines = [
        f"prepared  {len(cases)} of {result.n_listed} cases ({result.n_new} now, the others before) "
        f"in {duration_text(result.seconds)}",
        f"classes   {labels}; {groups}",
        f"left out  {result.n_left_out}",
        *_unused(result),
        f"look at   {page}",
        "",
        findings_text(result.findings),
        "",
        f"next: {_next(result, page, config, has_centre)}",
    ]
    return "\n".join(lines)


def _unused(result: PreparationResult) -> list[str]:
    if not result.unused_bytes:
        return []
    size = f"{result.unused_bytes / 1e6:.1f} MB of volumes that belong to no case"
    does = "were deleted" if result.are_unused_removed else "are in the store: --remove-unused deletes them"
    return [f"unused    {size} {does}"]


def preparation_json(
    result: PreparationResult, site: str, page: Path | None, exit_code: int
) -> dict[str, Any]:
    """The same for programs; `exit_code` is that of the command."""
    return {
        "format_version": PREPARATION_FORMAT,
        "site": site,
        "exit_code": exit_code,
        "listed": result.n_listed,
        "new": result.n_new,
        "cases": [
            {
                "case_id": entry.case.case_id,
                "label": entry.case.label,
                "infection_ratio": entry.case.infection_ratio,
                "masks": asdict(entry.masks),
            }
            for entry in result.entries
        ],
        "unused_bytes": result.unused_bytes,
        "page": None if page is None else str(page),
        "findings": [asdict(finding) for finding in result.findings],
        "groups": [asdict(group) for group in group_findings(result.findings)],
        "seconds": round(result.seconds, 3),
    }


def segmentation_text(result: PreparationResult, config: Path) -> str:
    """The same of whole scans for training VB-Net."""
    train = f"dsan-client segment-train --config {config}, or a study whose task is segmentation"
    lines = [
        f"prepared  {len(result.entries)} of {result.n_listed} whole scans ({result.n_new} now) "
        f"in {duration_text(result.seconds)}",
        f"left out  {result.n_left_out}",
        "",
        findings_text(result.findings),
        "",
        f"next: {train if result.entries else 'correct the errors above'}",
    ]
    return "\n".join(lines)


def _next(result: PreparationResult, page: Path, config: Path, has_centre: bool) -> str:
    init = f"dsan-client init NAME --server HOST:PORT --dir {config.parent}"
    start = f"dsan-client start --config {config}" if has_centre else init
    if not result.entries:
        return f"correct the errors above, then dsan-client prepare --config {config}"
    if result.n_left_out:
        return f"look at {page}; correct the cases left out, or go on without them: {start}"
    return f"look at {page}, then {start}"
