"""Training VB-Net on patches, and judging it on whole scans (ref. [10]).

Axis letters: B batch, S structure (lungs, infection), D H W the grid (z, y, x), N voxel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsan_model.dice import Structure
from dsan_model.preprocessing import PAPER_SPACING_MM_XYZ
from dsan_model.sliding_window import sliding_window
from dsan_model.training import (
    Machine,
    Progress,
    TrainingConfig,
    add_proximal_gradient,
    fix_norms,
    set_norm_momentum,
)
from dsan_model.vbnet import VBNet, VBNetConfig, dice_loss

OUTSIDE = -1.0  # what lies beyond a scan: the lower end of the window
PROBABLE_FROM = (0.5, 0.3)  # lungs, infection: Dice of what is often missed is highest below one half
CENTRED_ON = (Structure.INFECTION, Structure.LUNGS, None)  # None: anywhere in the scan
CENTRED_ON_SHARES = (0.5, 0.25, 0.25)

Bools = npt.NDArray[np.bool_]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class SegmentationConfig:
    """The grid that VB-Net works on, its patches, its size; the defaults are for GPUs.

    Of these the paper states the spacing alone (IV-B, for scans and masks); patches are ours.
    """

    spacing_mm_xyz: tuple[float, float, float] = PAPER_SPACING_MM_XYZ  # IV-B
    patch_dhw: Shape = (64, 128, 128)
    patches_per_case: int = 4  # of an epoch
    network: VBNetConfig = field(default_factory=VBNetConfig)


@dataclass(frozen=True)
class SegmentationPreset:
    """All that the training of VB-Net varies, for one size of machine."""

    rounds: int
    segmentation: SegmentationConfig
    training: TrainingConfig


PRESETS = {
    "full": SegmentationPreset(
        rounds=50,
        segmentation=SegmentationConfig(),
        training=TrainingConfig(learning_rate=1e-3, decay_every_epochs=20, batch_size=4),
    ),
    "demo": SegmentationPreset(
        rounds=22,
        segmentation=SegmentationConfig(
            (4.0, 4.0, 8.0), (32, 48, 48), patches_per_case=2, network=VBNetConfig(8, (1, 2, 2, 2), 2)
        ),
        training=TrainingConfig(learning_rate=5e-3, decay_every_epochs=10, decay_factor=0.3, batch_size=2),
    ),
    "tiny": SegmentationPreset(
        rounds=2,
        segmentation=SegmentationConfig(
            (6.0, 6.0, 12.0), (16, 32, 32), patches_per_case=1, network=VBNetConfig(4, (1, 1))
        ),
        training=TrainingConfig(learning_rate=1e-2, batch_size=4),
    ),
}  # `full` as ref. [10] has it where it says so; `demo` for two CPU cores; `tiny` for tests, learns little


class Patch(NamedTuple):
    """A part of a scan on the segmentation grid, windowed to -1 to 1, and its masks."""

    volume_DHW: Tensor  # float
    mask_SDHW: Tensor  # bool


class Place(NamedTuple):
    """Where a patch is cut: the position of its case, and its first voxel (z, y, x)."""

    case: int
    corner: tuple[int, int, int]


class Scans(Protocol):
    """A site's scans on the segmentation grid, by position; patches are read without the rest of the scan."""

    def __len__(self) -> int: ...

    def shape(self, position: int) -> Shape:
        """Size of a scan, (D, H, W)."""

    def voxels(self, position: int, structure: Structure) -> npt.NDArray[np.int64]:
        """(N, 3), z, y, x: some of the voxels of a structure, evenly drawn; none if the scan has none."""

    def patch(self, place: Place, patch_DHW: Shape) -> Patch:
        """The patch at a place; beyond the scan it is OUTSIDE and without masks."""


@dataclass(frozen=True)
class PatchEpoch:
    """What an epoch came to; the loss is a mean over its patches."""

    patches: int
    steps: int
    dice_loss: float


def draw_places(scans: Scans, config: SegmentationConfig, generator: np.random.Generator) -> list[Place]:
    """`patches_per_case` patches of every case, in random order; a patch may reach beyond its scan.

    Half of them lie around a voxel of infection, a quarter around one of lung, the others anywhere: drawn
    evenly from the scan, most would show no infection. A case without infection draws those around its lungs.
    """
    cases = np.repeat(np.arange(len(scans)), config.patches_per_case)
    return [_place(scans, int(case), config, generator) for case in generator.permutation(cases)]


def patch_batches(
    scans: Scans, places: Sequence[Place], patch_DHW: Shape, batch_size: int, machine: Machine
) -> Iterator[tuple[Tensor, Tensor]]:
    """Volumes (B, 1, D, H, W) float32 and masks (B, S, D, H, W) bool on the device, in the given order."""
    for start in range(0, len(places), batch_size):
        patches = [scans.patch(place, patch_DHW) for place in places[start : start + batch_size]]
        volume_B1DHW = torch.stack([patch.volume_DHW for patch in patches]).float()[:, None]
        yield (
            volume_B1DHW.to(machine.device),
            torch.stack([patch.mask_SDHW for patch in patches]).to(machine.device),
        )


def train_patches(
    network: VBNet,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    machine: Machine,
    progress: Progress = lambda done: None,
    proximal: Sequence[Tensor] | None = None,
    proximal_mu: float = 0.0,
    are_norms_fixed: bool = False,
) -> PatchEpoch:
    """One pass over the batches, minimising the Dice loss; with `proximal`, incoming parameters, FedProx.

    With `are_norms_fixed` the batches are normalised as whole scans will be, by the averages that came in,
    which stay as they are; else by their own statistics, which enter the averages.
    """
    network.train()
    if are_norms_fixed:
        fix_norms(network)
    losses: list[Tensor] = []
    sizes: list[int] = []
    for step, (volume_B1DHW, mask_BSDHW) in enumerate(batches, start=1):
        if not are_norms_fixed:
            set_norm_momentum(network)
        loss = dice_loss(_logits(network, volume_B1DHW, machine), mask_BSDHW)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch's
        if proximal is not None:
            add_proximal_gradient(network, proximal, proximal_mu)
        optimiser.step()
        losses.append(loss.detach())
        sizes.append(len(volume_B1DHW))
        progress(step)
    total = float((torch.stack(losses).cpu() * torch.tensor(sizes)).sum())
    return PatchEpoch(sum(sizes), len(sizes), total / sum(sizes))


@torch.inference_mode()
def probabilities(network: VBNet, volume_DHW: Tensor, config: SegmentationConfig, machine: Machine) -> Tensor:
    """Probability of lungs and of infection in every voxel of a scan, (S, D, H, W) float32.

    In windows of a patch, however small the scan: the borders of a patch are part of what the network learns
    from, and in one piece a scan has none where it expects them.
    """
    network.eval()
    volume_DHW = volume_DHW.float().to(machine.device)
    return sliding_window(
        lambda window: torch.sigmoid(_logits(network, window, machine).float()),
        volume_DHW,
        config.patch_dhw,
        OUTSIDE,
    )


def masks(probability_SDHW: Tensor) -> Bools:
    """Lungs and infection, (S, D, H, W), from PROBABLE_FROM on; infection in lung only."""
    threshold_S111 = probability_SDHW.new_tensor(PROBABLE_FROM)[:, None, None, None]
    mask_SDHW: Bools = (probability_SDHW >= threshold_S111).cpu().numpy()
    mask_SDHW[1] &= mask_SDHW[0]
    return mask_SDHW


def _place(scans: Scans, case: int, config: SegmentationConfig, generator: np.random.Generator) -> Place:
    structure = CENTRED_ON[generator.choice(len(CENTRED_ON), p=CENTRED_ON_SHARES)]
    shape_DHW = scans.shape(case)
    middle = generator.integers(0, shape_DHW)
    if structure is not None:
        voxels_N3 = scans.voxels(case, structure)
        if len(voxels_N3) == 0:
            voxels_N3 = scans.voxels(case, Structure.LUNGS)
        middle = voxels_N3[generator.integers(len(voxels_N3))]
    z, y, x = (
        _corner(int(m), size, side) for m, size, side in zip(middle, shape_DHW, config.patch_dhw, strict=True)
    )
    return Place(case, (z, y, x))


def _corner(middle: int, size: int, side: int) -> int:
    """The patch around a voxel, moved into the scan; 0 where the scan is shorter than the patch."""
    return max(0, min(middle - side // 2, size - side))


def _logits(network: VBNet, volume_B1DHW: Tensor, machine: Machine) -> Tensor:
    dtype = machine.autocast_dtype
    with torch.autocast(machine.device.type, dtype=dtype, enabled=dtype is not None):
        logits: Tensor = network(volume_B1DHW)
    return logits
