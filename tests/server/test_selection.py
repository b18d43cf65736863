"""Which round is the best: what is compared, on whom, and what must stay on disk for it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsan_model.cases import Case, Label
from dsan_model.metrics import ScoreCounts, score_counts
from dsan_model.sampling import Branch
from dsan_model.weights import FlatWeights
from server.run_state import ROUNDS_KEPT, OnDemand, RunState
from server.selection import rounds_to_keep, select

CASES = [Case(f"c{i}", f"p{i}", label, 0.1) for i, label in enumerate((Label.COVID, Label.CAP) * 10)]


def counts(quality: float) -> ScoreCounts:
    """COVID-19 scores higher by so much than CAP, which spreads over 10 steps of 0.2."""
    return score_counts([0.2 * (i // 2) + (quality if i % 2 == 0 else 0.0) for i in range(20)], CASES)


def a_state(*rounds: tuple[str, float]) -> RunState:
    """A state whose rounds were validated by so many sites (a letter each), with so good weights."""

    def no_weights(branch: Branch) -> FlatWeights:
        raise AssertionError(branch)

    untrained = RunState(0, OnDemand((Branch.US,), no_weights))
    validation = [{site: {Branch.US: counts(quality)} for site in sites} for sites, quality in rounds]
    return replace(untrained, round=len(rounds), validation=({}, *validation))


def test_the_best_of_all_rounds_is_chosen_the_last_one_too() -> None:
    chosen = select(a_state(("ab", 0.1), ("ab", 0.2), ("ab", 0.5)))[Branch.US]
    assert (chosen.round, chosen.rounds, chosen.sites) == (3, (1, 2, 3), ("a", "b"))


def test_the_earlier_of_two_equal_rounds_is_chosen() -> None:
    assert select(a_state(("ab", 0.1), ("ab", 0.5), ("ab", 0.5)))[Branch.US].round == 2


def test_a_site_that_was_missing_once_does_not_change_what_best_means() -> None:
    chosen = select(a_state(("ab", 0.1), ("ab", 0.4), ("a", 0.9), ("ab", 0.2)))[Branch.US]
    assert (chosen.round, chosen.rounds) == (2, (1, 2, 4))


def test_a_site_that_left_early_does_not_bring_back_the_first_rounds() -> None:
    rounds = [("abcdefgh", 0.1), ("abcdefgh", 0.2), *[("abcdefg", 0.03 * n) for n in range(18)]]
    chosen = select(a_state(*rounds))[Branch.US]
    assert (chosen.round, chosen.rounds) == (20, tuple(range(3, 21)))
    assert chosen.sites == tuple("abcdefg")


def test_without_a_score_the_newest_round_is_taken() -> None:
    state = a_state(("ab", 0.1), ("ab", 0.2))
    one_class = score_counts([0.1], CASES[:1])
    chosen = select(replace(state, validation=({}, {"a": {Branch.US: one_class}}, {})))[Branch.US]
    assert (chosen.round, chosen.validation_score) == (2, None)


@given(
    st.lists(
        st.tuples(st.sampled_from(["abc", "ab", "bc", "a"]), st.sampled_from([0.1, 0.3, 0.5, 0.7])),
        min_size=1,
        max_size=9,
    )
)
def test_the_selected_round_was_never_pruned(rounds: list[tuple[str, float]]) -> None:
    on_disk: set[int] = set()
    for number in range(1, len(rounds) + 1):
        before = a_state(*rounds[: number - 1])  # a round is validated when the next one trains
        state = replace(before, round=number)
        newest = set(range(number - ROUNDS_KEPT + 1, number + 1))
        on_disk = (on_disk | {number}) & (rounds_to_keep(state) | newest)
    assert select(a_state(*rounds))[Branch.US].round in on_disk


def test_the_score_is_that_of_the_sites_together() -> None:
    chosen = select(a_state(("ab", 0.5)))[Branch.US]
    assert chosen.validation_score == pytest.approx(select(a_state(("a", 0.5)))[Branch.US].validation_score)
