"""The running weighted mean of federated averaging, held against one in float64; FedAvg, momentum."""

import gc
import weakref

import pytest
import torch

from dsan_model.network import NetworkConfig, initial_state
from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.weights import FlatWeights, flatten
from server.aggregation import RunningMean, moved, with_momentum

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
CASES = [480, 1, 60, 17, 33, 250, 5, 90]


def full(weights: FlatWeights) -> PackedWeights:
    return pack(weights, Precision.FLOAT32)


def site_weights(n_sites: int) -> list[FlatWeights]:
    """Networks with different weights, batch-norm statistics and counters."""
    found = []
    for seed in range(n_sites):
        weights = flatten(initial_state(TINY, seed))
        generator = torch.Generator().manual_seed(seed)
        weights.floats.add_(torch.randn(weights.floats.shape, generator=generator))
        weights.integers.add_(torch.randint(0, 1000, weights.integers.shape, generator=generator))
        found.append(weights)
    return found


def mean_of(weights: list[FlatWeights], cases: list[int]) -> FlatWeights:
    mean = RunningMean()
    for of_site, n in zip(weights, cases, strict=True):
        mean.add(full(of_site), n)
    return mean.result()


def test_the_running_mean_equals_the_weighted_mean_in_float64() -> None:
    weights = site_weights(8)
    found = mean_of(weights, CASES)
    share = torch.tensor(CASES, dtype=torch.float64) / sum(CASES)
    expected = (torch.stack([w.floats.double() for w in weights]) * share[:, None]).sum(dim=0)
    error = torch.linalg.vector_norm(found.floats - expected) / torch.linalg.vector_norm(expected)
    assert error < 1e-7
    assert found.layout == weights[0].layout


def test_a_site_counts_by_its_cases() -> None:
    first, second = flatten({"w": torch.zeros(2)}), flatten({"w": torch.ones(2)})
    assert mean_of([first, second], [3, 1]).floats.tolist() == [0.25, 0.25]


def test_batch_norm_statistics_are_averaged_like_parameters() -> None:
    first = flatten({"bn.running_var": torch.tensor([1.0]), "bn.running_mean": torch.tensor([4.0])})
    second = flatten({"bn.running_var": torch.tensor([3.0]), "bn.running_mean": torch.tensor([8.0])})
    state = mean_of([first, second], [1, 1]).state_dict()
    assert (state["bn.running_var"].item(), state["bn.running_mean"].item()) == (2.0, 6.0)


def test_counters_stay_integers_and_their_mean_is_rounded() -> None:
    sites = [flatten({"n": torch.tensor(n), "w": torch.ones(1)}) for n in (2**40, 2**40 + 1, 2**40 + 5)]
    found = mean_of(sites, [1, 1, 2])
    assert found.integers.dtype == torch.int64
    assert found.integers.tolist() == [2**40 + 3]  # (0 + 1 + 10) / 4 = 2.75


def test_the_mean_of_one_site_is_that_site_bit_for_bit() -> None:
    (weights,) = site_weights(1)
    assert mean_of([weights], [7]).digest == weights.digest


def test_the_same_order_of_sites_gives_the_same_bits_and_another_order_all_but_the_last() -> None:
    weights = site_weights(8)
    found = mean_of(weights, CASES)
    assert mean_of(weights, CASES).digest == found.digest
    reordered = mean_of(weights[::-1], CASES[::-1])
    assert reordered.digest != found.digest  # so that the exchange must give a fixed order
    torch.testing.assert_close(reordered.floats, found.floats, rtol=0, atol=1e-6)


def test_adding_leaves_the_weights_of_the_sites_alone() -> None:
    weights = site_weights(3)
    values = [w.floats.clone() for w in weights]
    mean_of(weights, [1, 2, 3])
    assert all(torch.equal(w.floats, value) for w, value in zip(weights, values, strict=True))


def test_the_mean_keeps_none_of_the_sites() -> None:
    mean = RunningMean()
    for weights in site_weights(5):
        mean.add(full(weights), 3)
    last = weakref.ref(weights.floats)
    place = weights.floats.data_ptr()
    del weights
    gc.collect()
    assert last() is None
    assert mean.result().floats.data_ptr() != place


@pytest.mark.parametrize("cases", [0, -3])
def test_a_site_without_cases_cannot_be_added(cases: int) -> None:
    with pytest.raises(ValueError, match="at least 1, not"):
        RunningMean().add(full(flatten({"w": torch.ones(1)})), cases)


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was added"):
        RunningMean().result()


def test_updates_in_half_precision_are_averaged_as_what_they_unpack_to() -> None:
    packed = [pack(weights, Precision.FLOAT16) for weights in site_weights(4)]
    mean = RunningMean()
    for update, n in zip(packed, CASES, strict=False):
        mean.add(update, n)
    assert mean.result().digest == mean_of([update.unpack() for update in packed], CASES[:4]).digest


def test_fedavg_moves_the_weights_by_the_mean_update_and_takes_its_counters() -> None:
    weights = flatten({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)})
    update = flatten({"w": torch.tensor([0.5, -1.0]), "n": torch.tensor(5)})
    found = moved(weights, update)
    assert found.floats.tolist() == [1.5, 1.0]
    assert found.integers.tolist() == [5]
    assert weights.floats.tolist() == [1.0, 2.0]


def test_momentum_adds_its_share_of_the_last_step_to_parameters_and_not_to_running_statistics() -> None:
    update = flatten({"bn.running_var": torch.tensor([1.0]), "w": torch.tensor([2.0])})
    first = with_momentum(update, None, 0.9)
    assert first.state_dict()["w"].item() == 2.0
    velocity = first.floats.clone()
    again = flatten({"bn.running_var": torch.tensor([1.0]), "w": torch.tensor([2.0])})
    second = with_momentum(again, velocity, 0.9).state_dict()
    assert second["w"].item() == pytest.approx(3.8)
    assert second["bn.running_var"].item() == 1.0
