"""Figures from counts, held against scikit-learn, hand-made numbers and the tables of the paper."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import f1_score, roc_auc_score

from dsan_model.cases import Case, Label, RatioGroup, SizeGroup
from dsan_model.metrics import (
    FIRST_POSITIVE_BIN,
    LOGIT_EDGES,
    N_BINS,
    PROBABILITY_EDGES,
    BinaryCounts,
    ScoreCounts,
    auc,
    auc_interval,
    binary_counts,
    bootstrap_interval,
    chi_square_test,
    delong_interval,
    delong_test,
    metrics_row,
    paired_t_test,
    probability_bins,
    probability_counts,
    roc,
    score_counts,
)

Floats = npt.NDArray[np.float64]

# A score of any kind of model: calibrated, in its first round, full of ties, over-confident.
LOGITS = st.one_of(
    st.floats(-8, 8),
    st.floats(-0.01, 0.01),
    st.sampled_from([-3.0, -0.0, 0.0, 0.5, 3.0, float(LOGIT_EDGES[200])]),
    st.floats(-900, 900),
)


@st.composite
def scored_cases(
    draw: st.DrawFn, logits: st.SearchStrategy[float] = LOGITS
) -> tuple[list[float], list[Case]]:
    """Up to 40 logits with their cases, any mixture of labels and infection ratios."""
    rows = draw(
        st.lists(
            st.tuples(logits, st.sampled_from(Label), st.sampled_from([0.0, 0.004, 0.005, 0.03, 0.2])),
            max_size=40,
        )
    )
    cases = [Case(f"c{i}", f"p{i}", label, ratio) for i, (_, label, ratio) in enumerate(rows)]
    return [row[0] for row in rows], cases


def cases_of(is_covid: Sequence[bool], infection_ratio: float = 0.01) -> list[Case]:
    return [
        Case(f"c{i}", f"p{i}", Label.COVID if covid else Label.CAP, infection_ratio)
        for i, covid in enumerate(is_covid)
    ]


def histogram_of(logits: Sequence[float] | Floats, is_covid: Sequence[bool]) -> npt.NDArray[np.int64]:
    return score_counts(logits, cases_of(is_covid)).histogram()


# ---- bins


def test_the_bins_are_symmetric_and_one_begins_at_logit_zero() -> None:
    assert LOGIT_EDGES.size == N_BINS - 1
    assert (np.diff(LOGIT_EDGES) > 0).all()
    assert (-LOGIT_EDGES[::-1] == LOGIT_EDGES).all()
    assert LOGIT_EDGES[FIRST_POSITIVE_BIN - 1] == 0.0
    assert PROBABILITY_EDGES[FIRST_POSITIVE_BIN - 1] == 0.5
    assert LOGIT_EDGES[-1] == 64.0


@pytest.mark.parametrize(
    ("probability", "is_positive"),
    [(0.5, True), (np.nextafter(0.5, 0), False), (np.nextafter(0.5, 1), True), (0.0, False), (1.0, True)],
)
def test_a_probability_of_exactly_one_half_counts_as_covid(probability: float, is_positive: bool) -> None:
    counts = probability_counts([probability], cases_of([True]))
    assert binary_counts(counts.histogram()).tp == is_positive


@pytest.mark.parametrize(
    ("logit", "is_positive"),
    [(0.0, True), (-0.0, True), (-5e-324, False), (math.inf, True), (-math.inf, False)],
)
def test_a_logit_of_exactly_zero_counts_as_covid(logit: float, is_positive: bool) -> None:
    assert binary_counts(histogram_of([logit], [True])).tp == is_positive


def test_probabilities_zero_and_one_fall_into_underflow_and_overflow() -> None:
    assert probability_bins([0.0, 1.0]).tolist() == [0, N_BINS - 1]


def test_cases_are_counted_under_their_label_and_ratio_group() -> None:
    cases = [Case("a", "a", Label.CAP, 0.2), Case("b", "b", Label.COVID, 0.001)]
    counts = score_counts([-100.0, 100.0], cases)
    assert np.argwhere(counts.counts_LGB).tolist() == [[0, 0, N_BINS - 1], [1, 2, 0]]
    assert counts.histogram(RatioGroup.HIGH)[1, 0] == 1
    assert counts.histogram(RatioGroup.MIDDLE).sum() == 0
    assert counts.n_cases == 2


@settings(deadline=None)
@given(scored_cases(), st.data())
def test_the_counts_of_sites_add_up_to_the_counts_of_all_cases(
    scored: tuple[list[float], list[Case]], data: st.DataObject
) -> None:
    logits, cases = scored
    site_of = data.draw(st.lists(st.integers(0, 3), min_size=len(cases), max_size=len(cases)))
    total = ScoreCounts.empty()
    for site in range(4):
        mine = [i for i in range(len(cases)) if site_of[i] == site]
        total = total + score_counts([logits[i] for i in mine], [cases[i] for i in mine])
    assert total == score_counts(logits, cases)
    assert ScoreCounts(total.counts_LGB.copy()) == total


def test_scores_that_are_no_scores_are_refused_with_their_number() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 logits are NaN"):
        score_counts([math.nan, 1.0], cases_of([True, False]))
    with pytest.raises(ValueError, match=r"2 of 3 probabilities .* 1\.5"):
        probability_counts([0.2, 1.5, math.nan], cases_of([True, False, True]))
    with pytest.raises(ValueError, match="each of 2 cases"):
        score_counts([1.0], cases_of([True, False]))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros((2, 3, 257), np.int64), r"expected shape \(2, 3, 258\), found \(2, 3, 257\)"),
        (np.zeros((2, 3, 258)), "expected integers, found float64"),
        (np.full((2, 3, 258), -1), "found -1 to -1"),
        (np.full((2, 3, 258), 2**62), "from 0 to 1000000"),
    ],
)
def test_an_array_that_is_no_counts_is_refused(counts: npt.NDArray[np.int64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreCounts(counts)


# ---- AUC and ROC


@settings(deadline=None)
@given(scored_cases())
def test_the_auc_lies_within_its_printed_bound_of_the_auc_of_the_scores(
    scored: tuple[list[float], list[Case]],
) -> None:
    logits, cases = scored
    is_covid = [case.label is Label.COVID for case in cases]
    found = auc(score_counts(logits, cases).histogram())
    if len(set(is_covid)) < 2:
        assert found is None
    else:
        assert found is not None
        assert abs(found[0] - roc_auc_score(is_covid, logits)) <= found[1] + 1e-12


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0, 10.0, 20.0])
def test_binning_moves_the_auc_by_less_than_0_002_whatever_the_scale_of_the_logits(scale: float) -> None:
    rng = np.random.default_rng(11)
    is_covid = np.repeat([True, False], 500)
    for shift in (-1.0, 0.0, 1.0):
        logits = scale * (rng.normal(size=1000) + shift + 1.1 * (2 * is_covid - 1))
        found = auc(histogram_of(logits, is_covid.tolist()))
        assert found is not None
        assert abs(found[0] - roc_auc_score(is_covid, logits)) < 0.002
        assert found[1] < 0.015


def test_the_error_bound_is_half_the_share_of_pairs_in_one_bin() -> None:
    # COVID-19 at 5 and 1, CAP at 1 and -1: of four pairs one shares a bin
    assert auc(histogram_of([5.0, 1.0, 1.0, -1.0], [True, True, False, False])) == (0.875, 0.125)


def test_the_roc_curve_of_four_cases_is_what_a_hand_draws() -> None:
    curve = roc(histogram_of([5.0, 1.0, 1.0, -1.0], [True, True, False, False]))
    assert curve is not None
    assert curve.fpr.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert curve.tpr.tolist() == [0.0, 0.5, 1.0, 1.0]


@settings(deadline=None)
@given(scored_cases())
def test_the_area_under_the_roc_curve_is_the_auc(scored: tuple[list[float], list[Case]]) -> None:
    histogram_LB = score_counts(*scored).histogram()
    curve, found = roc(histogram_LB), auc(histogram_LB)
    assert (curve is None) == (found is None)
    if curve is not None and found is not None:
        assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(found[0])


# ---- accuracy, sensitivity, specificity, F1


@settings(deadline=None)
@given(scored_cases())
def test_decisions_from_the_histogram_are_those_from_the_logits(
    scored: tuple[list[float], list[Case]],
) -> None:
    logits, cases = scored
    truth = [case.label is Label.COVID for case in cases]
    decided = [logit >= 0 for logit in logits]
    pairs = list(zip(truth, decided, strict=True))
    found = binary_counts(score_counts(logits, cases).histogram())
    assert found == BinaryCounts(
        tp=pairs.count((True, True)),
        fp=pairs.count((False, True)),
        tn=pairs.count((False, False)),
        fn=pairs.count((True, False)),
    )
    if len(set(truth)) == 2:
        assert found.f1 == pytest.approx(f1_score(truth, decided, average="macro"))


def test_the_figures_of_ten_decisions_are_what_a_hand_computes() -> None:
    counts = BinaryCounts(tp=3, fp=1, tn=4, fn=2)
    assert counts.accuracy == 0.7
    assert counts.sensitivity == 0.6
    assert counts.specificity == 0.8
    assert counts.balanced_accuracy == pytest.approx(0.7)
    assert counts.f1 == pytest.approx((6 / 9 + 8 / 11) / 2)


def test_a_row_without_cap_has_none_where_a_figure_is_not_defined() -> None:
    row = metrics_row(histogram_of([1.0, -1.0, 2.0, 3.0], [True] * 4))
    assert (row.n_covid, row.n_cap) == (4, 0)
    assert (row.accuracy, row.sensitivity) == (0.75, 0.75)
    assert row.specificity is row.f1 is row.auc is row.auc_ci is row.auc_error_bound is None


def test_a_row_of_no_case_has_no_figure_at_all() -> None:
    row = metrics_row(ScoreCounts.empty().histogram())
    figures = {key: value for key, value in row.as_json().items() if key != "n"}
    assert set(figures.values()) == {None}
    assert row.as_json()["n"] == {"COVID-19": 0, "CAP": 0}


def test_a_row_is_written_to_json_with_the_keys_of_the_results_file() -> None:
    row = metrics_row(histogram_of([2.0, 1.0, 1.0, -1.0], [True, True, False, False]))
    written = json.loads(json.dumps(row.as_json(), allow_nan=False))
    low, high = written.pop("auc_ci")
    assert 0 < low < 0.875 < high < 1
    assert written.pop("f1") == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert written == {
        "n": {"COVID-19": 2, "CAP": 2},
        "auc": 0.875,
        "auc_error_bound": 0.125,
        "accuracy": 0.75,
        "sensitivity": 1.0,
        "specificity": 0.5,
    }


# ---- intervals and tests


def delong_reference(scores: Sequence[Floats], is_covid: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """AUCs and their covariance by the formulas of DeLong et al. (1988), pair by pair."""
    covid_parts, cap_parts = [], []
    for score_N in scores:
        covid, cap = score_N[is_covid][:, None], score_N[~is_covid][None, :]
        wins = (covid > cap) + 0.5 * (covid == cap)
        covid_parts.append(wins.mean(axis=1))
        cap_parts.append(wins.mean(axis=0))
    covariance = np.cov(covid_parts) / is_covid.sum() + np.cov(cap_parts) / (~is_covid).sum()
    return np.array([part.mean() for part in covid_parts]), np.atleast_2d(covariance)


def two_models(seed: int, n: int = 60) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Rounded scores, hence ties, of a better and a worse model on the same cases."""
    rng = np.random.default_rng(seed)
    is_covid = np.arange(n) < n // 3
    shared = rng.normal(size=n)
    better = np.round(1.5 * is_covid + shared + 0.3 * rng.normal(size=n), 1)
    worse = np.round(0.6 * is_covid + shared + 0.8 * rng.normal(size=n), 1)
    return better, worse, is_covid


@pytest.mark.parametrize("seed", range(5))
def test_delongs_interval_and_test_agree_with_his_formulas(seed: int) -> None:
    better, worse, is_covid = two_models(seed)
    areas, covariance = delong_reference([better, worse], is_covid)
    low, high = delong_interval(better, is_covid) or (0, 0)
    on_logit_scale = np.log([low / (1 - low), high / (1 - high)])
    assert on_logit_scale.mean() == pytest.approx(np.log(areas[0] / (1 - areas[0])))
    half_width = 1.959963985 * np.sqrt(covariance[0, 0]) / (areas[0] * (1 - areas[0]))
    assert np.diff(on_logit_scale)[0] / 2 == pytest.approx(half_width)
    z = (areas[0] - areas[1]) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert delong_test(better, worse, is_covid) == pytest.approx(2 * norm.sf(abs(z)))
    assert delong_test(worse, better, is_covid) == delong_test(better, worse, is_covid)


def test_the_interval_from_a_histogram_is_that_of_the_scores_where_bins_hold_one_value_each() -> None:
    rng = np.random.default_rng(2)
    logits, is_covid = rng.choice([-4.0, -1.0, 0.0, 1.0, 4.0], 50), np.arange(50) < 20
    assert auc_interval(histogram_of(logits, is_covid.tolist())) == delong_interval(logits, is_covid)


def test_nineteen_of_twenty_delong_intervals_hold_the_true_auc() -> None:
    rng = np.random.default_rng(5)
    is_covid = np.arange(80) < 40
    true_auc = norm.cdf(2 / np.sqrt(2))  # two normal distributions, two standard deviations apart
    covered = 0
    for _ in range(500):
        low, high = delong_interval(rng.normal(size=80) + 2 * is_covid, is_covid) or (1, 0)
        covered += low <= true_auc <= high
    assert 0.925 <= covered / 500 <= 0.975


def test_separated_classes_give_an_interval_that_narrows_with_the_smaller_class() -> None:
    two_or_three = delong_interval([1, 2, 3, 4, 5], [False, False, True, True, True])
    assert two_or_three == (pytest.approx(math.sqrt(0.025)), 1.0)
    assert delong_interval([1, 2, 3, 4], [True, True, False, False]) == (0.0, pytest.approx(0.841886))
    low, high = delong_interval(np.arange(200), np.arange(200) >= 100) or (0, 0)
    assert low == pytest.approx(0.9638, abs=1e-4)
    assert high == 1.0


def test_a_single_case_of_a_class_has_no_interval_and_no_test() -> None:
    is_covid = [True, False, False]
    assert delong_interval([1, 2, 3], is_covid) is None
    assert delong_interval([1, 2], [True, True]) is None
    assert delong_test([1, 2, 3], [3, 2, 1], is_covid) is None
    assert bootstrap_interval([1, 2, 3], is_covid, ["a", "b", "c"], seed=0) is None


def test_a_model_does_not_differ_from_itself() -> None:
    better, _, is_covid = two_models(0)
    assert delong_test(better, 2 * better, is_covid) == 1.0
    assert delong_test([1, 2, 3, 4], [4, 3, 2, 1], [True, True, False, False]) is None  # AUC 0 and AUC 1


def test_the_bootstrap_of_single_scans_is_close_to_delong() -> None:
    better, _, is_covid = two_models(3, n=300)
    low, high = bootstrap_interval(better, is_covid, [f"p{i}" for i in range(300)], seed=1) or (0, 0)
    delong_low, delong_high = delong_interval(better, is_covid) or (0, 0)
    assert low == pytest.approx(delong_low, abs=0.01)
    assert high == pytest.approx(delong_high, abs=0.01)


def test_more_scans_of_the_same_patients_do_not_narrow_the_bootstrap_but_do_narrow_delong() -> None:
    better, _, is_covid = two_models(4)
    patients = [f"p{i}" for i in range(60)]
    once = bootstrap_interval(better, is_covid, patients, seed=2)
    repeated = bootstrap_interval(np.tile(better, 4), np.tile(is_covid, 4), patients * 4, seed=2)
    assert once is not None
    assert repeated == once
    assert bootstrap_interval(better, is_covid, patients, seed=3) != once
    single = delong_interval(better, is_covid) or (0, 0)
    fourfold = delong_interval(np.tile(better, 4), np.tile(is_covid, 4)) or (0, 0)
    assert fourfold[1] - fourfold[0] < 0.6 * (single[1] - single[0])


def test_the_paired_t_test_of_differences_one_two_three() -> None:
    # mean 2, standard deviation 1, t = 2 sqrt(3) with 2 degrees of freedom
    assert paired_t_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(0.074179900)


def test_the_paired_t_test_of_equal_differences_is_decided_without_variance() -> None:
    assert paired_t_test([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert paired_t_test([1.0, 2.0], [0.5, 1.5]) == 0.0
    assert paired_t_test([1.0], [0.5]) is None


def groups(*values: float) -> dict[SizeGroup, float]:
    return dict(zip(SizeGroup, values, strict=True))


def draws(*values: int) -> dict[SizeGroup, int]:
    return dict(zip(SizeGroup, values, strict=True))


def test_chi_square_of_forty_draws_from_four_groups() -> None:
    result = chi_square_test(draws(10, 10, 10, 10), groups(0.5, 0.25, 0.125, 0.125))
    assert result is not None
    assert result.chi_square == pytest.approx(15.0)  # 10**2 / 20 + 0 + 5**2 / 5 + 5**2 / 5
    assert result.p_value == pytest.approx(0.001816649)  # three degrees of freedom


def test_a_group_that_a_site_lacks_takes_no_part_in_its_chi_square_test() -> None:
    one_class = chi_square_test(draws(30, 10, 0, 0), groups(0.5, 0.5, 0.0, 0.0))
    assert one_class is not None
    assert one_class.chi_square == pytest.approx(10.0)
    assert one_class.p_value == pytest.approx(0.001565402)  # one degree of freedom
    one_group = chi_square_test(draws(0, 7, 0, 0), groups(0.0, 1.0, 0.0, 0.0))
    assert one_group is not None
    assert (one_group.chi_square, one_group.p_value) == (0.0, 1.0)


def test_a_draw_from_an_impossible_group_has_probability_zero() -> None:
    result = chi_square_test(draws(20, 20, 1, 0), groups(0.5, 0.5, 0.0, 0.0))
    assert result is not None
    assert (result.chi_square, result.p_value) == (None, 0.0)


def test_no_draws_have_no_test_and_probabilities_must_sum_to_one() -> None:
    assert chi_square_test(draws(0, 0, 0, 0), groups(0.25, 0.25, 0.25, 0.25)) is None
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        chi_square_test(draws(1, 1, 1, 1), groups(0.3, 0.3, 0.2, 0.1))


# ---- the oracle of the paper: Tables II and III


@dataclass(frozen=True)
class PaperRow:
    """A row of Table II (group "all") or III, to three decimals; only test rows have a spread over folds."""

    table_set: str
    group: str
    model: str
    n_covid: int
    n_cap: int
    accuracy: float
    sensitivity: float
    specificity: float
    f1: float
    sensitivity_std: float = 0.0
    specificity_std: float = 0.0


# group | n COVID-19 | n CAP, then per model: accuracy, sensitivity, specificity, F1
TV_TABLES = """
all          | 1094 | 1092
RN34 + US           | 0.945 0.931 0.959 0.945
Attention RN34 + US | 0.947 0.941 0.953 0.947
Attention RN34 + SS | 0.951 0.953 0.948 0.951
Attention RN34 + DS | 0.954 0.954 0.954 0.954
<0.005       | 151 | 838
RN34 + US           | 0.930 0.675 0.976 0.853
Attention RN34 + US | 0.932 0.722 0.970 0.863
Attention RN34 + SS | 0.938 0.815 0.961 0.882
Attention RN34 + DS | 0.941 0.795 0.968 0.885
0.005-0.030  | 318 | 183
RN34 + US           | 0.930 0.925 0.940 0.926
Attention RN34 + US | 0.930 0.937 0.918 0.925
Attention RN34 + SS | 0.942 0.953 0.923 0.938
Attention RN34 + DS | 0.942 0.953 0.923 0.938
>0.030       | 625 | 71
RN34 + US           | 0.976 0.995 0.803 0.928
Attention RN34 + US | 0.981 0.997 0.845 0.946
Attention RN34 + SS | 0.974 0.987 0.859 0.929
Attention RN34 + DS | 0.981 0.994 0.873 0.947
"""

# the same, then the standard deviations of sensitivity and specificity
TEST_TABLES = """
all          | 2295 | 501
RN34 + US           | 0.859 0.856 0.870 0.798 0.029 0.071
Attention RN34 + US | 0.879 0.872 0.907 0.825 0.018 0.029
Attention RN34 + SS | 0.869 0.868 0.876 0.811 0.020 0.048
Attention RN34 + DS | 0.875 0.869 0.901 0.820 0.016 0.025
<0.005       | 363 | 436
RN34 + US           | 0.719 0.514 0.889 0.698 0.093 0.074
Attention RN34 + US | 0.752 0.534 0.933 0.732 0.050 0.024
Attention RN34 + SS | 0.747 0.569 0.896 0.732 0.061 0.051
Attention RN34 + DS | 0.755 0.549 0.926 0.737 0.049 0.025
0.005-0.030  | 718 | 41
RN34 + US           | 0.848 0.851 0.810 0.643 0.042 0.078
Attention RN34 + US | 0.871 0.875 0.785 0.662 0.021 0.090
Attention RN34 + SS | 0.858 0.862 0.785 0.648 0.020 0.047
Attention RN34 + DS | 0.859 0.863 0.790 0.649 0.018 0.051
>0.030       | 1214 | 24
RN34 + US           | 0.955 0.962 0.617 0.663 0.007 0.062
Attention RN34 + US | 0.965 0.972 0.642 0.702 0.008 0.037
Attention RN34 + SS | 0.955 0.960 0.667 0.671 0.010 0.051
Attention RN34 + DS | 0.962 0.968 0.650 0.692 0.008 0.037
"""

HALF_A_DIGIT = 0.0005 + 1e-9


def paper_rows(table_set: str, text: str) -> list[PaperRow]:
    rows = []
    for line in text.strip().splitlines():
        head, *rest = (part.strip() for part in line.split("|"))
        if len(rest) == 2:
            group, n_covid, n_cap = head, int(rest[0]), int(rest[1])
        else:
            rows.append(PaperRow(table_set, group, head, n_covid, n_cap, *map(float, rest[0].split())))
    return rows


TV_ROWS = paper_rows("TV", TV_TABLES)
TEST_ROWS = paper_rows("test", TEST_TABLES)


def row_name(row: PaperRow) -> str:
    return f"{row.table_set} {row.group} {row.model}"


def counts_from_rates(row: PaperRow, sensitivity: float, specificity: float) -> BinaryCounts:
    tp, tn = row.n_covid * sensitivity, row.n_cap * specificity
    return BinaryCounts(tp=tp, fp=row.n_cap - tn, tn=tn, fn=row.n_covid - tp)


def printed_as(value: float | None, printed: float) -> bool:
    return value is not None and abs(value - printed) <= HALF_A_DIGIT


def whole_cases(row: PaperRow) -> list[BinaryCounts]:
    """Every confusion table of whole cases that prints as this row, accuracy and F1 included."""
    tables = [
        BinaryCounts(tp=tp, fp=row.n_cap - tn, tn=tn, fn=row.n_covid - tp)
        for tp in range(row.n_covid + 1)
        if printed_as(tp / row.n_covid, row.sensitivity)
        for tn in range(row.n_cap + 1)
        if printed_as(tn / row.n_cap, row.specificity)
    ]
    return [t for t in tables if printed_as(t.accuracy, row.accuracy) and printed_as(t.f1, row.f1)]


def test_the_oracle_has_all_thirty_two_rows_of_tables_2_and_3() -> None:
    assert len(TV_ROWS) == len(TEST_ROWS) == 16


@pytest.mark.parametrize("row", TV_ROWS, ids=row_name)
def test_every_tv_row_is_printed_from_whole_cases_to_its_last_digit(row: PaperRow) -> None:
    """The TV set pools five validation sets, so each row is one confusion table of whole cases: no tolerance
    beyond the printed digit."""
    assert whole_cases(row)


@pytest.mark.parametrize("model", sorted({row.model for row in TV_ROWS}))
def test_the_three_groups_of_table_3_add_up_to_the_row_of_table_2(model: str) -> None:
    whole, *groups_of_table_3 = [whole_cases(row) for row in TV_ROWS if row.model == model]
    assert [len(tables) for tables in groups_of_table_3] == [1, 1, 1]
    sums = [
        sum(tables[0].tp for tables in groups_of_table_3),
        sum(tables[0].tn for tables in groups_of_table_3),
    ]
    assert sums in [[table.tp, table.tn] for table in whole]


@pytest.mark.parametrize("row", TEST_ROWS, ids=row_name)
def test_every_test_row_has_the_accuracy_of_its_mean_sensitivity_and_specificity(row: PaperRow) -> None:
    """Accuracy is linear in the two rates, so that the mean over folds is exact: half a digit for each of the
    printed rates and half a digit for the printed accuracy."""
    counts = counts_from_rates(row, row.sensitivity, row.specificity)
    assert counts.accuracy == pytest.approx(row.accuracy, abs=2 * HALF_A_DIGIT)


def fold_f1_bounds(row: PaperRow) -> tuple[float, float]:
    """Between what the mean F1 of the folds lies, to second order in their spread.

    Folds at mean + std and mean - std have the printed mean and spread. Whether the two rates move together
    or against each other from fold to fold is not printed, and the two extremes bound the mean F1; then half
    a digit of each rate either way. The std is that of five folds or their estimate (4/5 of the variance).
    """
    means = []
    for spread in (1.0, math.sqrt(4 / 5)):
        for sign in (1, -1):
            for rounding in ((0.0005, 0.0005), (0.0005, -0.0005), (-0.0005, 0.0005), (-0.0005, -0.0005)):
                folds = [
                    counts_from_rates(
                        row,
                        row.sensitivity + rounding[0] + step * row.sensitivity_std,
                        row.specificity + rounding[1] + sign * step * row.specificity_std,
                    ).f1
                    for step in (spread, -spread)
                ]
                means.append(sum(f1 for f1 in folds if f1 is not None) / 2)
    return min(means), max(means)


@pytest.mark.parametrize("row", TEST_ROWS, ids=row_name)
def test_every_test_row_has_an_f1_that_five_folds_of_its_spread_can_have(row: PaperRow) -> None:
    """The mean of five F1 is not the F1 of the means: the two differ by up to 0.003 in Table III. So each row
    has bounds of its own, 0.0024 to 0.0076 wide with the digit of F1 included."""
    low, high = fold_f1_bounds(row)
    assert high - low + 2 * HALF_A_DIGIT < 0.0077
    assert low - HALF_A_DIGIT <= row.f1 <= high + HALF_A_DIGIT


@pytest.mark.parametrize("row", TEST_ROWS[:4], ids=row_name)
def test_the_test_rows_of_table_2_have_the_f1_of_their_means_to_the_last_digit(row: PaperRow) -> None:
    counts = counts_from_rates(row, row.sensitivity, row.specificity)
    assert counts.f1 == pytest.approx(row.f1, abs=0.0006)


@pytest.mark.parametrize("row", TEST_ROWS, ids=row_name)
def test_no_other_f1_meets_the_oracle(row: PaperRow) -> None:
    counts = counts_from_rates(row, row.sensitivity, row.specificity)
    f1_covid = 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn)
    f1_cap = 2 * counts.tn / (2 * counts.tn + counts.fp + counts.fn)
    weighted = (row.n_covid * f1_covid + row.n_cap * f1_cap) / (row.n_covid + row.n_cap)
    low, high = fold_f1_bounds(row)
    for other in (f1_covid, f1_cap, weighted, counts.accuracy or 0.0):
        assert not low - HALF_A_DIGIT <= other <= high + HALF_A_DIGIT
