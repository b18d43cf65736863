"""The result of `check` as text and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.check import SiteCheck
from client.finding_table import EXIT_OK, exit_code, findings_text, group_findings
from client.findings import Finding
from client.terminal import duration_text

CHECK_FORMAT = 1


def check_text(check: SiteCheck, config: Path) -> str:
    """A table of what was looked at, the findings by code, and what to do next."""
    machine = check.machine
    labels = ", ".join(f"{n} {label}" for label, n in check.n_by_label.items())
    is_golden = not any(finding.code == "GOLDEN-MISMATCH" for finding in check.findings)
    lines = [
        f"site      {check.site.name}: {config}",
        f"machine   {machine.cores} cores, {machine.workers} workers, {machine.memory_bytes / 1e9:.1f} GB",
        f"          {machine.disk_free_bytes / 1e9:.1f} GB free on disk, {machine.gpu or 'no GPU'}",
        f"golden    {'as expected' if is_golden else 'WRONG'} on {machine.device}",
        f"cohort    {check.n_usable} of {check.n_listed} cases usable by their headers "
        f"({labels}; {check.n_patients} patients), looked at in {duration_text(check.seconds)}",
        f"masks     {masks_text(check.n_by_masks)}",
        "",
        findings_text(check.findings),
        "",
        f"next: {next_step(check, config)}",
    ]
    return "\n".join(lines)


def check_json(check: SiteCheck) -> dict[str, Any]:
    """The same for programs; `exit_code` is that of the command."""
    return {
        "format_version": CHECK_FORMAT,
        "site": check.site.name,
        "exit_code": exit_code(check.findings),
        "machine": asdict(check.machine),
        "cohort": {
            "listed": check.n_listed,
            "usable": check.n_usable,
            "patients": check.n_patients,
            **{label.value: n for label, n in check.n_by_label.items()},
            "masks": check.n_by_masks,
        },
        "findings": [asdict(finding) for finding in check.findings],
        "groups": [asdict(group) for group in group_findings(check.findings)],
        "seconds": round(check.seconds, 3),
    }


def masks_text(n_by_masks: Mapping[str, int]) -> str:
    """What makes the masks of how many cases; those of different segmenters do not compare."""
    counts = "; ".join(f"{n} {masks}" for masks, n in sorted(n_by_masks.items()))
    several = " (ratios of different segmenters do not compare)" if len(n_by_masks) > 1 else ""
    return f"{counts or 'none'}{several}"


def next_step(check: SiteCheck, config: Path) -> str:
    """What the user does now."""
    prepare = f"dsan-client prepare --config {config}"
    code = exit_code(check.findings)
    if code == EXIT_OK:
        return prepare
    if check.n_usable == 0 or any(
        finding.code.startswith(("GOLDEN", "MACHINE")) for finding in _errors(check)
    ):
        return f"heed the errors above, then dsan-client check --config {config}"
    n_bad = check.n_listed - check.n_usable
    return f"{prepare} (leaves {n_bad} cases out), or correct them first"


def _errors(check: SiteCheck) -> list[Finding]:
    return [finding for finding in check.findings if finding.severity == "error"]
