"""Cases and their groups: infection ratio (Fig. 1), size groups (III-C), Table III (IV-E), folds (IV-C)."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

SMALL_COVID_BELOW = 0.030  # III-C: COVID-19 below this infection ratio is small
LARGE_CAP_ABOVE = 0.001  # III-C: CAP above this infection ratio is large
TABLE3_BOUNDS = (0.005, 0.030)  # IV-E
RATIO_EDGES = (0.0, *(float(f"{10 ** (k / 5):.4g}") for k in range(-20, 1)))  # bins of Fig. 1: five a decade


class Label(StrEnum):
    """The diagnosis of a case; COVID-19 is the positive class everywhere."""

    COVID = "COVID-19"
    CAP = "CAP"


class SizeGroup(StrEnum):
    """The four groups of size-balanced sampling (III-C), in the paper's order."""

    SMALL_COVID = "small COVID-19"
    LARGE_COVID = "large COVID-19"
    SMALL_CAP = "small CAP"
    LARGE_CAP = "large CAP"


class RatioGroup(StrEnum):
    """The three groups of Table III by infection ratio; 0.005 and 0.030 belong to the middle."""

    LOW = "<0.005"
    MIDDLE = "0.005-0.030"
    HIGH = ">0.030"


@dataclass(frozen=True)
class Case:
    """One chest CT with a label; `infection_ratio` is infection volume over lung volume, 0 to 1."""

    case_id: str
    patient_id: str
    label: Label
    infection_ratio: float

    @property
    def size_group(self) -> SizeGroup:
        """The group that size-balanced sampling draws this case from."""
        return size_group(self.label, self.infection_ratio)

    @property
    def ratio_group(self) -> RatioGroup:
        """The row of Table III that this case counts in."""
        return ratio_group(self.infection_ratio)


def infection_ratio(infection_DHW: npt.NDArray[np.bool_], lung_DHW: npt.NDArray[np.bool_]) -> float:
    """Volume of infection inside the lung over volume of the lung, 0 to 1 (Fig. 1).

    Both masks are boolean on the same grid. An empty lung has no ratio: ValueError.
    """
    lung_voxels = int(np.count_nonzero(lung_DHW))
    if lung_voxels == 0:
        raise ValueError("the lung mask is empty: the infection ratio is not defined")
    marked = np.flatnonzero(infection_DHW.any(axis=(1, 2)))  # slice by slice: no third volume is held
    return sum(int(np.count_nonzero(infection_DHW[z] & lung_DHW[z])) for z in marked) / lung_voxels


def size_group(label: Label, infection_ratio: float) -> SizeGroup:
    """Small or large infection of its class, by the paper's two thresholds (III-C)."""
    if label is Label.COVID:
        is_small = infection_ratio < SMALL_COVID_BELOW
        return SizeGroup.SMALL_COVID if is_small else SizeGroup.LARGE_COVID
    return SizeGroup.LARGE_CAP if infection_ratio > LARGE_CAP_ABOVE else SizeGroup.SMALL_CAP


def ratio_group(infection_ratio: float) -> RatioGroup:
    """The group of Table III (IV-E)."""
    low, high = TABLE3_BOUNDS
    if infection_ratio < low:
        return RatioGroup.LOW
    return RatioGroup.HIGH if infection_ratio > high else RatioGroup.MIDDLE


def patient_folds(cases: Iterable[Case], n_folds: int, seed: int) -> dict[str, int]:
    """Fold (0 to n_folds - 1) of every patient: all scans of a patient fall into one fold (IV-C).

    Patients are stratified by the size group of their first case, so that each fold sees every
    group where there are enough patients. A function of the patients and the seed alone: the order
    of `cases` does not matter, and both branches and every model get the same folds.
    """
    strata: dict[SizeGroup, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for case in sorted(cases, key=lambda case: (case.patient_id, case.case_id)):
        if case.patient_id not in seen:
            seen.add(case.patient_id)
            strata[case.size_group].append(case.patient_id)
    shuffled = [
        patient
        for group in SizeGroup
        for patient in sorted(strata[group], key=lambda patient: _shuffle_key(seed, patient))
    ]
    return {patient: position % n_folds for position, patient in enumerate(shuffled)}


def _shuffle_key(seed: int, patient_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient_id}".encode()).digest()
