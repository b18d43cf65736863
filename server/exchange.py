"""Asking sites something over Flower's Grid and taking the answers one at a time.

Answers are pulled in the order of the sites' names, so that what is computed from them does not depend on
who was fastest, and one by one, so that memory does not grow with the number of sites.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from dsan_model.protocol import KINDS, ProtocolError, Refusal, Reply, Request, decode, encode, size_bytes

SHORTEST_POLL_S, LONGEST_POLL_S = 0.02, 3.0
POLL_SHARE = 0.05  # of the time waited so far: what polling may cost a round of seconds or of hours
REPLY_GRACE_S = (
    3600.0  # a message outlives its deadline by this, so that a late reply is told from a lost one
)
Answer = TypeVar("Answer", bound=Reply)


@dataclass(frozen=True)
class Failure:
    """Why a site gave no usable answer: its own coded refusal, or what kept the answer away."""

    code: str
    message: str
    site: str = ""  # the name that the site gives itself, where it said so


@dataclass(frozen=True)
class Outcome(Generic[Answer]):
    """What came of asking one site."""

    site: str
    answer: Answer | Failure
    size_bytes: int  # of the answer


class Exchange:
    """The way to the sites: where each one is, and how many bytes went to and fro."""

    def __init__(self, grid: Grid, deadline_s: float) -> None:
        self.grid = grid
        self.deadline_s = deadline_s
        self.nodes: dict[str, int] = {}
        self.bytes_to_sites = 0
        self.bytes_from_sites = 0

    def ask(self, requests: Mapping[str, Request], expected: type[Answer]) -> Iterator[Outcome[Answer]]:
        """Send each site its request and yield every outcome, by site name, before the deadline is over.

        Sites that are given the same request share one encoded record.
        """
        deadline = time.monotonic() + self.deadline_s
        sites = sorted(requests)
        records = {id(request): encode(request) for request in requests.values()}
        messages = [self._message(site, requests[site], records[id(requests[site])]) for site in sites]
        identifiers = list(self.grid.push_messages(messages))
        sizes = {key: size_bytes(record) for key, record in records.items()}
        del messages, records
        for site, identifier in zip(sites, identifiers, strict=True):
            self.bytes_to_sites += sizes[id(requests[site])]
            outcome = _outcome(site, self._wait(identifier, deadline), expected)
            self.bytes_from_sites += outcome.size_bytes
            yield outcome

    def _message(self, site: str, request: Request, record: RecordDict) -> Message:
        kind = KINDS[type(request)].value
        return Message(record, self.nodes[site], kind, ttl=self.deadline_s + REPLY_GRACE_S)

    def _wait(self, identifier: str, deadline: float) -> Message | Failure:
        if not identifier:
            return Failure("SITE-UNKNOWN", "the SuperLink does not know the site's node any more")
        began = time.monotonic()
        while True:
            for message in self.grid.pull_messages([identifier]):
                return message
            now = time.monotonic()
            if now >= deadline:
                return Failure("SITE-LATE", "no answer before the deadline")
            pause = min(LONGEST_POLL_S, max(SHORTEST_POLL_S, POLL_SHARE * (now - began)))
            time.sleep(min(pause, deadline - now))


def _outcome(site: str, message: Message | Failure, expected: type[Answer]) -> Outcome[Answer]:
    if isinstance(message, Failure):
        return Outcome(site, message, 0)
    if message.has_error():
        reason = (
            f"Flower reports error {message.error.code}"  # its text may hold paths of the site: not repeated
        )
        return Outcome(site, Failure("SITE-UNAVAILABLE", reason), 0)
    try:
        answer = decode(message.content, expected)
        received = size_bytes(message.content)
    except (ProtocolError, KeyError) as error:
        return Outcome(site, Failure("REPLY-PROTOCOL", str(error)), 0)
    if isinstance(answer, Refusal):
        return Outcome(site, Failure(answer.code, answer.message, answer.site), received)
    return Outcome(site, answer, received)
