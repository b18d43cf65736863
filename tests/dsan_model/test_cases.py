"""Groups by infection ratio (III-C, IV-E) and patient-level folds (IV-C)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsan_model.cases import (
    RATIO_EDGES,
    Case,
    Label,
    RatioGroup,
    SizeGroup,
    infection_ratio,
    patient_folds,
    ratio_group,
    size_group,
)

RATIOS = st.sampled_from([0.0, 0.001, 0.002, 0.005, 0.02, 0.030, 0.4])


@st.composite
def cohorts(draw: st.DrawFn) -> list[Case]:
    """Up to 60 scans of up to 25 patients; a patient has one label and scans of any ratio."""
    cases = []
    for patient in range(draw(st.integers(1, 25))):
        label = draw(st.sampled_from(Label))
        for scan in range(draw(st.integers(1, 3))):
            cases.append(Case(f"c{patient}-{scan}", f"p{patient}", label, draw(RATIOS)))
    return cases


def test_the_infection_ratio_counts_infection_inside_the_lung_only() -> None:
    lung_DHW = np.zeros((2, 4, 4), bool)
    lung_DHW[0] = True  # 16 voxels
    infection_DHW = np.zeros((2, 4, 4), bool)
    infection_DHW[:, 0, :] = True  # 4 voxels inside the lung, 4 outside
    assert infection_ratio(infection_DHW, lung_DHW) == 0.25


def test_a_case_without_lung_has_no_infection_ratio() -> None:
    empty_DHW = np.zeros((1, 2, 2), bool)
    with pytest.raises(ValueError, match="lung mask is empty"):
        infection_ratio(~empty_DHW, empty_DHW)


@pytest.mark.parametrize(
    ("label", "ratio", "group"),
    [
        (Label.COVID, 0.0299, SizeGroup.SMALL_COVID),
        (Label.COVID, 0.030, SizeGroup.LARGE_COVID),
        (Label.CAP, 0.001, SizeGroup.SMALL_CAP),
        (Label.CAP, 0.0011, SizeGroup.LARGE_CAP),
    ],
)
def test_size_groups_divide_covid_at_0_030_and_cap_at_0_001(
    label: Label, ratio: float, group: SizeGroup
) -> None:
    assert size_group(label, ratio) is group
    assert Case("c", "p", label, ratio).size_group is group


@pytest.mark.parametrize(
    ("ratio", "group"),
    [
        (0.0, RatioGroup.LOW),
        (0.0049, RatioGroup.LOW),
        (0.005, RatioGroup.MIDDLE),
        (0.030, RatioGroup.MIDDLE),
        (0.0301, RatioGroup.HIGH),
        (1.0, RatioGroup.HIGH),
    ],
)
def test_both_bounds_of_table_3_belong_to_the_middle_group(ratio: float, group: RatioGroup) -> None:
    assert ratio_group(ratio) is group
    assert Case("c", "p", Label.CAP, ratio).ratio_group is group


def test_the_bins_of_fig_1_hold_every_ratio_from_zero_to_one_five_bins_a_decade() -> None:
    assert (RATIO_EDGES[0], RATIO_EDGES[1], RATIO_EDGES[-1]) == (0.0, 0.0001, 1.0)
    factors = np.divide(RATIO_EDGES[2:], RATIO_EDGES[1:-1])
    assert factors == pytest.approx(10**0.2, rel=1e-3)


@settings(deadline=None)
@given(cohorts(), st.integers(2, 6), st.integers(0, 3))
def test_every_patient_has_one_fold_whatever_the_order_of_the_cases(
    cases: list[Case], n_folds: int, seed: int
) -> None:
    folds = patient_folds(cases, n_folds, seed)
    assert set(folds) == {case.patient_id for case in cases}
    assert set(folds.values()) <= set(range(n_folds))
    assert patient_folds(cases[::-1], n_folds, seed) == folds


@settings(deadline=None)
@given(cohorts(), st.integers(2, 6), st.integers(0, 3))
def test_every_fold_has_its_share_of_each_size_group_to_within_one_patient(
    cases: list[Case], n_folds: int, seed: int
) -> None:
    folds = patient_folds(cases, n_folds, seed)
    first_case = {case.patient_id: case for case in sorted(cases, key=lambda c: c.case_id, reverse=True)}
    for group in SizeGroup:
        patients = [patient for patient, case in first_case.items() if case.size_group is group]
        per_fold = Counter(folds[patient] for patient in patients)
        sizes = [per_fold[fold] for fold in range(n_folds)]
        assert max(sizes) - min(sizes) <= 1
    sizes = [list(folds.values()).count(fold) for fold in range(n_folds)]
    assert max(sizes) - min(sizes) <= 1


def test_another_seed_gives_other_folds_and_the_same_seed_the_same() -> None:
    cases = [Case(f"c{i}", f"p{i}", Label.COVID, 0.1) for i in range(50)]
    assert patient_folds(cases, 5, seed=0) == patient_folds(cases, 5, seed=0)
    assert patient_folds(cases, 5, seed=0) != patient_folds(cases, 5, seed=1)
