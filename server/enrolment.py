"""Who takes part in a study: the sites that are connected, how they describe themselves, and their roles."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from dsan_daemon.files import write_atomically
from dsan_model.cases import SizeGroup
from dsan_model.protocol import DescribeRequest, SiteDescription
from server.admission import reject_description
from server.exchange import Exchange, Failure, Outcome
from server.handshake import reject_installation
from server.study import StudyConfig

SITES = "sites.json"
WAIT_S = 120.0  # how long a study waits for its sites to connect and to describe themselves

log = logging.getLogger("dsan.server")


@dataclass
class Enrolled:
    """The sites of a study by name; why a site that is named cannot take part is in `failures`."""

    descriptions: dict[str, SiteDescription] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    held_out_names: tuple[str, ...] = ()
    known: dict[str, SiteDescription] = field(default_factory=dict)  # also of sites that are absent now

    @property
    def training(self) -> dict[str, SiteDescription]:
        """The sites that train, by name, in the order of names."""
        return {s: d for s, d in sorted(self.descriptions.items()) if s not in self.held_out_names}

    @property
    def held_out(self) -> dict[str, SiteDescription]:
        """The sites that only evaluate, by name, in the order of names."""
        return {s: d for s, d in sorted(self.descriptions.items()) if s in self.held_out_names}

    def training_groups(self) -> dict[SizeGroup, int]:
        """Training cases of all training sites together, by size group; of those that are absent now too.

        A resumed study draws by the same probabilities, whoever is back.
        """
        sites = [site for name, site in self.known.items() if name not in self.held_out_names]
        return {group: sum(site.training_groups[group] for site in sites) for group in SizeGroup}


def enrol(exchange: Exchange, study: StudyConfig, run_folder: Path) -> Enrolled:
    """Ask every connected node to describe itself, until the sites that the study names have answered.

    Where each one is becomes known to `exchange`. A study that names no site takes those that are connected.
    A resumed study takes a site only as it was.
    """
    named = {*study.sites.training, *study.sites.held_out}
    enrolled = Enrolled(held_out_names=study.sites.held_out)
    asked: set[int] = set()
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        new = set(exchange.grid.get_node_ids()) - asked
        for node, outcome in _describe(exchange, study, sorted(new)):
            _take(enrolled, exchange, node, outcome, named)
        asked |= new
        if asked and named <= {*enrolled.descriptions, *enrolled.failures}:
            break
        time.sleep(0.5)
    for site in sorted(named - {*enrolled.descriptions, *enrolled.failures}):
        enrolled.failures[site] = Failure("SITE-ABSENT", f"not connected within {WAIT_S:.0f} s")
    _only_as_before(enrolled, run_folder)
    for site, failure in sorted(enrolled.failures.items()):
        log.warning("%s cannot take part: %s: %s", site, failure.code, failure.message)
    return enrolled


def _describe(
    exchange: Exchange, study: StudyConfig, nodes: list[int]
) -> Iterator[tuple[int, Outcome[SiteDescription]]]:
    asking = Exchange(exchange.grid, WAIT_S)
    asking.nodes = {f"node {node}": node for node in nodes}
    request = DescribeRequest(study.terms())
    for outcome in asking.ask(dict.fromkeys(asking.nodes, request), SiteDescription):
        yield asking.nodes[outcome.site], outcome
    exchange.bytes_to_sites += asking.bytes_to_sites
    exchange.bytes_from_sites += asking.bytes_from_sites


def _take(
    enrolled: Enrolled, exchange: Exchange, node: int, outcome: Outcome[SiteDescription], named: set[str]
) -> None:
    answer = outcome.answer
    if isinstance(answer, Failure):
        enrolled.failures[answer.site or outcome.site] = answer
    elif (rejection := reject_description(answer) or reject_installation(answer)) is not None:
        name = outcome.site if rejection.code == "SITE-NAME" else answer.site
        enrolled.failures[name] = Failure(rejection.code, rejection.message)
    elif named and answer.site not in named:
        log.info("%s is connected and not part of this study", answer.site)
    elif answer.site in enrolled.descriptions:
        del enrolled.descriptions[answer.site]
        enrolled.failures[answer.site] = Failure("SITE-TWICE", "two nodes give this name: which is it?")
    elif answer.site not in enrolled.failures:
        enrolled.descriptions[answer.site], exchange.nodes[answer.site] = answer, node


def _only_as_before(enrolled: Enrolled, run_folder: Path) -> None:
    """Keep who a site was when the study began; a site whose cases changed since cannot go on."""
    path = run_folder / SITES
    before = _DESCRIPTIONS.validate_json(path.read_bytes()) if path.exists() else {}
    for site, description in list(enrolled.descriptions.items()):
        if site in before and before[site] != replace(description, golden_case=before[site].golden_case):
            del enrolled.descriptions[site]
            message = "its cases, versions or preparation changed since the study began"
            enrolled.failures[site] = Failure("SITE-CHANGED", message)
    enrolled.known = dict(sorted({**enrolled.descriptions, **before}.items()))
    write_atomically(path, _DESCRIPTIONS.dump_json(enrolled.known, indent=1))


_DESCRIPTIONS = TypeAdapter(dict[str, SiteDescription])
