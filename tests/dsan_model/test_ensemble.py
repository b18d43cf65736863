"""Eq. 5 by hand, and the search of its weights from counts held against the search over all cases at once."""

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsan_model.cases import Case, Label
from dsan_model.ensemble import (
    ENSEMBLE_COUNTS_SHAPE,
    OBJECTIVE,
    PAPER_WEIGHTS,
    WEIGHT_GRID,
    EnsembleCounts,
    EnsembleFit,
    EnsembleWeights,
    ensemble_counts,
    ensemble_probability,
    ensemble_score_counts,
    fit_ensemble,
    score_counts_at,
    site_bootstrap,
)
from dsan_model.metrics import binary_counts, metrics_row

Floats = npt.NDArray[np.float64]

RATIOS = st.sampled_from([0.0, 0.0009, 0.001, 0.002, 0.005, 0.03, 0.0301, 0.5])
NEXT_TO_HALF = (float(np.nextafter(0.5, 0)), float(np.nextafter(0.5, 1)))
PROBABILITIES = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0, *NEXT_TO_HALF])
)


class Cohort:
    """Cases with the probabilities of both branches."""

    def __init__(self, rows: list[tuple[Label, float, float, float]]) -> None:
        self.cases = [Case(f"c{i}", f"p{i}", row[0], row[1]) for i, row in enumerate(rows)]
        self.is_covid = np.array([row[0] is Label.COVID for row in rows], bool)
        self.ratio = np.array([row[1] for row in rows], float)
        self.p_us = np.array([row[2] for row in rows], float)
        self.p_ss = np.array([row[3] for row in rows], float)

    @property
    def counts(self) -> EnsembleCounts:
        return ensemble_counts(self.p_us, self.p_ss, self.cases)

    def counts_of(self, members: npt.NDArray[np.intp]) -> EnsembleCounts:
        cases = [self.cases[i] for i in members]
        return ensemble_counts(self.p_us[members], self.p_ss[members], cases)


cohorts = st.lists(st.tuples(st.sampled_from(Label), RATIOS, PROBABILITIES, PROBABILITIES), max_size=40).map(
    Cohort
)


def random_cohort(seed: int, n: int = 200) -> Cohort:
    """US is right more often inside the band, SS outside."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        label = Label.COVID if rng.random() < 0.5 else Label.CAP
        ratio = float(10 ** rng.uniform(-4, -0.5))
        sign = 1 if label is Label.COVID else -1
        skill_us, skill_ss = (1.5, 0.5) if 0.001 <= ratio <= 0.030 else (0.5, 1.5)
        p_us, p_ss = 1 / (1 + np.exp(-sign * np.array([skill_us, skill_ss]) + 1.5 * rng.normal(size=2)))
        rows.append((label, ratio, float(p_us), float(p_ss)))
    return Cohort(rows)


def central_search(cohort: Cohort) -> tuple[float, float, float]:
    """The search over all cases at once, from the probabilities, one pair of weights after the other."""
    n_covid, n_cap = int(cohort.is_covid.sum()), int((~cohort.is_covid).sum())
    merit = np.zeros((101, 101), int)
    for i, w_inside in enumerate(WEIGHT_GRID):
        for j, w_outside in enumerate(WEIGHT_GRID):
            weights = EnsembleWeights(float(w_inside), float(w_outside))
            is_positive = ensemble_probability(cohort.p_us, cohort.p_ss, cohort.ratio, weights) >= 0.5
            tp = np.count_nonzero(is_positive & cohort.is_covid)
            tn = np.count_nonzero(~is_positive & ~cohort.is_covid)
            merit[i, j] = tp * n_cap + tn * n_covid
    tied = np.argwhere(merit == merit.max())
    from_mean = ((len(tied) * tied - tied.sum(axis=0)) ** 2).sum(axis=1)
    i, j = tied[from_mean.argmin()]  # argwhere lists the lower w_inside first, then the lower w_outside
    return i / 100, j / 100, merit.max() / (2 * n_covid * n_cap)


# ---- Eq. 5


@pytest.mark.parametrize(
    ("ratio", "probability"),
    [
        (0.0, 0.41),  # 0.35 * 0.8 + 0.65 * 0.2
        (0.0009, 0.41),
        (0.001, 0.776),  # 0.96 * 0.8 + 0.04 * 0.2
        (0.010, 0.776),
        (0.030, 0.776),
        (0.0301, 0.41),
    ],
)
def test_the_papers_weights_give_what_a_hand_computes(ratio: float, probability: float) -> None:
    assert ensemble_probability([0.8], [0.2], [ratio], PAPER_WEIGHTS) == pytest.approx([probability])


def test_weight_one_is_us_alone_and_weight_zero_ss_alone() -> None:
    p_us, p_ss, ratio = [0.9, 0.3], [0.1, 0.7], [0.01, 0.2]
    assert ensemble_probability(p_us, p_ss, ratio, EnsembleWeights(1.0, 1.0)).tolist() == p_us
    assert ensemble_probability(p_us, p_ss, ratio, EnsembleWeights(0.0, 0.0)).tolist() == p_ss


def test_the_grid_has_exact_hundredths() -> None:
    assert WEIGHT_GRID.tolist() == [i / 100 for i in range(101)]


# ---- counts of sites


@settings(deadline=None, max_examples=50)
@given(cohorts, st.integers(1, 6), st.integers(0, 2**31))
def test_the_counts_of_any_sites_add_up_to_those_of_all_cases_in_any_order(
    cohort: Cohort, n_sites: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    site_of = rng.integers(n_sites, size=len(cohort.cases))
    total = EnsembleCounts.empty()
    for site in rng.permutation(n_sites):
        total = total + cohort.counts_of(rng.permutation(np.flatnonzero(site_of == site)))
    assert total == cohort.counts
    assert total.n_cases == len(cohort.cases)
    assert fit_ensemble(total) == fit_ensemble(cohort.counts)


@settings(deadline=None, max_examples=50)
@given(cohorts, st.integers(0, 100), st.integers(0, 100))
def test_the_counts_hold_the_scores_of_the_model_for_every_pair_of_weights(
    cohort: Cohort, i: int, j: int
) -> None:
    weights = EnsembleWeights(i / 100, j / 100)
    direct = ensemble_score_counts(cohort.p_us, cohort.p_ss, cohort.cases, weights)
    assert score_counts_at(cohort.counts, weights) == direct


@settings(deadline=None, max_examples=50)
@given(cohorts, st.integers(0, 100), st.integers(0, 100))
def test_right_decisions_from_counts_are_those_at_one_half_of_the_probability(
    cohort: Cohort, i: int, j: int
) -> None:
    weights = EnsembleWeights(i / 100, j / 100)
    is_positive = ensemble_probability(cohort.p_us, cohort.p_ss, cohort.ratio, weights) >= 0.5
    tp, tn = np.sum(is_positive & cohort.is_covid), np.sum(~is_positive & ~cohort.is_covid)
    n_correct = cohort.counts.n_correct
    assert (n_correct[:, 0, i] + n_correct[:, 1, j]).tolist() == [tp, tn]
    scores = ensemble_score_counts(cohort.p_us, cohort.p_ss, cohort.cases, weights)
    decisions = binary_counts(scores.histogram())
    assert (decisions.tp, decisions.tn) == (tp, tn)


def test_counts_that_do_not_fit_together_are_refused() -> None:
    counts_WSLB = random_cohort(0, n=20).counts.counts_WSLB.copy()
    counts_WSLB[7, 0, 0, 3] += 1
    with pytest.raises(ValueError, match=r"the cases counted at w = 0\.07 are not those counted at w = 0"):
        EnsembleCounts(counts_WSLB)
    with pytest.raises(ValueError, match=r"expected shape \(101, 4, 2, 258\), found \(101, 4, 2, 257\)"):
        EnsembleCounts(counts_WSLB[..., :-1])
    with pytest.raises(ValueError, match="found -1 to -1"):
        EnsembleCounts(np.full(ENSEMBLE_COUNTS_SHAPE, -1))


def test_probabilities_that_do_not_match_the_cases_are_refused() -> None:
    cases = random_cohort(0, n=3).cases
    with pytest.raises(ValueError, match=r"each of 3 cases, found shapes \(3,\) and \(2,\)"):
        ensemble_counts([0.1, 0.2, 0.3], [0.1, 0.2], cases)
    with pytest.raises(ValueError, match="not from 0 to 1"):
        ensemble_counts([0.1, 0.2, float("nan")], [0.1, 0.2, 0.3], cases)


def test_weights_off_the_grid_have_no_counts() -> None:
    with pytest.raises(ValueError, match=r"w = 0\.355 is not on the grid"):
        score_counts_at(EnsembleCounts.empty(), EnsembleWeights(0.96, 0.355))


# ---- the fit


@settings(deadline=None, max_examples=20)
@given(cohorts.filter(lambda cohort: 0 < cohort.is_covid.sum() < len(cohort.cases)))
def test_the_fit_from_counts_is_the_central_search_over_all_pairs(cohort: Cohort) -> None:
    w_inside, w_outside, objective = central_search(cohort)
    fit = fit_ensemble(cohort.counts)
    assert (fit.w_inside, fit.w_outside) == (w_inside, w_outside)
    assert fit.objective_value == pytest.approx(objective, abs=1e-15)


def test_the_fit_of_eight_sites_is_the_central_search_and_so_are_all_figures() -> None:
    cohort = random_cohort(1)
    site_of = np.arange(200) % 8
    total = EnsembleCounts.empty()
    for site in range(8):
        total = total + cohort.counts_of(np.flatnonzero(site_of == site))
    fit = fit_ensemble(total)
    assert (fit.w_inside, fit.w_outside, fit.objective_value) == pytest.approx(central_search(cohort))
    assert fit.w_inside > 0.5 > fit.w_outside  # as the cohort was made
    row = metrics_row(score_counts_at(total, fit.weights).histogram())
    assert row == metrics_row(
        ensemble_score_counts(cohort.p_us, cohort.p_ss, cohort.cases, fit.weights).histogram()
    )
    assert row.sensitivity is not None
    assert row.specificity is not None
    assert fit.objective_value == pytest.approx((row.sensitivity + row.specificity) / 2)


def test_of_tied_weights_the_middle_is_taken() -> None:
    # COVID-19: 0.75 w + 0.34 (1 - w) >= 0.5 from w = 0.40. CAP: 0.605 w + 0.1 (1 - w) < 0.5 up to w = 0.79.
    inside = [(Label.COVID, 0.01, 0.75, 0.34), (Label.CAP, 0.01, 0.605, 0.1)]
    fit = fit_ensemble(Cohort(inside).counts)
    assert fit.w_inside == 0.59  # 0.40 to 0.79 are tied, their mean 0.595; of 0.59 and 0.60 the lower
    assert fit.w_outside == 0.5  # no case, all tied
    assert fit.objective_value == 1.0
    assert fit.objective == OBJECTIVE


def test_validation_cases_of_one_class_leave_both_weights_at_one_half() -> None:
    fit = fit_ensemble(Cohort([(Label.CAP, 0.01, 0.2, 0.3)] * 5).counts)
    assert fit == EnsembleFit(w_inside=0.5, w_outside=0.5, objective_value=None)
    assert not fit.is_fitted
    assert fit_ensemble(EnsembleCounts.empty()) == fit


def test_a_site_with_one_class_still_counts_in_the_fit_of_all() -> None:
    covid = Cohort([(Label.COVID, 0.01, 0.75, 0.34)])
    cap = Cohort([(Label.CAP, 0.01, 0.605, 0.1)])
    assert fit_ensemble(covid.counts + cap.counts).w_inside == 0.59


# ---- intervals over sites


def test_equal_sites_leave_no_doubt_about_the_weights() -> None:
    counts = random_cohort(2).counts
    fit = fit_ensemble(counts)
    intervals = site_bootstrap([counts] * 5, seed=0)
    assert intervals is not None
    assert intervals.w_inside == (fit.w_inside, fit.w_inside)
    assert intervals.w_outside == (fit.w_outside, fit.w_outside)


def test_the_vectorised_bootstrap_is_the_fit_of_each_resample() -> None:
    sites = [random_cohort(seed, n=30).counts for seed in range(6)]
    times_RI = np.random.default_rng(9).multinomial(6, np.full(6, 1 / 6), size=50)
    fits = []
    for times_I in times_RI:
        total = EnsembleCounts(sum(n * site.counts_WSLB for n, site in zip(times_I, sites, strict=True)))
        fits.append(fit_ensemble(total))
    intervals = site_bootstrap(sites, seed=9, n_resamples=50)
    assert intervals is not None
    for found, weights in [
        (intervals.w_inside, sorted(fit.w_inside for fit in fits)),
        (intervals.w_outside, sorted(fit.w_outside for fit in fits)),
    ]:
        assert found == (weights[1], weights[48])  # 2.5 % and 97.5 % of 50
        assert weights[1] < weights[48]


def test_sites_that_disagree_give_a_wide_interval() -> None:
    for_us = Cohort([(Label.COVID, 0.01, 0.9, 0.1), (Label.CAP, 0.01, 0.1, 0.9)]).counts
    for_ss = Cohort([(Label.COVID, 0.01, 0.1, 0.9), (Label.CAP, 0.01, 0.9, 0.1)]).counts
    intervals = site_bootstrap([for_us, for_us, for_ss, for_ss], seed=0)
    assert intervals is not None
    assert intervals.w_inside[0] < 0.3
    assert intervals.w_inside[1] > 0.7


def test_one_site_or_one_class_has_no_interval() -> None:
    both = random_cohort(3, n=20).counts
    cap_only = Cohort([(Label.CAP, 0.01, 0.2, 0.3)]).counts
    assert site_bootstrap([both], seed=0) is None
    assert site_bootstrap([cap_only, cap_only], seed=0) is None


def test_a_thousand_resamples_of_eight_sites_take_less_than_half_a_second() -> None:
    sites = [random_cohort(seed, n=50).counts for seed in range(8)]
    start = time.perf_counter()
    site_bootstrap(sites, seed=0, n_resamples=1000)
    assert time.perf_counter() - start < 0.5
