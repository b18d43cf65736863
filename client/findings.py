"""What is wrong with a hospital's data: a finding has a stable code, a place, a reason and a cure.

The codes are described, one paragraph each, in docs/reference/errors.md.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one case, file or setting.

    An error leaves the case out; a warning is shown and the case goes on. `where` and `message` stay at
    the hospital; only `code` may leave it.
    """

    code: str  # stable, upper case: "COHORT-LABEL"
    severity: Severity
    where: str  # "cohort.csv line 7, column label"
    message: str  # what was expected and what was found, with values
    fix: str  # what to do
    case_id: str | None = None

    def __str__(self) -> str:
        case = f"case {self.case_id}: " if self.case_id else ""
        return f"{self.severity} {self.code}: {case}{self.where}: {self.message}. {self.fix}"


class FindingError(Exception):
    """A finding that ends the work on its case (or on the whole file that it names)."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding
