"""qc.html: every case of a preparation on one page, for the eye. It shows patients' scans and stays here.

Above the cases the cohort's part of Table I and of Fig. 1. One file without scripts or outside resources.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from jinja2 import Template
from markupsafe import Markup

from client.case_preparation import DISK_FULL
from client.case_sketch import CaseSketch, View, read_sketch
from client.finding_table import FindingGroup, group_findings
from client.findings import Finding, FindingError
from client.preparation import PreparationResult, PreparedEntry
from client.qc_figures import COLOUR, hu_histogram_svg, ratio_histogram_svg
from client.site import SiteConfig
from client.volume_store import StoredCase, is_disk_full, read_stored_case, write_atomically
from dsan_daemon.pages import page_environment
from dsan_model.cases import Label

PAGE = "qc.html"
TEMPLATE = "qc.html.jinja"


@dataclass(frozen=True)
class CaseRow:
    """A case of the page; one that was left out has no entry."""

    case_id: str
    findings: tuple[Finding, ...]
    entry: PreparedEntry | None = None
    stored: StoredCase | None = None
    sketch: CaseSketch | None = None

    @property
    def verdict(self) -> str:
        """What the preparation decided: "left out", "look" (used, with warnings) or "good"."""
        if self.entry is None:
            return "left out"
        return "look" if self.findings else "good"


@dataclass(frozen=True)
class DemographicsRow:
    """A row of Table I: patients by sex and age, counted once each; None where nothing is known."""

    name: str
    n_images: int
    n_patients: int
    age_median: float | None  # years
    age_range: tuple[float, float] | None
    n_female: int
    n_male: int


def write_qc_page(site: SiteConfig, result: PreparationResult) -> Path:
    """Write the page beside site.toml, whole or not at all; returns its path.

    Raises FindingError PREPARE-DISK-FULL if there is no room for it.
    """
    page = site.home / PAGE
    for left in site.home.glob(f".{PAGE}.*.tmp"):  # of a run that was killed
        left.unlink(missing_ok=True)
    try:
        write_atomically(page, qc_html(site, result).encode())
    except OSError as error:
        if not is_disk_full(error):
            raise
        message = f"{PAGE} cannot be written: {error.strerror}; all {len(result.entries)} cases are prepared"
        fix = "Free space there and run `dsan-client prepare` again: the prepared cases are found."
        raise FindingError(Finding(DISK_FULL, "error", str(page), message, fix)) from None
    return page


def qc_html(site: SiteConfig, result: PreparationResult) -> str:
    """The page as text. Everything from the cohort is escaped; only our own SVG is markup."""
    rows = case_rows(result)
    return _template().render(
        site=site,
        result=result,
        rows=rows,
        n_by_verdict={
            name: sum(row.verdict == name for row in rows) for name in ("left out", "look", "good")
        },
        groups=group_findings(result.findings),
        table1=demographics(result.entries),
        n_by_masks=Counter(str(entry.masks) for entry in result.entries),
        ratio_histogram=Markup(ratio_histogram_svg([entry.case for entry in result.entries])),
        colours=[(label, colour) for label, colour in COLOUR.items()],
    )


def case_rows(result: PreparationResult) -> tuple[CaseRow, ...]:
    """Those left out first, then those with warnings, then the others; each in the order of the table."""
    findings: dict[str, list[Finding]] = defaultdict(list)
    for finding in result.findings:
        if finding.case_id:
            findings[finding.case_id].append(finding)
    used = {entry.case.case_id: _used_row(entry, findings[entry.case.case_id]) for entry in result.entries}
    rows = [
        CaseRow(case_id, tuple(found), sketch=result.refused.get(case_id))
        for case_id, found in findings.items()
        if case_id not in used
    ]
    ordered = sorted((*rows, *used.values()), key=lambda row: ("left out", "look", "good").index(row.verdict))
    return tuple(ordered)


def demographics(entries: Sequence[PreparedEntry]) -> tuple[DemographicsRow, ...]:
    """Table I of this cohort: a row for each class and one for all."""
    rows = [(str(label), [entry for entry in entries if entry.case.label is label]) for label in Label]
    return tuple(_demographics(name, chosen) for name, chosen in (*rows, ("all", list(entries))))


def _used_row(entry: PreparedEntry, findings: Sequence[Finding]) -> CaseRow:
    stored, sketch = read_stored_case(entry.path), read_sketch(entry.path)
    return CaseRow(entry.case.case_id, tuple(findings), entry, stored, sketch)


def _demographics(name: str, entries: Sequence[PreparedEntry]) -> DemographicsRow:
    first_scan = {entry.case.patient_id: entry for entry in reversed(entries)}  # of each patient
    patients = list(first_scan.values())
    ages = [entry.age for entry in patients if entry.age is not None]
    return DemographicsRow(
        name,
        len(entries),
        len(patients),
        median(ages) if ages else None,
        (min(ages), max(ages)) if ages else None,
        sum(entry.sex == "F" for entry in patients),
        sum(entry.sex == "M" for entry in patients),
    )


def _picture(view: View) -> Markup:
    """A view with its contours over it; made of our own numbers and base64 only."""
    width, height = view.width_px, view.height_px
    return Markup(
        f'<svg class="view" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<image href="data:image/jpeg;base64,{view.jpeg}" width="{width}" height="{height}"/>'
        f'<path class="lung" d="{view.lung_path}"/><path class="infection" d="{view.infection_path}"/>'
        '<rect class="side" x="3" y="3" width="15" height="17"/><text x="6" y="16">R</text></svg>'
    )


def _about(group: FindingGroup) -> str:
    """Whom a group of findings is about: "3 cases", or "the table"."""
    return (
        f"{group.n_cases} case{'s' * (group.n_cases != 1)}" if group.n_cases else f"{group.count}x, no case"
    )


@cache
def _template() -> Template:
    environment = page_environment(Path(__file__).parent)
    environment.filters["picture"] = _picture
    environment.filters["hu_histogram"] = lambda shares: Markup(hu_histogram_svg(shares))
    environment.filters["about"] = _about
    return environment.get_template(TEMPLATE)
