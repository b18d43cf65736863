"""A PACS export of any folder shape, read: which files belong together, and what each series is worth.

Every file is looked at once for whom it belongs to, then those of labelled studies for their geometry. No
pixel is read. What is shown of it names no file, folder, patient or study of the export.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path

from client.dicom_audit import audit_series
from client.dicom_findings import has_error
from client.dicom_folder import REASONS, FileKind, file_kind
from client.dicom_geometry import stack_slices
from client.dicom_header import SliceHeader, read_header
from client.dicom_identity import FileIdentity, ScanFacts, read_identity, read_scan_facts
from client.findings import Finding, FindingError
from client.label_list import StudyIdentity
from client.preparation import Progress
from client.series_choice import SeriesAudit
from client.worker_pool import WorkerDied, parallel_map

FILES_PER_JOB = 200
PACKED = (*(".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".bz2", ".xz", ".iso"),)
NO_IDENTITY = "no identity"  # beside the kinds of files: DICOM, but of no study or series
CLOSED = "folder that cannot be listed"


@dataclass(frozen=True)
class FileGroup:
    """What some files of the export are: DICOM images, or why not."""

    identities: tuple[FileIdentity, ...]
    others: tuple[tuple[Path, str], ...]  # path, kind


@dataclass(frozen=True)
class Export:
    """All files of an export."""

    root: Path
    series: dict[str, dict[str, tuple[FileIdentity, ...]]]  # by study and series identifier
    others: tuple[tuple[Path, str], ...]  # files that are no images, and closed folders: path, kind

    @property
    def studies(self) -> dict[str, StudyIdentity]:
        """What each study is called in the hospital."""
        files_of = {uid: [*chain.from_iterable(series.values())] for uid, series in self.series.items()}
        return {
            uid: StudyIdentity(
                uid,
                frozenset(file.accession for file in files if file.accession),
                frozenset(file.patient_id for file in files if file.patient_id),
            )
            for uid, files in files_of.items()
        }

    @property
    def n_images(self) -> int:
        """DICOM files with a study and a series."""
        return sum(len(files) for by_series in self.series.values() for files in by_series.values())


@dataclass(frozen=True)
class StudyJob:
    """A study to judge; `case_id` is its pseudonym."""

    case_id: str
    root: Path
    series: tuple[tuple[FileIdentity, ...], ...]
    max_slice_thickness_mm: float


@dataclass(frozen=True)
class StudyAudit:
    """What the series of a study are worth."""

    case_id: str
    series: tuple[SeriesAudit, ...]


def scan_export(
    root: Path, leaving_out: Path, workers: int, progress: Callable[[Progress], None] | None = None
) -> Export:
    """Group every file below `root`, but for those below `leaving_out`, by study and series.

    Hidden files and DICOMDIR are passed over; a folder that cannot be listed is among the others. Raises
    FindingError IMPORT-ROOT if there is no such folder.
    """
    if not root.is_dir():
        fix = "Give the folder that the PACS wrote its export to; unpack an archive first."
        message = "it is a file, not a folder" if root.exists() else "there is no such folder"
        raise FindingError(Finding("IMPORT-ROOT", "error", "SOURCE", message, fix))
    closed: list[tuple[Path, str]] = []
    paths = sorted(_files(root, leaving_out, lambda error: closed.append((Path(error.filename), CLOSED))))
    jobs = [tuple(paths[i : i + FILES_PER_JOB]) for i in range(0, len(paths), FILES_PER_JOB)]
    series: dict[str, dict[str, list[FileIdentity]]] = defaultdict(lambda: defaultdict(list))
    others = closed
    n_done = 0
    for job, found in parallel_map(identify_files, jobs, max(1, min(workers, len(jobs)))):
        n_done += len(job)
        if isinstance(found, WorkerDied):
            others += [(path, FileKind.UNREADABLE) for path in job]
            continue
        others += found.others
        for file in found.identities:
            series[file.study_uid][file.series_uid].append(file)
        if progress is not None:
            progress(Progress(n_done, len(paths), 0.0, None))
    ordered = {
        study: {uid: tuple(sorted(files, key=lambda f: f.path)) for uid, files in sorted(by_series.items())}
        for study, by_series in sorted(series.items())
    }
    return Export(root, ordered, tuple(sorted(others)))


def identify_files(paths: tuple[Path, ...]) -> FileGroup:
    """What each of these files is, and whom it belongs to."""
    identities, others = [], []
    for path in paths:
        kind: str = file_kind(path)
        if kind == FileKind.SLICE:
            try:
                identity = read_identity(path)
            except Exception:  # pydicom raises whatever a damaged file makes it stumble over
                kind = FileKind.UNREADABLE
            else:
                if identity.study_uid and identity.series_uid:
                    identities.append(identity)
                    continue
                kind = NO_IDENTITY
        others.append((path, kind))
    return FileGroup(tuple(identities), tuple(others))


def file_findings(export: Export) -> tuple[Finding, ...]:
    """What may be lost slices: warnings, an error for folders; what merely lies beside slices is none."""
    counts = Counter(kind for _, kind in export.others if kind != FileKind.BESIDE)
    suffixes = Counter(path.suffix.lower() for path, kind in export.others if kind == FileKind.BESIDE)
    packed = {suffix: count for suffix, count in suffixes.items() if suffix in PACKED}
    return (*_closed(counts.pop(CLOSED, 0)), *_packed(packed), *_lost(counts))


def _closed(n_folders: int) -> tuple[Finding, ...]:
    if not n_folders:
        return ()
    message = f"{n_folders} folders cannot be listed: what is in them is missing, perhaps slices of a case"
    fix = "Give yourself the right to read them (import-report.csv names them), and import again."
    return (Finding("IMPORT-FOLDER", "error", "folders of the export", message, fix),)


def _packed(counts: Mapping[str, int]) -> tuple[Finding, ...]:
    if not counts:
        return ()
    told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    message = f"archives and packed files are not looked into: {told}"
    fix = "Unpack them, and import again; scans as .nii.gz belong into a cohort.csv of your own."
    return (Finding("IMPORT-PACKED", "warning", "files of the export", message, fix),)


def _lost(counts: Mapping[str, int]) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            "IMPORT-NO-IDENTITY" if kind == NO_IDENTITY else kind,
            "warning",
            f"{count} files of the export",
            *_REASONS[kind],
        )
        for kind, count in counts.items()
    )


def audit_study(job: StudyJob) -> StudyAudit:
    """Judge every series of a study by its headers."""
    numbered = enumerate(job.series, start=1)
    audits = [_audit_series(number, files, job) for number, files in numbered]
    return StudyAudit(job.case_id, tuple(audits))


_REASONS: dict[str, tuple[str, str]] = {
    **{str(kind): reason for kind, reason in REASONS.items()},
    NO_IDENTITY: (
        "without StudyInstanceUID or SeriesInstanceUID: to no study",
        "Export them again; an anonymiser may have stripped these tags.",
    ),
}


def _files(root: Path, leaving_out: Path, refused: Callable[[OSError], None]) -> Iterator[Path]:
    """Every file below a folder, through symbolic links too; each folder once, and none above `root`."""
    seen = {leaving_out.resolve(), root.resolve(), *root.resolve().parents}
    for folder, folders, names in os.walk(root, onerror=refused, followlinks=True):
        inner = {
            (Path(folder) / name).resolve(): name for name in sorted(folders) if not name.startswith(".")
        }
        folders[:] = [name for place, name in inner.items() if place not in seen]
        seen.update(inner)
        yield from (
            Path(folder) / name for name in names if not name.startswith(".") and name.upper() != "DICOMDIR"
        )


def _audit_series(number: int, files: tuple[FileIdentity, ...], job: StudyJob) -> SeriesAudit:
    kept, n_copies = _without_copies(files)
    headers, findings = _headers(kept)
    findings += audit_series(headers, job.max_slice_thickness_mm) if headers else ()
    if n_copies:
        findings.append(_copies(n_copies))
    of_case = tuple(replace(finding, case_id=job.case_id) for finding in findings)
    place = str(files[0].path.parent.relative_to(job.root))
    facts = _facts(files[0].path)
    original = bool(headers) and "ORIGINAL" in headers[0].image_type
    names = tuple(file.path.name for file in kept)
    slice_mm = max((header.thickness_mm or 0.0 for header in headers), default=0.0)
    if not headers or has_error(findings):
        return SeriesAudit(number, (), place, names, len(kept), of_case, original, slice_mm, 0.0, facts)
    stack = stack_slices(headers)
    thickness_mm = max(stack.spacing_mm, slice_mm)
    length_mm = float(stack.distances_mm[-1] - stack.distances_mm[0])
    by_name = {_neutral(i): file.path for i, file in enumerate(kept)}
    paths = tuple(by_name[header.name] for header in stack.headers)
    thickness_mm = round(thickness_mm, 3)
    return SeriesAudit(
        number, paths, place, names, len(headers), of_case, original, thickness_mm, length_mm, facts
    )


def _neutral(index: int) -> str:
    """What findings call a file of the export, whose own name may be a patient's."""
    return f"number {index + 1}"


def _headers(files: Iterable[FileIdentity]) -> tuple[list[SliceHeader], list[Finding]]:
    headers, findings = [], []
    for index, file in enumerate(files):
        try:
            headers.append(replace(read_header(file.path), path=Path(_neutral(index))))
        except FindingError as error:
            findings.append(replace(error.finding, where=f"file {_neutral(index)}"))
    return headers, findings


def _facts(path: Path) -> ScanFacts:
    try:
        return read_scan_facts(path)
    except Exception:  # as in identify_files; without them the columns stay empty
        return ScanFacts(None, None, None, None, None)


def _without_copies(files: tuple[FileIdentity, ...]) -> tuple[list[FileIdentity], int]:
    """The files less those that are, byte for byte, another of the same slice: an export made twice."""
    kept: list[FileIdentity] = []
    by_slice = sorted(files, key=lambda file: (file.instance_uid, file.path))
    for uid, same in groupby(by_slice, key=lambda file: file.instance_uid):
        group = list(same)
        if len(group) == 1 or not uid:
            kept += group
        else:
            kept += {_content(file.path): file for file in reversed(group)}.values()
    return sorted(kept, key=lambda file: file.path), len(files) - len(kept)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copies(n_copies: int) -> Finding:
    message = f"{n_copies} files are byte for byte copies of others of the series and were passed over"
    return Finding("IMPORT-COPIES", "warning", "the series", message, "None is needed.")
