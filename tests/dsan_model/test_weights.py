"""Weights as two flat vectors: nothing is lost, nothing is reordered, a changed bit is seen."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsan_model.network import AttentionResNet, NetworkConfig, initial_state
from dsan_model.weights import FlatWeights, flatten, load_weights, save_weights

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A network's state with batch-norm counters that are not 0."""
    state = initial_state(TINY, seed=0)
    counters = (value for value in state.values() if not value.is_floating_point())
    for number, counter in enumerate(counters):
        counter += 2**40 + number
    return state


def test_a_state_dict_comes_back_from_the_flat_vectors_as_it_was(state: dict[str, Tensor]) -> None:
    back = flatten(state).state_dict()
    assert set(back) == set(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_the_named_tensors_are_views_of_the_flat_vectors(state: dict[str, Tensor]) -> None:
    weights = flatten(state)
    weights.floats.zero_()
    assert not weights.state_dict()["conv1.weight"].any()


def test_the_order_of_the_state_dict_does_not_matter(state: dict[str, Tensor]) -> None:
    weights, reordered = flatten(state), flatten(dict(reversed(state.items())))
    assert reordered.layout == weights.layout
    assert reordered.digest == weights.digest


def test_weights_read_from_disk_have_the_layout_and_digest_of_the_network_that_they_came_from(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    # a safetensors file has an order of its own: a resumed study would reject every reply by its layout
    weights = flatten(state)
    save_weights(tmp_path / "us.safetensors", weights)
    loaded = load_weights(tmp_path / "us.safetensors")
    network = AttentionResNet(TINY)
    network.load_state_dict(loaded.state_dict())
    assert loaded.layout == weights.layout == flatten(network.state_dict()).layout
    assert loaded.digest == weights.digest == flatten(network.state_dict()).digest


def test_each_float_tensor_lies_at_its_slice_of_the_flat_vector(state: dict[str, Tensor]) -> None:
    weights = flatten(state)
    names = [n for n, is_float in zip(weights.layout.names, weights.layout.is_float, strict=True) if is_float]
    for name, place in zip(names, weights.layout.float_slices, strict=True):
        assert torch.equal(weights.floats[place], state[name].reshape(-1))


def test_floats_become_float32_and_counters_int64() -> None:
    state = {"a": torch.ones(2, dtype=torch.float64), "b": torch.tensor(3, dtype=torch.int32)}
    weights = flatten(state)
    assert weights.floats.dtype == torch.float32
    assert weights.integers.dtype == torch.int64
    assert weights.size_bytes == 2 * 4 + 1 * 8


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0000002]), "n": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(4)},
        {"b": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"a": torch.tensor([[1.0, 2.0]]), "n": torch.tensor(3)},
    ],
    ids=["float", "counter", "name", "shape"],
)
def test_the_digest_changes_with_every_value_name_and_shape(other: dict[str, Tensor]) -> None:
    weights = flatten({"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)})
    assert flatten({"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}).digest == weights.digest
    assert flatten(other).digest != weights.digest


def test_a_network_without_counters_has_weights_too() -> None:
    weights = flatten({"a": torch.ones(2, 3)})
    assert weights.integers.shape == (0,)
    assert len(weights.digest) == 64
    assert set(weights.state_dict()) == {"a"}


def test_flattening_a_slice_of_memory_takes_the_values_that_it_shows() -> None:
    grid = torch.arange(6.0).view(2, 3)
    weights = flatten({"a": grid.T})
    assert isinstance(weights, FlatWeights)
    assert weights.floats.tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
