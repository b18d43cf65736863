"""Which series of a study becomes its case: written rules, each with its reason (IV-A).

1. It passes the gate: one axial, contiguous CT in HU within the site's slice thickness.
2. An original before a derived one.
3. One whose BodyPartExamined names the chest before one without it, that before one of another part.
4. A complete one: at least nine tenths as long as the longest of those left, or as 300 mm: more is no chest.
5. One within the paper's 0.625 to 1.5 mm before a thicker one, a thinner before a thicker.
6. A lung kernel before an unknown one, that before a soft one.
7. The thinnest, then the one with most slices, then by its identifier, so that the choice never varies.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from client.dicom_identity import ScanFacts
from client.findings import Finding
from client.slice_thickness import PAPER_THICKNESS_MM

COMPLETE_SHARE, CHEST_MM = 0.9, 300.0
_CHEST = re.compile("CHEST|THORAX|LUNG|WHOLE|TORSO")
_SAME_THICKNESS_MM = 0.05

_LUNG = (
    r"[BD]r?[5-9]\dh?[fs]?\w?",  # Siemens B50f to B90s, Br59
    r"B[lv][5-9]\d\w?",  # Siemens Bl57, Bv60
    r"I[5-9]\d[fs]?\w*",  # Siemens iterative
    r"LUNG.*|BONE.*|EDGE.*|CHST|.*SHARP.*",  # GE, UIH
    r"(Y-?)?(SHARP|LUNG)|YC|YD|L|D",  # Philips
    r"FC(5[0-9]|8[0-9])",  # Canon, Toshiba
)
_SOFT = (
    r"[BD]r?[1-4]\d[fs]?\w?",
    r"I[1-4]\d[fs]?\w*",
    r"STANDARD|SOFT.*|STND|DETAIL|.*SMOOTH.*|B_SOFT.*|STD\+?",
    r"A|B|C|YA|YB|UA|UB|EB",
    r"FC([0-2]\d|1|2|3|4)",
)


class Kernel(IntEnum):
    """Kinds of reconstruction kernels, the preferred one first."""

    LUNG = 0
    UNKNOWN = 1
    SOFT = 2


class BodyPart(IntEnum):
    """What a series says that it shows, the preferred one first."""

    CHEST = 0
    UNKNOWN = 1
    OTHER = 2


@dataclass(frozen=True)
class SeriesAudit:
    """What the choice knows of a series; where the gate refuses it, geometry is what headers say, or 0."""

    number: int  # of those of its study, by identifier
    paths: tuple[Path, ...] = field(repr=False)  # from the feet up, if it passes the gate
    place: str = field(repr=False)  # folder of the first file in the export
    names: tuple[str, ...] = field(repr=False)  # of its files, as findings number them from 1
    n_slices: int
    findings: tuple[Finding, ...]
    is_original: bool
    thickness_mm: float  # the larger of slice thickness and distance
    length_mm: float  # from the first slice to the last
    facts: ScanFacts

    @property
    def passes_gate(self) -> bool:
        """Whether nothing is worse than a warning."""
        return all(finding.severity == "warning" for finding in self.findings)

    @property
    def kernel(self) -> Kernel:
        """What the name of its kernel says."""
        return kernel_kind(self.facts.kernel)

    @property
    def body_part(self) -> BodyPart:
        """What BodyPartExamined says."""
        name = self.facts.body_part
        if not name:
            return BodyPart.UNKNOWN
        return BodyPart.CHEST if _CHEST.search(name) else BodyPart.OTHER


@dataclass(frozen=True)
class SeriesChoice:
    """The series that was chosen, if any, and for every series of the study why it was or was not."""

    chosen: SeriesAudit | None
    reasons: dict[int, str]  # by number


def kernel_kind(name: str | None) -> Kernel:
    """Lung or soft, by the names that the manufacturers give."""
    if name and any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in _LUNG):
        return Kernel.LUNG
    if name and any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in _SOFT):
        return Kernel.SOFT
    return Kernel.UNKNOWN


def choose_series(audits: Sequence[SeriesAudit]) -> SeriesChoice:
    """Apply the rules to the series of one study, at least one."""
    reasons = {audit.number: _refusal(audit) for audit in audits if not audit.passes_gate}
    left = [audit for audit in audits if audit.passes_gate]
    for keep, reason in _RULES:
        kept = [audit for audit in left if keep(audit, left)]
        reasons |= {audit.number: reason(audit) for audit in left if audit not in kept}
        left = kept
    if not left:
        return SeriesChoice(None, reasons)
    chosen = min(left, key=lambda audit: (audit.thickness_mm, -audit.n_slices, audit.number))
    reasons |= {audit.number: f"as good as series {chosen.number}, which is taken" for audit in left}
    reasons[chosen.number] = f"chosen: {_description(chosen)}"
    return SeriesChoice(chosen, reasons)


def _refusal(audit: SeriesAudit) -> str:
    codes = dict.fromkeys(finding.code for finding in audit.findings if finding.severity == "error")
    return f"refused by the gate: {', '.join(codes)}"


def _is_original(audit: SeriesAudit, others: Sequence[SeriesAudit]) -> bool:
    return audit.is_original or not any(other.is_original for other in others)


def _is_complete(audit: SeriesAudit, others: Sequence[SeriesAudit]) -> bool:
    return audit.length_mm >= COMPLETE_SHARE * min(CHEST_MM, max(other.length_mm for other in others))


def _shows_the_chest(audit: SeriesAudit, others: Sequence[SeriesAudit]) -> bool:
    return audit.body_part == min(other.body_part for other in others)


def _is_thin_enough(audit: SeriesAudit, others: Sequence[SeriesAudit]) -> bool:
    thinnest_mm = min(other.thickness_mm for other in others)
    return audit.thickness_mm <= max(thinnest_mm, PAPER_THICKNESS_MM) + _SAME_THICKNESS_MM


def _has_best_kernel(audit: SeriesAudit, others: Sequence[SeriesAudit]) -> bool:
    return audit.kernel == min(other.kernel for other in others)


Rule = tuple[Callable[[SeriesAudit, Sequence[SeriesAudit]], bool], Callable[[SeriesAudit], str]]

_RULES: tuple[Rule, ...] = (
    (_is_original, lambda audit: "derived, and there is an original one"),
    (_shows_the_chest, lambda audit: f"body part {audit.facts.body_part}, and there is one of the chest"),
    (_is_complete, lambda audit: f"only {audit.length_mm:.0f} mm long, and there is a longer one"),
    (_is_thin_enough, lambda audit: f"slices of {audit.thickness_mm:g} mm, and there are thinner ones"),
    (_has_best_kernel, lambda audit: f"{audit.kernel.name.lower()} kernel, and there is a better one"),
)


def _description(audit: SeriesAudit) -> str:
    origin = "original" if audit.is_original else "derived"
    return (
        f"axial, {origin}, {audit.n_slices} slices of {audit.thickness_mm:.3g} mm "
        f"over {audit.length_mm:.0f} mm, {audit.kernel.name.lower()} kernel"
    )
