"""The one scan of what `diagnose` is given: a folder of slices, a file, a study's folder, or one slice.

A folder that passes the gate is one series. If it does not, and more lies in it or below it, one series is
chosen by the rules of `import` (client/series_choice.py). One slice stands for its series in its folder.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import SimpleITK as sitk

from client.dicom_findings import error
from client.dicom_folder import FileKind, file_kind
from client.export_scan import Export, StudyJob, audit_study, file_findings, identify_files, scan_export
from client.findings import Finding, FindingError
from client.image_files import ImageFile
from client.images import read_ct
from client.series_choice import SeriesAudit, choose_series


@dataclass(frozen=True)
class SeriesVerdict:
    """A series that was looked at, and why it was taken or not."""

    number: int
    place: str  # below the input
    n_slices: int
    is_taken: bool
    reason: str

    def __str__(self) -> str:
        taken = "taken" if self.is_taken else "not taken"
        return f"series {self.number} ({self.place}, {self.n_slices} slices) {taken}: {self.reason}"


@dataclass(frozen=True)
class OpenedScan:
    """A scan in HU with the gate's warnings; `series` is empty where nothing had to be chosen."""

    ct: sitk.Image
    findings: tuple[Finding, ...]
    series: tuple[SeriesVerdict, ...] = ()


def open_scan(image: Path, max_slice_thickness_mm: float) -> OpenedScan:
    """Find the scan and read it. Raises FindingError with a code of the gate, or DICOM-STUDIES."""
    if _is_slice(image):
        return _series_of(image, max_slice_thickness_mm)
    try:
        return OpenedScan(*read_ct(image, None, max_slice_thickness_mm))
    except FindingError as refusal:
        if not image.is_dir():
            raise
        return _chosen_below(image, max_slice_thickness_mm, refusal)


def _is_slice(path: Path) -> bool:
    """Whether a file is DICOM, whatever it is called; a file of another format is called by that."""
    return path.is_file() and not ImageFile(path, "scan", None).suffix and file_kind(path) is FileKind.SLICE


def _series_of(slice_file: Path, max_slice_thickness_mm: float) -> OpenedScan:
    """The series that a slice belongs to, of the files of its folder."""
    beside = sorted(path for path in slice_file.parent.iterdir() if not path.name.startswith("."))
    identities = identify_files(tuple(beside)).identities
    uids = [file.series_uid for file in identities if file.path == slice_file]
    paths = [file.path for file in identities if file.series_uid in uids] or [slice_file]
    ct, findings = _read_files(paths, max_slice_thickness_mm)
    reason = "the file that was given belongs to it"
    return OpenedScan(ct, findings, (SeriesVerdict(1, ".", len(paths), is_taken=True, reason=reason),))


def _chosen_below(folder: Path, max_slice_thickness_mm: float, refusal: FindingError) -> OpenedScan:
    """The best series in a folder and its folders; `refusal` stands if there is nothing to choose."""
    export = scan_export(folder, leaving_out=folder, workers=1)
    if _is_one_folder(export):
        raise refusal
    if len(export.series) > 1:
        message = f"{len(export.series)} studies lie in it and its folders: only one can be diagnosed"
        fix = "Name the folder of each study; several can be given in one call."
        raise FindingError(error("DICOM-STUDIES", "the image folder", message, fix))
    (series,) = export.series.values()
    audits = audit_study(StudyJob("", folder, tuple(series.values()), max_slice_thickness_mm)).series
    choice = choose_series(audits)
    if choice.chosen is None:
        raise FindingError(_why_none(audits))
    ct, findings = _read_files(choice.chosen.paths, max_slice_thickness_mm)
    verdicts = tuple(
        SeriesVerdict(
            audit.number, audit.place, audit.n_slices, audit is choice.chosen, choice.reasons[audit.number]
        )
        for audit in audits
    )
    return OpenedScan(ct, (*file_findings(export), *findings), verdicts)


def _is_one_folder(export: Export) -> bool:
    """Whether all images are of one series and lie side by side: nothing that the gate did not see."""
    series = [files for by_series in export.series.values() for files in by_series.values()]
    return not series or (len(series) == 1 and all(file.path.parent == export.root for file in series[0]))


def _why_none(audits: tuple[SeriesAudit, ...]) -> Finding:
    """The gravest error of the longest series."""
    longest = max(audits, key=lambda audit: audit.n_slices)
    first = next(finding for finding in longest.findings if finding.severity == "error")
    where = f"series {longest.number} of {len(audits)}, the longest ({longest.place}), {first.where}"
    return replace(first, where=where, case_id=None)


def _read_files(
    paths: list[Path] | tuple[Path, ...], max_slice_thickness_mm: float
) -> tuple[sitk.Image, tuple[Finding, ...]]:
    """These files through the gate, as a folder of their own."""
    with TemporaryDirectory() as folder:
        for index, path in enumerate(paths):
            (Path(folder) / f"{index:05d} {path.name[-100:]}").symlink_to(path.resolve())
        return read_ct(Path(folder), None, max_slice_thickness_mm)
