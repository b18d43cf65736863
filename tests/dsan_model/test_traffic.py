"""Weights as they travel: small enough, the same for everybody, and what rounding takes is not lost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dsan_model.network import AttentionResNet, NetworkConfig, initial_state
from dsan_model.traffic import (
    PackedWeights,
    Precision,
    pack,
    pack_with_carry,
    packed_layout_bytes,
)
from dsan_model.weights import FlatWeights, Layout, flatten

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
HALF, FULL = Precision.FLOAT16, Precision.FLOAT32


def a_network(seed: int = 0) -> FlatWeights:
    weights = flatten(initial_state(TINY, seed))
    generator = torch.Generator().manual_seed(seed)
    weights.floats.add_(0.1 * torch.randn(weights.floats.shape, generator=generator))
    weights.integers.add_(2**40 + 1)
    return weights


def kernel(*values: float) -> FlatWeights:
    return flatten({"w": torch.tensor([values])})


def test_full_precision_changes_nothing() -> None:
    weights = a_network()
    assert pack(weights, FULL).unpack().digest == weights.digest


def test_half_precision_errs_by_at_most_a_part_in_2048_of_each_value_and_not_in_counters() -> None:
    weights = a_network()
    found = pack(weights, HALF).unpack()
    error = (found.floats - weights.floats).abs()
    assert bool((error <= weights.floats.abs() * 2.0**-11 + 2.0**-30).all())
    assert torch.equal(found.integers, weights.integers)


def test_small_tensors_do_not_suffer_from_large_ones() -> None:
    weights = flatten({"a": torch.tensor([1e9, 1.0]), "bn.running_mean": torch.tensor([1e-9, 3e-9])})
    found = pack(weights, HALF).unpack().state_dict()
    torch.testing.assert_close(found["bn.running_mean"], torch.tensor([1e-9, 3e-9]), rtol=2.0**-11, atol=0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_the_size_of_the_values_does_not_matter(scale: float) -> None:
    weights = kernel(*(scale * x for x in (1.0, 0.3, -0.001, 1e-6)))
    found = pack(weights, HALF).unpack()
    torch.testing.assert_close(found.floats, weights.floats, rtol=2.0**-10, atol=0)


@pytest.mark.parametrize("values", [(1 - 2.0**-13, 1e-7), (1 - 2.0**-12, 3e-8), (0.99, 1e-7), (0.0, 0.0)])
def test_packing_what_was_unpacked_changes_nothing(values: tuple[float, ...]) -> None:
    packed = pack(kernel(*values), HALF)
    assert pack(packed.unpack(), HALF).digest == packed.digest
    network = pack(a_network(), HALF)
    assert pack(network.unpack(), HALF).digest == network.digest


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stays_so_and_is_counted(bad: float) -> None:
    packed = pack(kernel(1.0, bad), HALF)
    assert not math.isfinite(packed.norm)
    assert packed.count_not_finite() == 1


def test_the_norm_is_that_of_all_floats() -> None:
    weights = a_network()
    for precision in Precision:
        assert pack(weights, precision).norm == pytest.approx(float(weights.floats.norm()), rel=1e-3)


@pytest.mark.parametrize("precision", Precision)
def test_the_size_is_known_from_the_layout_alone(precision: Precision) -> None:
    weights = a_network()
    assert pack(weights, precision).size_bytes == packed_layout_bytes(weights.layout, precision)


def papers_layout() -> Layout:
    with torch.device("meta"):
        state = AttentionResNet(NetworkConfig()).state_dict()
    ordered = sorted(state.items())
    return Layout(
        tuple(name for name, _ in ordered),
        tuple(value.is_floating_point() for _, value in ordered),
        tuple(tuple(value.shape) for _, value in ordered),
    )


def test_the_papers_network_takes_at_most_127_mb_in_half_precision() -> None:
    assert packed_layout_bytes(papers_layout(), HALF) <= 127_000_000


@pytest.mark.parametrize("field", ["floats", "integers"])
def test_the_digest_sees_a_changed_value_and_the_exponent(field: str) -> None:
    packed = pack(a_network(), HALF)
    values = {name: getattr(packed, name).copy() for name in ("floats", "integers")}
    same = PackedWeights(packed.layout, packed.precision, packed.exponents, **values)
    assert same.digest == packed.digest
    values[field][0] = 0
    assert PackedWeights(packed.layout, packed.precision, packed.exponents, **values).digest != packed.digest
    other = (packed.exponents[0] + 1, *packed.exponents[1:])
    assert replace(packed, exponents=other).digest != packed.digest


def sent_over_rounds(update: FlatWeights, rounds: int, *, with_carry: bool) -> Tensor:
    """What the centre has added up after so many rounds of the same update."""
    total, carry = torch.zeros_like(update.floats), None
    for _ in range(rounds):
        packed, left_over = pack_with_carry(replace(update, floats=update.floats.clone()), HALF, carry)
        carry = left_over if with_carry else None
        total += packed.unpack().floats
    return total


def test_what_rounding_takes_from_an_update_is_sent_in_later_rounds() -> None:
    update = kernel(*np.linspace(0.1, 1.0, 50).tolist())
    wanted = 64 * update.floats
    error = (sent_over_rounds(update, 64, with_carry=True) - wanted).abs().max()
    error_without = (sent_over_rounds(update, 64, with_carry=False) - wanted).abs().max()
    assert error < 2.0**-10  # one rounding, however many rounds
    assert error_without > 8 * error


def test_the_carry_is_exactly_what_did_not_travel() -> None:
    update = a_network()
    wanted = update.floats.clone()
    packed, carry = pack_with_carry(update, HALF, None)
    assert carry is not None
    assert torch.equal(packed.unpack().floats + carry, wanted)


def test_full_precision_carries_nothing() -> None:
    packed, carry = pack_with_carry(a_network(), FULL, None)
    assert carry is None
    assert packed.unpack().digest == a_network().digest
