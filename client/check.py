"""`dsan-client check`: is this site fit to take part? Machine, settings, cohort, golden case.

Of scans and masks only headers are read, so that a cohort is judged in minutes; `prepare` reads the pixels.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from client.case_audit import CaseAudit, audit_case
from client.cohort import CohortCase, count_lines, read_cohort
from client.findings import Finding, FindingError
from client.golden_case import golden_findings
from client.join import connection_findings
from client.lungmask_segmenter import check_weights
from client.machine_audit import Machine, machine_findings, read_machine
from client.masks import LUNGMASK, mask_source
from client.preparation import Progress
from client.site import SegmentationTable, SiteConfig
from client.worker_pool import WorkerDied, parallel_map
from dsan_model.cases import Label


@dataclass(frozen=True)
class SiteCheck:
    """What `check` found; `n_usable` are the lines of the table without an error."""

    site: SiteConfig
    machine: Machine
    n_listed: int
    n_usable: int
    n_by_label: dict[Label, int]  # of the usable ones
    n_patients: int  # of the usable ones
    n_by_masks: dict[str, int]  # of the usable ones, by what makes their masks
    findings: tuple[Finding, ...]
    seconds: float


def check_site(site: SiteConfig, progress: Callable[[Progress], None] | None = None) -> SiteCheck:
    """Audit the computer, every line of the cohort and the golden case; nothing is written.

    `progress` is called after each case. A table that cannot be read is a finding as any other.
    """
    started = time.monotonic()
    machine = read_machine(site)
    cases, n_listed, of_table = _listed(site)
    audits = _audit_cases(site, cases, machine.workers, progress)
    usable = [audit.case for audit in audits if audit.is_usable]
    findings = (
        *machine_findings(machine, site, n_listed),
        *golden_findings(torch.device(machine.device)),
        *connection_findings(site),
        *_weights_findings(site.segmentation),
        *of_table,
        *(finding for audit in audits for finding in audit.findings),
    )
    return SiteCheck(
        site,
        machine,
        n_listed,
        len(usable),
        {label: sum(case.label is label for case in usable) for label in Label},
        len({case.patient_id for case in usable}),
        Counter(str(mask_source(case, site.segmentation).names) for case in usable),
        findings,
        time.monotonic() - started,
    )


def _listed(site: SiteConfig) -> tuple[tuple[CohortCase, ...], int, tuple[Finding, ...]]:
    try:
        cases, findings = read_cohort(site.manifest)
        return cases, count_lines(site.manifest), findings
    except FindingError as error:
        return (), 0, (error.finding,)


def _weights_findings(chosen: SegmentationTable) -> tuple[Finding, ...]:
    """Weights of lungmask that are no such network; those of VB-Net are opened for every case."""
    if chosen.lungs != LUNGMASK:
        return ()
    try:
        check_weights(Path(chosen.lungmask_weights))
    except FindingError as error:
        return (error.finding,)
    return ()


def _audit_cases(
    site: SiteConfig,
    cases: tuple[CohortCase, ...],
    workers: int,
    progress: Callable[[Progress], None] | None,
) -> list[CaseAudit]:
    """In the order of the table."""
    started = time.monotonic()
    audits: dict[str, CaseAudit] = {}
    if not cases:
        return []
    for case, audit in parallel_map(partial(audit_case, site=site), cases, min(workers, len(cases))):
        audits[case.case_id] = CaseAudit(case, (_crashed(case),)) if isinstance(audit, WorkerDied) else audit
        if progress is not None:
            seconds, done = time.monotonic() - started, len(audits)
            progress(Progress(done, len(cases), seconds, seconds / done * (len(cases) - done)))
    return [audits[case.case_id] for case in cases]


def _crashed(case: CohortCase) -> Finding:
    message = "the process died twice over its headers"
    fix = "Leave the case out, and report the message with the kind of file."
    return Finding("CHECK-CRASHED", "error", f"cohort.csv line {case.line}", message, fix, case.case_id)
