"""Uniform and size-balanced sampling (III-C): probabilities by hand, draws by the chi-square test."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from dsan_model.cases import SizeGroup
from dsan_model.metrics import chi_square_test
from dsan_model.sampling import (
    Branch,
    epoch_generator,
    group_counts,
    site_probabilities,
    size_balanced_order,
    size_balanced_probabilities,
    uniform_order,
)

SMALL_COVID, LARGE_COVID, SMALL_CAP, LARGE_CAP = SizeGroup
COUNTS = {SMALL_COVID: 10, LARGE_COVID: 30, SMALL_CAP: 40, LARGE_CAP: 20}  # W = [3, 1, 1, 2]


def cases_of(counts: Mapping[SizeGroup, int]) -> list[SizeGroup]:
    return [group for group, n in counts.items() for _ in range(n)]


def draw(groups: list[SizeGroup], probabilities: Mapping[SizeGroup, float], epochs: int) -> list[int]:
    """Positions drawn in so many epochs of one site."""
    generators = (epoch_generator(0, "site", Branch.SS, epoch) for epoch in range(epochs))
    return [int(i) for g in generators for i in size_balanced_order(groups, probabilities, g)]


# ---- probabilities ----


def test_the_probabilities_are_the_papers_weights_over_their_sum() -> None:
    expected = {SMALL_COVID: 3 / 7, LARGE_COVID: 1 / 7, SMALL_CAP: 1 / 7, LARGE_CAP: 2 / 7}
    assert size_balanced_probabilities(COUNTS) == pytest.approx(expected)


def test_the_counts_of_table_3_give_weights_of_about_one_and_a_half() -> None:
    # Table III, TV set: 151 + 318 COVID-19 cases below 0.030 and 625 above. It does not cut CAP (1092 cases)
    # at 0.001; the paper's weight of about 1.5 puts 655 of them below.
    counts = {SMALL_COVID: 151 + 318, LARGE_COVID: 625, SMALL_CAP: 655, LARGE_CAP: 437}
    probabilities = size_balanced_probabilities(counts)
    total = 625 / 469 + 1 + 1 + 655 / 437
    assert total == pytest.approx(4.8315, abs=1e-4)
    assert [probabilities[group] for group in SizeGroup] == pytest.approx(
        [1.33262 / total, 1 / total, 1 / total, 1.49886 / total], abs=1e-5
    )


def test_the_groups_with_few_cases_are_drawn_more_often_than_their_share() -> None:
    probabilities = size_balanced_probabilities(COUNTS)
    assert probabilities[SMALL_COVID] > COUNTS[SMALL_COVID] / 100
    assert probabilities[LARGE_CAP] > COUNTS[LARGE_CAP] / 100


@pytest.mark.parametrize("empty", SizeGroup)
def test_an_empty_group_is_never_drawn_and_its_class_keeps_the_weight_of_one(empty: SizeGroup) -> None:
    probabilities = size_balanced_probabilities({**COUNTS, empty: 0})
    other = {SMALL_COVID: LARGE_COVID, LARGE_COVID: SMALL_COVID, SMALL_CAP: LARGE_CAP, LARGE_CAP: SMALL_CAP}
    weights = {SMALL_COVID: 3.0, LARGE_COVID: 1.0, SMALL_CAP: 1.0, LARGE_CAP: 2.0, empty: 0.0}
    weights[other[empty]] = 1.0
    total = sum(weights.values())
    assert probabilities == pytest.approx({group: weight / total for group, weight in weights.items()})


def test_a_federation_without_training_cases_has_no_probabilities() -> None:
    with pytest.raises(ValueError, match="all four groups are empty"):
        size_balanced_probabilities(dict.fromkeys(SizeGroup, 0))


def test_a_site_with_one_class_draws_from_the_groups_that_it_has_in_their_proportion() -> None:
    at_site = site_probabilities(size_balanced_probabilities(COUNTS), [LARGE_COVID, SMALL_COVID, LARGE_COVID])
    expected = {SMALL_COVID: 3 / 4, LARGE_COVID: 1 / 4, SMALL_CAP: 0.0, LARGE_CAP: 0.0}
    assert at_site == pytest.approx(expected)


def test_a_site_whose_groups_nobody_counted_is_an_error() -> None:
    probabilities = size_balanced_probabilities({**COUNTS, SMALL_COVID: 0, LARGE_COVID: 0})
    with pytest.raises(ValueError, match=r"none of the site's groups .*: large COVID-19"):
        site_probabilities(probabilities, [LARGE_COVID])


def test_group_counts_name_the_absent_groups_too() -> None:
    counts = group_counts([LARGE_CAP, LARGE_CAP, SMALL_COVID])
    assert counts == {SMALL_COVID: 1, LARGE_COVID: 0, SMALL_CAP: 0, LARGE_CAP: 2}


# ---- draws ----


def test_groups_are_drawn_with_their_probabilities_by_the_chi_square_test() -> None:
    groups = cases_of(COUNTS)
    probabilities = size_balanced_probabilities(COUNTS)
    drawn = group_counts([groups[i] for i in draw(groups, probabilities, epochs=100)])
    as_the_paper = chi_square_test(drawn, probabilities)
    as_uniform = chi_square_test(drawn, {group: n / 100 for group, n in COUNTS.items()})
    assert as_the_paper is not None
    assert as_uniform is not None
    assert as_the_paper.p_value > 0.01
    assert as_uniform.p_value < 1e-6


def test_a_one_class_site_passes_the_chi_square_test_of_its_renormalised_probabilities() -> None:
    groups = [LARGE_COVID] * 45 + [SMALL_COVID] * 5
    probabilities = size_balanced_probabilities(COUNTS)
    drawn = group_counts([groups[i] for i in draw(groups, probabilities, epochs=200)])
    test = chi_square_test(drawn, site_probabilities(probabilities, groups))
    assert test is not None
    assert test.p_value > 0.01
    assert drawn[SMALL_COVID] > 2.5 * drawn[LARGE_COVID]  # 3 to 1, though only 5 of 50 cases are small


def test_the_cases_of_a_group_are_drawn_uniformly() -> None:
    groups = cases_of(COUNTS)
    times = Counter(draw(groups, size_balanced_probabilities(COUNTS), epochs=200))
    for group in SizeGroup:
        members = np.array([times[i] for i, of_case in enumerate(groups) if of_case is group])
        chi_square = ((members - members.mean()) ** 2 / members.mean()).sum()
        assert chi_square < len(members) + 4 * np.sqrt(2 * len(members))


def test_an_epoch_of_size_balanced_sampling_has_as_many_draws_as_there_are_cases() -> None:
    groups = cases_of(COUNTS)
    order = size_balanced_order(groups, size_balanced_probabilities(COUNTS), np.random.default_rng(0))
    assert order.shape == (100,)
    assert order.dtype == np.int64
    assert order.min() >= 0
    assert order.max() < 100


def test_an_epoch_of_uniform_sampling_visits_each_case_once_in_a_random_order() -> None:
    order = uniform_order(50, np.random.default_rng(0))
    assert sorted(order) == list(range(50))
    assert list(order) != list(range(50))


# ---- reproducible epochs ----


def test_the_same_epoch_is_drawn_the_same_way_again() -> None:
    first, again = (uniform_order(50, epoch_generator(7, "north", Branch.US, 3)) for _ in range(2))
    assert np.array_equal(first, again)
    groups, probabilities = cases_of(COUNTS), size_balanced_probabilities(COUNTS)
    first, again = (
        size_balanced_order(groups, probabilities, epoch_generator(7, "north", Branch.SS, 3))
        for _ in range(2)
    )
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    ("seed", "site", "branch", "epoch"),
    [
        (8, "north", Branch.US, 3),
        (7, "south", Branch.US, 3),
        (7, "north", Branch.SS, 3),
        (7, "north", Branch.US, 4),
    ],
    ids=["seed", "site", "branch", "epoch"],
)
def test_every_seed_site_branch_and_epoch_has_draws_of_its_own(
    seed: int, site: str, branch: Branch, epoch: int
) -> None:
    order = uniform_order(50, epoch_generator(seed, site, branch, epoch))
    assert not np.array_equal(order, uniform_order(50, epoch_generator(7, "north", Branch.US, 3)))


def test_the_draws_of_an_epoch_are_the_same_on_every_machine_and_release() -> None:
    # a resumed study must go on with the draws that it began with: a numpy that draws otherwise shows here
    order = uniform_order(8, epoch_generator(0, "site-1", Branch.US, 0))
    assert order.tolist() == [1, 5, 7, 2, 4, 6, 3, 0]


@pytest.mark.parametrize(
    ("branch", "name", "has_attention_loss"),
    [
        (Branch.US, "Attention RN34 + US", True),
        (Branch.SS, "Attention RN34 + SS", True),
        (Branch.BASELINE, "RN34 + US", False),
    ],
)
def test_branches_have_the_names_of_table_2_and_only_the_baseline_trains_without_attention(
    branch: Branch, name: str, has_attention_loss: bool
) -> None:
    assert branch.model_name == name
    assert branch.has_attention_loss is has_attention_loss
