"""Which round's weights a branch goes on with: the best on the validation cases, the last included (IV-C)."""

from dataclasses import dataclass

from dsan_model.metrics import auc
from dsan_model.protocol import BranchCounts, added_dice, added_scores
from dsan_model.sampling import Branch
from server.run_state import RunState


@dataclass(frozen=True)
class Selection:
    """The round whose weights a branch goes on with, and what it was compared with and on."""

    round: int
    validation_score: float | None  # pooled over `sites`; None if it is not defined
    rounds: tuple[int, ...]  # that were compared, this one among them
    sites: tuple[str, ...]  # whose validation cases they were compared on


def select(state: RunState) -> dict[Branch, Selection]:
    """The best round of every branch by pooled validation score, the earlier one on a tie.

    Only rounds that the same sites validated are compared: the sites for which sites times rounds is
    largest, so that neither a site that was missing once nor one that left early decides what "best" means.
    Without any score (one class) the newest round is taken.
    """
    rounds = _rounds_by_sites(state)
    sites = max(rounds, key=lambda s: (len(s) * len(rounds[s]), len(s), sorted(s)), default=frozenset())
    return {branch: _best(state, branch, rounds.get(sites, []), sites) for branch in state.weights}


def rounds_to_keep(state: RunState) -> set[int]:
    """The rounds that `select` can come to choose, now or after more rounds."""
    groups = _rounds_by_sites(state).items()
    return {_best(state, branch, rounds, sites).round for sites, rounds in groups for branch in state.weights}


def validation_counts(state: RunState, round_number: int, branch: Branch) -> list[BranchCounts]:
    """How the weights after a round did at each site that validated them."""
    return [counts[branch] for counts in state.validation[round_number].values()]


def validation_score(state: RunState, round_number: int, branch: Branch) -> float | None:
    """Of all sites together: the AUC, of VB-Net the mean Dice; None if it is not defined."""
    counts = validation_counts(state, round_number, branch)
    if branch is Branch.VBNET:
        return added_dice(counts).score
    found = auc(added_scores(counts).histogram())
    return None if found is None else found[0]


def _rounds_by_sites(state: RunState) -> dict[frozenset[str], list[int]]:
    """The rounds that a set of sites validated, for every such set."""
    found: dict[frozenset[str], list[int]] = {}
    for number, counts in enumerate(state.validation):
        if number > 0 and counts:
            found.setdefault(frozenset(counts), []).append(number)
    return found


def _best(state: RunState, branch: Branch, rounds: list[int], sites: frozenset[str]) -> Selection:
    found = {number: validation_score(state, number, branch) for number in rounds}
    scores = {number: score for number, score in found.items() if score is not None}
    compared = (tuple(rounds), tuple(sorted(sites)))
    if not scores:
        return Selection(state.round, None, *compared)
    best = max(scores, key=lambda number: (scores[number], -number))
    return Selection(best, scores[best], *compared)
