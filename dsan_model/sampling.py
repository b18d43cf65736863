"""Uniform and size-balanced sampling (III-C): which cases an epoch feeds to the network, in which order."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from dsan_model.cases import SizeGroup


class Branch(StrEnum):
    """The networks of a study: the two of the paper, RN34 + US for comparison, or VB-Net."""

    US = "us"  # Attention RN34 + US
    SS = "ss"  # Attention RN34 + SS
    BASELINE = "baseline"  # RN34 + US: no attention loss
    VBNET = "vbnet"  # of a segmentation study, which has no other

    @property
    def model_name(self) -> str:
        """The name that the paper gives the network."""
        return _MODEL_NAMES[self]

    @property
    def has_attention_loss(self) -> bool:
        """Whether Eq. 3 is part of the loss that trains this network."""
        return self in (Branch.US, Branch.SS)


_MODEL_NAMES = {
    Branch.US: "Attention RN34 + US",
    Branch.SS: "Attention RN34 + SS",
    Branch.BASELINE: "RN34 + US",
    Branch.VBNET: "VB-Net",
}
DUAL_SAMPLING = "Attention RN34 + DS"


def group_counts(groups: Sequence[SizeGroup]) -> dict[SizeGroup, int]:
    """Number of cases of every group, absent groups as 0."""
    counted = Counter(groups)
    return {group: counted[group] for group in SizeGroup}


def size_balanced_probabilities(counts: Mapping[SizeGroup, int]) -> dict[SizeGroup, float]:
    """W / sum W of the four groups, with W = [N_large/N_small (COVID), 1, 1, N_small/N_large (CAP)].

    `counts` are the training cases of all sites together. A group without cases gets probability 0; where
    the other group of a class is empty, the ratio says nothing and the weight is 1.
    """
    small_covid, large_covid, small_cap, large_cap = (counts[group] for group in SizeGroup)
    weights = {
        SizeGroup.SMALL_COVID: _weight(small_covid, relative_to=large_covid),
        SizeGroup.LARGE_COVID: float(large_covid > 0),
        SizeGroup.SMALL_CAP: float(small_cap > 0),
        SizeGroup.LARGE_CAP: _weight(large_cap, relative_to=small_cap),
    }
    total = sum(weights.values())
    if total == 0.0:
        raise ValueError("size-balanced sampling needs at least one training case; all four groups are empty")
    return {group: weight / total for group, weight in weights.items()}


def site_probabilities(
    probabilities: Mapping[SizeGroup, float], groups: Sequence[SizeGroup]
) -> dict[SizeGroup, float]:
    """The federation's probabilities, renormalised over the groups that a site has."""
    present = set(groups)
    total = sum(probability for group, probability in probabilities.items() if group in present)
    if total == 0.0:
        groups_here = ", ".join(sorted(present)) or "(none)"
        raise ValueError(f"none of the site's groups has a probability above 0 in this study: {groups_here}")
    return {
        group: probability / total if group in present else 0.0
        for group, probability in probabilities.items()
    }


def uniform_order(n_cases: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Each case once, in random order (uniform sampling)."""
    return generator.permutation(n_cases)


def size_balanced_order(
    groups: Sequence[SizeGroup],
    probabilities: Mapping[SizeGroup, float],
    generator: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """As many draws as there are cases: first a group by probability, then a case of it uniformly.

    `groups` is the group of each case of the site; `probabilities` the federation-wide ones.
    """
    at_site = site_probabilities(probabilities, groups)
    ordered = list(SizeGroup)
    members = {g: np.flatnonzero([group is g for group in groups]) for g in ordered}
    drawn = generator.choice(len(ordered), size=len(groups), p=[at_site[group] for group in ordered])
    return np.array([generator.choice(members[ordered[index]]) for index in drawn], dtype=np.int64)


def epoch_generator(seed: int, site: str, branch: Branch, epoch: int) -> np.random.Generator:
    """The randomness of one epoch of one branch at one site: nothing else decides what is drawn."""
    digest = hashlib.sha256(f"{seed}\0{site}\0{branch}\0{epoch}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _weight(count: int, relative_to: int) -> float:
    if count == 0:
        return 0.0
    return relative_to / count if relative_to > 0 else 1.0
