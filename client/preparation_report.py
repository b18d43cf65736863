"""The result of `prepare` as text."""

from pathlib import Path

from client.finding_table import findings_text
from client.preparation import PreparationResult
from client.terminal import duration_text
from dsan_model.cases import Label, SizeGroup


def preparation_text(result: PreparationResult, page: Path, config: Path) -> str:
    """What came of the cohort, the findings by code, where to look, and what to do next."""
    cases = [entry.case for entry in result.entries]
    labels = ", ".join(f"{sum(case.label is label for case in cases)} {label}" for label in Label)
    groups = ", ".join(f"{sum(case.size_group is group for case in cases)} {group}" for group in SizeGroup)
    lines = [
        f"prepared  {len(cases)} of {result.n_listed} cases ({result.n_new} now, the others before) "
        f"in {duration_text(result.seconds)}",
        f"classes   {labels}; {groups}",
        f"left out  {result.n_left_out}",
        f"look at   {page}",
        "",
        findings_text(result.findings),
        "",
        f"next: {_next(result, page, config)}",
    ]
    return "\n".join(lines)


def _next(result: PreparationResult, page: Path, config: Path) -> str:
    start = f"dsan-client start --config {config}"
    if not result.entries:
        return f"correct the errors above, then dsan-client prepare --config {config}"
    if result.n_left_out:
        return f"look at {page}; correct the cases left out, or go on without them: {start}"
    return f"look at {page}, then {start}"
