"""One case from its files to its stored volume (IV-B); this is what a worker process does."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from client.case_sketch import CaseSketch, sketch_case, write_sketch
from client.cohort import CohortCase
from client.content_digests import ContentDigest, content_digest
from client.findings import Finding, FindingError
from client.images import gate_name, read_ct, read_mask
from client.lung_audit import nothing_left
from client.masks import MaskSource, case_masks, mask_source
from client.segmentation_store import write_scan
from client.site import SegmentationTable
from client.volume_store import (
    StoredCase,
    is_disk_full,
    read_stored_case,
    volume_key,
    volume_path,
    write_volume,
)
from dsan_model.cases import Label
from dsan_model.preprocessing import Recipe, prepare_case
from dsan_model.segmentation_grid import SegmentationRecipe

DISK_FULL = "PREPARE-DISK-FULL"

_FIX_ALONE = "Run `dsan-client prepare` again; if the case fails again, leave it out and report the message."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A case to prepare; `known` holds the digests, by path, of those of its files that are unchanged."""

    case: CohortCase
    store: Path
    recipe: Recipe | SegmentationRecipe
    max_slice_thickness_mm: float
    known: dict[str, ContentDigest]
    segmentation: SegmentationTable


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a stored volume with warnings, or an error."""

    case: CohortCase
    stored: StoredCase | None
    findings: tuple[Finding, ...]
    digests: tuple[ContentDigest, ...] = ()
    is_new: bool = False  # made now, not found in the store
    refused: CaseSketch | None = None  # of a case that was left out though its scan could be read

    @property
    def is_disk_full(self) -> bool:
        """Whether the store, not the case, is at fault."""
        return any(finding.code == DISK_FULL for finding in self.findings)


def finished_before(job: Job) -> Outcome | None:
    """The outcome of an earlier run if no file has changed since; reads no more than a volume's header."""
    try:
        source = mask_source(job.case, job.segmentation)
    except FindingError:
        return None
    digests = tuple(job.known[str(file)] for file in _files(job.case, source) if str(file) in job.known)
    if len(digests) < len(_files(job.case, source)):
        return None
    stored = _stored(_path(job, source, digests))
    return Outcome(job.case, stored, _warnings(job.case, stored), digests) if stored else None


def prepare_one(job: Job) -> Outcome:
    """Read, check, resample and store one case, unless the store has it. Every failure is an outcome."""
    try:
        source = mask_source(job.case, job.segmentation)
        files = _files(job.case, source)
        digests = tuple(job.known.get(str(file)) or content_digest(file) for file in files)
        path = _path(job, source, digests)
        found = _stored(path)
        stored = found or _make(job, source, path)
        return Outcome(job.case, stored, _warnings(job.case, stored), digests, is_new=not found)
    except FindingError as error:
        finding = replace(error.finding, case_id=job.case.case_id)
        return Outcome(job.case, None, (finding,), refused=_refused_sketch(job))
    except OSError as error:
        code = DISK_FULL if is_disk_full(error) else "PREPARE-FAILED"
        return failed(job.case, code, f"{type(error).__name__}: {error.strerror}")
    except Exception as error:  # one bad case may not end the cohort
        _log.debug("case %s", job.case.case_id, exc_info=True)
        return failed(job.case, "PREPARE-FAILED", f"{type(error).__name__}: {error}")


def failed(case: CohortCase, code: str, message: str) -> Outcome:
    """The outcome of a case that failed for a reason of ours, not of its own."""
    where = f"cohort.csv line {case.line}"
    return Outcome(case, None, (Finding(code, "error", where, message, _FIX_ALONE, case.case_id),))


def _make(job: Job, source: MaskSource, path: Path) -> StoredCase:
    ct, of_scan = read_ct(job.case.image, job.case.case_id, job.max_slice_thickness_mm)
    masks = case_masks(job.case, source, ct)
    if isinstance(job.recipe, SegmentationRecipe):
        return write_scan(path, ct, masks, job.recipe, source.names, (*of_scan, *masks.findings))
    prepared = prepare_case(ct, masks.lung, masks.infection, job.recipe)
    if not prepared.lung_DHW.any():
        message = f"nothing is left of {prepared.lung_volume_ml:.3g} ml of lung on the prepared grid"
        raise nothing_left(message, job.case.case_id)
    write_sketch(path, sketch_case(ct, masks.lung, masks.infection))  # first: what has a volume has a sketch
    return write_volume(path, prepared, job.recipe, source.names, (*of_scan, *masks.findings))


def _refused_sketch(job: Job) -> CaseSketch | None:
    """A scan that can be read, with its given masks as far as they can be; for the eye, whatever is wrong."""
    try:
        ct, _ = read_ct(job.case.image, job.case.case_id, job.max_slice_thickness_mm)
        masks = [_mask_or_empty(path, ct) for path in (job.case.lung_mask, job.case.infection_mask)]
        return sketch_case(ct, masks[0], masks[1])
    except FindingError:
        return None


def _mask_or_empty(path: Path | None, ct: sitk.Image) -> sitk.Image:
    try:
        if path is not None:
            return read_mask(path, ct, None)
    except FindingError:
        pass  # said already: the case is left out for it, or for something graver
    nothing = sitk.Image(ct.GetSize(), sitk.sitkUInt8)
    nothing.CopyInformation(ct)
    return nothing


def _files(case: CohortCase, source: MaskSource) -> tuple[Path, ...]:
    return (case.image, *source.files)


def _path(job: Job, source: MaskSource, digests: tuple[ContentDigest, ...]) -> Path:
    gate = gate_name(job.max_slice_thickness_mm)
    key = volume_key(tuple(digest.sha256 for digest in digests), source.names, job.recipe, gate)
    return volume_path(job.store, key)


def _stored(path: Path) -> StoredCase | None:
    """The volume if it is in the store and whole; one that is damaged is made again."""
    try:
        return read_stored_case(path)
    except FindingError:
        return None


def _warnings(case: CohortCase, stored: StoredCase) -> tuple[Finding, ...]:
    """Those kept with the volume, and those that depend on the line of the table."""
    kept = tuple(replace(finding, case_id=case.case_id) for finding in stored.findings)
    if case.label is not Label.COVID or stored.infection_ratio > 0:
        return kept
    message = "no infection lies in the lung though the case is COVID-19; its infection ratio is 0"
    fix = "Check the segmentation; a scan without visible infection is right as it is."
    where = "infection mask"
    return (*kept, Finding("IMAGE-INFECTION-EMPTY", "warning", where, message, fix, case.case_id))
