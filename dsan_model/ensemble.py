"""The ensemble layer of the dual-sampling model (III-E, Eq. 5) and the search of its two weights from counts.

A site counts its validation cases once for each of 101 weights. The counts of sites add up, so that the
search over all sites is exactly the search that one site with all the cases would make.
"""

# Axes of arrays: N case, W weight (0.00 to 1.00), S segment of the infection ratio, L label (COVID-19, CAP),
# B bin of the logit, G ratio group, K band of Eq. 5 (inside, outside), R resample, I site.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsan_model.cases import TABLE3_BOUNDS, Case, RatioGroup
from dsan_model.metrics import (
    CONFIDENCE,
    FIRST_POSITIVE_BIN,
    LABELS,
    N_BINS,
    RATIO_GROUPS,
    SCORE_COUNTS_SHAPE,
    BinaryCounts,
    Histogram,
    Interval,
    ScoreCounts,
    checked_counts,
    label_index,
    probability_bins,
    probability_counts,
)

BAND = (0.001, 0.030)  # Eq. 5: w_inside from 0.001 to 0.030, both included; w_outside below and above
GRID_STEPS = 100
WEIGHT_GRID = np.arange(GRID_STEPS + 1) / GRID_STEPS  # 0.00, 0.01 .. 1.00
OBJECTIVE = "balanced accuracy at 0.5"

# The thresholds of Eq. 5 and of Table III together cut the infection ratio into four segments, each of them
# in one band and in one group: counts by segment give the search of w and the rows of Table III alike.
SEGMENT_GROUPS = (RatioGroup.LOW, RatioGroup.LOW, RatioGroup.MIDDLE, RatioGroup.HIGH)
BAND_SEGMENTS = ([1, 2], [0, 3])  # inside, outside
ENSEMBLE_COUNTS_SHAPE = (WEIGHT_GRID.size, len(SEGMENT_GROUPS), len(LABELS), N_BINS)


@dataclass(frozen=True)
class EnsembleWeights:
    """The share w of P_US in Eq. 5, for cases inside and outside the band of infection ratios."""

    w_inside: float
    w_outside: float


PAPER_WEIGHTS = EnsembleWeights(w_inside=0.96, w_outside=0.35)


@dataclass(frozen=True, eq=False)
class EnsembleCounts:
    """Histograms of logit(P) by segment and label for each of 101 weights: `counts_WSLB` (101, 4, 2, 258).

    The confusion counts at 0.5 are in them, because a bin begins there. ValueError if the array (it may come
    from a message) has another shape or other numbers than counts, or counts another number of cases at one
    weight than at the others.
    """

    counts_WSLB: Histogram

    def __post_init__(self) -> None:
        counts_WSLB = checked_counts(self.counts_WSLB, ENSEMBLE_COUNTS_SHAPE, "ensemble counts")
        cases_WSL = counts_WSLB.sum(axis=3)
        differs_W = (cases_WSL != cases_WSL[0]).any(axis=(1, 2))
        if differs_W.any():
            w = WEIGHT_GRID[differs_W.argmax()]
            raise ValueError(f"ensemble counts: the cases counted at w = {w} are not those counted at w = 0")
        object.__setattr__(self, "counts_WSLB", counts_WSLB)

    def __add__(self, other: "EnsembleCounts") -> "EnsembleCounts":
        return EnsembleCounts(self.counts_WSLB + other.counts_WSLB)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EnsembleCounts) and np.array_equal(self.counts_WSLB, other.counts_WSLB)

    @classmethod
    def empty(cls) -> "EnsembleCounts":
        """The counts of no case: where a sum over sites starts."""
        return cls(np.zeros(ENSEMBLE_COUNTS_SHAPE, np.int64))

    @property
    def n_cases(self) -> int:
        """How many cases were counted."""
        return int(self.counts_WSLB[0].sum())

    @property
    def n_correct(self) -> Histogram:
        """Right decisions at 0.5 by label and band, (2, 2, 101): TP of COVID-19 and TN of CAP."""
        tp_WS = self.counts_WSLB[:, :, 0, FIRST_POSITIVE_BIN:].sum(axis=2)
        tn_WS = self.counts_WSLB[:, :, 1, :FIRST_POSITIVE_BIN].sum(axis=2)
        correct_LSW = np.stack([tp_WS.T, tn_WS.T])
        return np.stack([correct_LSW[:, segments].sum(axis=1) for segments in BAND_SEGMENTS], axis=1)

    @property
    def n_by_label(self) -> Histogram:
        """How many cases of COVID-19 and of CAP were counted, (2,)."""
        return np.asarray(self.counts_WSLB[0].sum(axis=(0, 2)))


@dataclass(frozen=True)
class EnsembleFit:
    """The weights found on validation cases; both 0.5 and the objective None where these lack a class."""

    w_inside: float
    w_outside: float
    objective_value: float | None
    objective: str = OBJECTIVE

    @property
    def is_fitted(self) -> bool:
        """False if the validation cases lack a class, so that nothing could be searched."""
        return self.objective_value is not None

    @property
    def weights(self) -> EnsembleWeights:
        """The weights alone, as `ensemble_probability` takes them."""
        return EnsembleWeights(self.w_inside, self.w_outside)


@dataclass(frozen=True)
class EnsembleIntervals:
    """95 % intervals of the two weights over resampled sites."""

    w_inside: Interval
    w_outside: Interval


def ensemble_probability(
    p_us: npt.ArrayLike, p_ss: npt.ArrayLike, infection_ratio: npt.ArrayLike, weights: EnsembleWeights
) -> npt.NDArray[np.float64]:
    """P(COVID-19) of the dual-sampling model (Eq. 5) from those of the two branches, case by case."""
    ratio_N = np.asarray(infection_ratio, np.float64)
    is_inside_N = (ratio_N >= BAND[0]) & (ratio_N <= BAND[1])
    w_N = np.where(is_inside_N, weights.w_inside, weights.w_outside)
    us_N, ss_N = np.asarray(p_us, np.float64), np.asarray(p_ss, np.float64)
    return np.asarray(w_N * us_N + (1 - w_N) * ss_N)


def ensemble_score_counts(
    p_us: npt.ArrayLike, p_ss: npt.ArrayLike, cases: Sequence[Case], weights: EnsembleWeights
) -> ScoreCounts:
    """Histograms of the dual-sampling model at a site, as at a held-out one, once the weights are known."""
    ratios = [case.infection_ratio for case in cases]
    return probability_counts(ensemble_probability(p_us, p_ss, ratios, weights), cases)


def ensemble_counts(p_us: npt.ArrayLike, p_ss: npt.ArrayLike, cases: Sequence[Case]) -> EnsembleCounts:
    """A site's reply: its cases, with their probabilities by both branches, counted for each of 101 weights.

    ValueError if a probability lies outside 0 to 1 or their numbers differ from the number of cases.
    """
    us_N, ss_N = np.asarray(p_us, np.float64), np.asarray(p_ss, np.float64)
    if not us_N.shape == ss_N.shape == (len(cases),):
        raise ValueError(
            f"expected one probability of US and of SS for each of {len(cases)} cases, "
            f"found shapes {us_N.shape} and {ss_N.shape}"
        )
    w_W1 = WEIGHT_GRID[:, None]
    bins_WN = probability_bins(w_W1 * us_N + (1 - w_W1) * ss_N)
    shape = ENSEMBLE_COUNTS_SHAPE
    w_index_W1 = np.arange(WEIGHT_GRID.size)[:, None]
    cells_WN = np.ravel_multi_index((w_index_W1, _segments(cases), label_index(cases), bins_WN), shape)
    return EnsembleCounts(np.bincount(cells_WN.ravel(), minlength=np.prod(shape)).reshape(shape))


def fit_ensemble(counts: EnsembleCounts) -> EnsembleFit:
    """The pair of weights with the best balanced accuracy at 0.5 over both bands together.

    Balanced accuracy is a sum over cases, each in one band, so that the best pair of the 101 x 101 is the
    best weight of each band. The search is in integers, hence exact. Of several best weights of a band it is
    the one nearest to their mean (the middle of a plateau is what other cases shift least), the lower if two
    are. Why not the AUC: it is blind to a branch whose probabilities are off at 0.5.
    """
    cases_L = counts.n_by_label
    if not cases_L.all():
        return EnsembleFit(w_inside=0.5, w_outside=0.5, objective_value=None)
    correct_LKW = counts.n_correct
    best_K = _best_weights(correct_LKW, cases_L)
    tp, tn = (int(correct_KW[[0, 1], best_K].sum()) for correct_KW in correct_LKW)
    decisions = BinaryCounts(tp=tp, fp=int(cases_L[1]) - tn, tn=tn, fn=int(cases_L[0]) - tp)
    w_inside, w_outside = WEIGHT_GRID[best_K].tolist()
    return EnsembleFit(w_inside, w_outside, decisions.balanced_accuracy)


def site_bootstrap(
    counts_per_site: Sequence[EnsembleCounts], seed: int, n_resamples: int = 1000
) -> EnsembleIntervals | None:
    """95 % intervals of the two weights when sites are drawn anew: how much w hangs on who took part.

    Resamples that lack a class are left out; None if all do, or with fewer than two sites.
    """
    n_sites = len(counts_per_site)
    if n_sites < 2:
        return None
    rng = np.random.default_rng(seed)
    times_RI = rng.multinomial(n_sites, np.full(n_sites, 1 / n_sites), size=n_resamples)
    cases_RL = times_RI @ np.stack([counts.n_by_label for counts in counts_per_site])
    sites_ILKW = np.stack([counts.n_correct for counts in counts_per_site])
    correct_RLKW = np.tensordot(times_RI, sites_ILKW, axes=1)
    has_both = cases_RL.all(axis=1)
    if not has_both.any():
        return None
    w_RK = WEIGHT_GRID[_best_weights(correct_RLKW[has_both], cases_RL[has_both])]
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    (inside_low, outside_low), (inside_high, outside_high) = np.quantile(
        w_RK, tails, axis=0, method="inverted_cdf"
    ).tolist()
    return EnsembleIntervals((inside_low, inside_high), (outside_low, outside_high))


def score_counts_at(counts: EnsembleCounts, weights: EnsembleWeights) -> ScoreCounts:
    """Histograms of the dual-sampling model on the cases that `counts` counted, for weights of the grid.

    The same as `ensemble_score_counts` of these cases, without asking the sites again. ValueError for
    weights that are not 0.00, 0.01 .. 1.00.
    """
    inside_SLB = counts.counts_WSLB[_grid_index(weights.w_inside)]
    outside_SLB = counts.counts_WSLB[_grid_index(weights.w_outside)]
    counts_LGB = np.zeros(SCORE_COUNTS_SHAPE, np.int64)
    for segment, group in enumerate(SEGMENT_GROUPS):
        chosen_SLB = inside_SLB if segment in BAND_SEGMENTS[0] else outside_SLB
        counts_LGB[:, RATIO_GROUPS.index(group)] += chosen_SLB[segment]
    return ScoreCounts(counts_LGB)


def _best_weights(correct_LKW: Histogram, cases_L: Histogram) -> npt.NDArray[np.intp]:
    """Index of the best weight of each band, (..., 2); the same axes may come before L in both arrays."""
    n_covid, n_cap = cases_L[..., 0, None, None], cases_L[..., 1, None, None]
    merit_KW = correct_LKW[..., 0, :, :] * n_cap + correct_LKW[..., 1, :, :] * n_covid
    is_best_KW = merit_KW == merit_KW.max(axis=-1, keepdims=True)
    index_W = np.arange(WEIGHT_GRID.size)
    n_best_K1 = is_best_KW.sum(axis=-1, keepdims=True)
    sum_best_K1 = (is_best_KW * index_W).sum(axis=-1, keepdims=True)
    from_mean_KW = np.abs(index_W * n_best_K1 - sum_best_K1)  # times the number of best: stays an integer
    return np.asarray(np.where(is_best_KW, from_mean_KW, np.iinfo(np.int64).max).argmin(axis=-1))


def _segments(cases: Sequence[Case]) -> npt.NDArray[np.intp]:
    ratio_N = np.array([case.infection_ratio for case in cases], np.float64)
    thresholds = (ratio_N >= BAND[0], ratio_N >= TABLE3_BOUNDS[0], ratio_N > BAND[1])
    return np.asarray(np.sum(thresholds, axis=0, dtype=np.intp))


def _grid_index(w: float) -> int:
    index = round(w * GRID_STEPS)
    if not 0 <= index <= GRID_STEPS or WEIGHT_GRID[index] != w:
        raise ValueError(f"w = {w} is not on the grid 0.00, 0.01 .. 1.00 that the cases were counted for")
    return index
