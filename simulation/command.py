"""What the commands of dsan-simulate do, and with which exit code they end."""

import fcntl
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from client.findings import FindingError
from dsan_model.configuration import ConfigurationError, parse_configuration
from dsan_model.patches import PRESETS as SEGMENTATION_PRESETS
from dsan_model.segmentation_grid import SegmentationRecipe
from server.differences import differences_from_paper
from server.headline import results_table
from server.refusals import RefusedError
from server.report_input import ReportError
from server.rounds import StudyPausedError
from server.run_folder import StudyMismatchError, write_study
from server.start_package import read_start_package
from server.study import PRESETS, STUDY_NAME, StudyConfig, segmentation_table
from simulation.deployment_engine import DeploymentError
from simulation.engines import Engine
from simulation.federated_study import (
    Hospitals,
    Stopwatch,
    estimate_prepared,
    find_hospitals,
    peak_memory_bytes,
    prepare_hospitals,
    run_prepared,
)
from simulation.federation import FederationError, run_federation
from simulation.hospitals import HospitalsError, plan_hospitals, write_hospitals
from simulation.ray_engine import MissingRayError, require_ray
from simulation.real_hospitals import write_real_hospitals

DONE, BAD_DATA, UNAVAILABLE, INCOMPLETE, BAD_CONFIGURATION, INTERRUPTED = 0, 65, 69, 70, 78, 130

NATIVE_SHAPE_DHW = {"demo": (40, 96, 96), "tiny": (24, 64, 64), "full": (300, 512, 512)}
CASES_A_SITE = {
    "classification": {"demo": 108, "tiny": 10, "full": 60},
    "segmentation": {"demo": 48, "tiny": 6, "full": 60},
}

log = logging.getLogger("dsan.simulation")


@dataclass(frozen=True)
class RunOptions:
    """The options of `dsan-simulate run`."""

    preset: str
    task: str
    n_sites: int
    cases: int | None
    held_out: tuple[str, ...]
    held_out_mix: str
    rounds: int | None
    engine: str
    seed: int
    baseline: bool
    quorum: int
    hospitals: Path | None
    out: Path
    workers: int
    plan: str
    start: Path | None
    is_dry_run: bool


@dataclass(frozen=True)
class HospitalOptions:
    """The options of `dsan-simulate hospitals`."""

    out: Path
    n_sites: int
    cases: int
    shape_DHW: tuple[int, int, int]
    file_format: str | None
    held_out_mix: str
    preset: str
    seed: int
    workers: int


def run_command(options: RunOptions, started: float) -> int:
    """`dsan-simulate run`: the exit code; progress on stderr, the headline on stdout."""
    run_folder = options.out.resolve()
    try:
        with _for_us_alone(run_folder):
            return _run(options, run_folder, started)
    except (ConfigurationError, StudyMismatchError, FileExistsError) as error:
        return _refuse(error, BAD_CONFIGURATION)
    except FindingError as error:
        is_configuration = error.finding.code.startswith("SITE-")
        return _refuse(error, BAD_CONFIGURATION if is_configuration else BAD_DATA)
    except RefusedError as error:
        return _refuse(error, error.exit_code)
    except (MissingRayError, DeploymentError) as error:
        return _refuse(error, UNAVAILABLE)
    except (StudyPausedError, HospitalsError, ReportError) as error:
        return _refuse(error, INCOMPLETE)
    except (OSError, SafetensorError) as error:
        return _refuse(_unwritable(error, run_folder), INCOMPLETE)
    except KeyboardInterrupt:
        return _refuse("stopped: the same command goes on from here", INTERRUPTED)


def hospitals_command(options: HospitalOptions) -> int:
    """`dsan-simulate hospitals`: the exit code."""
    try:
        study = _study(options.preset, "hospitals", options.seed)
        log.info("writing %d hospitals to %s", options.n_sites, options.out)
        sites = _write_hospitals(options, study)
    except (ConfigurationError, StudyMismatchError, FileExistsError) as error:
        return _refuse(error, BAD_CONFIGURATION)
    except HospitalsError as error:
        return _refuse(error, INCOMPLETE)
    except OSError as error:
        return _refuse(_unwritable(error, options.out), INCOMPLETE)
    sys.stdout.write(f"{len(sites)} hospitals in {options.out}\n")
    sys.stdout.write(f"next: dsan-simulate run --preset {options.preset} --hospitals {options.out}\n")
    return DONE


def real_hospitals_command(ct_folder: Path, out: Path, cases: int, preset: str, seed: int) -> int:
    """`dsan-simulate real-hospitals`: the exit code."""

    def tell(done: int, total: int) -> None:
        if done % 4 == 0 or done == total:
            log.info("real hospitals: %d of %d scans written", done, total)

    try:
        recipe = _study(preset, "hospitals", seed).recipe
        sites = write_real_hospitals(ct_folder, out, cases, recipe, seed, tell)
    except (FileNotFoundError, FileExistsError, FindingError) as error:
        return _refuse(error, BAD_DATA)
    except OSError as error:
        return _refuse(_unwritable(error, out), INCOMPLETE)
    held_out = sites[-1].parent.name
    sys.stdout.write(f"{len(sites)} hospitals in {out}: real CT, keep it to yourself\n")
    sys.stdout.write(
        f"next: dsan-simulate run --preset {preset} --hospitals {out} --rounds 3 --held-out {held_out}\n"
    )
    return DONE


@dataclass(frozen=True)
class FederationOptions:
    """The options of `dsan-simulate federation`."""

    out: Path
    preset: str
    n_sites: int
    cases: int | None
    rounds: int | None
    seed: int
    workers: int


def federation_command(options: FederationOptions) -> int:
    """`dsan-simulate federation`: the exit code of the study in it."""
    started = time.monotonic()
    hospitals = HospitalOptions(
        out=options.out / "hospitals",
        n_sites=options.n_sites,
        cases=options.cases or CASES_A_SITE["classification"][options.preset],
        shape_DHW=NATIVE_SHAPE_DHW[options.preset],
        file_format=None,
        held_out_mix="mixed",
        preset=options.preset,
        seed=options.seed,
        workers=options.workers,
    )
    try:
        _write_hospitals(hospitals, _study(options.preset, "hospitals", options.seed))
        sites = find_hospitals(hospitals.out).sites
        *training, held_out = sites
        settings: dict[str, Any] = {"sites": {"training": training, "held_out": [held_out]}}
        if options.rounds is not None:
            settings["rounds"] = options.rounds
        study = _study(options.preset, "federation", options.seed, **settings)
        code = run_federation(options.out, tuple(path.parent for path in sites.values()), study)
    except (ConfigurationError, StudyMismatchError, FileExistsError) as error:
        return _refuse(error, BAD_CONFIGURATION)
    except HospitalsError as error:
        return _refuse(error, INCOMPLETE)
    except FederationError as error:
        return _refuse(error, UNAVAILABLE)
    except OSError as error:
        return _refuse(_unwritable(error, options.out), INCOMPLETE)
    sys.stdout.write(f"{time.monotonic() - started:.0f} s from empty folders to here\n")
    return code


def _run(options: RunOptions, run_folder: Path, started: float) -> int:
    stopwatch = Stopwatch({"start": time.monotonic() - started})
    _check(options)
    with stopwatch.phase("hospitals"):
        hospitals = _hospitals(options, run_folder)
    study = _named_study(options, hospitals.names)
    if study.start.model:
        read_start_package(study, run_folder)  # before anything is written
    write_study(run_folder, study)
    _tell_what_is_shrunk(study)
    with stopwatch.phase("preparing"):
        prepared = prepare_hospitals(hospitals, study, options.workers)
    if options.is_dry_run:
        sys.stdout.write(estimate_prepared(run_folder, prepared, options.workers) + "\n")
        return DONE
    results = run_prepared(run_folder, study, prepared, Engine(options.engine), options.workers, stopwatch)
    seconds = time.monotonic() - started
    sys.stdout.write(_headline(results, run_folder, stopwatch, seconds, options.workers))
    return DONE if results["complete"] else INCOMPLETE


def _check(options: RunOptions) -> None:
    """What would only be found after the hospitals are written and prepared."""
    if options.engine == Engine.RAY:
        require_ray()
    if re.fullmatch(STUDY_NAME, options.out.name) is None:
        raise StudyMismatchError(
            f"--out {options.out}: the folder names the study: up to 64 letters, digits, dots, hyphens and "
            "underscores, the first a letter or digit"
        )
    names = () if options.hospitals else tuple(f"hospital-{i + 1}" for i in range(options.n_sites))
    _named_study(options, names or find_hospitals(options.hospitals or options.out).names)


def _hospitals(options: RunOptions, run_folder: Path) -> Hospitals:
    if options.hospitals is not None:
        return find_hospitals(options.hospitals)
    study = _study(options.preset, "hospitals", options.seed)
    written = HospitalOptions(
        out=run_folder / "hospitals",
        n_sites=options.n_sites,
        cases=options.cases or CASES_A_SITE[options.task][options.preset],
        shape_DHW=NATIVE_SHAPE_DHW[options.preset],
        file_format=None,
        held_out_mix=options.held_out_mix,
        preset=options.preset,
        seed=options.seed,
        workers=options.workers,
    )
    _write_hospitals(written, study)
    return find_hospitals(written.out)


def _write_hospitals(options: HospitalOptions, study: StudyConfig) -> tuple[Path, ...]:
    if not all(16 <= side <= 1024 for side in options.shape_DHW):
        raise StudyMismatchError(f"--shape {options.shape_DHW}: expected 16 to 1024 slices, rows and columns")
    try:
        plans = plan_hospitals(
            options.n_sites,
            options.cases,
            options.seed,
            held_out_mix=options.held_out_mix,
            file_format=options.file_format,
        )
    except ValueError as error:
        raise StudyMismatchError(f"the hospitals cannot be planned: {error}") from None
    last = [time.monotonic()]

    def tell(done: int, total: int) -> None:
        if done == total or time.monotonic() - last[0] > 5.0:
            last[0] = time.monotonic()
            log.info("hospitals: %d of %d scans written", done, total)

    return write_hospitals(
        options.out,
        plans,
        options.shape_DHW,
        options.seed,
        study.recipe,
        options.workers,
        tell,
        _segmentation_recipe(options.preset),
    )


def _study(preset: str, name: str, seed: int, **settings: Any) -> StudyConfig:
    table: dict[str, Any] = {"name": name, "seed": seed, "preset": preset, **PRESETS[preset], **settings}
    return parse_configuration(table, StudyConfig, "the command line")


def _segmentation_recipe(preset: str) -> SegmentationRecipe:
    return SegmentationRecipe(SEGMENTATION_PRESETS[preset].segmentation.spacing_mm_xyz)


def _named_study(options: RunOptions, names: tuple[str, ...]) -> StudyConfig:
    held_out = options.held_out or (() if options.plan == "leave-one-site-out" else names[-1:])
    if options.plan == "evaluate":
        held_out = options.held_out or names
    unknown = sorted(set(held_out) - set(names))
    if unknown:
        raise StudyMismatchError(
            f"--held-out {','.join(unknown)}: no such hospital; there are {', '.join(names)}"
        )
    n_training = len(set(names) - set(held_out))
    if n_training == 0 and options.plan != "evaluate":
        raise StudyMismatchError("--held-out names every hospital: leave at least one to train")
    if options.quorum > n_training:
        raise StudyMismatchError(f"--quorum {options.quorum}: there are {n_training} training hospitals")
    settings: dict[str, Any] = {
        "baseline": options.baseline,
        "sites": {"training": [n for n in names if n not in held_out], "held_out": list(held_out)},
        "participation": {"quorum": options.quorum},
        "plan": {"kind": options.plan},
        "start": {"model": str(options.start.resolve()) if options.start else ""},
    }
    if options.plan == "evaluate":
        settings["sites"] = {"held_out": list(held_out)}
    if options.rounds is not None:
        settings["rounds"] = options.rounds
    if options.task == "segmentation":
        settings = segmentation_table(options.preset) | settings
    return _study(options.preset, options.out.name, options.seed, **settings)


def _tell_what_is_shrunk(study: StudyConfig) -> None:
    log.info("preset %s; what is otherwise than in the paper:", study.preset)
    for difference in differences_from_paper(study):
        log.info("  %s: %s instead of %s", difference.what, difference.here, difference.paper)


def _headline(
    results: dict[str, Any], run_folder: Path, stopwatch: Stopwatch, seconds: float, workers: int
) -> str:
    state = "complete" if results["complete"] else "INCOMPLETE: see the report"
    lines = [f"\nStudy {results['study']['name']}: {state}", results_table(results)]
    phases = ", ".join(f"{name} {s:.0f} s" for name, s in stopwatch.phases.items())
    lines.append(f"{seconds:.0f} s in all ({phases})")
    training_s = results["timing"]["site_training_s"]
    lines.append(
        f"sites trained for {training_s:.0f} s, {workers} at a time; the largest process took "
        f"{peak_memory_bytes() / 2**30:.1f} GiB"
    )
    lines.append(f"report: {os.path.relpath(run_folder / 'report.html')}\n")
    return "\n".join(lines)


@contextmanager
def _for_us_alone(run_folder: Path) -> Iterator[None]:
    """Keep a second command off the run folder; the lock goes with this process, however it ends."""
    run_folder.mkdir(parents=True, exist_ok=True)
    with (run_folder / ".command.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyPausedError(
                f"{run_folder}: another dsan-simulate is at work here: wait for it, or give another --out"
            ) from None
        yield


def _unwritable(error: Exception, folder: Path) -> str:
    """A disk that is full, or a place where nothing can be written."""
    where = getattr(error, "filename", None) or folder
    why = getattr(error, "strerror", None) or error
    return (
        f"{where}: {why}. Free space, or choose a folder that can be written, then give the command again: "
        "it goes on from what is there"
    )


def _refuse(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"dsan-simulate: {error}\n")
    return code
