"""The whole study on one machine: write or find the hospitals, prepare, run, collect pictures, report."""

import json
import logging
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.findings import Finding, FindingError
from client.preparation import (
    Progress,
    Target,
    classification_target,
    prepare_cohort,
    segmentation_target,
)
from client.site import SiteConfig, read_site
from dsan_daemon.files import write_atomically
from dsan_model.segmentation_grid import SegmentationRecipe
from server.app import ESTIMATE
from server.estimate import Estimate, estimate_text
from server.ledger import read_ledger
from server.report import write_report
from server.results import RESULTS, read_results
from server.rounds import StudyPausedError
from server.run_folder import StudyMismatchError
from server.study import StudyConfig
from simulation.engines import Engine, estimate_in_process, run_study_on
from simulation.hospitals import PLAN_MARKER

log = logging.getLogger("dsan.simulation")


@dataclass
class Stopwatch:
    """Seconds by phase, in the order in which the phases came."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block towards a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - started


@dataclass(frozen=True)
class Hospitals:
    """The hospitals below a folder, in natural order of names."""

    sites: dict[str, Path]  # name to site.toml
    unreadable: dict[str, Path]  # folder to a site.toml that cannot be read: these cannot take part

    @property
    def names(self) -> tuple[str, ...]:
        """Of all of them: who cannot take part is missing, not forgotten."""
        return tuple(sorted({*self.sites, *self.unreadable}, key=_natural))


@dataclass(frozen=True)
class Prepared:
    """The hospitals that a study can run over, and what was wrong with the data of each."""

    hospitals: Hospitals
    findings: dict[str, tuple[Finding, ...]]


def find_hospitals(folder: Path) -> Hospitals:
    """Every hospital below a folder; one whose site.toml cannot be read goes by the name of its folder."""
    configs = [path.resolve() for path in folder.glob("*/site.toml")]
    if not configs:
        raise StudyMismatchError(
            f"{folder}: no hospital here: expected folders with a site.toml each, as "
            "`dsan-simulate hospitals` writes them"
        )
    named: dict[str, Path] = {}
    unreadable: dict[str, Path] = {}
    for path in sorted(configs):
        try:
            name = read_site(path).name
        except FindingError as error:
            log.error("%s: %s", path, error)
            unreadable[path.parent.name] = path
            continue
        if name in named:
            raise StudyMismatchError(
                f"{path} and {named[name]} both name their site {name!r}: give each a name of its own"
            )
        named[name] = path
    return Hospitals(dict(sorted(named.items(), key=lambda item: _natural(item[0]))), unreadable)


def prepare_hospitals(hospitals: Hospitals, study: StudyConfig, workers: int) -> Prepared:
    """Prepare every hospital's cohort; one without a usable case is left out of nothing here.

    The study itself finds out that such a site cannot take part, as it would in a deployment.
    """
    findings: dict[str, tuple[Finding, ...]] = {}
    for name, path in hospitals.sites.items():
        config = read_site(path)
        target = _target(config, study)
        _require_recipe(config, target, study, path)
        try:
            result = prepare_cohort(config, workers, _progress_line(name), target=target)
            findings[name] = result.findings
            _tell_findings(name, result.findings, path)
        except FindingError as error:
            findings[name] = (error.finding,)
            log.error("%s: %s", name, error)
    return Prepared(hospitals, findings)


def run_prepared(
    run_folder: Path,
    study: StudyConfig,
    prepared: Prepared,
    engine: Engine,
    workers: int,
    stopwatch: Stopwatch,
) -> dict[str, Any]:
    """Run or resume the study, then write the report; what results.json says."""
    sites = prepared.hospitals.sites
    results = read_results(run_folder)
    if results is None or not _is_finished(results):
        with stopwatch.phase("study"):
            nodes = (*sites.values(), *prepared.hospitals.unreadable.values())
            run_study_on(engine, run_folder, nodes, workers)
            collect_panels(run_folder, sites, study)
        results = read_results(run_folder)
        if results is None:
            raise _no_results(run_folder)
        results = _add_timing(run_folder, results, sites, stopwatch)
    with stopwatch.phase("report"):
        write_report(run_folder)
    return results


def estimate_prepared(run_folder: Path, prepared: Prepared, workers: int) -> str:
    """What the study would take, as text; nothing is trained. Sites that share this machine are told so."""
    nodes = (*prepared.hospitals.sites.values(), *prepared.hospitals.unreadable.values())
    estimate_in_process(run_folder, nodes, workers)
    found = Estimate(**json.loads((run_folder / ESTIMATE).read_text(encoding="utf-8")))
    return f"{estimate_text(found)}\nall sites share this machine: it takes longer here"


def _is_finished(results: dict[str, Any]) -> bool:
    """Whether nothing is left to do; an incomplete study tries its last steps again."""
    return bool(results["complete"]) and "phases" in results["timing"]


def _no_results(run_folder: Path) -> Exception:
    """Why a study ended without results: it paused, in this process or in another."""
    *_, last = read_ledger(run_folder)
    if last.get("event") == "paused":
        return StudyPausedError(str(last["message"]))
    return StudyMismatchError(f"{run_folder}: the study ended without {RESULTS}: see study.log there")


def collect_panels(run_folder: Path, sites: dict[str, Path], study: StudyConfig) -> None:
    """Copy the attention panels of all sites into the run folder: a simulation owns both sides."""
    folder = run_folder / "figures" / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for name, path in sites.items():
        source = read_site(path).panel_folder / study.digest[:16]
        for listing in sorted(source.glob("*.json")):
            for panel in json.loads(listing.read_text(encoding="utf-8")):
                file = f"{name}-{panel['file']}"
                shutil.copyfile(source / panel["file"], folder / file)
                listed.append(panel | {"file": file})
    listed.sort(key=lambda panel: (panel["set"] != "held-out", panel["site"]))
    write_atomically(folder / "panels.json", json.dumps(listed, indent=1).encode())


def peak_memory_bytes() -> int:
    """The largest memory of this process or of one of its children so far."""
    usages = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usages) * 1024


def _add_timing(
    run_folder: Path, results: dict[str, Any], sites: dict[str, Path], stopwatch: Stopwatch
) -> dict[str, Any]:
    phases = [{"name": name, "seconds": seconds} for name, seconds in stopwatch.phases.items()]
    timing = results["timing"] | {"phases": phases, "peak_memory_bytes": peak_memory_bytes()}
    synthetic = all((config.parent / PLAN_MARKER).exists() for config in sites.values())
    study = results["study"] | {"synthetic": synthetic}
    results = results | {"timing": timing, "study": study}
    write_atomically(run_folder / RESULTS, json.dumps(results, indent=1).encode())
    return results


def _target(config: SiteConfig, study: StudyConfig) -> Target:
    return segmentation_target(config) if study.task == "segmentation" else classification_target(config)


def _require_recipe(config: SiteConfig, target: Target, study: StudyConfig, path: Path) -> None:
    if isinstance(target.recipe, SegmentationRecipe):
        if target.recipe != study.segmentation_recipe:
            raise StudyMismatchError(
                f"{path}: [recipe] segmentation_spacing_mm_xyz is {target.recipe.spacing_mm_xyz}, the study "
                f"needs {study.segmentation.spacing_mm_xyz}: change one of the two"
            )
    elif target.recipe != study.recipe:
        raise StudyMismatchError(
            f"{path}: [recipe] gives volumes of {config.recipe.shape_dhw} (antialias "
            f"{config.recipe.antialias}), the study needs {study.input.shape_dhw} (antialias "
            f"{study.input.antialias}): change one of the two"
        )


def _progress_line(name: str) -> Callable[[Progress], None]:
    last = [0.0]

    def tell(progress: Progress) -> None:
        now = time.monotonic()
        if progress.done == progress.total or now - last[0] > 5.0:
            last[0] = now
            eta = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s to go"
            log.info("%s: prepared %d of %d cases%s", name, progress.done, progress.total, eta)

    return tell


def _tell_findings(name: str, findings: tuple[Finding, ...], path: Path) -> None:
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in errors[:5]:
        log.warning("%s: %s", name, finding)
    if len(errors) > 5:
        log.warning(
            "%s: and %d more: `dsan-client prepare --config %s` lists them", name, len(errors) - 5, path
        )


def _natural(name: str) -> tuple[str, int]:
    digits = "".join(c for c in name if c.isdigit())
    return name.rstrip("0123456789"), int(digits or 0)
