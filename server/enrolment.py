"""Who takes part in a study: the sites that are connected, how they describe themselves, and their roles."""

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from dsan_daemon.files import write_atomically
from dsan_model.cases import SizeGroup
from dsan_model.protocol import SiteDescription
from server.admission import reject_description
from server.exchange import REVOKED, Exchange, Failure, Outcome
from server.handshake import reject_installation
from server.ledger import append_event
from server.study import StudyConfig

SITES = "sites.json"
GROUPS = "size_groups.json"
WAIT_S = 120.0  # how long a study with a quorum waits for its sites to connect and describe themselves
TAKE_BACK_S = 60.0  # how long a round waits for the description of a site that came back
MOMENT_S = 15.0
TELL_EVERY_S = 60.0
POLL_S = 0.1

log = logging.getLogger("dsan.server")


@dataclass
class Enrolled:
    """The sites of a study by name; why a site that is named cannot take part is in `failures`."""

    descriptions: dict[str, SiteDescription] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    held_out_names: tuple[str, ...] = ()
    known: dict[str, SiteDescription] = field(default_factory=dict)  # also of sites that are absent now
    groups: dict[SizeGroup, int] = field(default_factory=dict)  # of training cases, when the study began

    @property
    def training(self) -> dict[str, SiteDescription]:
        """The sites that train, by name, in the order of names."""
        return {s: d for s, d in sorted(self.descriptions.items()) if s not in self.held_out_names}

    @property
    def held_out(self) -> dict[str, SiteDescription]:
        """The sites that only evaluate, by name, in the order of names."""
        return {s: d for s, d in sorted(self.descriptions.items()) if s in self.held_out_names}

    @property
    def required(self) -> list[str]:
        """The training sites that the study has ever had, by name, whoever is there now."""
        return sorted({*self.training, *(s for s in self.known if s not in self.held_out_names)})

    def training_groups(self) -> dict[SizeGroup, int]:
        """Training cases of the sites that the study began with, by size group; of absent ones too.

        A resumed study draws by the same probabilities, whoever is back or came later.
        """
        return self.groups


def enrol(
    exchange: Exchange, study: StudyConfig, run_folder: Path, *, measures_speed: bool = False
) -> Enrolled:
    """Ask every connected node to describe itself, until the sites that the study names have answered.

    Where each one is becomes known to `exchange`. A study that names no site takes those that are connected.
    A resumed study takes a site only as it was. Without a quorum it waits as long as a round would.
    """
    enrolled = Enrolled(held_out_names=study.sites.held_out)
    answered: set[int] = set()
    started = told = time.monotonic()
    while True:
        _leave_out_revoked(exchange, enrolled, _named(study))
        silent = _listen(exchange, study, enrolled, answered, measures_speed=measures_speed)
        now = time.monotonic()
        if _has_everybody(study, enrolled, answered, silent, now - started):
            break
        is_worth_it = not enrolled.failures and not _has_quorum(study, enrolled)
        longest_s = max(WAIT_S, exchange.deadline_s) if is_worth_it else WAIT_S
        if now - started > longest_s:
            break
        if now - told > TELL_EVERY_S:
            told = now
            log.warning("waiting for %s to connect", ", ".join(sorted(_missing(study, enrolled))) or "sites")
        time.sleep(POLL_S)
    for site in _missing(study, enrolled):
        waited_s = time.monotonic() - started
        enrolled.failures[site] = Failure("SITE-ABSENT", f"not connected within {waited_s:.0f} s")
    _only_as_before(enrolled, run_folder)
    enrolled.groups = _groups_at_the_start(enrolled, run_folder)
    for site, failure in sorted(enrolled.failures.items()):
        reason = f"{failure.code}: {failure.message}"
        log.warning("%s cannot take part: %s", site, reason, extra={"site": site})
    return enrolled


def take_back(exchange: Exchange, study: StudyConfig, enrolled: Enrolled, run_folder: Path) -> None:
    """Take in sites of the study that could not take part and are connected now; revoked ones leave."""
    _leave_out_revoked(exchange, enrolled, {*_named(study), *enrolled.descriptions})
    left_out = {site: enrolled.failures.pop(site) for site in _named(study) & set(enrolled.failures)}
    if not left_out:
        return
    answered: set[int] = set()
    deadline = time.monotonic() + TAKE_BACK_S
    while _listen(exchange, study, enrolled, answered) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    _only_as_before(enrolled, run_folder)
    for site, failure in left_out.items():
        if site in enrolled.descriptions:
            log.info("%s takes part again", site, extra={"site": site})
            append_event(run_folder, "site-back", f"{site} takes part again")
        else:
            enrolled.failures.setdefault(site, failure)


def _leave_out_revoked(exchange: Exchange, enrolled: Enrolled, sites: set[str]) -> None:
    """Count these sites as failed as soon as they are revoked; one that is enrolled again comes back."""
    for site in sites & exchange.revoked() - set(enrolled.failures):
        enrolled.descriptions.pop(site, None)
        exchange.nodes.by_site.pop(site, None)
        enrolled.failures[site] = REVOKED


def _named(study: StudyConfig) -> set[str]:
    return {*study.sites.training, *study.sites.held_out}


def _missing(study: StudyConfig, enrolled: Enrolled) -> set[str]:
    return _named(study) - {*enrolled.descriptions, *enrolled.failures}


def _listen(
    exchange: Exchange,
    study: StudyConfig,
    enrolled: Enrolled,
    answered: set[int],
    *,
    measures_speed: bool = False,
) -> set[int]:
    """Take the descriptions that have come; the connected nodes that have not answered yet."""
    exchange.nodes.look()
    silent = set()
    for node in exchange.nodes.strangers():
        if node in answered:
            continue
        outcome = exchange.introduction(node, study.terms(), measures_speed=measures_speed)
        if outcome is None:
            silent.add(node)
        else:
            answered.add(node)
            _take(enrolled, exchange, node, outcome, _named(study))
    return silent


def _has_everybody(
    study: StudyConfig, enrolled: Enrolled, answered: set[int], silent: set[int], waited_s: float
) -> bool:
    """Whether nobody is waited for: a node that nobody needs is given a moment, to see who it is."""
    if not answered or (_named(study) and _missing(study, enrolled)):
        return False
    return not silent or (bool(_named(study)) and waited_s > MOMENT_S)


def _has_quorum(study: StudyConfig, enrolled: Enrolled) -> bool:
    quorum = study.participation.quorum
    return 0 < quorum <= len(enrolled.training)


def _take(
    enrolled: Enrolled, exchange: Exchange, node: int, outcome: Outcome[SiteDescription], named: set[str]
) -> None:
    answer = outcome.answer
    registered = exchange.nodes.registered_name(node)
    if isinstance(answer, Failure):
        enrolled.failures.setdefault(registered or answer.site or outcome.site, answer)
    elif registered and answer.site != registered:
        message = f"the node that is registered as {registered} calls itself {answer.site}"
        enrolled.failures[registered] = Failure("SITE-IMPOSTOR", message)
    elif (rejection := reject_description(answer) or reject_installation(answer)) is not None:
        name = outcome.site if rejection.code == "SITE-NAME" else answer.site
        enrolled.failures[name] = Failure(rejection.code, rejection.message)
    elif named and answer.site not in named:
        log.info("%s is connected and not part of this study", answer.site)
    elif answer.site in enrolled.descriptions:
        del enrolled.descriptions[answer.site], exchange.nodes.by_site[answer.site]
        enrolled.failures[answer.site] = Failure("SITE-TWICE", "two nodes give this name: which is it?")
    elif answer.site not in enrolled.failures:
        enrolled.descriptions[answer.site], exchange.nodes.by_site[answer.site] = answer, node


def _groups_at_the_start(enrolled: Enrolled, run_folder: Path) -> dict[SizeGroup, int]:
    """Training cases by size group of the sites that the study began with: what SS draws by to its end."""
    path = run_folder / GROUPS
    if path.exists():
        return _COUNTS.validate_json(path.read_bytes())
    sites = [site for name, site in enrolled.known.items() if name not in enrolled.held_out_names]
    groups = {group: sum(site.training_groups[group] for site in sites) for group in SizeGroup}
    if any(groups.values()):
        write_atomically(path, _COUNTS.dump_json(groups, indent=1))
    return groups


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
_COUNTS = TypeAdapter(dict[SizeGroup, int])
