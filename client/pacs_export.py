"""`dsan-client import`: a PACS export of any folder shape becomes a cohort under pseudonyms.

OUT/ gets images/<case_id>/IM0001.dcm ..., cohort.csv, site.toml, import-report.csv and pseudonym.key. Cases
that cohort.csv lists already stay as they are, with the masks that the hospital has named meanwhile, so that
the next export is added to the last. All of it stays at the hospital: the files themselves are untouched.
"""

import csv
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from client.cohort import COLUMNS
from client.cohort_table import read_lines
from client.dicom_identity import read_identity
from client.export_scan import Export, StudyAudit, StudyJob, audit_study, file_findings, scan_export
from client.file_lock import alone
from client.findings import Finding, FindingError
from client.label_list import LabelLine, label_studies, read_labels
from client.preparation import Progress
from client.pseudonyms import KEY_FILE, open_pseudonyms
from client.series_choice import SeriesAudit, SeriesChoice, choose_series
from client.site import SiteConfig, read_site
from client.volume_store import is_disk_full, write_atomically
from client.worker_pool import WorkerDied, parallel_map
from dsan_model.cases import Label

COHORT, SITE, REPORT, IMAGES = "cohort.csv", "site.toml", "import-report.csv", "images"
MANY_STUDIES = 3  # of one patient, for a warning if they are most of all
REPORT_COLUMNS = (
    *("case_id", "decision", "series", "slices", "thickness_mm", "length_mm", "kernel", "reason"),
    *("place", "findings"),
)

_SEGMENTATION = """
[segmentation]
lungs = "classical"
infection = "crude"  # an estimate that is as crude as it says: look at qc.html
"""

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class ImportRequest:
    """What to import; `name` and `segment` are for a site.toml that does not exist yet."""

    root: Path
    labels: Path
    out: Path
    name: str = "my-hospital"
    segment: bool = False  # let the site find masks by the built-in segmentation
    workers: int = 0  # 0: one for each core


@dataclass(frozen=True)
class ImportedCase:
    """A study that became a case, or that was one before."""

    case_id: str
    patient_id: str
    label: Label
    series: SeriesAudit
    reason: str
    is_new: bool


@dataclass(frozen=True)
class ImportResult:
    """What came of an export."""

    cases: tuple[ImportedCase, ...]
    n_images: int  # DICOM files of the export
    n_studies: int
    n_labelled: int
    findings: tuple[Finding, ...]
    copied: bool  # files were copied because they could not be linked
    segments_lungs: bool  # the site finds lungs itself

    @property
    def n_new(self) -> int:
        """Cases that cohort.csv did not list before."""
        return sum(case.is_new for case in self.cases)


def import_export(
    request: ImportRequest, scanning: Report | None = None, choosing: Report | None = None
) -> ImportResult:
    """Import every labelled study that has a usable series; the others become findings.

    `scanning` is told of files, `choosing` of studies. Raises FindingError if there is nothing to begin with:
    no export, no table of labels, a key that cannot be used, a cohort.csv that cannot be read.
    """
    lines, findings = read_labels(request.labels)
    site = _site(request)
    with alone_in(request.out):
        return _import(request, site, lines, findings, scanning, choosing)


def _import(
    request: ImportRequest,
    site: SiteConfig,
    lines: tuple[LabelLine, ...],
    findings: tuple[Finding, ...],
    scanning: Report | None,
    choosing: Report | None,
) -> ImportResult:
    workers = request.workers or os.cpu_count() or 1
    listed = listed_before(request.out)
    with writing(KEY_FILE):
        pseudonyms = open_pseudonyms(request.out, listed)
    export = scan_export(request.root, request.out, workers, scanning)
    studies = export.studies
    case_ids = {uid: pseudonyms.study(uid) for uid in studies}
    labels, of_labels = label_studies(lines, studies, case_ids)
    jobs = [
        StudyJob(case_ids[uid], request.root, tuple(export.series[uid].values()), _limit_mm(site))
        for uid in labels
    ]
    choices = _choices(jobs, workers, choosing)
    n_refused = sum(finding.case_id is not None for finding in of_labels)
    n_unlabelled = len(studies) - len(labels) - n_refused
    found = [*findings, *of_labels, *file_findings(export), *_unlabelled(n_unlabelled)]
    found += [_segmentation_kept()] if request.segment and not site.segments_lungs else []
    cases, is_copied = [], False
    for uid, label in labels.items():
        audit, choice = choices[case_ids[uid]]
        found += _study_findings(audit, choice)
        if choice.chosen is None:
            continue
        patient_id = pseudonyms.patient(next(iter(studies[uid].patient_ids), uid))
        is_new = audit.case_id not in listed
        copied, of_images = _take_images(request.out, audit.case_id, choice.chosen, is_new)
        is_copied |= copied
        found += of_images
        if not is_new and listed[audit.case_id] != label:
            found.append(_label_changed(audit.case_id, listed[audit.case_id], label))
        reason = choice.reasons[choice.chosen.number]
        cases.append(ImportedCase(audit.case_id, patient_id, label, choice.chosen, reason, is_new))
    _append_cohort(request.out, [case for case in cases if case.is_new])
    _write_report(request.out, choices.values(), export)
    found += _patient_findings(cases, sum(not studies[uid].patient_ids for uid in labels))
    found += [] if cases else [_no_case()]
    n_studies, n_labelled = len(studies), len(labels)
    return ImportResult(
        *(tuple(cases), export.n_images, n_studies, n_labelled, tuple(found), is_copied, site.segments_lungs)
    )


# ---- choosing ----


def _choices(
    jobs: Sequence[StudyJob], workers: int, progress: Report | None
) -> dict[str, tuple[StudyAudit, SeriesChoice]]:
    choices: dict[str, tuple[StudyAudit, SeriesChoice]] = {}
    for job, audit in parallel_map(audit_study, jobs, max(1, min(workers, len(jobs)))):
        if isinstance(audit, WorkerDied):
            audit = StudyAudit(job.case_id, ())
        choices[job.case_id] = audit, choose_series(audit.series)
        if progress is not None:
            progress(Progress(len(choices), len(jobs), 0.0, None))
    return choices


def _study_findings(audit: StudyAudit, choice: SeriesChoice) -> list[Finding]:
    """The warnings about the chosen series, or why there is none: the errors of the longest one."""
    if choice.chosen is not None:
        return [replace(finding, case_id=audit.case_id) for finding in choice.chosen.findings]
    if not audit.series:
        message = "the process died twice over the headers of its files"
        fix = "Leave the study out, and report the message with the kind of scanner."
        return [Finding("IMPORT-CRASHED", "error", "the study", message, fix, audit.case_id)]
    longest = max(audit.series, key=lambda series: series.n_slices)
    where = f"series {longest.number} of {len(audit.series)}"
    return [
        replace(finding, where=f"{where}, {finding.where}")
        for finding in longest.findings
        if finding.severity == "error"
    ]


def _unlabelled(n_studies: int) -> list[Finding]:
    if not n_studies:
        return []
    message = f"{n_studies} studies of the export have no label and were left out"
    fix = "Add lines for them to the table of labels if they belong to the cohort."
    return [Finding("IMPORT-NO-LABEL", "warning", "labels", message, fix)]


def _label_changed(case_id: str, before: str, label: Label) -> Finding:
    message = f"cohort.csv says {before}, the table of labels says {label}; the former is kept"
    fix = "Correct the one that is wrong."
    return Finding("IMPORT-LABEL-CHANGED", "warning", COHORT, message, fix, case_id)


def _images_changed(case_id: str, n_there: int, n_now: int) -> Finding:
    message = f"the case has {n_there} images, its series has {n_now} in this export; the former are kept"
    fix = f"Delete {IMAGES}/{case_id} and import again to take those of this export; its masks must fit them."
    return Finding("IMPORT-IMAGES-CHANGED", "warning", COHORT, message, fix, case_id)


def _series_changed(case_id: str) -> Finding:
    message = "its images are of another series than the one that is chosen now, or damaged; they are kept"
    fix = f"Delete {IMAGES}/{case_id} and import again to take the series of {REPORT}; its masks must fit it."
    return Finding("IMPORT-IMAGES-CHANGED", "warning", COHORT, message, fix, case_id)


def _patient_findings(cases: Sequence[ImportedCase], n_unnamed: int) -> list[Finding]:
    """Patients who may be one or several in truth, whose scans folds by patient would not keep together."""
    fix = f"Export with PatientID; or write in {COHORT} the same patient_id for the scans of one patient"
    found = []
    if n_unnamed:
        message = f"{n_unnamed} labelled studies name no patient: each counts as a patient of its own"
        found.append(Finding("IMPORT-NO-PATIENT", "warning", "PatientID", message, f"{fix}."))
    studies = Counter(case.patient_id for case in cases)
    most = max(studies.values(), default=0)
    if most >= MANY_STUDIES and 2 * most > len(cases):
        message = f"{most} of {len(cases)} studies have the same PatientID, as some anonymisers leave it"
        found.append(
            Finding("IMPORT-ONE-PATIENT", "warning", "PatientID", message, f"{fix}, and different ones else.")
        )
    labels = {(case.patient_id, case.label) for case in cases}
    n_both = sum(count > 1 for count in Counter(patient for patient, _ in labels).values())
    if n_both:
        message = f"{n_both} patients have studies of both labels"
        both_fix = "Make sure that each is one patient, and that both labels are meant."
        found.append(Finding("IMPORT-BOTH-LABELS", "warning", "PatientID", message, both_fix))
    return found


def _segmentation_kept() -> Finding:
    message = "the file was there and is kept as it is: it asks for given masks, whatever --segment says"
    fix = f"Set lungs and infection in [segmentation] of {SITE}."
    return Finding("IMPORT-SEGMENTATION-KEPT", "warning", SITE, message, fix)


def _no_case() -> Finding:
    message = "no study of the export has both a label and a usable series"
    fix = "Heed the findings above; the columns of the table of labels must hold the export's identifiers."
    return Finding("IMPORT-NO-CASE", "error", "the export", message, fix)


# ---- files ----


def _site(request: ImportRequest) -> SiteConfig:
    """The settings that are there, or new ones."""
    path = request.out / SITE
    if path.exists():
        return read_site(path)
    text = f'name = "{request.name}"\ncohort = "{COHORT}"\nstore = "store"\n'
    with writing("the site's folder"):
        request.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, (text + (_SEGMENTATION if request.segment else "")).encode())
    try:
        return read_site(path)
    except FindingError as error:  # a name that is none
        path.unlink()
        fix = "Give a name of letters, digits and hyphens."
        raise FindingError(replace(error.finding, where="option --name", fix=fix)) from None


def _limit_mm(site: SiteConfig) -> float:
    return site.audit.max_slice_thickness_mm


def listed_before(out: Path) -> dict[str, str]:
    """case_id and label of every line of the cohort.csv that is there."""
    manifest = out / COHORT
    if not manifest.exists():
        return {}
    header, lines = read_lines(manifest, COLUMNS)
    rows = [dict(zip(header, cells, strict=False)) for _, cells in lines]
    return {row["case_id"]: row.get("label", "") for row in rows if row.get("case_id")}


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """One import at a time, as two would each list their cases. Raises FindingError IMPORT-RUNNING."""
    message = "another `dsan-client import` is at work in this folder"
    running = Finding(
        "IMPORT-RUNNING", "error", "the folder given with --out", message, "Wait until it is done."
    )
    with ExitStack() as held:
        with writing("the lock of the folder"):
            held.enter_context(alone(out / ".import.lock", running))
        yield


def _images(out: Path, case_id: str) -> list[Path]:
    folder = out / IMAGES / case_id
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _take_images(
    out: Path, case_id: str, chosen: SeriesAudit, is_new: bool
) -> tuple[bool, tuple[Finding, ...]]:
    """Place the images of a case that has none; True if copied. What is there stays, and is compared."""
    there = _images(out, case_id)
    if is_new or not there:
        return _place_images(out, case_id, chosen), ()
    if len(there) != len(chosen.paths):
        return False, (_images_changed(case_id, len(there), len(chosen.paths)),)
    return False, () if _are_same_slices(there, chosen.paths) else (_series_changed(case_id),)


def _are_same_slices(there: Sequence[Path], now: Sequence[Path]) -> bool:
    """Whether the first and the last slice bear the same SOPInstanceUID; a series has its own."""
    try:
        ends = ((read_identity(there[i]), read_identity(now[i])) for i in (0, -1))
        return all(old.instance_uid == new.instance_uid for old, new in ends)
    except Exception:  # pydicom raises whatever a damaged file makes it stumble over
        return False


def _place_images(out: Path, case_id: str, series: SeriesAudit) -> bool:
    """Link the slices, from the feet up, under neutral names, whole or not at all; True if copied instead."""
    folder, partial = out / IMAGES / case_id, out / IMAGES / f".{case_id}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing("the images of a case"):
            partial.mkdir(parents=True)
            copied = [_link(path, partial / f"IM{i:04d}.dcm") for i, path in enumerate(series.paths, start=1)]
    except FindingError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)  # of an import that was killed before it listed the case
    partial.rename(folder)
    return any(copied)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """A failure to write becomes a finding. Raises FindingError OUTPUT-DISK-FULL or OUTPUT-FILES."""
    try:
        yield
    except OSError as error:
        code = "OUTPUT-DISK-FULL" if is_disk_full(error) else "OUTPUT-FILES"
        message = f"{what} cannot be written: {error.strerror}"
        fix = "Free space, or choose another folder with --out; cases finished before are found again."
        raise FindingError(Finding(code, "error", "the folder given with --out", message, fix)) from None


def _link(source: Path, target: Path) -> bool:
    """A hard link where both lie on one disk; True if the file had to be copied."""
    try:
        target.hardlink_to(source.resolve())
    except OSError as error:
        if is_disk_full(error):
            raise
        shutil.copyfile(source, target)
        return True
    return False


def _append_cohort(out: Path, cases: Iterable[ImportedCase]) -> None:
    manifest = out / COHORT
    header = list(COLUMNS)
    text = ""
    if manifest.exists():
        header, _ = read_lines(manifest, COLUMNS)
        text = manifest.read_text("utf-8-sig").rstrip("\r\n") + "\n"
    rows = io.StringIO()
    writer = csv.DictWriter(rows, header, lineterminator="\n")
    if not text:
        writer.writeheader()
    writer.writerows(_cohort_row(case) for case in cases)
    is_new = not manifest.exists()
    with writing(COHORT):
        write_atomically(manifest, (text + rows.getvalue()).encode())
        if is_new:
            manifest.chmod(0o600)


def _cohort_row(case: ImportedCase) -> dict[str, str]:
    facts = case.series.facts
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "label": case.label,
        "image": f"{IMAGES}/{case.case_id}",
        "age": "" if facts.age is None else f"{facts.age:g}",
        "sex": facts.sex or "",
        "acquired_on": facts.acquired_on.isoformat() if facts.acquired_on else "",
        "scanner": facts.scanner or "",
    }


def _write_report(out: Path, choices: Iterable[tuple[StudyAudit, SeriesChoice]], export: Export) -> None:
    """One line for each series and each other file; it names files of the export: it stays here."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(REPORT_COLUMNS)
    for audit, choice in choices:
        for series in audit.series:
            writer.writerow(_report_row(audit.case_id, series, choice))
    for path, kind in export.others:
        writer.writerow(["", "no image", "", "", "", "", "", kind, path.relative_to(export.root), ""])
    path = out / REPORT
    with writing(REPORT):
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text.getvalue(), encoding="utf-8", errors="replace")


def _report_row(case_id: str, series: SeriesAudit, choice: SeriesChoice) -> list[object]:
    is_chosen = choice.chosen is series
    decision = "chosen" if is_chosen else "not chosen" if series.passes_gate else "refused"
    findings = "; ".join(f"{finding.code} {finding.where}: {finding.message}" for finding in series.findings)
    findings = re.sub(r"\bnumber (\d+)\b", lambda match: series.names[int(match[1]) - 1], findings)
    length_mm = round(series.length_mm, 1)
    thickness_mm = series.thickness_mm or ""
    kernel = series.facts.kernel or ""
    geometry = [series.number, series.n_slices, thickness_mm, length_mm or "", kernel]
    return [case_id, decision, *geometry, choice.reasons[series.number], series.place, findings]


def count_by_label(cases: Iterable[ImportedCase]) -> dict[Label, int]:
    """Cases of each class."""
    counts = Counter(case.label for case in cases)
    return {label: counts[label] for label in Label}
