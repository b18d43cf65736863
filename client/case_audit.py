"""What the headers say against a case, before anything is read whole; this is what a worker process does."""

from dataclasses import dataclass

from client.cohort import CohortCase
from client.findings import Finding, FindingError
from client.images import audit_ct, audit_mask
from client.masks import mask_source
from client.site import SiteConfig


@dataclass(frozen=True)
class CaseAudit:
    """What the headers say against one case."""

    case: CohortCase
    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        """Whether nothing is worse than a warning."""
        return all(finding.severity == "warning" for finding in self.findings)


def audit_case(case: CohortCase, site: SiteConfig) -> CaseAudit:
    """Everything that the headers of a case's files say against it, and a mask that is not to be had."""
    findings = [*audit_ct(case.image, case.case_id, site.audit.max_slice_thickness_mm)]
    for path, role in ((case.lung_mask, "lung mask"), (case.infection_mask, "infection mask")):
        if path is not None:
            findings += audit_mask(path, case.case_id, role)
    return CaseAudit(case, (*findings, *_missing_masks(case, site)))


def _missing_masks(case: CohortCase, site: SiteConfig) -> tuple[Finding, ...]:
    try:
        mask_source(case, site.segmentation)
    except FindingError as error:
        return (error.finding,)
    return ()
