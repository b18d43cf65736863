"""Federated averaging as a running weighted mean of updates: one model in memory, whatever the sites."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsan_model.traffic import PackedWeights
from dsan_model.weights import FlatWeights, Layout

STATISTICS = ("running_mean", "running_var")  # of batch norm: averaged, but not part of the momentum


@dataclass
class RunningMean:
    """The mean of the updates added so far, weighted by cases; the order of adding decides the last bits.

    Batch-norm statistics are averaged with the parameters. Counters stay integers: their mean is rounded.
    """

    cases: int = 0
    _first_cases: int = 0  # the unit of weight: the mean of one update is that update, bit for bit
    _floats: Tensor | None = None  # sum of the updates, each times its cases in that unit
    _counter_sums: Tensor | None = None  # float64, cases times counters
    _layout: Layout | None = None

    def add(self, update: PackedWeights, cases: int) -> None:
        """Take one site's update in; `cases` is how many it drew, at least 1."""
        if cases < 1:
            raise ValueError(f"a site's update counts by its cases, which must be at least 1, not {cases}")
        self.cases += cases
        if self._floats is None or self._counter_sums is None:
            self._layout = update.layout
            self._floats = torch.zeros(update.floats.size)
            self._counter_sums = torch.zeros(update.integers.size, dtype=torch.float64)
            self._first_cases = cases
        weight = cases / self._first_cases
        for place, values, scale in update.slabs():
            self._floats[place].add_(values, alpha=weight * scale)
        self._counter_sums += torch.tensor(update.integers).double() * cases

    def result(self) -> FlatWeights:
        """The weighted mean of all that was added, once: the sum is used up. ValueError if nothing was."""
        if self._floats is None or self._counter_sums is None or self._layout is None:
            raise ValueError("nothing was added to the mean")
        counters = torch.round(self._counter_sums / self.cases).long()
        floats = self._floats.mul_(self._first_cases / self.cases)
        self._floats = None
        return FlatWeights(self._layout, floats, counters)


def moved(weights: FlatWeights, mean_update: FlatWeights) -> FlatWeights:
    """FedAvg: the weights moved by the mean update, which is used up; counters are those of the update."""
    return FlatWeights(weights.layout, mean_update.floats.add_(weights.floats), mean_update.integers)


def with_momentum(mean_update: FlatWeights, velocity: Tensor | None, momentum: float) -> FlatWeights:
    """FedAvgM: the mean update plus `momentum` times the last step; the sum is the next velocity.

    Running statistics are averaged without momentum: with it a variance could fall below 0.
    """
    if velocity is not None:
        mean_update.floats.add_(velocity.mul(parameter_mask(mean_update.layout)), alpha=momentum)
    return mean_update


def parameter_mask(layout: Layout) -> Tensor:
    """1 for every parameter, 0 for every running statistic, in the order of the flat vector."""
    mask = FlatWeights(layout, torch.ones(layout.numel(True)), torch.zeros(layout.numel(False)).long())
    for name, values in mask.state_dict().items():
        if name.endswith(STATISTICS):
            values.zero_()
    return mask.floats
