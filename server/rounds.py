"""The federated rounds: every training site validates and trains each branch, the centre averages (IV-C)."""

import logging
import statistics
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from dsan_daemon.logs import logging_about
from dsan_model.network import initial_state
from dsan_model.protocol import (
    BranchTraining,
    CaseSet,
    EvaluateReply,
    EvaluateRequest,
    RoundReply,
    RoundRequest,
)
from dsan_model.sampling import Branch, size_balanced_probabilities
from dsan_model.traffic import PackedWeights, pack
from dsan_model.vbnet import initial_vbnet_state
from dsan_model.weights import FlatWeights, flatten
from server.admission import Rejection, reject_round, relative_update
from server.aggregation import RunningMean, moved, with_momentum
from server.enrolment import Enrolled, take_back
from server.exchange import Exchange, Failure, Outcome
from server.held_out import admitted_scores
from server.ledger import LedgerEntry, Status, append_event, append_round
from server.run_folder import whole_run
from server.run_state import (
    OnDemand,
    RoundRecord,
    RunState,
    SiteCounts,
    finish_round,
    load_newest,
    load_round_weights,
    prune_rounds,
    write_round,
)
from server.selection import Selection, rounds_to_keep, validation_score
from server.spool import Spool
from server.start_package import read_start_package
from server.status import duration
from server.study import StudyConfig
from server.update_sketch import cosines_with_mean, sketch

log = logging.getLogger("dsan.server")


class StudyPausedError(Exception):
    """The study may not go on by its own rules; it can be resumed where it stopped."""


def train(exchange: Exchange, study: StudyConfig, enrolled: Enrolled, run_folder: Path) -> RunState:
    """All rounds, from the newest verified state on.

    The next round begins while the last one is forced to disk: should that be lost, the sites still have
    their part of both. A round is on disk before the one after the next begins.
    """
    state = load_newest(run_folder, study.digest) or _at_the_start(study, run_folder)
    if state.round:
        append_event(run_folder, "resumed", f"after round {state.round} of {study.rounds}")
        log.info("resumed after round %d of %d", state.round, study.rounds)
    weights = outgoing(state, study, exchange.spool) if state.round < study.rounds else {}
    with ThreadPoolExecutor(1, "rounds") as background:
        finishing: Future[None] | None = None
        while state.round < study.rounds:
            with logging_about(round=state.round + 1):
                following = _next_round(exchange, study, enrolled, run_folder, state, weights)
            if finishing is not None:
                finishing.result()
            state, weights = _written(run_folder, following, study, exchange.spool)
            del following  # and with it the round's replies
            finishing = background.submit(_finish, run_folder, state)
        if finishing is not None:
            finishing.result()
    return state


def _written(
    run_folder: Path, following: RunState, study: StudyConfig, spool: Spool
) -> tuple[RunState, dict[Branch, PackedWeights]]:
    """The state as it is on disk, and its weights as the sites get them."""
    weights: dict[Branch, PackedWeights] = {}

    def keep(branch: Branch, exact: FlatWeights) -> None:
        weights[branch] = spool.kept(pack(exact, study.precision))

    return write_round(run_folder, following, keep), weights


def _finish(run_folder: Path, state: RunState) -> None:
    finish_round(run_folder, state)
    prune_rounds(run_folder, state, rounds_to_keep(state))


def validate_newest(
    exchange: Exchange, study: StudyConfig, enrolled: Enrolled, state: RunState
) -> tuple[RunState, dict[str, Failure]]:
    """The state with its newest weights validated too, and why some sites did not validate them.

    A round validates only the weights that it starts from.
    """
    weights = outgoing(state, study, exchange.spool)
    request = EvaluateRequest(study.terms(), CaseSet.VALIDATION, None, weights)
    counts: SiteCounts = {}
    failures: dict[str, Failure] = {}
    for outcome in exchange.ask(dict.fromkeys(enrolled.training, request), EvaluateReply):
        description = enrolled.training[outcome.site]
        n_cases = sum(description.validation_groups.values())
        answer = admitted_scores(outcome, request, description, n_cases)
        if isinstance(answer, Failure):
            failures[outcome.site] = answer
            log.warning("%s did not validate the last round: %s", outcome.site, answer.code)
        else:
            counts[outcome.site] = answer.branches
    return state.validated(counts), failures


def outgoing(state: RunState, study: StudyConfig, spool: Spool) -> dict[Branch, PackedWeights]:
    """The newest weights as the sites get them: what is validated and chosen is what travelled.

    The centre goes on with the exact ones, so that small updates add up over rounds instead of being
    rounded away in each.
    """
    return {branch: spool.kept(pack(state.weights[branch], study.precision)) for branch in state.weights}


def load_selected(
    run_folder: Path, study: StudyConfig, state: RunState, selection: dict[Branch, Selection], spool: Spool
) -> dict[Branch, PackedWeights]:
    """The weights of the selected round of every branch, as the sites validated them.

    StudyPausedError if they are not whole on disk.
    """

    def selected(branch: Branch) -> FlatWeights:
        chosen = selection[branch].round
        if chosen == state.round:
            return state.weights[branch]
        try:
            return load_round_weights(run_folder, chosen, branch)
        except ValueError as error:
            fix = "Restore the folder of that round from a copy, then resume."
            raise StudyPausedError(f"the selected round {chosen} cannot be read: {error}. {fix}") from None

    return {branch: spool.kept(pack(selected(branch), study.precision)) for branch in selection}


def _at_the_start(study: StudyConfig, run_folder: Path) -> RunState:
    """Round 0: the weights of the package to start from, or an untrained network."""
    return _of_package(study, run_folder) if study.start.model else _untrained(study)


def _of_package(study: StudyConfig, run_folder: Path) -> RunState:
    package = read_start_package(study, run_folder)
    log.info("starting from the model of %s", package.study)
    append_event(run_folder, "start-model", f"{package.study}, SHA256SUMS {package.sha256sums}")
    return RunState(0, package.weights)


def _untrained(study: StudyConfig) -> RunState:
    def weights(branch: Branch) -> FlatWeights:
        if branch is Branch.VBNET:
            return flatten(initial_vbnet_state(study.segmentation.config.network, study.seed))
        return flatten(initial_state(study.network_config, study.seed))

    return RunState(0, OnDemand(study.branches, weights))


@dataclass
class _Gathered:
    """The accepted replies of a round, in the order of the sites' names; the updates are in the spool."""

    updates: dict[Branch, list[PackedWeights]]
    training: dict[str, dict[Branch, BranchTraining]] = field(default_factory=dict)
    validation: SiteCounts = field(default_factory=dict)
    entries: list[LedgerEntry] = field(default_factory=list)
    sketches: dict[Branch, dict[str, Tensor]] = field(default_factory=dict)  # branch, site

    def accept(self, reply: RoundReply, incoming: dict[Branch, PackedWeights]) -> None:
        self.training[reply.site] = reply.training
        self.validation[reply.site] = reply.validation
        for branch, update in reply.updates.items():
            training = reply.training[branch]
            self.updates[branch].append(update)
            self.sketches.setdefault(branch, {})[reply.site] = sketch(update)
            self.entries.append(
                LedgerEntry(
                    reply.round,
                    reply.site,
                    branch.value,
                    "accepted",
                    cases=training.cases,
                    steps=training.steps,
                    seconds=round(training.seconds, 3),
                    bytes=update.size_bytes,
                    digest=update.digest,
                    relative_update=relative_update(update, incoming[branch]),
                )
            )

    def ledger(self) -> list[LedgerEntry]:
        """The entries, those of accepted updates with the cosine, which takes all of them to know."""
        cosines: dict[tuple[str, str], float | None] = {}
        for branch, by_site in self.sketches.items():
            cases = {site: self.training[site][branch].cases for site in by_site}
            for site, cosine in cosines_with_mean(by_site, cases).items():
                cosines[site, branch.value] = cosine
        return [replace(entry, cosine=cosines.get((entry.site, entry.branch))) for entry in self.entries]

    def refuse(self, round_number: int, site: str, reason: Failure | Rejection) -> None:
        is_reply = isinstance(reason, Rejection) or reason.code == "REPLY-PROTOCOL"
        status: Status = "rejected" if is_reply else "missing"
        for branch in self.updates:
            entry = LedgerEntry(
                round_number, site, branch.value, status, code=reason.code, message=reason.message
            )
            self.entries.append(entry)
        about = (round_number, site, status, reason.code, reason.message)
        log.warning("round %d: %s is %s: %s: %s", *about, extra={"site": site})


def _next_round(
    exchange: Exchange,
    study: StudyConfig,
    enrolled: Enrolled,
    run_folder: Path,
    state: RunState,
    weights: dict[Branch, PackedWeights],
) -> RunState:
    started, sent, received = time.monotonic(), exchange.bytes_to_sites, exchange.bytes_from_sites
    take_back(exchange, study, enrolled, run_folder)
    request = RoundRequest(
        terms=study.terms(),
        round=state.round + 1,
        goes_on_from=0,
        group_probabilities=size_balanced_probabilities(enrolled.training_groups()),
        weights=weights,
    )
    gathered = _Gathered({branch: [] for branch in state.weights})
    _require_possible(gathered, run_folder, request.round, study, enrolled)
    for outcome in exchange.ask(_for_each_site(request, state, enrolled), RoundReply):
        _take(gathered, outcome, request, enrolled, study)
        exchange.spool.let_go()
    _count_absent(gathered, request.round, study, enrolled)
    append_round(run_folder, gathered.ledger())
    _require_quorum(request.round, run_folder, study, enrolled, gathered.training)
    record = RoundRecord(
        round=request.round,
        study_digest=study.digest,
        training=gathered.training,
        seconds=time.monotonic() - started,
        bytes_to_sites=exchange.bytes_to_sites - sent,
        bytes_from_sites=exchange.bytes_from_sites - received,
    )
    moved_state = _moved(state, gathered, study, exchange.spool)
    following = moved_state.after_round(record, gathered.validation)
    _tell(following, study)
    return following


def _for_each_site(request: RoundRequest, state: RunState, enrolled: Enrolled) -> dict[str, RoundRequest]:
    """The request of every training site: it goes on with its optimiser as of its last round that was taken.

    Sites that were taken in the same round share one request, and so its encoded weights.
    """
    taken = {
        site: max((record.round for record in state.history if site in record.training), default=0)
        for site in enrolled.training
    }
    requests = {number: replace(request, goes_on_from=number) for number in set(taken.values())}
    return {site: requests[number] for site, number in taken.items()}


def _moved(state: RunState, gathered: _Gathered, study: StudyConfig, spool: Spool) -> RunState:
    """The state with every branch moved by the sites' mean update, with momentum if the study has it.

    Computed a branch at a time, when it is asked for.
    """
    momentum = study.aggregation.server_momentum

    def step(branch: Branch) -> FlatWeights:
        update = _mean_update(gathered, branch, spool)
        return with_momentum(update, state.velocity.get(branch), momentum) if momentum > 0 else update

    weights = OnDemand(state.weights, lambda branch: moved(state.weights[branch], step(branch)))
    velocity = OnDemand(state.weights if momentum > 0 else (), lambda branch: step(branch).floats)
    return replace(state, weights=weights, velocity=velocity)


def _mean_update(gathered: _Gathered, branch: Branch, spool: Spool) -> FlatWeights:
    mean = RunningMean()
    for update, training in zip(gathered.updates[branch], gathered.training.values(), strict=True):
        mean.add(update, training[branch].cases)
        spool.let_go()
    return mean.result()


def _take(
    gathered: _Gathered,
    outcome: Outcome[RoundReply],
    request: RoundRequest,
    enrolled: Enrolled,
    study: StudyConfig,
) -> None:
    if isinstance(outcome.answer, Failure):
        gathered.refuse(request.round, outcome.site, outcome.answer)
        return
    largest = study.participation.largest_relative_update
    rejection = reject_round(outcome.answer, request, enrolled.training[outcome.site], largest)
    if rejection is not None:
        gathered.refuse(request.round, outcome.site, rejection)
    else:
        gathered.accept(outcome.answer, request.weights)


def _count_absent(gathered: _Gathered, round_number: int, study: StudyConfig, enrolled: Enrolled) -> None:
    for site in _required(study, enrolled):
        if site not in enrolled.training:
            absent = Failure("SITE-ABSENT", "not connected since the study was resumed")
            gathered.refuse(round_number, site, enrolled.failures.get(site, absent))


def _required(study: StudyConfig, enrolled: Enrolled) -> list[str]:
    """The training sites that a round without a quorum needs: those named, or those that began."""
    return sorted(study.sites.training) or enrolled.required


def _require_possible(
    gathered: _Gathered, run_folder: Path, round_number: int, study: StudyConfig, enrolled: Enrolled
) -> None:
    """Nobody trains for hours in a round that too few can take part in: it is paused before it is sent."""
    try:
        _require_quorum(round_number, run_folder, study, enrolled, enrolled.training)
    except StudyPausedError:
        _count_absent(gathered, round_number, study, enrolled)
        append_round(run_folder, gathered.ledger())
        raise


def _require_quorum(
    round_number: int, run_folder: Path, study: StudyConfig, enrolled: Enrolled, there: Collection[str]
) -> None:
    everybody = {*_required(study, enrolled), *enrolled.training}
    quorum = study.participation.quorum or len(everybody)
    if len(there) < max(1, quorum):
        missing = ", ".join(sorted(everybody - set(there)))
        raise StudyPausedError(
            f"round {round_number} has {len(there)} of the {quorum} training sites that it needs; missing: "
            f"{missing}. Mend these sites and resume the study; or go on without them, which leaves it "
            f"incomplete: set `quorum` under [participation] in {whole_run(run_folder) / 'study.toml'} "
            "(dsan-simulate: --quorum), and resume"
        )


def _tell(state: RunState, study: StudyConfig) -> None:
    """One line on how the round went and what is to come; the score is of the weights before it."""
    measure = "Dice" if study.task == "segmentation" else "AUC"
    parts = []
    for branch in state.weights:
        training = [by_branch[branch] for by_branch in state.history[-1].training.values()]
        cases = sum(t.cases for t in training)
        loss = sum(t.classification_loss * t.cases for t in training) / cases
        found = validation_score(state, state.round - 1, branch)
        score = "n/a" if found is None else f"{found:.3f}"
        parts.append(f"{branch}: loss {loss:.3f}, validation {measure} before it {score}")
    last = state.history[-1]
    head = f"round {state.round}/{study.rounds}: {len(last.training)} sites, {last.seconds:.1f} s"
    to_go_s = (study.rounds - state.round) * statistics.median(record.seconds for record in state.history)
    tail = [f"{duration(to_go_s)} to go"] if to_go_s else []
    log.info("%s; %s", head, "; ".join([*parts, *tail]))
