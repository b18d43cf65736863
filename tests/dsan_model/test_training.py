"""Training and prediction at a site (III-D, IV-C); federated training held against pooled training."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsan_model.data_parallel import Share
from dsan_model.network import AttentionResNet, NetworkConfig, initial_state
from dsan_model.traffic import Precision, pack
from dsan_model.training import (
    Batch,
    Machine,
    Sample,
    TrainingConfig,
    batches,
    build_network,
    incoming_parameters,
    learning_rate,
    make_optimiser,
    predict,
    randomly_flipped,
    set_learning_rate,
    train_epoch,
)
from dsan_model.weights import FlatWeights, change, flatten
from server.aggregation import RunningMean, moved

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=4, stem_kernel=3, stem_pool=False)
CPU = Machine(torch.device("cpu"))
SGD = TrainingConfig(optimiser="sgd", learning_rate=0.05, weight_decay=1e-3)


def samples_of(labels: list[float], seed: int = 0) -> list[Sample]:
    """One small volume a label; COVID-19 is brighter and has an infection."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label in labels:
        volume_DHW = torch.rand(16, 16, 16, generator=generator) * (0.6 + 0.4 * label)
        found.append(Sample(volume_DHW.half(), volume_DHW > 0.8, float(label)))
    return found


def batches_of(samples: list[Sample], batch_size: int) -> Iterator[Batch]:
    return batches(samples, np.arange(len(samples)), batch_size, CPU)


class FrozenNorm(nn.BatchNorm3d):
    """A batch norm that uses its running statistics and does not change them, in training too."""

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(False)
        return self


def frozen_network(weights: FlatWeights) -> AttentionResNet:
    network = build_network(TINY, weights.state_dict(), CPU.device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = FrozenNorm
    return network


# ---- federated and pooled ----


def trained(
    weights: FlatWeights, samples: list[Sample], attention_weight: float, proximal_mu: float = 0.0
) -> FlatWeights:
    """One step over all samples at once; with `proximal_mu`, two of FedProx."""
    network = frozen_network(weights)
    optimiser = make_optimiser(network, SGD)
    steps = batches_of(samples * (2 if proximal_mu else 1), len(samples))
    proximal = incoming_parameters(network) if proximal_mu else None
    train_epoch(network, optimiser, steps, attention_weight, CPU, proximal=proximal, proximal_mu=proximal_mu)
    return flatten(network.state_dict())


def federated(
    weights: FlatWeights, sites: list[list[Sample]], attention_weight: float, *, is_weighted: bool
) -> FlatWeights:
    for _ in range(3):
        mean = RunningMean()
        for site in sites:
            update = pack(change(trained(weights, site, attention_weight), weights), Precision.FLOAT32)
            mean.add(update, len(site) if is_weighted else 1)
        weights = moved(weights, mean.result())
    return weights


def pooled(weights: FlatWeights, sites: list[list[Sample]], attention_weight: float) -> FlatWeights:
    everything = [sample for site in sites for sample in site]
    for _ in range(3):
        weights = trained(weights, everything, attention_weight)
    return weights


@pytest.mark.parametrize(
    ("labels_by_site", "attention_weight"),
    [
        # L_c is a mean over cases, L_ex a mean over COVID-19 cases: with attention both means are those of
        # the pool only where sites have the same share of COVID-19
        ([[1, 1], [1, 0, 0, 1, 0, 0], [0, 0, 0, 1]], 0.0),
        ([[1, 0], [1, 0, 0, 1, 0, 1], [0, 1, 0, 1]], 0.5),
    ],
    ids=["classification alone, one site with one class", "classification and attention"],
)
def test_federated_training_with_one_step_a_round_equals_pooled_training(
    labels_by_site: list[list[float]], attention_weight: float
) -> None:
    sites = [samples_of(labels, seed) for seed, labels in enumerate(labels_by_site)]
    start = flatten(initial_state(TINY, seed=0))
    expected = pooled(start, sites, attention_weight)
    found = federated(start, sites, attention_weight, is_weighted=True)
    assert (expected.floats - start.floats).abs().max() > 3e-3
    torch.testing.assert_close(found.floats, expected.floats, rtol=0, atol=1e-5)
    unweighted = federated(start, sites, attention_weight, is_weighted=False)
    assert (unweighted.floats - expected.floats).abs().max() > 1e-3


def test_fedprox_takes_the_second_step_back_towards_the_incoming_weights() -> None:
    start, samples = flatten(initial_state(TINY, seed=0)), samples_of([1, 0, 0, 1])
    first = change(trained(start, samples, 0.5), start).floats
    mu = 3.0
    without = change(trained(start, samples, 0.5, proximal_mu=1e-12), start).floats
    found = change(trained(start, samples, 0.5, proximal_mu=mu), start).floats
    # the first step starts at the incoming weights, where the term has no gradient
    torch.testing.assert_close(found, without - SGD.learning_rate * mu * first, rtol=0, atol=1e-6)
    assert first.abs().max() > 1e-3


# ---- the paper's values ----


def test_the_defaults_are_the_papers() -> None:
    paper = TrainingConfig()
    assert (paper.optimiser, paper.learning_rate, paper.betas) == ("adam", 2e-4, (0.9, 0.999))
    assert (paper.weight_decay, paper.batch_size, paper.attention_weight) == (1e-4, 20, 0.5)


def test_the_learning_rate_falls_to_a_tenth_after_every_five_epochs() -> None:
    rates = [learning_rate(TrainingConfig(), epoch) for epoch in range(20)]
    assert rates == pytest.approx([2e-4] * 5 + [2e-5] * 5 + [2e-6] * 5 + [2e-7] * 5)


def test_the_optimiser_is_adam_with_the_papers_values_or_plain_sgd() -> None:
    network = nn.Linear(2, 1)
    adam = make_optimiser(network, TrainingConfig())
    assert isinstance(adam, torch.optim.Adam)
    group = adam.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2e-4, (0.9, 0.999), 1e-4)
    assert make_optimiser(network, TrainingConfig(betas=(0.8, 0.9))).param_groups[0]["betas"] == (0.8, 0.9)
    sgd = make_optimiser(network, SGD)
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, 0, 1e-3)


def test_a_rate_that_is_set_is_the_rate_of_the_next_step() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    set_learning_rate(optimiser, 0.25)
    weight.grad = torch.ones(1)
    optimiser.step()
    assert weight.item() == -0.25


# ---- an epoch ----


def an_epoch(attention_weight: float = 0.5) -> FlatWeights:
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device)
    samples = samples_of([1, 0, 1, 0, 1])
    optimiser = make_optimiser(network, TrainingConfig(learning_rate=1e-2))
    train_epoch(network, optimiser, batches_of(samples, 2), attention_weight, CPU)
    return flatten(network.state_dict())


def test_an_epoch_repeated_gives_the_same_weights_bit_for_bit() -> None:
    torch.manual_seed(1)
    first = an_epoch()
    torch.manual_seed(2)  # nothing may hang on the global generator
    assert an_epoch().digest == first.digest
    assert an_epoch(attention_weight=0.0).digest != first.digest


def test_every_step_goes_by_the_gradient_of_its_own_batch() -> None:
    start, samples = flatten(initial_state(TINY, seed=0)), samples_of([1, 0, 0, 1])
    network = frozen_network(start)
    train_epoch(network, make_optimiser(network, SGD), batches_of(samples, 2), 0.5, CPU)
    one_by_one = trained(trained(start, samples[:2], 0.5), samples[2:], 0.5)
    assert flatten(network.state_dict()).digest == one_by_one.digest


def test_an_epoch_changes_the_weights_and_counts_its_steps_in_the_batch_norms() -> None:
    state = an_epoch().state_dict()
    assert not torch.equal(state["fc.weight"], initial_state(TINY, seed=0)["fc.weight"])
    assert state["bn1.num_batches_tracked"] == 3


def test_the_losses_of_an_epoch_are_means_over_cases_whatever_the_batches() -> None:
    samples = samples_of([1, 0, 1, 1, 0])
    whole, parts = (
        train_epoch(
            network := frozen_network(flatten(initial_state(TINY, seed=0))),
            torch.optim.SGD(network.parameters(), lr=0.0),
            batches_of(samples, batch_size),
            0.5,
            CPU,
        )
        for batch_size in (5, 3)
    )
    assert (whole.cases, whole.steps, parts.cases, parts.steps) == (5, 1, 5, 2)
    assert parts.classification_loss == pytest.approx(whole.classification_loss, rel=1e-5)
    assert parts.attention_loss == pytest.approx(whole.attention_loss, rel=1e-5)


@pytest.mark.parametrize(("labels", "attention_weight"), [([0, 0, 0], 0.5), ([1, 0, 1], 0.0)])
def test_without_covid_or_without_lambda_an_epoch_has_no_attention_loss(
    labels: list[float], attention_weight: float
) -> None:
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device)
    optimiser = make_optimiser(network, TrainingConfig())
    result = train_epoch(network, optimiser, batches_of(samples_of(labels), 2), attention_weight, CPU)
    assert result.attention_loss is None
    assert result.classification_loss > 0


def test_progress_is_told_after_every_step() -> None:
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device)
    told: list[int] = []
    optimiser = make_optimiser(network, TrainingConfig())
    train_epoch(network, optimiser, batches_of(samples_of([1, 0, 1]), 1), 0.5, CPU, told.append)
    assert told == [1, 2, 3]


def test_the_network_learns_what_separates_the_classes() -> None:
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device)
    samples = samples_of([1, 0] * 6)
    optimiser = make_optimiser(network, TrainingConfig(learning_rate=5e-3))
    results = [train_epoch(network, optimiser, batches_of(samples, 4), 0.5, CPU) for _ in range(8)]
    assert results[-1].classification_loss < results[0].classification_loss / 2
    assert results[-1].attention_loss is not None
    assert results[0].attention_loss is not None
    assert results[-1].attention_loss < results[0].attention_loss


# ---- prediction ----


def test_logits_come_in_the_order_that_was_asked_for() -> None:
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device)
    samples = samples_of([1, 0, 1, 0, 1])
    in_order = predict(network, batches_of(samples, 2), CPU)
    order = np.array([3, 0, 4, 4, 1, 2])
    reordered = predict(network, batches(samples, order, 2, CPU), CPU)
    assert in_order.dtype == np.float64
    assert len(set(in_order)) == 5
    np.testing.assert_allclose(reordered, in_order[order], rtol=0, atol=1e-6)


def test_a_prediction_does_not_depend_on_the_batch_and_leaves_the_network_as_it_was() -> None:
    weights = flatten(initial_state(TINY, seed=0))
    network = build_network(TINY, weights.state_dict(), CPU.device)
    samples = samples_of([1, 0, 1])
    one_by_one = predict(network, batches_of(samples, 1), CPU)
    np.testing.assert_allclose(one_by_one, predict(network, batches_of(samples, 3), CPU), rtol=0, atol=1e-6)
    assert flatten(network.state_dict()).digest == weights.digest


def test_no_case_gives_no_logit() -> None:
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device)
    assert predict(network, batches([], np.empty(0, np.int64), 2, CPU), CPU).shape == (0,)


def test_a_cpu_computes_in_float32_even_inside_a_network_that_would_allow_bfloat16() -> None:
    assert CPU.autocast_dtype is None
    network = build_network(TINY, initial_state(TINY, seed=0), CPU.device).eval()
    seen: list[torch.dtype] = []
    network.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    predict(network, batches_of(samples_of([1]), 1), CPU)
    optimiser = make_optimiser(network, TrainingConfig())
    train_epoch(network, optimiser, batches_of(samples_of([1, 0]), 2), 0.5, CPU)
    assert seen == [torch.float32, torch.float32]


# ---- batches and networks ----


def test_batches_stack_float16_volumes_as_float32_with_a_channel() -> None:
    samples = samples_of([1, 0, 1])
    first, last = batches(samples, np.array([2, 0, 1]), 2, CPU)
    assert first.volume_B1DHW.shape == (2, 1, 16, 16, 16)
    assert first.volume_B1DHW.dtype == torch.float32
    assert torch.equal(first.volume_B1DHW[0, 0], samples[2].volume_DHW.float())
    assert torch.equal(first.infection_BDHW[1], samples[0].infection_DHW)
    assert first.label_B.tolist() == [1.0, 1.0]
    assert last.label_B.tolist() == [0.0]


def test_flipping_mirrors_along_every_axis_half_of_the_time_and_the_mask_alike() -> None:
    samples = samples_of([1, 0] * 20)
    flipped = list(randomly_flipped(batches_of(samples, 7), np.random.default_rng(0), [7] * 5 + [5]))
    assert torch.cat([batch.label_B for batch in flipped]).tolist() == [1.0, 0.0] * 20
    volumes = torch.cat([batch.volume_B1DHW for batch in flipped])[:, 0]
    infections = torch.cat([batch.infection_BDHW for batch in flipped])
    subsets = [axes for n in range(4) for axes in combinations((0, 1, 2), n)]
    n_flipped = dict.fromkeys((0, 1, 2), 0)
    for sample, volume_DHW, infection_DHW in zip(samples, volumes, infections, strict=True):
        (found,) = [a for a in subsets if torch.equal(volume_DHW, sample.volume_DHW.float().flip(a))]
        assert torch.equal(infection_DHW, sample.infection_DHW.flip(found))
        for axis in found:
            n_flipped[axis] += 1
    assert all(10 <= n <= 30 for n in n_flipped.values())


def test_processes_that_share_a_batch_flip_its_cases_as_one_would() -> None:
    samples = samples_of([1, 0, 1, 0, 1])
    order, sizes = np.arange(5), [4, 1]
    whole = list(randomly_flipped(batches(samples, order, 4, CPU), np.random.default_rng(0), sizes))
    shares = [Share(rank, 2) for rank in range(2)]
    parts = [
        list(
            randomly_flipped(
                batches(samples, order, 4, replace(CPU, share=share)), np.random.default_rng(0), sizes, share
            )
        )
        for share in shares
    ]
    for number, batch in enumerate(whole):
        for share, part in zip(shares, parts, strict=True):
            mine = slice(share.rank, None, 2)
            assert torch.equal(part[number].volume_B1DHW, batch.volume_B1DHW[mine])
            assert torch.equal(part[number].infection_BDHW, batch.infection_BDHW[mine])
    assert len(parts[1][1].label_B) == 0  # the last batch has a case for one of them only


def test_flips_follow_from_the_generator_alone() -> None:
    samples = samples_of([1, 0] * 4)
    first, again, other = (
        torch.cat([b.volume_B1DHW for b in randomly_flipped(batches_of(samples, 4), generator, [4, 4])])
        for generator in (np.random.default_rng(seed) for seed in (1, 1, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_network_is_built_from_given_weights_and_shares_no_memory_with_them() -> None:
    weights = flatten(initial_state(TINY, seed=3))
    network = build_network(TINY, weights.state_dict(), CPU.device)
    assert flatten(network.state_dict()).digest == weights.digest
    digest_before = flatten({"floats": weights.floats}).digest
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert flatten({"floats": weights.floats}).digest == digest_before


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_of_another_network_are_refused(change: str) -> None:
    state: dict[str, Tensor] = dict(initial_state(TINY, seed=0))
    if change == "missing":
        del state["fc.bias"]
    else:
        state["fc.bias"] = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"fc\.bias"):
        build_network(TINY, state, CPU.device)
