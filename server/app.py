"""The ServerApp: a whole federated study, top to bottom.

It drives Flower's Grid itself. Everything that it needs to go on after a crash is in the run folder.
"""

import fcntl
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors import SafetensorError

from dsan_daemon.files import write_atomically
from dsan_daemon.logs import JsonLines, logging_about
from dsan_daemon.object_pulls import look_for_pieces_often
from dsan_model.sampling import Branch
from server.enrolment import Enrolled, enrol, take_back
from server.ensemble_fit import fit
from server.estimate import estimate, estimate_text
from server.exchange import Exchange
from server.held_out import evaluate_held_out, explain
from server.ledger import append_event
from server.model_package import write_model_package
from server.package_evaluation import evaluate_package
from server.plan_results import plan_results
from server.plans import run_parts
from server.refusals import RefusedError
from server.report import write_report
from server.report_input import ReportError
from server.results import (
    Row,
    StudyOutcome,
    read_results,
    study_results,
    what_is_missing,
    write_results,
)
from server.rounds import StudyPausedError, load_selected, train, validate_newest
from server.run_state import OnDemand
from server.scores_file import write_scores
from server.segmentation_package import write_segmentation_package
from server.segmentation_results import SegmentationOutcome, segmentation_results
from server.selection import select
from server.study import StudyConfig, read_study

LOCK_S = 5.0  # the daemon looks at the lock now and then, and a process that was stopped takes a while to end

app = ServerApp()
ESTIMATE = "estimate.json"
log = logging.getLogger("dsan.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or resume, the study whose folder the run configuration names."""
    run_folder = Path(str(context.run_config["run-dir"]))
    with _for_us_alone(run_folder), _logged(run_folder):
        look_for_pieces_often()
        if context.run_config.get("dry-run", False):
            estimate_study(grid, run_folder)
            return
        try:
            run_study(grid, run_folder)
        except (StudyPausedError, OSError, SafetensorError) as error:  # such as a full disk
            log.error("paused: %s", error)
            raise
        except Exception:
            log.exception("the study's process fails")
            raise
        _report(run_folder)


def _report(run_folder: Path) -> None:
    """The study has ended, whatever becomes of its page: `dsan-server report` can build it again."""
    try:
        write_report(run_folder)
    except ReportError as error:
        log.warning("no report: %s", error)


@contextmanager
def _for_us_alone(run_folder: Path) -> Iterator[None]:
    """Keep a second server off the run folder; the lock goes with this process, however it ends."""
    deadline = time.monotonic() + LOCK_S
    with (run_folder / ".lock").open("w") as lock:
        while not _is_locked_now(lock):
            if time.monotonic() > deadline:
                raise StudyPausedError(
                    f"{run_folder}: another process runs this study: wait for it or stop it, then resume"
                )
            time.sleep(0.1)
        yield


def _is_locked_now(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _logged(run_folder: Path) -> Iterator[None]:
    """Repeat what the study says into its run folder: study.log in words, study.jsonl for programs."""
    words = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handlers = []
    for name, formatter in (("study.log", words), ("study.jsonl", JsonLines())):
        handler = logging.FileHandler(run_folder / name, encoding="utf-8")
        handler.setFormatter(formatter)
        handlers.append(handler)
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with logging_about(study=run_folder.name):
            yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def run_study(grid: Grid, run_folder: Path) -> None:
    """Run the study to its end: results.json is there, and the model package of what was trained.

    StudyPausedError if too few sites take part to go on; the same call resumes the study later.
    """
    study = read_study(run_folder / "study.toml")
    if study.plan.kind in ("single", "evaluate"):
        _run_part(grid, run_folder)
        return
    append_event(run_folder, "started", study.name)
    try:
        parts = run_parts(study, run_folder, partial(_run_and_report, grid))
    except StudyPausedError as error:
        append_event(run_folder, "paused", str(error))
        raise
    results = plan_results(run_folder, study, parts)
    write_results(run_folder, results)
    missing = [
        f"{part.name}: {what_is_missing(part.folder(run_folder), of_part)}"
        for part in parts
        if (of_part := read_results(part.folder(run_folder))) is not None and not of_part["complete"]
    ]
    _tell_end(run_folder, study, results, " | ".join(missing))


def _tell_end(run_folder: Path, study: StudyConfig, results: Row, missing: str) -> None:
    """The last word of the ledger: complete, or incomplete and who is missing where."""
    if results["complete"]:
        append_event(run_folder, "complete", study.name)
        return
    log.warning("the study is incomplete: %s", missing)
    append_event(run_folder, "incomplete", missing)


def estimate_study(grid: Grid, run_folder: Path) -> None:
    """Ask the sites how fast they are, and write estimate.json: nothing is trained, nothing else is left."""
    study = read_study(run_folder / "study.toml")
    exchange = Exchange(grid, study.participation.deadline_h * 3600)
    with TemporaryDirectory() as scratch:
        enrolled = enrol(exchange, study, Path(scratch), measures_speed=True)
    found = estimate(study, enrolled.descriptions)
    write_atomically(run_folder / ESTIMATE, json.dumps(found.as_json(), indent=1).encode())
    for line in estimate_text(found).splitlines():
        log.info("%s", line)
    append_event(run_folder, "estimated", study.name)


def _run_and_report(grid: Grid, run_folder: Path) -> None:
    _run_part(grid, run_folder)
    _report(run_folder)


def _run_part(grid: Grid, run_folder: Path) -> None:
    started = time.monotonic()
    study = read_study(run_folder / "study.toml")
    exchange = Exchange(grid, study.participation.deadline_h * 3600, run_folder)
    append_event(run_folder, "started", study.name)
    run_task = _segment if study.task == "segmentation" else _classify
    if study.plan.kind == "evaluate":
        run_task = _evaluate
    try:
        results = run_task(exchange, study, run_folder, started)
    except RefusedError as error:  # a model package that is none
        append_event(run_folder, "paused", str(error))
        raise StudyPausedError(str(error)) from None
    except StudyPausedError as error:
        append_event(run_folder, "paused", str(error))
        raise
    except (OSError, SafetensorError) as error:  # a full disk
        with suppress(OSError):
            append_event(run_folder, "paused", str(error))
        raise
    write_results(run_folder, results)
    _tell_end(run_folder, study, results, what_is_missing(run_folder, results))


def _evaluate(exchange: Exchange, study: StudyConfig, run_folder: Path, started: float) -> Row:
    """Score a model package at every site."""
    results = evaluate_package(exchange, study, run_folder)
    return results | {"timing": {"total_s": time.monotonic() - started, "site_training_s": 0.0, "rounds": []}}


def _classify(exchange: Exchange, study: StudyConfig, run_folder: Path, started: float) -> Row:
    """Enrol, train, select, fit the ensemble, evaluate, explain."""
    enrolled = enrol(exchange, study, run_folder)
    _require_training_cases(enrolled)
    _log_beginning(study, enrolled)
    state = train(exchange, study, enrolled, run_folder)
    log.info("the rounds are done: the last one is validated, and the ensemble fitted")
    state, unvalidated = validate_newest(exchange, study, enrolled, state)
    selection = select(state)
    models = load_selected(run_folder, study, state, selection, exchange.spool)
    ensemble = fit(exchange, study, enrolled, models)
    take_back(exchange, study, enrolled, run_folder)
    log.info("the models are tested at the held-out sites")
    held_out = evaluate_held_out(exchange, study, enrolled, models, ensemble.weights)
    log.info("attention maps are compared with the infection")
    explained = explain(exchange, study, enrolled, models, ensemble.weights)
    outcome = StudyOutcome(study, enrolled, state, unvalidated, selection, ensemble, held_out, explained)
    write_scores(run_folder, outcome.scores)
    results = study_results(run_folder, outcome, exchange, time.monotonic() - started)
    write_model_package(run_folder, study, OnDemand(models, lambda b: models[b].unpack()), results)
    return results


def _segment(exchange: Exchange, study: StudyConfig, run_folder: Path, started: float) -> Row:
    """Enrol, train VB-Net, select, evaluate."""
    enrolled = enrol(exchange, study, run_folder)
    _require_training_cases(enrolled)
    _log_beginning(study, enrolled)
    state = train(exchange, study, enrolled, run_folder)
    log.info("the rounds are done: the last one is validated, and the model tested at the held-out sites")
    state, unvalidated = validate_newest(exchange, study, enrolled, state)
    selection = select(state)
    models = load_selected(run_folder, study, state, selection, exchange.spool)
    take_back(exchange, study, enrolled, run_folder)
    held_out = evaluate_held_out(exchange, study, enrolled, models, None)
    chosen = selection[Branch.VBNET]
    outcome = SegmentationOutcome(study, enrolled, state, unvalidated, chosen, held_out)
    results = segmentation_results(run_folder, outcome, exchange, time.monotonic() - started)
    write_segmentation_package(run_folder, study, models[Branch.VBNET].unpack(), results)
    return results


def _log_beginning(study: StudyConfig, enrolled: Enrolled) -> None:
    """Who takes part, and what it will take."""
    for role, sites in (("train", enrolled.training), ("test only", enrolled.held_out)):
        if sites:
            log.info("%s: %s", role, ", ".join(sites))
    for line in estimate_text(estimate(study, enrolled.descriptions)).splitlines():
        log.info("%s", line)


def _require_training_cases(enrolled: Enrolled) -> None:
    if not any(enrolled.training_groups().values()):
        reasons = "; ".join(f"{site}: {failure.code}" for site, failure in sorted(enrolled.failures.items()))
        raise StudyPausedError(
            f"no training site has a case to train on ({reasons or 'no site is connected'}). Mend the sites "
            "and resume the study"
        )
