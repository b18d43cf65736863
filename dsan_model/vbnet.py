"""VB-Net: V-Net with bottleneck blocks, which segments lungs and infection in a chest CT (III, ref. [10]).

The network and its loss; patches and whole scans are in patches.py and sliding_window.py. Axis letters in
names: B batch, C channel, S structure (lungs, infection), D H W the grid (z, y, x).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsan_model.dice import STRUCTURES

BOTTLENECK_RATIO = 4  # a bottleneck block computes its 3x3x3 convolution on a quarter of the channels
SMOOTH_VOXELS = 1.0  # of the Dice loss; an empty mask that is found empty then has loss 0, not 0 / 0


@dataclass(frozen=True)
class VBNetConfig:
    """The shape of the network; the defaults are those of the published VB-Net of ref. [10].

    `convolutions` is the depth of the residual block at each scale below the input's, `plain_scales` how many
    of them, the finest first, have plain 3x3x3 convolutions instead of bottlenecks.
    """

    width: int = 16
    convolutions: tuple[int, ...] = (1, 2, 3, 3)
    plain_scales: int = 1

    @property
    def stride(self) -> int:
        """A patch has a multiple of so many voxels a side."""
        return int(2 ** len(self.convolutions))


class VBNet(nn.Module):
    """A path down that halves the grid at each scale, a path up that joins what each scale has seen.

    The two outputs are logits of their own, not classes of a softmax: infected lung is lung, and a lung mask
    includes what is infected.
    """

    def __init__(self, config: VBNetConfig) -> None:
        super().__init__()
        channels = [config.width * 2**scale for scale in range(len(config.convolutions) + 1)]
        is_plain = [scale < config.plain_scales for scale in range(len(config.convolutions))]
        shapes = list(zip(channels[1:], config.convolutions, is_plain, strict=True))
        self.enter = _convolution(1, config.width, 3)
        self.down = nn.ModuleList(_Down(c // 2, n, plain) for c, n, plain in shapes)
        inputs = [*channels[2:], channels[-1]]
        self.up = nn.ModuleList(_Up(i, *shape) for i, shape in zip(inputs, shapes, strict=True))
        self.leave = nn.Conv3d(channels[1], len(STRUCTURES), 1)
        _initialise(self)

    def forward(self, volume_B1DHW: Tensor) -> Tensor:
        """Logits (B, S, D, H, W); the volume is the windowed CT from -1 to 1, sides multiples of `stride`."""
        x = self.enter(volume_B1DHW)
        seen = []
        for down in self.down:
            seen.append(x)
            x = down(x)
        for up, skipped in zip(reversed(self.up), reversed(seen), strict=True):
            x = up(x, skipped)
        logits: Tensor = self.leave(x)
        return logits


def dice_loss(logit_BSDHW: Tensor, mask_BSDHW: Tensor) -> Tensor:
    """1 - Dice of soft masks, in V-Net's squared form, the mean over cases and structures.

    Each case and each structure counts the same, however large. Where a mask is empty the loss goes to 0 as
    the prediction does.
    """
    probability, mask = torch.sigmoid(logit_BSDHW.float()), mask_BSDHW.float()
    axes = (2, 3, 4)
    overlap_BS = 2 * (probability * mask).sum(axes)
    total_BS = probability.square().sum(axes) + mask.sum(axes)
    return (1 - (overlap_BS + SMOOTH_VOXELS) / (total_BS + SMOOTH_VOXELS)).mean()


def initial_vbnet_state(config: VBNetConfig, seed: int) -> dict[str, Tensor]:
    """The weights that every site starts from: a function of the configuration and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VBNet(config).state_dict()


def build_vbnet(config: VBNetConfig, state: dict[str, Tensor], device: torch.device) -> VBNet:
    """The network with given weights on a device.

    Not in channels-last order as the ResNet: where channels are few that is a third slower on a CPU.
    """
    with torch.device("meta"):
        network = VBNet(config)
    network.to_empty(device=device)
    network.load_state_dict(state)
    return network


def _normalised(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return _normalised(nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False), outputs)


def _bottleneck(channels: int) -> list[tuple[int, int, int]]:
    """1x1x1 to fewer channels, 3x3x3 among them, 1x1x1 back: what turns V-Net into VB-Net."""
    inner = max(1, channels // BOTTLENECK_RATIO)
    return [(channels, inner, 1), (inner, inner, 3), (inner, channels, 1)]


class _Residual(nn.Module):
    def __init__(self, channels: int, convolutions: int, is_plain: bool) -> None:
        super().__init__()
        shapes = [(channels, channels, 3)] if is_plain else _bottleneck(channels)
        *first, last = [_convolution(*shape) for _ in range(convolutions) for shape in shapes]
        self.body = nn.Sequential(*first, *list(last)[:-1])  # the sum is activated, not what is added

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x), inplace=True)


class _Down(nn.Module):
    def __init__(self, inputs: int, convolutions: int, is_plain: bool) -> None:
        super().__init__()
        self.shrink = _normalised(nn.Conv3d(inputs, 2 * inputs, 2, stride=2, bias=False), 2 * inputs)
        self.residual = _Residual(2 * inputs, convolutions, is_plain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(self.shrink(x))
        return out


class _Up(nn.Module):
    """From the coarser scale, half of the channels; the other half is what the path down had there."""

    def __init__(self, inputs: int, outputs: int, convolutions: int, is_plain: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.grow = _normalised(nn.ConvTranspose3d(inputs, half, 2, stride=2, bias=False), half)
        self.residual = _Residual(outputs, convolutions, is_plain)

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        out: Tensor = self.residual(torch.cat((self.grow(x), skipped), dim=1))
        return out


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
