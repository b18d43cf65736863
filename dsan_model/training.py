"""Training and prediction of one network on one site's cases (III-D, IV-C).

Axis letters: B batch, D H W the input grid.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from dsan_model.data_parallel import WHOLE, Share, part_of_batches, shared_loss, summed
from dsan_model.losses import Losses, total_loss
from dsan_model.network import AttentionResNet, NetworkConfig, NetworkOutput

NORM_MOMENTUM = 0.1  # torch's own

Progress = Callable[[int], None]  # steps done


@dataclass(frozen=True)
class TrainingConfig:
    """How a branch is trained; the defaults are the paper's (IV-C)."""

    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_every_epochs: int = 5
    decay_factor: float = 0.1
    batch_size: int = 20
    local_epochs: int = 1
    attention_weight: float = 0.5  # lambda of Eq. 4
    flips: bool = False  # mirror drawn cases at random; not in the paper
    proximal_mu: float = 0.0  # FedProx: mu / 2 times the squared distance to the incoming parameters


class Sample(NamedTuple):
    """One prepared case as the network wants it."""

    volume_DHW: Tensor  # float16 or float32, [0, 1], 0 outside the lungs
    infection_DHW: Tensor  # bool
    label: float  # 1.0 COVID-19, 0.0 CAP


class Samples(Protocol):
    """The cases of a site, by position."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> Sample: ...


class Batch(NamedTuple):
    """Samples stacked: (B, 1, D, H, W) float32, (B,) float32, (B, D, H, W) bool."""

    volume_B1DHW: Tensor
    label_B: Tensor
    infection_BDHW: Tensor


@dataclass(frozen=True)
class EpochResult:
    """Means over the cases of an epoch; `attention_loss` over its COVID-19 cases, None without any."""

    cases: int
    steps: int
    classification_loss: float
    attention_loss: float | None


@dataclass(frozen=True)
class Machine:
    """What a site computes with: bfloat16 only where a GPU has it (on CPU its gradients are wrong)."""

    device: torch.device
    loader_workers: int = 0
    processes: int = 1  # that train a network together
    share: Share = WHOLE  # of every batch, in one of these processes

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """bfloat16 on a GPU that has it, else None: float32."""
        has_bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else None


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """The rate of a global epoch, counted from 0: divided by 10 after every 5 epochs (IV-C)."""
    return config.learning_rate * config.decay_factor ** (epoch // config.decay_every_epochs)


def make_optimiser(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam as in IV-C; plain SGD is there to compare federated with pooled training."""
    if config.optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.Adam(
        network.parameters(), config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )


def build_network(config: NetworkConfig, state: dict[str, Tensor], device: torch.device) -> AttentionResNet:
    """The network with given weights on a device; channels last, which is faster on CPU and GPU."""
    with torch.device("meta"):
        network = AttentionResNet(config)
    orders = {True: torch.channels_last_3d, False: torch.contiguous_format}
    copied = {name: t.to(device).clone(memory_format=orders[t.ndim == 5]) for name, t in state.items()}
    network.load_state_dict(copied, assign=True)  # no other copy: at full size one takes a third of a second
    return network


def batches(
    samples: Samples, order: npt.NDArray[np.int64], batch_size: int, machine: Machine
) -> Iterator[Batch]:
    """The samples in the given order, stacked by `batch_size` and moved to the device."""
    parts = list(part_of_batches(order, batch_size, machine.share))
    loader: DataLoader[Batch] = DataLoader(
        samples,  # type: ignore[arg-type] # any sequence does, torch asks for its own class
        batch_sampler=[part.tolist() or [int(order[0])] for part in parts],
        collate_fn=_stack,
        num_workers=machine.loader_workers,
        pin_memory=machine.device.type == "cuda",
    )
    for batch, part in zip(loader, parts, strict=True):
        yield Batch(*(tensor[: len(part)].to(machine.device, non_blocking=True) for tensor in batch))


def randomly_flipped(
    epoch_batches: Iterator[Batch],
    generator: np.random.Generator,
    batch_sizes: Sequence[int],
    share: Share = WHOLE,
) -> Iterator[Batch]:
    """Each case mirrored along each of its three axes with probability one half, volume and mask alike.

    `batch_sizes` are those of whole batches: each process draws for all cases and takes its own.
    """
    for batch_size, batch in zip(batch_sizes, epoch_batches, strict=True):
        volume_B1DHW, label_B, infection_BDHW = batch
        for axis in (1, 2, 3):
            drawn = share.of(generator.random(batch_size) < 0.5)
            is_flipped_B = torch.from_numpy(drawn.copy()).to(label_B.device)
            is_flipped = is_flipped_B[:, None, None, None]
            infection_BDHW = torch.where(is_flipped, infection_BDHW.flip(axis), infection_BDHW)
            volume_B1DHW = torch.where(is_flipped[:, None], volume_B1DHW.flip(axis + 1), volume_B1DHW)
        yield Batch(volume_B1DHW.contiguous(memory_format=torch.channels_last_3d), label_B, infection_BDHW)


def train_epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    epoch_batches: Iterator[Batch],
    attention_weight: float,
    machine: Machine,
    progress: Progress = lambda done: None,
    proximal: Sequence[Tensor] | None = None,
    proximal_mu: float = 0.0,
) -> EpochResult:
    """One pass over the batches, minimising Eq. 4; `attention_weight` 0 trains RN34 without attention.

    With `proximal`, the incoming parameters, it is FedProx; the losses told are still those of Eq. 4.
    """
    network.train()
    totals = _Totals()
    for step, batch in enumerate(epoch_batches, start=1):
        set_norm_momentum(network)
        output = _forward(network, batch.volume_B1DHW, machine)
        losses = None
        if len(batch.label_B):
            losses = total_loss(output, batch.label_B, batch.infection_BDHW, attention_weight)
        optimiser.zero_grad(set_to_none=True)
        _loss(output, losses, batch, attention_weight, machine).backward()  # type: ignore[no-untyped-call] # torch's
        if proximal is not None:
            add_proximal_gradient(network, proximal, proximal_mu)
        optimiser.step()
        totals.add(batch, losses)
        progress(step)
    return totals.result(machine)


def _loss(
    output: NetworkOutput, losses: Losses | None, batch: Batch, attention_weight: float, machine: Machine
) -> Tensor:
    """What is minimised: Eq. 4, or this process's part of it; a process without a case has no gradient."""
    if machine.share.processes == 1:
        assert losses is not None
        return losses.total
    nothing = 0.0 * output.logit_B.sum()  # keeps the network in the graph, whose gradients all wait for
    return nothing + shared_loss(losses, batch.label_B, attention_weight, machine.share)


def incoming_parameters(network: nn.Module) -> list[Tensor]:
    """The parameters as they are now, to stay near to (FedProx)."""
    return [parameter.detach().clone() for parameter in network.parameters()]


@torch.no_grad()
def add_proximal_gradient(network: nn.Module, incoming: Sequence[Tensor], mu: float) -> None:
    """FedProx (Li et al., MLSys 2020): add the gradient of mu / 2 |w - incoming|^2."""
    for parameter, start in zip(network.parameters(), incoming, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter - start, alpha=mu)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Let the optimiser's next steps use this rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


@torch.inference_mode()
def predict(
    network: AttentionResNet, case_batches: Iterator[Batch], machine: Machine
) -> npt.NDArray[np.float64]:
    """Logit of P(COVID-19) of every case, in the order of the batches."""
    network.eval()
    logits = [_forward(network, batch.volume_B1DHW, machine).logit_B.double().cpu() for batch in case_batches]
    return torch.cat(logits).numpy() if logits else np.empty(0)


def set_norm_momentum(network: nn.Module) -> None:
    """Let running statistics begin at those of the first batch instead of at mean 0 and variance 1.

    A site of a federation may take three steps a round: with the usual momentum of 0.1 alone, what the
    statistics began at would outweigh what they saw for tens of rounds.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None:
            module.momentum = max(NORM_MOMENTUM, 1 / (int(module.num_batches_tracked) + 1))


def fix_norms(network: nn.Module) -> None:
    """Let a network in training normalise by its running statistics and leave them as they are."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


class _Totals:
    """Sums over an epoch; they stay on the device until the end, so that no step waits for them."""

    def __init__(self) -> None:
        self.cases = self.steps = 0
        self.classification: list[Tensor] = []
        self.attention: list[Tensor] = []
        self.covid_cases: list[Tensor] = []

    def add(self, batch: Batch, losses: Losses | None) -> None:
        self.steps += 1
        if losses is None:
            return
        self.cases += len(batch.label_B)
        self.classification.append(losses.classification.detach() * len(batch.label_B))
        if losses.attention is not None:
            n_covid = batch.label_B.sum()
            self.covid_cases.append(n_covid)
            self.attention.append(losses.attention.detach() * n_covid)

    def result(self, machine: Machine) -> EpochResult:
        parts = (self.classification, self.attention, self.covid_cases)
        sums = [torch.stack(part).sum() if part else torch.zeros((), device=machine.device) for part in parts]
        cases = torch.tensor(float(self.cases), device=machine.device)
        totals = summed(torch.stack([cases, *sums]).double(), machine.share).tolist()
        n_cases, classification, attention, n_covid = totals
        mean_attention = attention / n_covid if n_covid else None
        return EpochResult(int(n_cases), self.steps, classification / n_cases, mean_attention)


def _forward(network: nn.Module, volume_B1DHW: Tensor, machine: Machine) -> NetworkOutput:
    dtype = machine.autocast_dtype
    with torch.autocast(machine.device.type, dtype=dtype, enabled=dtype is not None):
        output: NetworkOutput = network(volume_B1DHW)
    return output


def _stack(samples: Sequence[Sample]) -> Batch:
    volume = torch.stack([sample.volume_DHW for sample in samples]).float()[:, None]
    return Batch(
        volume.contiguous(memory_format=torch.channels_last_3d),
        torch.tensor([sample.label for sample in samples]),
        torch.stack([sample.infection_DHW for sample in samples]),
    )
