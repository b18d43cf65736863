"""A site whose memory runs out trains the same branch once more with activation checkpointing."""

from dataclasses import replace

import torch
from study_terms import STUDY_TERMS
from torch import Tensor

from client.branch_training import BranchTask
from client.site_training import train_branch
from dsan_model.cases import Case, Label
from dsan_model.network import NetworkConfig, initial_state
from dsan_model.sampling import Branch
from dsan_model.training import Machine, Sample, TrainingConfig
from dsan_model.weights import flatten

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
CPU = Machine(torch.device("cpu"))


class Cases:
    """Four cases; the first `failures` readings end as they would on a GPU whose memory is full."""

    def __init__(self, failures: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.volumes = [torch.rand(16, 16, 16, generator=generator).half() for _ in range(4)]
        self.cases = tuple(Case(f"c{n}", f"p{n}", list(Label)[n % 2], 0.01) for n in range(4))
        self.failures = failures

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, position: int) -> Sample:
        if self.failures > 0:
            self.failures -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        volume_DHW: Tensor = self.volumes[position]
        return Sample(volume_DHW, volume_DHW > 0.9, float(position % 2 == 0))


def trained(failures: int) -> str:
    terms = replace(
        STUDY_TERMS,
        input_shape_dhw=(16, 16, 16),
        network=TINY,
        training=TrainingConfig(batch_size=2),
        branches=(Branch.US,),
    )
    task = BranchTask(terms, "north", Branch.US, 1, {}, flatten(initial_state(TINY, 0)))
    result = train_branch(task, Cases(failures), {}, CPU, lambda done, steps: None)  # type: ignore[arg-type]
    assert result.training.cases == 4
    return result.weights.digest


def test_weights_after_memory_ran_out_are_those_of_a_site_with_enough() -> None:
    assert trained(failures=1) == trained(failures=0)
