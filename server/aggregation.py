"""Federated averaging as a running weighted mean: one model in memory, however many sites reply."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsan_model.weights import FlatWeights, Layout


@dataclass
class RunningMean:
    """The mean of the weights added so far, weighted by cases; the order of adding decides the last bits.

    Batch-norm statistics are averaged with the parameters. Counters stay integers: their mean is rounded.
    """

    cases: int = 0
    _floats: Tensor | None = None
    _counter_sums: Tensor | None = None  # float64, cases times counters
    _layout: Layout | None = None

    def add(self, weights: FlatWeights, cases: int) -> None:
        """Take one site's weights in; `cases` is how many it drew, at least 1."""
        if cases < 1:
            raise ValueError(f"a site's weights count by its cases, which must be at least 1, not {cases}")
        self.cases += cases
        counters = weights.integers.double() * cases
        if self._floats is None or self._counter_sums is None:
            self._floats, self._counter_sums, self._layout = weights.floats.clone(), counters, weights.layout
            return
        self._floats.lerp_(weights.floats, cases / self.cases)
        self._counter_sums += counters

    def result(self) -> FlatWeights:
        """The weighted mean of everything added; ValueError if nothing was."""
        if self._floats is None or self._counter_sums is None or self._layout is None:
            raise ValueError("nothing was added to the mean")
        counters = torch.round(self._counter_sums / self.cases).long()
        return FlatWeights(self._layout, self._floats, counters)
