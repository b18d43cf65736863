"""Asking sites something over Flower's Grid and taking the answers one at a time.

Answers are given in the order of the sites' names, so that what is computed from them does not depend on who
was fastest. A request that a site lost is sent again: what the site has finished it answers from its disk
(docs/decisions/0003).
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from dsan_model.protocol import (
    KINDS,
    DescribeRequest,
    ProtocolError,
    Refusal,
    Reply,
    Request,
    RoundReply,
    SiteDescription,
    StudyTerms,
    decode,
    encode,
    size_bytes,
)
from server.idle_sites import IdleSites, centre_folder_of
from server.ledger import append_event
from server.nodes import Nodes
from server.sites import revoked_names
from server.spool import Spool
from server.study import SITE_NAME

SHORTEST_POLL_S, LONGEST_POLL_S = 0.02, 3.0
POLL_SHARE = 0.02  # of the time waited so far: what polling may cost a round of seconds or of hours
LOOK_EVERY_S = 5.0  # how often the centre sees who is connected and who else has answered
REPLY_GRACE_S = 3600.0  # a message outlives its deadline by this: a late reply is told from a lost one
LOST = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
SMALL_REPLY_BYTES = 16 * 1024 * 1024  # a reply that holds no weights is smaller
LONGEST_MESSAGE = 500  # of a refusal, in characters
CODE = r"[A-Z][A-Z0-9]*(-[A-Z0-9]+)+"
CRASHES = 5  # of the ClientApp over one request: then it is not sent again
Answer = TypeVar("Answer", bound=Reply)

log = logging.getLogger("dsan.server")


@dataclass(frozen=True)
class Failure:
    """Why a site gave no usable answer: its own coded refusal, or what kept the answer away."""

    code: str
    message: str
    site: str = ""  # the name that the site gives itself, where it said so


REVOKED = Failure("SITE-REVOKED", "the operator of the centre ended its part by `dsan-server revoke`")


@dataclass(frozen=True)
class Outcome(Generic[Answer]):
    """What came of asking one site."""

    site: str
    answer: Answer | Failure
    size_bytes: int  # of the answer


@dataclass
class _Asked(Generic[Answer]):
    """One site and one request: what was sent, and what became of it."""

    site: str
    request: Request
    expected: type[Answer]
    identifiers: list[str] = field(default_factory=list)  # of messages that may still be answered
    node: int | None = None  # that the newest was sent to
    activation: str | None = None  # of that node then; None: it was away, and finds the message when it comes
    request_bytes: int = 0
    sent_at: float = 0.0  # the newest, in unix seconds
    crashes: int = 0
    away_since: float | None = None  # on time.monotonic
    outcome: Outcome[Answer] | None = None


@dataclass(frozen=True)
class _Introduction:
    """The message that asks a node who it is."""

    identifier: str  # empty: the node is not known any more
    sent_at: float  # unix seconds


class Exchange:
    """The way to the sites: where each one is, and how many bytes went to and fro.

    What happens to a site on the way is told in the ledger of `run_folder`.
    """

    def __init__(self, grid: Grid, deadline_s: float, run_folder: Path | None = None) -> None:
        self.grid = grid
        self.deadline_s = deadline_s
        self.run_folder = run_folder
        self.nodes = Nodes(grid)
        self.spool = Spool(run_folder)
        self.bytes_to_sites = 0
        self.bytes_from_sites = 0
        self._centre_folder = centre_folder_of(run_folder)
        self._idle = IdleSites(self._centre_folder)
        self._introductions: dict[tuple[int, str], _Introduction] = {}  # node, its activation

    def ask(self, requests: Mapping[str, Request], expected: type[Answer]) -> Iterator[Outcome[Answer]]:
        """Send each site its request and yield every outcome, by site name, before the deadline is over.

        Sites that are given the same request share one encoded record. What a restarted or crashed site lost
        is sent again until the deadline. The weights of a reply are in a file, whenever it came.
        """
        deadline = time.monotonic() + self.deadline_s
        waiting = [_Asked(site, requests[site], expected) for site in sorted(requests)]
        if not waiting:
            return
        self.nodes.look()
        self._send(waiting)
        while waiting:
            outcome = self._wait(waiting, deadline)
            del waiting[0]
            yield outcome

    def revoked(self) -> set[str]:
        """The sites whose part the operator has ended: nobody waits for them."""
        return revoked_names(self._centre_folder) if self._centre_folder is not None else set()

    def introduction(
        self, node: int, terms: StudyTerms, *, measures_speed: bool = False
    ) -> Outcome[SiteDescription] | None:
        """Who a node says it is: asked at the first call, None until a later call finds the answer."""
        activation = self.nodes.activation(node)
        if activation is None:
            return None
        asked = node, activation  # a node that was started anew has lost the question
        self._idle.look()
        known = self._introductions.get(asked)
        if known is None or self._idle.has_lost(self.nodes.registered_name(node), known.sent_at):
            known = self._introductions[asked] = self._introduced(node, terms, measures_speed)
        if not known.identifier:
            return None
        for message in self.grid.pull_messages([known.identifier]):
            del self._introductions[asked]
            if message.has_error() and message.error.code in LOST:
                return None  # the next call asks again
            outcome = _outcome(f"node {node}", message, SiteDescription)
            self.bytes_from_sites += outcome.size_bytes
            return outcome
        return None

    def _introduced(self, node: int, terms: StudyTerms, measures_speed: bool) -> _Introduction:
        """Ask a node who it is."""
        record = encode(DescribeRequest(terms, measures_speed))
        message = Message(record, node, KINDS[DescribeRequest].value, ttl=REPLY_GRACE_S)
        (identifier,) = self.grid.push_messages([message])
        self.bytes_to_sites += size_bytes(record)
        return _Introduction(identifier or "", time.time())

    def _send(self, batch: list[_Asked[Answer]]) -> None:
        requests = {id(asked.request): asked.request for asked in batch}
        records = {key: encode(request) for key, request in requests.items()}
        sizes = {key: size_bytes(record) for key, record in records.items()}
        self.spool.let_go()  # the records have their own bytes
        messages = []
        for asked in batch:
            asked.node = self.nodes.by_site[asked.site]
            kind = KINDS[type(asked.request)].value
            ttl = self.deadline_s + REPLY_GRACE_S
            messages.append(Message(records[id(asked.request)], asked.node, kind, ttl=ttl))
        identifiers = list(self.grid.push_messages(messages))
        for asked, identifier in zip(batch, identifiers, strict=True):
            asked.activation, asked.sent_at = self.nodes.activation(asked.node), time.time()
            if identifier:
                asked.identifiers.append(identifier)
                asked.request_bytes = sizes[id(asked.request)]
                self.bytes_to_sites += asked.request_bytes
            if asked.activation is None:
                self._note_absence(asked)

    def _wait(self, waiting: list[_Asked[Answer]], deadline: float) -> Outcome[Answer]:
        """The outcome of the first of those that are waited for; the others are looked after meanwhile."""
        first = waiting[0]
        began = looked = time.monotonic()
        while True:
            now = time.monotonic()
            is_over = now >= deadline
            if first.outcome is None:
                self._pull(first, is_over)
            if first.outcome is not None:
                return first.outcome
            if is_over:
                return Outcome(first.site, _lateness(first, now), 0)
            if now - looked >= LOOK_EVERY_S:
                looked = now
                self._look_after(waiting)
                self._take_early(waiting[1:])
                self._send_what_was_lost(waiting)
                continue
            pause = min(LONGEST_POLL_S, max(SHORTEST_POLL_S, POLL_SHARE * (now - began)))
            time.sleep(min(pause, deadline - now))

    def _take_early(self, others: list[_Asked[Answer]]) -> None:
        """Take what the others have answered: it is safe then, whatever becomes of their nodes."""
        for asked in others:
            if asked.outcome is None:
                self._pull(asked)

    def _pull(self, asked: _Asked[Answer], is_last_try: bool = False) -> None:
        """Take the answer if it is there; a message that was lost is sent again.

        Not while the site's node is away: what is pulled then is an error, and the SuperLink drops the reply.
        """
        if asked.away_since is not None and not is_last_try:
            return
        for identifier in list(asked.identifiers):
            for message in self.grid.pull_messages([identifier]):
                asked.identifiers.remove(identifier)
                if message.has_error():
                    self._note_error(asked, message.error.code)
                else:
                    largest = 2 * asked.request_bytes + SMALL_REPLY_BYTES
                    asked.outcome = self._kept(_outcome(asked.site, message, asked.expected, largest))
                    self.bytes_from_sites += asked.outcome.size_bytes
                    return

    def _kept(self, outcome: Outcome[Answer]) -> Outcome[Answer]:
        """The same; the updates of a round's reply are in files, and not in memory until they are used."""
        if not isinstance(outcome.answer, RoundReply):
            return outcome
        updates = {branch: self.spool.kept(update) for branch, update in outcome.answer.updates.items()}
        return replace(outcome, answer=replace(outcome.answer, updates=updates))

    def _note_error(self, asked: _Asked[Answer], code: int) -> None:
        if code in LOST:
            return  # sent again when the node is next looked after
        asked.crashes += 1
        if asked.crashes == CRASHES:
            failure = Failure(
                "SITE-CRASHED", f"the site's ClientApp failed {CRASHES} times over this request"
            )
            asked.outcome = Outcome(asked.site, failure, 0)
        elif not asked.identifiers:
            self._send_again(asked, f"its ClientApp failed with Flower's error {code}")

    def _look_after(self, waiting: list[_Asked[Answer]]) -> None:
        """See who left, who came back, and who came back as another node; send again what was lost."""
        self.nodes.look()
        self._idle.look()
        open_ones = [asked for asked in waiting if asked.outcome is None]
        revoked = self.revoked() if open_ones else ()
        for asked in [asked for asked in open_ones if asked.site in revoked]:
            asked.outcome = Outcome(asked.site, REVOKED, 0)
            open_ones.remove(asked)
        self._find_moved([asked for asked in open_ones if self.nodes.activation(asked.node) is None])
        for asked in open_ones:
            node = self.nodes.by_site[asked.site]
            activation = self.nodes.activation(node)
            if activation is None:
                self._note_absence(asked)
                continue
            asked.away_since = None
            was_sent_while_away = asked.activation is None and node == asked.node
            if was_sent_while_away and asked.identifiers:
                asked.activation = activation
            elif activation != asked.activation or node != asked.node:
                self._send_again(asked, "its node was started anew")
            elif not asked.identifiers:
                self._send_again(asked, "its message was lost")

    def _send_what_was_lost(self, waiting: list[_Asked[Answer]]) -> None:
        """After all answers that are there were taken: who is idle and owes one lost message or answer."""
        for asked in waiting:
            is_open = asked.outcome is None and asked.away_since is None
            if is_open and self._idle.has_lost(asked.site, asked.sent_at):
                self._send_again(asked, "it has nothing to do, so its message or answer was lost")

    def _find_moved(self, away: list[_Asked[Answer]]) -> None:
        """Give sites that are away the nodes that came since and are theirs.

        A registered name is believed; another node is asked who it is.
        """
        missing = {asked.site for asked in away}
        for node in self.nodes.strangers() if missing else ():
            name = self.nodes.registered_name(node)
            if not name:
                outcome = self.introduction(node, away[0].request.terms)
                name = outcome.answer.site if outcome is not None else ""
            if name in missing:
                self.nodes.by_site[name] = node

    def _note_absence(self, asked: _Asked[Answer]) -> None:
        if asked.away_since is None:
            asked.away_since = time.monotonic()
            log.warning("%s is not connected; waiting for it", asked.site, extra={"site": asked.site})
            self._tell("site-away", f"{asked.site} is not connected")

    def _send_again(self, asked: _Asked[Answer], why: str) -> None:
        log.warning("%s is asked again: %s", asked.site, why, extra={"site": asked.site})
        self._tell("asked-again", f"{asked.site}: {why}")
        self._send([asked])

    def _tell(self, event: str, message: str) -> None:
        if self.run_folder is not None:
            append_event(self.run_folder, event, message)


def _lateness(asked: _Asked[Answer], now: float) -> Failure:
    if asked.away_since is not None:
        away_s = now - asked.away_since
        return Failure("SITE-UNAVAILABLE", f"not connected for {away_s:.0f} s when the deadline came")
    if not asked.identifiers:
        return Failure("SITE-UNAVAILABLE", "its node is gone, and the site did not come back as another")
    return Failure("SITE-LATE", "connected, and no answer before the deadline")


def _outcome(
    site: str, message: Message, expected: type[Answer], largest_bytes: int = SMALL_REPLY_BYTES
) -> Outcome[Answer]:
    if message.has_error():  # its text may hold paths of the site: not repeated
        return Outcome(site, Failure("SITE-CRASHED", f"Flower reports error {message.error.code}"), 0)
    received = 0
    try:
        received = size_bytes(message.content)
        if received > largest_bytes:
            text = f"{received} bytes, at most {largest_bytes} answer this request"
            return Outcome(site, Failure("REPLY-TOO-LARGE", text), received)
        answer = decode(message.content, expected)
    except (ProtocolError, KeyError, TypeError) as error:
        return Outcome(site, Failure("REPLY-PROTOCOL", str(error)[:LONGEST_MESSAGE]), received)
    if isinstance(answer, Refusal):
        return Outcome(site, _refusal(answer), received)
    return Outcome(site, answer, received)


def _refusal(answer: Refusal) -> Failure:
    """A site's own reason, which goes into the ledger and the report: a code, and not too long a text."""
    if not re.fullmatch(CODE, answer.code) or not (answer.site == "" or re.fullmatch(SITE_NAME, answer.site)):
        return Failure("REPLY-PROTOCOL", "a refusal without a code, or under a name that is none")
    return Failure(answer.code, answer.message[:LONGEST_MESSAGE], answer.site)
