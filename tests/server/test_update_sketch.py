"""The cosine of each update with their mean, from sketches, held against the exact one."""

import math

import pytest
import torch

from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.weights import flatten
from server.update_sketch import SAMPLE, WIDTH, cosines_with_mean, sketch


def update(*values: torch.Tensor, precision: Precision = Precision.FLOAT32) -> PackedWeights:
    """An update of one tensor for each array of values."""
    return pack(flatten({f"t{i}": tensor for i, tensor in enumerate(values)}), precision)


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()))


def test_of_a_small_network_the_cosines_are_exact() -> None:
    east, north = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    sketches = {"east": sketch(update(east[:1], east[1:])), "north": sketch(update(north[:1], north[1:]))}
    mean = (east * 3 + north) / 4
    found = cosines_with_mean(sketches, {"east": 30, "north": 10})
    assert found == {
        "east": pytest.approx(cosine(east, mean), abs=1e-4),
        "north": pytest.approx(cosine(north, mean), abs=1e-4),
    }


def test_a_lone_update_is_its_own_mean_and_no_update_has_no_cosine() -> None:
    assert cosines_with_mean({"east": sketch(update(torch.ones(5)))}, {"east": 1}) == {"east": 1.0}
    assert cosines_with_mean({"east": sketch(update(torch.zeros(5)))}, {"east": 1}) == {"east": None}


def test_an_update_that_points_the_other_way_is_seen() -> None:
    values = torch.arange(1.0, 100.0)
    sketches = {name: sketch(update(sign * values)) for name, sign in (("a", 1), ("b", 1), ("c", -1))}
    assert cosines_with_mean(sketches, dict.fromkeys(sketches, 1)) == {"a": 1.0, "b": 1.0, "c": -1.0}


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("wanted", [-0.5, 0.0, 0.9])
def test_of_a_large_network_they_are_right_to_a_few_hundredths(precision: Precision, wanted: float) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = (3 * SAMPLE * WIDTH + 17, 5000, 70_001, 64)  # sampled, in one piece, in several, tiny
    common = [torch.randn(n, generator=generator) for n in sizes]
    own = [torch.randn(n, generator=generator) for n in sizes]
    mixed = [wanted * c + math.sqrt(1 - wanted**2) * o for c, o in zip(common, own, strict=True)]
    left, right = sketch(update(*common, precision=precision)), sketch(update(*mixed, precision=precision))
    assert cosine(left, right) == pytest.approx(wanted, abs=0.06)
    exact = torch.cat(common).norm() ** 2
    assert float(left @ left) == pytest.approx(float(exact), rel=0.06)


def test_a_sketch_adds_up_as_updates_do() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(200_000, generator=generator) for _ in range(2))
    assert torch.allclose(sketch(update(a)) + sketch(update(b)), sketch(update(a + b)), atol=1e-3)


def test_every_value_of_a_tensor_that_is_not_sampled_counts() -> None:
    for at in (0, WIDTH - 1, WIDTH, 2 * WIDTH + 5):
        values = torch.zeros(2 * WIDTH + 6)
        values[at] = 2.0
        assert float(sketch(update(torch.zeros(3), values)).norm()) == 2.0
