"""Keeps the studies running that the operator wants: a run without an end of its study is begun anew.

The study itself resumes from its newest verified state, and the sites send again what they had finished.
"""

import logging
import time

from server.centre import Centre
from server.ledger import append_event
from server.status import is_run_in_work
from server.superlink import SuperLink
from server.wishes import Attempt, Wish, end_wish, read_attempt, read_wishes, study_end, write_attempt

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
STEADY_S = 600.0  # a run that lived this long, or finished a round, begins again with the first pause
PENDING_S = 45.0  # a run that nobody took by then: the SuperExec is alive, and of no use
DIED = "its process has ended"
STOP_S = 60.0  # a study that should stop, and is still at work: its process hangs

log = logging.getLogger("dsan.server")


class StudyKeeper:
    """Carries out the operator's wishes; `tend` is called every second or so."""

    def __init__(self, centre: Centre, superlink: SuperLink) -> None:
        self._centre = centre
        self._superlink = superlink
        self._began: set[int] = set()  # runs that had their run folder locked: at work
        self._left: set[int] = set()  # of these, those whose lock was gone at the last look
        self._pending_since: dict[int, float] = {}
        self._is_hanging = False

    def begin(self) -> None:
        """End every run that Flower believes to be at work: their processes ended with the daemon before."""
        for run_id in self._superlink.unfinished_runs():
            self._superlink.stop_run(run_id)

    def tend(self) -> bool:
        """Do what is due; true if a run waits or hangs, so that the SuperExec should be started anew.

        Raises SuperLinkError if the SuperLink does not answer.
        """
        self._is_hanging = False
        for wish in read_wishes(self._centre):
            attempt = read_attempt(self._centre, wish)
            if wish.wanted == "stopped":
                self._stop(wish, attempt)
            else:
                self._keep(wish, attempt)
        return self._is_stuck() or self._is_hanging

    def _keep(self, wish: Wish, attempt: Attempt) -> None:
        end = study_end(self._centre, wish)
        if end is not None:
            if not is_run_in_work(self._centre.run(wish.run)):
                log.info("study %s has ended: %s", wish.run, end, extra={"study": wish.run})
                end_wish(self._centre, wish)
        elif attempt.run_id is None:
            if time.time() >= attempt.next_try:
                self._submit(wish, attempt)
        elif (reason := self._failure(wish, attempt.run_id)) is not None:
            self._retry_later(wish, attempt, attempt.run_id, reason)

    def _submit(self, wish: Wish, attempt: Attempt) -> None:
        write_attempt(self._centre, wish, attempt)  # what cannot be remembered is not begun
        run_id = self._superlink.submit(self._centre.run(wish.run), wish.is_dry_run)
        submitted = {"run_id": run_id, "submitted_at": time.time()}
        try:
            write_attempt(self._centre, wish, attempt.model_copy(update=submitted))
        except OSError:
            self._superlink.stop_run(run_id)
            raise
        log.info("study %s is submitted as run %d", wish.run, run_id, extra={"study": wish.run})

    def _failure(self, wish: Wish, run_id: int) -> str | None:
        """Why a run is over though its study is not; None if it is pending or at work."""
        status = self._superlink.run_status(run_id)
        if status is None:
            return "the SuperLink has lost it"
        if status.status == "pending":
            self._pending_since.setdefault(run_id, time.monotonic())
        else:
            self._pending_since.pop(run_id, None)
        if status.is_finished:
            return status.details or DIED
        if is_run_in_work(self._centre.run(wish.run)):
            self._began.add(run_id)
        elif run_id in self._left:
            return DIED
        elif run_id in self._began:  # a process that ends by itself tells Flower why, a moment later
            self._left.add(run_id)
        return None

    def _retry_later(self, wish: Wish, attempt: Attempt, run_id: int, reason: str) -> None:
        if study_end(self._centre, wish) is not None:  # written between two looks
            return
        self._superlink.stop_run(run_id)
        self._forget(run_id)
        lived_s = time.time() - attempt.submitted_at
        is_getting_on = lived_s > STEADY_S or self._has_finished_a_round(wish, attempt.submitted_at)
        failures = 1 if is_getting_on else attempt.failures + 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S)
        failed = Attempt(
            asked_at=wish.asked_at,
            failures=failures,
            last_failure=reason,
            next_try=time.time() + pause_s,
        )
        write_attempt(self._centre, wish, failed)
        log.error(
            "study %s: run %d ended without a result (%s); again in %.0f s", wish.run, run_id, reason, pause_s
        )

    def _has_finished_a_round(self, wish: Wish, since: float) -> bool:
        """Whether a round of the study, or of one of its parts, was written since then (unix seconds)."""
        run, name = self._centre.run(wish.run), "[0-9]" * 4
        rounds = (*run.glob(f"rounds/{name}"), *run.glob(f"parts/*/rounds/{name}"))
        return any(folder.stat().st_mtime > since for folder in rounds)

    def _stop(self, wish: Wish, attempt: Attempt) -> None:
        if attempt.run_id is not None:
            self._superlink.stop_run(attempt.run_id)
        if is_run_in_work(self._centre.run(wish.run)):  # it notices with its next question to the SuperLink
            self._is_hanging |= time.time() - wish.asked_at > STOP_S
            return
        if attempt.run_id is not None:
            self._forget(attempt.run_id)
        append_event(self._centre.run(wish.run), "stopped", "by the operator")
        end_wish(self._centre, wish)
        log.info("study %s is stopped", wish.run, extra={"study": wish.run})

    def _forget(self, run_id: int) -> None:
        self._began.discard(run_id)
        self._left.discard(run_id)
        self._pending_since.pop(run_id, None)

    def _is_stuck(self) -> bool:
        now = time.monotonic()
        stuck = [run_id for run_id, since in self._pending_since.items() if now - since > PENDING_S]
        for run_id in stuck:
            self._pending_since[run_id] = now  # time for the next SuperExec
            log.error("run %d is not taken: the SuperExec is started anew", run_id)
        return bool(stuck)
