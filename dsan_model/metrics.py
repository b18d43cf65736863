"""How well a model separates COVID-19 from CAP: AUC, accuracy, sensitivity, specificity, F1 (IV-C, IV-D).

Sites return counts, never scores: every figure of Tables II and III comes from histograms of logits that add
up over sites. Where scores are at hand, inside a site, there are exact intervals and paired tests as well.
"""

# Axes of arrays: L label (COVID-19, CAP), G ratio group (low, middle, high), B bin of the logit, N case.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, expit, logit, ndtr, ndtri, stdtr  # scipy.stats is slow to import

from dsan_model.cases import Case, Label, RatioGroup, SizeGroup

LABELS = tuple(Label)
RATIO_GROUPS = tuple(RatioGroup)

# 256 bins between logits of -64 and 64 in equal steps of asinh(16 logit), each about 6 % of the logit wide.
# The AUC does not change with the scale of the logits, nor does the error of these bins: at most 0.0014 for
# logits with a standard deviation of 0.05 (a first round) up to 20 (an over-confident network), where 256
# equal bins from -16 to 16 err by 0.14 and 0.08. Rounded to 2**-20, so that every site has the same edges
# whatever its mathematics library.
N_BINS = 258  # underflow, 256, overflow
LOGIT_LIMIT = 64.0
LOGIT_EDGES = np.round(np.sinh(np.linspace(-1, 1, 257) * np.arcsinh(16 * LOGIT_LIMIT)) / 16 * 2**20) / 2**20
PROBABILITY_EDGES = expit(LOGIT_EDGES)
FIRST_POSITIVE_BIN = 129  # an edge lies at logit 0 exactly: from this bin on the probability is at least 0.5

SCORE_COUNTS_SHAPE = (len(LABELS), len(RATIO_GROUPS), N_BINS)
LARGEST_COUNT = 10**6  # in one bin: more than any study has, and products of sums of such counts fit int64
CONFIDENCE = 0.95

Histogram = npt.NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """How many cases of each label and ratio group have a score in each bin: `counts_LGB`, int64 (2, 3, 258).

    The sum over sites is what one site with all the cases would have counted. ValueError if the array (it
    may come from a message) has another shape, another kind of number, or counts below 0 or absurdly high.
    """

    counts_LGB: Histogram

    def __post_init__(self) -> None:
        counts_LGB = checked_counts(self.counts_LGB, SCORE_COUNTS_SHAPE, "score counts")
        object.__setattr__(self, "counts_LGB", counts_LGB)

    def __add__(self, other: "ScoreCounts") -> "ScoreCounts":
        return ScoreCounts(self.counts_LGB + other.counts_LGB)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScoreCounts) and np.array_equal(self.counts_LGB, other.counts_LGB)

    @classmethod
    def empty(cls) -> "ScoreCounts":
        """The counts of no case: where a sum over sites starts."""
        return cls(np.zeros(SCORE_COUNTS_SHAPE, np.int64))

    @property
    def n_cases(self) -> int:
        """How many cases were counted."""
        return int(self.counts_LGB.sum())

    def histogram(self, group: RatioGroup | None = None) -> Histogram:
        """Counts (2, 258) by label and bin, of one group of Table III or (None) of all cases."""
        if group is None:
            return np.asarray(self.counts_LGB.sum(axis=1))
        return self.counts_LGB[:, RATIO_GROUPS.index(group)]


@dataclass(frozen=True)
class BinaryCounts:
    """Decisions at probability 0.5 with COVID-19 positive; fractional where they are means over folds.

    A figure that is not defined, as the sensitivity without a COVID-19 case, is None.
    """

    tp: float
    fp: float
    tn: float
    fn: float

    @property
    def accuracy(self) -> float | None:
        """Share of right decisions."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def sensitivity(self) -> float | None:
        """Share of COVID-19 cases that are found."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float | None:
        """Share of CAP cases that are recognised as such."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of sensitivity and specificity."""
        if self.sensitivity is None or self.specificity is None:
            return None
        return (self.sensitivity + self.specificity) / 2

    @property
    def f1(self) -> float | None:
        """Macro F1, the mean of the F1 of COVID-19 and that of CAP (Tables II, III); needs both classes."""
        if self.sensitivity is None or self.specificity is None:
            return None
        errors = self.fp + self.fn
        return (2 * self.tp / (2 * self.tp + errors) + 2 * self.tn / (2 * self.tn + errors)) / 2


@dataclass(frozen=True, eq=False)
class RocCurve:
    """False and true positive rates from (0, 0) to (1, 1), the highest threshold first."""

    fpr: npt.NDArray[np.float64]
    tpr: npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricsRow:
    """One row of Table II or III. What is not defined (the AUC of a one-class site) is None.

    `auc_ci` is DeLong's 95 % interval, which takes scans for independent; the AUC of the scores themselves
    lies within `auc_error_bound` of `auc`, which is computed from bins.
    """

    n_covid: int
    n_cap: int
    auc: float | None
    auc_ci: Interval | None
    auc_error_bound: float | None
    accuracy: float | None
    sensitivity: float | None
    specificity: float | None
    f1: float | None

    def as_json(self) -> dict[str, object]:
        """The row as results.json has it."""
        return {
            "n": {Label.COVID.value: self.n_covid, Label.CAP.value: self.n_cap},
            "auc": self.auc,
            "auc_ci": None if self.auc_ci is None else list(self.auc_ci),
            "auc_error_bound": self.auc_error_bound,
            "accuracy": self.accuracy,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "f1": self.f1,
        }


@dataclass(frozen=True)
class ChiSquareTest:
    """A chi-square test of drawn counts; the statistic is None, infinite, if the impossible was drawn."""

    chi_square: float | None
    p_value: float


def score_counts(logits: npt.ArrayLike, cases: Sequence[Case]) -> ScoreCounts:
    """Histograms of the logits of a branch, one logit a case; a logit of at least 0 counts as COVID-19.

    Infinite logits fall into underflow and overflow. ValueError if the numbers of logits and cases differ or
    a logit is NaN.
    """
    logits_N = np.asarray(logits, np.float64)
    if np.isnan(logits_N).any():
        raise ValueError(
            f"{np.isnan(logits_N).sum()} of {logits_N.size} logits are NaN: the network has diverged"
        )
    return _count(np.searchsorted(LOGIT_EDGES, logits_N, side="right"), cases)


def probability_counts(probabilities: npt.ArrayLike, cases: Sequence[Case]) -> ScoreCounts:
    """Histograms of the logits of P(COVID-19), or of any score from 0 to 1 such as the infection ratio.

    At least 0.5 counts as COVID-19. ValueError if the numbers of probabilities and cases differ or one lies
    outside 0 to 1.
    """
    return _count(probability_bins(probabilities), cases)


def probability_bins(probabilities: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """The bin, 0 to 257, of the logit of each probability, found without computing a logit.

    Exact at 0.5, and 0 and 1 need no care: they fall into underflow and overflow.
    """
    values = np.asarray(probabilities, np.float64)
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise ValueError(
            f"{outside.sum()} of {values.size} probabilities are not from 0 to 1, "
            f"the first of them is {values[outside][0]}"
        )
    return np.searchsorted(PROBABILITY_EDGES, values, side="right")


def metrics_row(histogram_LB: Histogram) -> MetricsRow:
    """Every figure of a row of Table II or III from `ScoreCounts.histogram`."""
    n_covid, n_cap = (int(n) for n in histogram_LB.sum(axis=1))
    area = auc(histogram_LB)
    decisions = binary_counts(histogram_LB)
    return MetricsRow(
        n_covid=n_covid,
        n_cap=n_cap,
        auc=area[0] if area else None,
        auc_ci=auc_interval(histogram_LB),
        auc_error_bound=area[1] if area else None,
        accuracy=decisions.accuracy,
        sensitivity=decisions.sensitivity,
        specificity=decisions.specificity,
        f1=decisions.f1,
    )


def binary_counts(histogram_LB: Histogram) -> BinaryCounts:
    """The decisions at probability 0.5: exact, because a bin begins there."""
    positive_L = histogram_LB[:, FIRST_POSITIVE_BIN:].sum(axis=1)
    negative_L = histogram_LB[:, :FIRST_POSITIVE_BIN].sum(axis=1)
    return BinaryCounts(
        tp=int(positive_L[0]), fp=int(positive_L[1]), tn=int(negative_L[1]), fn=int(negative_L[0])
    )


def roc(histogram_LB: Histogram) -> RocCurve | None:
    """The ROC curve over the bin edges; None where a class is missing. Its trapezoid area is `auc`."""
    n_L = histogram_LB.sum(axis=1)
    if not n_L.all():
        return None
    occupied = histogram_LB.any(axis=0)
    counts_LB = histogram_LB[:, occupied][:, ::-1]
    rates_LB = np.concatenate([np.zeros((2, 1)), counts_LB.cumsum(axis=1) / n_L[:, None]], axis=1)
    return RocCurve(fpr=rates_LB[1], tpr=rates_LB[0])


def auc(histogram_LB: Histogram) -> tuple[float, float] | None:
    """The AUC of a histogram and a bound of its error; None where a class is missing.

    A pair of cases in one bin counts one half, and could be 0 or 1: the AUC of the scores differs by at most
    half the share of such pairs.
    """
    covid_B, cap_B = histogram_LB
    n_pairs = int(covid_B.sum()) * int(cap_B.sum())
    if n_pairs == 0:
        return None
    same_bin = int(covid_B @ cap_B)
    cap_below_B = cap_B.cumsum() - cap_B
    return (2 * int(covid_B @ cap_below_B) + same_bin) / (2 * n_pairs), same_bin / (2 * n_pairs)


def auc_interval(histogram_LB: Histogram) -> Interval | None:
    """DeLong's 95 % interval of the AUC of a histogram, as if all cases of a bin had the same score."""
    n_L = histogram_LB.sum(axis=1)
    bins_N = np.concatenate([np.repeat(np.arange(row.size), row) for row in histogram_LB])
    return delong_interval(bins_N, np.repeat([True, False], n_L))


def checked_counts(counts: npt.ArrayLike, shape: tuple[int, ...], what: str) -> Histogram:
    """The counts as read-only int64, or a ValueError that says what is wrong with them."""
    array = np.asarray(counts)
    if array.shape != shape:
        raise ValueError(f"{what}: expected shape {shape}, found {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{what}: expected integers, found {array.dtype}")
    if array.min() < 0 or array.max() > LARGEST_COUNT:
        raise ValueError(
            f"{what}: expected counts from 0 to {LARGEST_COUNT}, found {array.min()} to {array.max()}"
        )
    checked = array.astype(np.int64)
    checked.flags.writeable = False
    return checked


def label_index(cases: Sequence[Case]) -> npt.NDArray[np.intp]:
    """The index in LABELS of every case: 0 for COVID-19, 1 for CAP."""
    return np.array([LABELS.index(case.label) for case in cases], np.intp)


def _count(bins_N: npt.NDArray[np.intp], cases: Sequence[Case]) -> ScoreCounts:
    if bins_N.shape != (len(cases),):
        raise ValueError(f"expected one score for each of {len(cases)} cases, found shape {bins_N.shape}")
    counts_LGB = np.zeros(SCORE_COUNTS_SHAPE, np.int64)
    groups_N = np.array([RATIO_GROUPS.index(case.ratio_group) for case in cases], np.intp)
    np.add.at(counts_LGB, (label_index(cases), groups_N, bins_N), 1)
    return ScoreCounts(counts_LGB)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def delong_interval(scores: npt.ArrayLike, is_covid: npt.ArrayLike) -> Interval | None:
    """DeLong's 95 % interval of the AUC, made on the logit scale so that it stays between 0 and 1.

    Where the classes are separated (AUC 1 or 0) DeLong's variance is 0 and says nothing. There the interval
    is the exact one for m = the size of the smaller class: complete separation orders m disjoint pairs
    rightly, which has at most probability AUC**m, so that AUC >= 0.025**(1/m). None with fewer than two
    cases of a class. Scans of one patient are not independent: see `bootstrap_interval`.
    """
    covid_N, cap_N = _placements(scores, is_covid)
    if min(covid_N.size, cap_N.size) < 2:
        return None
    area = float(covid_N.mean())
    if area in (0.0, 1.0):
        reach = ((1 - CONFIDENCE) / 2) ** (1 / min(covid_N.size, cap_N.size))
        return (reach, 1.0) if area == 1.0 else (0.0, 1 - reach)
    variance = _variance_of_mean(covid_N) + _variance_of_mean(cap_N)
    half_width = ndtri((1 + CONFIDENCE) / 2) * np.sqrt(variance) / (area * (1 - area))
    return float(expit(logit(area) - half_width)), float(expit(logit(area) + half_width))


def delong_test(first: npt.ArrayLike, second: npt.ArrayLike, is_covid: npt.ArrayLike) -> float | None:
    """Two-sided p of DeLong's test that two models have the same AUC on the same cases.

    None with fewer than two cases of a class, and where both AUCs are without variance but differ.
    """
    first_covid_N, first_cap_N = _placements(first, is_covid)
    second_covid_N, second_cap_N = _placements(second, is_covid)
    if min(first_covid_N.size, first_cap_N.size) < 2:
        return None
    difference = float(first_covid_N.mean() - second_covid_N.mean())
    variance = _variance_of_mean(first_covid_N - second_covid_N) + _variance_of_mean(
        first_cap_N - second_cap_N
    )
    if variance == 0:
        return 1.0 if difference == 0 else None
    return float(2 * ndtr(-abs(difference) / np.sqrt(variance)))


def bootstrap_interval(
    scores: npt.ArrayLike,
    is_covid: npt.ArrayLike,
    patients: Sequence[str],
    seed: int,
    n_resamples: int = 1000,
) -> Interval | None:
    """95 % interval of the AUC from resampled patients: right where patients have several scans.

    Resamples without one of the classes are left out. None with fewer than two patients of a class. Where the
    classes are separated every resample has AUC 1, and so has the interval: take `delong_interval` there.
    """
    _, rank_N = np.unique(np.asarray(scores), return_inverse=True)
    covid_N = np.asarray(is_covid, bool)
    names, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    if min(np.unique(patient_N[covid_N]).size, np.unique(patient_N[~covid_N]).size) < 2:
        return None
    rng = np.random.default_rng(seed)
    areas = []
    for _ in range(n_resamples):
        drawn_N = np.bincount(rng.integers(names.size, size=names.size), minlength=names.size)[patient_N]
        area = auc(_distinct_histogram(rank_N, covid_N, drawn_N))
        if area:
            areas.append(area[0])
    low, high = np.quantile(areas, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_t_test(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """Two-sided p of the paired t-test of IV-D: one figure a case or a fold, under each of two models.

    None with fewer than two pairs; 1 where no pair differs; 0 where all differ by the same amount.
    """
    difference_N = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if difference_N.size < 2:
        return None
    if np.ptp(difference_N) == 0:
        return 1.0 if difference_N[0] == 0 else 0.0
    t = difference_N.mean() / (difference_N.std(ddof=1) / np.sqrt(difference_N.size))
    return float(2 * stdtr(difference_N.size - 1, -abs(t)))


def chi_square_test(
    drawn: Mapping[SizeGroup, int], probabilities: Mapping[SizeGroup, float]
) -> ChiSquareTest | None:
    """Chi-square test that groups were drawn with these probabilities (III-C); None if nothing was drawn.

    A group of probability 0 takes no part unless it was drawn: that is impossible, p = 0. A single possible
    group is always met, p = 1. ValueError if the probabilities do not sum to 1.
    """
    drawn_G = np.array([drawn.get(group, 0) for group in SizeGroup])
    probability_G = np.array([probabilities.get(group, 0.0) for group in SizeGroup])
    if abs(probability_G.sum() - 1) > 1e-9:
        raise ValueError(f"the probabilities of the size groups sum to {probability_G.sum()}, not to 1")
    if drawn_G.sum() == 0:
        return None
    possible = probability_G > 0
    if drawn_G[~possible].any():
        return ChiSquareTest(chi_square=None, p_value=0.0)
    if possible.sum() == 1:
        return ChiSquareTest(chi_square=0.0, p_value=1.0)
    expected_G = drawn_G.sum() * probability_G[possible]
    chi_square = float(((drawn_G[possible] - expected_G) ** 2 / expected_G).sum())
    return ChiSquareTest(chi_square, p_value=float(chdtrc(possible.sum() - 1, chi_square)))


def _placements(
    scores: npt.ArrayLike, is_covid: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """DeLong's components: for each COVID-19 case the share of CAP cases below it, and the reverse.

    Ties count one half. The mean of the first is the AUC, that of the second 1 - AUC.
    """
    scores_N, covid_N = np.asarray(scores), np.asarray(is_covid, bool)
    covid, cap = scores_N[covid_N], scores_N[~covid_N]
    return _share_below(covid, cap), _share_below(cap, covid)


def _share_below(
    scores_N: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    others = np.sort(others)
    twice_N = np.searchsorted(others, scores_N, "left") + np.searchsorted(others, scores_N, "right")
    return twice_N / (2 * max(others.size, 1))


def _variance_of_mean(values_N: npt.NDArray[np.float64]) -> float:
    return float(values_N.var(ddof=1)) / values_N.size


def _distinct_histogram(
    rank_N: npt.NDArray[np.intp], covid_N: npt.NDArray[np.bool_], weight_N: npt.NDArray[np.intp]
) -> Histogram:
    """A histogram with a bin for every distinct score: its AUC is that of the scores."""
    rows = [
        np.bincount(rank_N[members], weight_N[members], minlength=rank_N.max() + 1)
        for members in (covid_N, ~covid_N)
    ]
    return np.stack(rows).astype(np.int64)
