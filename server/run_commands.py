"""`dsan-server train`, `resume`, `stop`: what is asked of the daemon, and how a study is watched."""

import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from server.centre import Centre, run_folder_of
from server.daemon_lock import is_daemon_running
from server.headline import results_table
from server.ledger import append_event
from server.orders import EVERY_SITE, give_order, withdraw_orders
from server.refusals import ExitCode, RefusedError
from server.results import RESULTS, read_results
from server.run_folder import PARTS, write_study
from server.sites import read_sites
from server.start_package import read_start_package
from server.status import UNFINISHED, is_run_in_work, read_described, run_states
from server.study import StartTable, StudyConfig, read_study
from server.watch_file import read_watch
from server.wishes import Wish, make_wish, read_attempt, read_wishes, study_end

LOOK_EVERY_S = 0.5
STOP_S = 120.0
TELL_S = 15.0  # a site that is connected speaks every 5 s, and has an order when it has spoken after it


def train_study(centre: Centre, study_file: Path, is_dry_run: bool = False) -> Wish:
    """Ask for a new study, or only for its estimate; its run folder is there afterwards.

    Raises RefusedError DAEMON-DOWN, START-MODEL, START-MISFIT, STUDY-SITES or RUN-EXISTS, or
    ConfigurationError.
    """
    _require_daemon(centre)
    study = _with_its_package(read_study(study_file), study_file)
    _require_enrolled(centre, study)
    run_folder = centre.run(study.name)
    is_at_it = _wish(centre, study.name) is not None or is_run_in_work(run_folder)
    if run_folder.exists() and (is_at_it or _has_a_round(run_folder)):
        raise RefusedError(
            "RUN-EXISTS",
            str(run_folder),
            f"a study called {study.name} was run already, or runs",
            f"Go on with it by `dsan-server resume {study.name}`, or give the new study another name.",
            ExitCode.BAD_CONFIGURATION,
        )
    if run_folder.exists():
        _put_aside(centre, run_folder)
    write_study(run_folder, study)
    withdraw_orders(centre.state, study.name)  # of an attempt that was stopped
    return make_wish(centre, study.name, "running", is_dry_run)


def _with_its_package(study: StudyConfig, study_file: Path) -> StudyConfig:
    """The study with the whole path of the package that it starts from, which is checked."""
    if not study.start.model:
        return study
    package = (study_file.resolve().parent / study.start.model).resolve()
    found = study.model_copy(update={"start": StartTable(model=str(package))})
    read_start_package(found, study_file.resolve().parent)
    return found


def _has_a_round(run_folder: Path) -> bool:
    """Whether something was trained or came to an end, not only estimated, or paused before round 1."""
    kept = ("rounds/*", f"{PARTS}/*/rounds/*", RESULTS)
    return any(True for pattern in kept for _ in run_folder.glob(pattern))


def _put_aside(centre: Centre, run_folder: Path) -> None:
    """An attempt without a round makes room for the next one; its log can still be read."""
    replaced = centre.state / "replaced"
    replaced.mkdir(exist_ok=True)
    run_folder.rename(replaced / f"{run_folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")


def resume_study(centre: Centre, run: str) -> Wish | None:
    """Ask to go on with a study; None if it is complete. Raises RefusedError DAEMON-DOWN or RUN-UNKNOWN."""
    _require_daemon(centre)
    study = read_study(run_folder_of(centre, run) / "study.toml")
    _require_enrolled(centre, study, has_begun=True)
    wish = _wish(centre, run)
    if wish is not None and wish.wanted == "running":
        return wish
    results = read_results(centre.run(run))
    if results is not None and results["complete"]:
        return None
    withdraw_orders(centre.state, study.name)
    return make_wish(centre, run, "running")


def stop_study(centre: Centre, run: str) -> None:
    """End a study, at the centre and at all sites; returns when its process has ended.

    One that is paused or interrupted is given up: nothing waits for it any more until it is resumed.
    Raises RefusedError DAEMON-DOWN, RUN-UNKNOWN, RUN-IDLE or RUN-HANGS.
    """
    _require_daemon(centre)
    run_folder = run_folder_of(centre, run)
    if _wish(centre, run) is None and not is_run_in_work(run_folder):
        state = run_states(centre.runs)[run]
        if state in ("paused", "interrupted"):
            append_event(run_folder, "stopped", f"it was {state}, and its operator gave it up")
            return
        raise RefusedError(
            "RUN-IDLE", run, "nothing works on this study", "Nothing is left to do.", ExitCode.BAD_DATA
        )
    give_order(centre.state, EVERY_SITE, "stop", read_study(run_folder / "study.toml").name)
    wish = make_wish(centre, run, "stopped")
    deadline = time.monotonic() + STOP_S
    while _wish(centre, run) is not None:
        if time.monotonic() > deadline:
            raise RefusedError(
                "RUN-HANGS",
                run,
                f"its process has not ended within {STOP_S:.0f} s (asked {wish.asked_at:.0f})",
                "The daemon goes on trying; see state/logs and `dsan-server status`.",
                ExitCode.FAILED,
            )
        time.sleep(LOOK_EVERY_S)


def studies_that_need(centre: Centre, site: str) -> dict[str, str]:
    """The studies with a part for the site that are not at their end, and how each stands."""
    found = {}
    for run, state in run_states(centre.runs).items():
        if state in UNFINISHED:
            sites = read_study(centre.run(run) / "study.toml").sites
            names = {*sites.training, *sites.held_out} or read_described(centre.run(run))
            if site in names:
                found[run] = state
    return found


def order_site(centre: Centre, site: str, order: Literal["drain", "undrain"], run: str | None) -> bool:
    """Tell a site to drain a run (None: every study), or to take its messages again.

    Returns whether it was told within seconds; one that is away is told when it comes back, if that is within
    12 hours. Raises RefusedError DAEMON-DOWN, RUN-UNKNOWN or DRAIN-UNKNOWN.
    """
    _require_daemon(centre)
    members = {name for name, known in read_sites(centre).items() if not known.is_revoked}
    members |= set(read_watch(centre.state)) if _is_insecure(centre) else set()
    if site not in members:
        raise RefusedError(
            "DRAIN-UNKNOWN",
            site,
            f"no such site takes part; there are: {', '.join(sorted(members)) or 'none'}",
            "Give the name of an enrolled site.",
            ExitCode.BAD_DATA,
        )
    study = "" if run is None else read_study(run_folder_of(centre, run) / "study.toml").name
    given = give_order(centre.state, site, order, study)
    deadline = time.monotonic() + TELL_S
    while given.exists() and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return not given.exists()


@dataclass(frozen=True)
class Outcome:
    """How a study that was followed went."""

    exit_code: ExitCode
    text: str  # for stdout


def follow_study(centre: Centre, wish: Wish) -> Outcome:
    """Repeat what the study logs on stderr until it has ended; KeyboardInterrupt leaves it running."""
    log = centre.run(wish.run) / "study.log"
    told = log.stat().st_size if log.exists() else 0
    failures = read_attempt(centre, wish).failures
    while (end := study_end(centre, wish)) is None or is_run_in_work(centre.run(wish.run)):
        told = _tell(log, told)
        failures = _tell_failures(centre, wish, failures)
        if not is_daemon_running(centre):
            text = f"the daemon has ended; study {wish.run} goes on when `dsan-server start` runs again"
            return Outcome(ExitCode.UNREACHABLE, text)
        time.sleep(LOOK_EVERY_S)
    _tell(log, told)
    return _outcome(centre.run(wish.run), end)


def how_to_look(run: str) -> str:
    """What an operator does with a study that nobody watches."""
    return (
        f"study {run} goes on without you: `dsan-server status {run}` shows it, "
        f"`dsan-server stop {run}` ends it, `dsan-server resume {run}` watches it again"
    )


def _outcome(run_folder: Path, end: str) -> Outcome:
    if end == "estimated":
        return Outcome(ExitCode.DONE, f"estimate: {run_folder / 'estimate.json'}; nothing was trained")
    if end not in ("complete", "incomplete"):
        return Outcome(ExitCode.FAILED, f"study {run_folder.name} is {end}: see {run_folder}/study.log")
    results = read_results(run_folder)
    assert results is not None  # written before the event
    state = "complete" if results["complete"] else "INCOMPLETE: see the report"
    table = results_table(results) if "table2" in results else ""  # a segmentation study has none
    page = run_folder / "report.html"
    shown = f"report: {page}" if page.exists() else f"results: {run_folder / RESULTS}"
    code = ExitCode.DONE if results["complete"] else ExitCode.FAILED
    return Outcome(code, f"\nStudy {results['study']['name']}: {state}\n{table}\n{shown}")


def _tell(log: Path, told: int) -> int:
    """Repeat what was logged since; the study's process is not ours."""
    if not log.exists():
        return told
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(told)
        sys.stderr.write(file.read())
        return file.tell()


def _tell_failures(centre: Centre, wish: Wish, told: int) -> int:
    attempt = read_attempt(centre, wish)
    if attempt.failures != told and attempt.run_id is None:
        wait_s = max(0.0, attempt.next_try - time.time())
        sys.stderr.write(
            f"the study's process ended without a result ({attempt.last_failure}); it is started again in "
            f"{wait_s:.0f} s\n"
        )
    return attempt.failures


def _wish(centre: Centre, run: str) -> Wish | None:
    return next((wish for wish in read_wishes(centre) if wish.run == run), None)


def _require_daemon(centre: Centre) -> None:
    if not is_daemon_running(centre):
        raise RefusedError(
            "DAEMON-DOWN",
            str(centre.folder),
            "no daemon runs in this folder, so nothing would work on a study",
            f"Start it: `dsan-server start --dir {centre.folder}`, or `systemctl start dsan-server`.",
            ExitCode.UNREACHABLE,
        )


def _is_insecure(centre: Centre) -> bool:
    return bool(json.loads((centre.state / "daemon.json").read_bytes())["insecure"])


def _require_enrolled(centre: Centre, study: StudyConfig, *, has_begun: bool = False) -> None:
    """Refuse a study that waits for sites which cannot come; without authentication nobody is enrolled.

    A study that has begun may go on without a site that was revoked since, if its quorum lets it.
    """
    if _is_insecure(centre):
        return
    enrolled = {name for name, site in read_sites(centre).items() if has_begun or not site.is_revoked}
    unknown = sorted({*study.sites.training, *study.sites.held_out} - enrolled)
    if unknown:
        raise RefusedError(
            "STUDY-SITES",
            f"study {study.name}, [sites]",
            f"not enrolled: {', '.join(unknown)}; enrolled are: {', '.join(sorted(enrolled)) or 'none'}",
            "Enrol them with `dsan-server enrol`, or change [sites].",
            ExitCode.BAD_CONFIGURATION,
        )
