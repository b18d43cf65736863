"""Prepare a cohort (IV-B): every usable case becomes a stored volume, in parallel, and nothing is done twice.

A killed run loses the cases in work and no more: a finished volume lies in the store under the digest of its
inputs and recipe, and the next run finds it there. The index of the cohort is written when all is done.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from client.case_preparation import DISK_FULL, Job, Outcome, failed, finished_before, prepare_one
from client.case_sketch import CaseSketch
from client.cohort import CohortCase, count_lines, read_cohort
from client.content_digests import ContentDigest, is_unchanged, read_known_digests, write_known_digests
from client.file_lock import alone
from client.findings import Finding, FindingError
from client.images import gate_name
from client.mask_names import MaskNames
from client.masks import names_without_files
from client.site import SegmentationTable, SiteConfig
from client.volume_store import (
    StoredCase,
    is_disk_full,
    make_private_folder,
    remove_leftovers,
    unused_files,
    volume_bytes,
    volume_path,
    write_atomically,
)
from client.worker_pool import WorkerDied, parallel_map
from dsan_model.cases import Case, Label
from dsan_model.preprocessing import Recipe
from dsan_model.segmentation_grid import SegmentationRecipe

INDEX_FORMAT = 2
SPARE_DISK_BYTES = 16 << 20  # for the index and the file system itself

_INDEX = "index.json"
_FIX_PREPARE = "Run `dsan-client prepare` and heed its findings."
_FIX_COPY = "Keep the line that is right."
_FIX_DISK = "Free space, or set `store` in site.toml to a larger disk, and run `dsan-client prepare` again."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a preparation is; the estimate is None until there is something to go by."""

    done: int
    total: int
    seconds: float
    eta_s: float | None


@dataclass(frozen=True)
class Target:
    """What a cohort is prepared for: where the volumes go, how they look, where their masks come from."""

    store: Path
    recipe: Recipe | SegmentationRecipe
    segmentation: SegmentationTable


def classification_target(site: SiteConfig) -> Target:
    """Volumes that tell COVID-19 from CAP."""
    return Target(site.store_folder, site.preprocessing_recipe, site.segmentation)


def segmentation_target(site: SiteConfig) -> Target:
    """Whole scans that train VB-Net; only given masks are good enough for that."""
    return Target(site.store_folder / "segmentation", site.segmentation_recipe, SegmentationTable())


@dataclass(frozen=True)
class PreparedEntry:
    """One usable case: what training knows of it, its stored volume, and Table I's demographics."""

    case: Case
    path: Path
    masks: MaskNames
    age: float | None  # years
    sex: str | None  # "F" or "M"
    acquired_on: date | None
    scanner: str | None


@dataclass(frozen=True)
class PreparationResult:
    """What came of a cohort; `findings` are those of the table, the scans and the masks."""

    entries: tuple[PreparedEntry, ...]
    findings: tuple[Finding, ...]
    n_listed: int  # lines of the table
    n_new: int  # entries made in this run; the others were in the store
    seconds: float
    unused_bytes: int = 0  # of volumes in the store that belong to no case
    are_unused_removed: bool = False
    refused: dict[str, CaseSketch] = field(default_factory=dict)  # by case: left out, but to be looked at

    @property
    def n_left_out(self) -> int:
        """Lines of the table that gave no usable case."""
        return self.n_listed - len(self.entries)


def prepare_cohort(
    site: SiteConfig,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    remove_unused: bool = False,
    target: Target | None = None,
) -> PreparationResult:
    """Prepare every case of the site's cohort whose volume is not in its store yet.

    `target` is that of a classification by default. `workers` overrides the site's own number (0: one for
    each core). `progress` is called in this process, once before the first case and then after each.
    `remove_unused` deletes volumes of no case, at the very end. Bad cases are left out, with findings. Raises
    FindingError if there is nothing to begin with (no such table, no disk space, another run at work) or no
    going on (the disk is full); what was done until then is kept.
    """
    started, target = time.monotonic(), target or classification_target(site)
    names_without_files(target.segmentation)  # weights that cannot be used are one error, not one a case
    cohort_digest = _cohort_digest(site)
    cases, of_table = read_cohort(site.manifest)
    with _store_for_us_alone(target.store):
        known = read_known_digests(target.store)
        jobs = [_job(case, site, target, known) for case in cases]
        outcomes = _outcomes(jobs, target, _worker_count(site, workers), progress, started)
        in_order = [outcomes[case.case_id] for case in cases]
        of_copies, unusable = _copies(in_order)
        entries = tuple(
            _entry(outcome.case, outcome.stored)
            for outcome in in_order
            if outcome.stored and outcome.case.case_id not in unusable
        )
        findings = [*of_table, *(finding for outcome in in_order for finding in outcome.findings), *of_copies]
        _write_index(target, cohort_digest, _gate(site), entries, findings)
        unused_bytes = _unused(target.store, entries, remove_unused)
    new = {outcome.stored.path for outcome in in_order if outcome.stored and outcome.is_new}
    n_new = sum(entry.path in new for entry in entries)  # copies share a volume
    seconds = time.monotonic() - started
    n_listed = count_lines(site.manifest)
    return PreparationResult(
        entries,
        tuple(findings),
        n_listed,
        n_new,
        seconds,
        unused_bytes,
        are_unused_removed=remove_unused,
        refused={outcome.case.case_id: outcome.refused for outcome in in_order if outcome.refused},
    )


def _outcomes(
    jobs: list[Job],
    target: Target,
    workers: int,
    progress: Callable[[Progress], None] | None,
    started: float,
) -> dict[str, Outcome]:
    """What became of every case, by its name: found again, or done now. The digests are kept in any event."""
    outcomes = {job.case.case_id: outcome for job in jobs if (outcome := finished_before(job))}
    waiting = [job for job in jobs if job.case.case_id not in outcomes]
    _check_disk(target.store, len(waiting), target.recipe)
    clock = _Clock(len(jobs), len(outcomes), progress, started)
    clock.tell(len(outcomes))
    try:
        for outcome in _work_off(waiting, workers):
            outcomes[outcome.case.case_id] = outcome
            clock.tell(len(outcomes))
    finally:
        _remember_digests(target.store, outcomes.values())
    return outcomes


def load_prepared(site: SiteConfig, target: Target | None = None) -> tuple[PreparedEntry, ...]:
    """The usable cases of the last complete preparation for the target, in the order of the table.

    Raises FindingError when nothing was prepared, no case is usable, the table, the recipe or the
    segmentation or the gate has changed since, or a volume is missing.
    """
    target = target or classification_target(site)
    try:
        index = json.loads((target.store / _INDEX).read_bytes())
        entries = tuple(_entry_from(row, target.store) for row in index["cases"])
        is_same_cohort = index["cohort_digest"] == _cohort_digest(site)
        is_same_recipe = index["recipe_digest"] == target.recipe.digest
        are_same_masks = index["masks"] == str(names_without_files(target.segmentation))
        is_same_gate = index.get("gate") == _gate(site)
    except FileNotFoundError:
        raise _not_ready("PREPARE-NOTHING", "this cohort was never prepared to its end") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _not_ready("PREPARE-INDEX", f"the index is damaged ({error!r})") from None
    if not is_same_cohort:
        raise _not_ready("PREPARE-COHORT-CHANGED", f"{site.manifest.name} has changed since it was prepared")
    if not is_same_recipe:
        raise _not_ready("PREPARE-RECIPE-CHANGED", "[recipe] in site.toml has changed since it was prepared")
    if not are_same_masks:
        message = "[segmentation] in site.toml, or the version of its method, has changed since"
        raise _not_ready("PREPARE-MASKS-CHANGED", message)
    if not is_same_gate:
        message = "[audit] in site.toml, or what this release refuses, has changed since it was prepared"
        raise _not_ready("PREPARE-GATE-CHANGED", message)
    if not entries:
        raise _not_ready("PREPARE-NO-CASE", "no case of the cohort is usable")
    missing = [entry.case.case_id for entry in entries if not entry.path.is_file()]
    if missing:
        message = f"the volumes of {len(missing)} cases are missing, first of case {missing[0]}"
        raise _not_ready("STORE-MISSING", message)
    return entries


def count_left_out(target: Target) -> dict[str, int]:
    """How many errors of each code the last preparation left cases out for; no case is named."""
    index = json.loads((target.store / _INDEX).read_bytes())
    return {str(code): int(n) for code, n in index.get("left_out", {}).items()}


# ---- the work ----


def _job(case: CohortCase, site: SiteConfig, target: Target, known: dict[str, ContentDigest]) -> Job:
    files = [str(file) for file in (case.image, case.lung_mask, case.infection_mask) if file]
    unchanged = {file: known[file] for file in files if file in known and is_unchanged(known[file])}
    limit_mm = site.audit.max_slice_thickness_mm
    return Job(case, target.store, target.recipe, limit_mm, unchanged, target.segmentation)


def _worker_count(site: SiteConfig, workers: int | None) -> int:
    asked = site.machine.workers if workers is None else workers
    return asked or os.cpu_count() or 1


def _work_off(jobs: list[Job], workers: int) -> Iterator[Outcome]:
    """Outcomes as they come. Raises FindingError when the disk is full."""
    with closing(parallel_map(prepare_one, jobs, max(1, min(workers, len(jobs))))) as results:
        for n_done, (job, result) in enumerate(results):
            if isinstance(result, WorkerDied):
                message = "the worker died twice over it (a crash in a decoder, or no memory left)"
                yield failed(job.case, "PREPARE-CRASHED", message)
            elif result.is_disk_full:
                message = f"the disk of the store is full after {n_done} of {len(jobs)} cases, which are kept"
                raise FindingError(Finding(DISK_FULL, "error", str(job.store), message, _FIX_DISK))
            else:
                yield result


@dataclass(frozen=True)
class _Clock:
    """Tells how far the work is; what was found in the store says nothing about its speed."""

    total: int
    n_at_start: int
    progress: Callable[[Progress], None] | None
    started: float

    def tell(self, done: int) -> None:
        if self.progress is None:
            return
        seconds = time.monotonic() - self.started
        n_made = done - self.n_at_start
        eta_s = seconds / n_made * (self.total - done) if n_made else None
        self.progress(Progress(done, self.total, seconds, eta_s))


def _copies(outcomes: list[Outcome]) -> tuple[list[Finding], set[str]]:
    """Findings about scans that are there twice, and the cases that can therefore not be used.

    A copy of the same patient with the same label is a warning. If patient or label differ, nobody can tell
    here which line is right, and the scan would be trained on and validated on: none of the lines is used.
    """
    same: dict[str, list[CohortCase]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.digests:
            same[outcome.digests[0].sha256].append(outcome.case)
    findings, unusable = [], set[str]()
    for first, *others in same.values():
        is_contradictory = any((c.patient_id, c.label) != (first.patient_id, first.label) for c in others)
        if is_contradictory:
            unusable |= {case.case_id for case in (first, *others)}
        for case in (first, *others) if is_contradictory else others:
            other = others[0] if case is first else first
            where = f"cohort.csv line {case.line}, column image"
            message = f"the scan is, byte for byte, that of line {other.line} (case {other.case_id})"
            if is_contradictory:
                message += ", with another patient or label: none of these lines is used"
                findings.append(Finding("IMAGE-TWICE", "error", where, message, _FIX_COPY, case.case_id))
            else:
                findings.append(Finding("IMAGE-COPY", "warning", where, message, _FIX_COPY, case.case_id))
    return findings, unusable


# ---- the store ----


@contextmanager
def _store_for_us_alone(store: Path) -> Iterator[None]:
    """The store's folder, made and tidied, with the lock of the one run that may write to it."""
    try:
        make_private_folder(store)
        message = "another `dsan-client prepare` is at work in this store"
        running = Finding("PREPARE-RUNNING", "error", str(store), message, "Wait until it is done.")
        with alone(store / ".lock", running):
            remove_leftovers(store)
            yield
    except OSError as error:
        code = DISK_FULL if is_disk_full(error) else "PREPARE-STORE"
        message = f"the store cannot be written: {error.strerror}"
        is_no_folder = isinstance(error, FileExistsError | NotADirectoryError)
        fix = (
            "Set `store` in site.toml to a folder; there is a file of that name."
            if is_no_folder
            else _FIX_DISK
        )
        raise FindingError(Finding(code, "error", str(store), message, fix)) from None


def _check_disk(store: Path, n_cases: int, recipe: Recipe | SegmentationRecipe) -> None:
    needed = n_cases * volume_bytes(recipe) + SPARE_DISK_BYTES
    free = shutil.disk_usage(store).free
    if n_cases and free < needed:
        message = f"{n_cases} cases need {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB left"
        raise FindingError(Finding("PREPARE-DISK-SPACE", "error", str(store), message, _FIX_DISK))


def _unused(store: Path, entries: Iterable[PreparedEntry], remove: bool) -> int:
    """Bytes of the files that belong to no case; they are deleted if asked for."""
    files = unused_files(store, (entry.path for entry in entries))
    n_bytes = sum(file.stat().st_size for file in files)
    if remove:
        for file in files:
            file.unlink()
    return n_bytes


def _remember_digests(store: Path, outcomes: Iterable[Outcome]) -> None:
    try:
        write_known_digests(store, [digest for outcome in outcomes for digest in outcome.digests])
    except OSError as error:  # they only save time
        _log.warning("the digests of the input files could not be kept: %s", error.strerror)


# ---- the index ----


def _cohort_digest(site: SiteConfig) -> str:
    return hashlib.sha256(site.manifest.read_bytes()).hexdigest() if site.manifest.is_file() else ""


def _gate(site: SiteConfig) -> str:
    return gate_name(site.audit.max_slice_thickness_mm)


def _write_index(
    target: Target,
    cohort_digest: str,
    gate: str,
    entries: tuple[PreparedEntry, ...],
    findings: list[Finding],
) -> None:
    index = {
        "format_version": INDEX_FORMAT,
        "cohort_digest": cohort_digest,
        "recipe_digest": target.recipe.digest,
        "masks": str(names_without_files(target.segmentation)),
        "gate": gate,
        "left_out": Counter(finding.code for finding in findings if finding.severity == "error"),
        "cases": [_row(entry) for entry in entries],
    }
    write_atomically(target.store / _INDEX, json.dumps(index, indent=1).encode())


def _entry(listed: CohortCase, stored: StoredCase) -> PreparedEntry:
    case = Case(listed.case_id, listed.patient_id, listed.label, stored.infection_ratio)
    return PreparedEntry(
        case, stored.path, stored.masks, listed.age, listed.sex, listed.acquired_on, listed.scanner
    )


def _row(entry: PreparedEntry) -> dict[str, Any]:
    return {
        "case_id": entry.case.case_id,
        "patient_id": entry.case.patient_id,
        "label": str(entry.case.label),
        "infection_ratio": entry.case.infection_ratio,
        "key": entry.path.stem,
        "masks": asdict(entry.masks),
        "age": entry.age,
        "sex": entry.sex,
        "acquired_on": entry.acquired_on.isoformat() if entry.acquired_on else None,
        "scanner": entry.scanner,
    }


def _entry_from(row: dict[str, Any], store: Path) -> PreparedEntry:
    return PreparedEntry(
        Case(row["case_id"], row["patient_id"], Label(row["label"]), float(row["infection_ratio"])),
        volume_path(store, row["key"]),
        MaskNames(**row["masks"]),
        row["age"],
        row["sex"],
        date.fromisoformat(row["acquired_on"]) if row["acquired_on"] else None,
        row["scanner"],
    )


def _not_ready(code: str, message: str) -> FindingError:
    return FindingError(Finding(code, "error", "store", message, _FIX_PREPARE))
