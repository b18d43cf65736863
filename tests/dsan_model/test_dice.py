import numpy as np
import pytest

from dsan_model.cases import RatioGroup
from dsan_model.dice import DICE_COUNTS_SHAPE, DiceCounts, Structure, dice, dice_counts


def mask(*voxels: int) -> np.ndarray:
    found = np.zeros((1, 1, 8), bool)
    found[0, 0, list(voxels)] = True
    return found


def counts(predicted: tuple, reference: tuple, group: RatioGroup = RatioGroup.LOW) -> DiceCounts:
    return dice_counts(
        np.stack([mask(*p) for p in predicted]), np.stack([mask(*r) for r in reference]), group
    )


def test_dice_is_twice_the_intersection_over_both_volumes() -> None:
    assert dice(mask(0, 1, 2), mask(1, 2, 3, 4)) == 2 * 2 / (3 + 4)
    assert dice(mask(), mask(1)) == 0.0


def test_dice_of_an_empty_mask_is_not_defined() -> None:
    assert dice(mask(1), mask()) is None
    assert dice(mask(), mask()) is None


def test_counts_of_sites_add_up_to_the_mean_over_all_cases() -> None:
    first = counts(((0, 1), (0,)), ((0, 1), (0, 1)))  # lungs 1, infection 2/3
    second = counts(((0,), ()), ((0, 1, 2), (1,)), RatioGroup.HIGH)  # lungs 1/2, infection 0
    total = first + second + DiceCounts.empty()
    assert total.n_cases == 2
    assert total.mean_dice(Structure.LUNGS) == pytest.approx(0.75)
    assert total.mean_dice(Structure.INFECTION) == pytest.approx(1 / 3, abs=1e-6)
    assert total.mean_dice(Structure.INFECTION, RatioGroup.LOW) == pytest.approx(2 / 3, abs=1e-6)
    assert total.mean_dice(Structure.INFECTION, RatioGroup.MIDDLE) is None
    assert total.pooled_dice(Structure.INFECTION) == 2 * 1 / (1 + 3)
    assert total.score == pytest.approx((0.75 + 1 / 3) / 2, abs=1e-6)


def test_infection_found_where_there_is_none_counts_in_the_pooled_dice_alone() -> None:
    found = counts(((0, 1), (0,)), ((0, 1), ()))
    assert found.cases(Structure.INFECTION) == 0
    assert found.mean_dice(Structure.INFECTION) is None
    assert found.pooled_dice(Structure.INFECTION) == 0.0
    assert found.score == 1.0
    assert DiceCounts.empty().score is None


def spoilt(quantity: int, value: int) -> np.ndarray:
    array = counts(((0, 1), (0,)), ((0, 1), (0, 1))).counts_SGQ.copy()
    array[0, 0, quantity] = value
    return array


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3, 4), np.int64),
        np.zeros(DICE_COUNTS_SHAPE, np.float64),
        spoilt(0, -1),
        spoilt(1, 1_000_001),  # a mean Dice above 1
        spoilt(2, 3),  # an intersection larger than the masks
        spoilt(3, 2**51),
    ],
)
def test_counts_that_no_site_can_have_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Dice"):
        DiceCounts(array)
