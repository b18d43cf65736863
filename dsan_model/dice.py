"""How well segmentations agree with their masks: Dice, as sums that add up over sites (ref. [10])."""

# Axes of arrays: S structure (lungs, infection), G ratio group of Table III, Q quantity, D H W the grid.

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from dsan_model.cases import RatioGroup

Mask = npt.NDArray[np.bool_]


class Structure(StrEnum):
    """What VB-Net segments; the lungs include what is infected."""

    LUNGS = "lungs"
    INFECTION = "infection"


STRUCTURES = tuple(Structure)
RATIO_GROUPS = tuple(RatioGroup)
MILLION = 10**6  # Dice is summed in millionths: integers have the same sum in any order
QUANTITIES = ("cases", "dice_millionths", "intersection", "predicted", "reference")
DICE_COUNTS_SHAPE = (len(STRUCTURES), len(RATIO_GROUPS), len(QUANTITIES))
LARGEST_COUNT = 2**50  # voxels; above, sums over sites could leave int64


@dataclass(frozen=True, eq=False)
class DiceCounts:
    """Sums over cases, `counts_SGQ`, int64 (2, 3, 5): what a site tells of its segmentations.

    `cases` and `dice_millionths` are of the cases whose mask is not empty: the Dice of an empty mask is not
    defined. The voxels (of the grid that is segmented) are those of all cases, so that what is found where
    nothing is counts in the pooled Dice. ValueError if the array (it may come from a message) is not that.
    """

    counts_SGQ: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts_SGQ", _checked(self.counts_SGQ))

    def __add__(self, other: "DiceCounts") -> "DiceCounts":
        return DiceCounts(self.counts_SGQ + other.counts_SGQ)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiceCounts) and np.array_equal(self.counts_SGQ, other.counts_SGQ)

    @classmethod
    def empty(cls) -> "DiceCounts":
        """The counts of no case: where a sum over sites starts."""
        return cls(np.zeros(DICE_COUNTS_SHAPE, np.int64))

    @property
    def n_cases(self) -> int:
        """How many cases were counted; each has lungs."""
        return self.cases(Structure.LUNGS)

    def cases(self, structure: Structure, group: RatioGroup | None = None) -> int:
        """Cases with a mask of the structure that is not empty, of one ratio group or (None) of all."""
        return self._sums(structure, group)[0]

    def mean_dice(self, structure: Structure, group: RatioGroup | None = None) -> float | None:
        """Mean over those cases, 0 to 1; None without any."""
        cases, millionths, *_ = self._sums(structure, group)
        return millionths / cases / MILLION if cases else None

    @property
    def score(self) -> float | None:
        """What the best round is chosen by: the mean of both structures' mean Dice; None without a case."""
        found = [self.mean_dice(structure) for structure in STRUCTURES]
        defined = [value for value in found if value is not None]
        return sum(defined) / len(defined) if defined else None

    def pooled_dice(self, structure: Structure, group: RatioGroup | None = None) -> float | None:
        """Dice of the voxels of all cases together; None if they have none."""
        _, _, intersection, predicted, reference = self._sums(structure, group)
        return 2 * intersection / (predicted + reference) if predicted + reference else None

    def _sums(self, structure: Structure, group: RatioGroup | None) -> list[int]:
        of_structure_GQ = self.counts_SGQ[STRUCTURES.index(structure)]
        chosen = of_structure_GQ.sum(axis=0) if group is None else of_structure_GQ[RATIO_GROUPS.index(group)]
        return [int(value) for value in chosen]


def dice(predicted_DHW: Mask, reference_DHW: Mask) -> float | None:
    """Twice the intersection over the sum of both volumes, 0 to 1; None if the reference is empty."""
    reference = int(np.count_nonzero(reference_DHW))
    if reference == 0:
        return None
    return (
        2
        * int(np.count_nonzero(predicted_DHW & reference_DHW))
        / (int(np.count_nonzero(predicted_DHW)) + reference)
    )


def dice_counts(predicted_SDHW: Mask, reference_SDHW: Mask, group: RatioGroup) -> DiceCounts:
    """The counts of one case."""
    counts_SGQ = np.zeros(DICE_COUNTS_SHAPE, np.int64)
    for s, (predicted_DHW, reference_DHW) in enumerate(zip(predicted_SDHW, reference_SDHW, strict=True)):
        of_case = dice(predicted_DHW, reference_DHW)
        counts_SGQ[s, RATIO_GROUPS.index(group)] = (
            of_case is not None,
            round((of_case or 0.0) * MILLION),
            np.count_nonzero(predicted_DHW & reference_DHW),
            np.count_nonzero(predicted_DHW),
            np.count_nonzero(reference_DHW),
        )
    return DiceCounts(counts_SGQ)


def _checked(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if counts.shape != DICE_COUNTS_SHAPE or counts.dtype != np.int64:
        raise ValueError(f"Dice counts are int64 {DICE_COUNTS_SHAPE}, not {counts.dtype} {counts.shape}")
    if counts.min() < 0 or counts.max() > LARGEST_COUNT:
        raise ValueError(f"Dice counts lie from {counts.min()} to {counts.max()}, not in [0, 2**50]")
    cases, millionths, intersection, predicted, reference = np.moveaxis(counts, -1, 0)
    if (millionths > cases * MILLION).any() or (intersection > np.minimum(predicted, reference)).any():
        raise ValueError("a mean Dice is above 1, or an intersection is larger than what it is of")
    return counts
