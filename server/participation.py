"""Who took part in which round, from the ledger: the evidence behind "complete"."""

from dataclasses import dataclass

from dsan_model.sampling import Branch
from server.ledger import LedgerEntry
from server.report_input import Site

_Reason = tuple[str, str, str]  # status, code, message
UNRECORDED = "unrecorded"  # the round took place, and the ledger has no line of this site


@dataclass(frozen=True)
class Missed:
    """Rounds that a training site did not contribute to, in one branch or more, all for the same reason."""

    site: str
    branches: tuple[Branch, ...]
    rounds: tuple[int, ...]
    status: str
    code: str
    message: str


@dataclass(frozen=True)
class Participation:
    """Training sites x branches x rounds; the sites in the order of the study, strangers after them."""

    sites: tuple[str, ...]
    branches: tuple[Branch, ...]
    rounds: tuple[int, ...]
    entries: dict[tuple[str, str, int], LedgerEntry]

    def status(self, site: str, branch: Branch, round_: int) -> str | None:
        """accepted, rejected, missing or unrecorded; None if this branch had no such round at all."""
        entry = self.entries.get((site, branch, round_))
        if entry is not None:
            return entry.status
        took_place = any((other, branch, round_) in self.entries for other in self.sites)
        return UNRECORDED if took_place else None


def participation(ledger: tuple[LedgerEntry, ...], sites: tuple[Site, ...]) -> Participation:
    """The ledger as a matrix."""
    entries: dict[tuple[str, str, int], LedgerEntry] = {}
    for entry in ledger:
        entries[entry.site, entry.branch, entry.round] = entry
    training = [site.name for site in sites if site.role == "training"]
    strangers = sorted({entry.site for entry in ledger} - set(training))
    present = {entry.branch for entry in ledger}
    return Participation(
        sites=(*training, *strangers),
        branches=tuple(branch for branch in Branch if branch in present),
        rounds=tuple(sorted({entry.round for entry in ledger})),
        entries=entries,
    )


def missed_rounds(taken: Participation) -> tuple[Missed, ...]:
    """Every round without an accepted contribution, by site and reason."""
    branches: dict[tuple[str, tuple[int, ...], _Reason], list[Branch]] = {}
    for site in taken.sites:
        for branch in taken.branches:
            for reason, rounds in _rounds_by_reason(taken, site, branch).items():
                branches.setdefault((site, tuple(rounds), reason), []).append(branch)
    return tuple(
        Missed(site, tuple(names), rounds, *reason) for (site, rounds, reason), names in branches.items()
    )


def _rounds_by_reason(taken: Participation, site: str, branch: Branch) -> dict[_Reason, list[int]]:
    rounds: dict[_Reason, list[int]] = {}
    for round_ in taken.rounds:
        status = taken.status(site, branch, round_)
        if status is not None and status != "accepted":
            entry = taken.entries.get((site, branch, round_))
            reason = (entry.code or "", entry.message or "") if entry is not None else ("", "")
            rounds.setdefault((status, *reason), []).append(round_)
    return rounds
