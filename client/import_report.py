"""The result of `import` as text: pseudonyms and numbers only, nothing that the export's owner would know."""

from client.finding_table import findings_text
from client.pacs_export import COHORT, REPORT, SITE, ImportRequest, ImportResult, count_by_label

CASES_SHOWN = 20


def import_text(result: ImportResult, request: ImportRequest) -> str:
    """What was chosen and why, the findings by code, and what to do next."""
    labels = ", ".join(f"{n} {label}" for label, n in count_by_label(result.cases).items())
    shown = [f"  {case.case_id}  {case.label:<8}  {case.reason}" for case in result.cases[:CASES_SHOWN]]
    if len(result.cases) > CASES_SHOWN:
        shown.append(f"  ... and {len(result.cases) - CASES_SHOWN} more: {request.out / REPORT}")
    how = f", their files {'copied' if result.copied else 'linked'}" if result.n_new else ""
    lines = [
        f"export    {result.n_images} images, {result.n_studies} studies, {result.n_labelled} labelled",
        f"cases     {len(result.cases)} ({labels}); {result.n_new} new{how}",
        *shown,
        f"written   {request.out / COHORT}, {request.out / SITE}; {request.out / REPORT} has every series",
        "",
        findings_text(result.findings),
        "",
        f"next: {_next(result, request)}",
    ]
    return "\n".join(lines)


def _next(result: ImportResult, request: ImportRequest) -> str:
    if not result.cases:
        return "heed the errors above and import again"
    site = request.out / SITE
    if result.segments_lungs:
        return f"dsan-client prepare --config {site}"
    return f"name the masks in {request.out / COHORT}, then dsan-client check --config {site}"
