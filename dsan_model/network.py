"""The 3D ResNet-34 with the online attention module (III-A, III-B, Eq. 1 and 2).

Axis letters in names: B batch, C channel, D H W the input grid (z, y, x), d h w the feature grid.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsan_model.checkpointing import checkpointed

ALPHA = 100.0  # Eq. 2: slope of the soft mask
BETA = 0.4  # Eq. 2: threshold of the soft mask
NORMAL_LUNG = 1 / 3  # -850 HU in the window of IV-B
LUNG_UNIT = 0.12  # 180 HU
FLAT_WITHIN_ULP = 32  # a map that varies by less is flat: the variation is the rounding of its up-sampling


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of the network; the defaults are the paper's Attention RN34 (63.5 M parameters).

    A preset for small machines may make it shallower, narrower, and coarsen the input less.
    """

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    stem_kernel: int = 7
    stem_pool: bool = True
    strides: tuple[int, int, int, int] = (1, 2, 2, 1)  # III-A: the last stage has stride 1, not 2
    standardise_input: bool = False  # see `standardised`; not in the paper


class NetworkOutput(NamedTuple):
    """What one forward pass gives for a batch."""

    logit_B: Tensor  # P(COVID-19) is its sigmoid
    cam_Bdhw: Tensor  # A of Eq. 1, at 1/16 of the input at the paper's size


class AttentionResNet(nn.Module):
    """3D ResNet with basic blocks, shortcut type B, global average pooling, FC and online attention.

    Attention RN34 and RN34 are the same network: they differ in the loss that trains them (Eq. 4).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.standardise_input = config.standardise_input
        self.checkpointing = False  # compute activations twice instead of keeping them: less memory
        stem_padding = config.stem_kernel // 2
        self.conv1 = nn.Conv3d(
            1, config.width, config.stem_kernel, stride=2, padding=stem_padding, bias=False
        )
        self.bn1 = nn.BatchNorm3d(config.width)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1) if config.stem_pool else nn.Identity()
        widths = [config.width * 2**stage for stage in range(4)]
        inputs = [config.width, *widths[:-1]]
        stages = [
            _stage(inputs[i], widths[i], config.blocks[i], config.strides[i]) for i in range(len(widths))
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(widths[-1], 1)
        _initialise(self)

    def features(self, volume_B1DHW: Tensor) -> Tensor:
        """Feature maps f before the pooling, (B, C, d, h, w): (512, 9, 16, 16) of (138, 256, 256)."""
        x = standardised(volume_B1DHW) if self.standardise_input else volume_B1DHW
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = checkpointed(stage, x) if self.checkpointing and self.training else stage(x)
        return x

    def forward(self, volume_B1DHW: Tensor) -> NetworkOutput:
        """Logit and attention feature map A of each case; the volume is the prepared CT, [0, 1]."""
        features_BCdhw = self.features(volume_B1DHW)
        logit_B1 = self.fc(features_BCdhw.mean(dim=(2, 3, 4)))
        return NetworkOutput(logit_B1[:, 0], attention_feature_map(features_BCdhw, self.fc.weight))


def attention_feature_map(features_BCdhw: Tensor, fc_weight_1C: Tensor) -> Tensor:
    """Eq. 1: A = ReLU(conv(f, w)), (B, d, h, w).

    w is the FC weight, copied and not trained here: only the classification loss updates it (III-B).
    """
    kernel = fc_weight_1C.detach()[:, :, None, None, None]
    return F.relu(F.conv3d(features_BCdhw, kernel))[:, 0]


def attention_map(cam_Bdhw: Tensor, size_DHW: tuple[int, int, int]) -> Tensor:
    """Eq. 2: T(A), (B, D, H, W) in float32: up-sampled, min-max normalised per case, soft-masked.

    A map without contrast, as one of zeros, is zero before the sigmoid. Float32 throughout: in bfloat16 T
    errs by up to 0.11.
    """
    upsampled = F.interpolate(cam_Bdhw.float()[:, None], size_DHW, mode="trilinear", align_corners=False)
    normalised_BDHW = _min_max(upsampled[:, 0])
    return torch.sigmoid(ALPHA * (normalised_BDHW - BETA))


def is_flat(low: Tensor, high: Tensor) -> Tensor:
    """Whether maps with these extremes have no contrast; normalised, their rounding would fill [0, 1]."""
    return high - low <= FLAT_WITHIN_ULP * torch.finfo(high.dtype).eps * high.abs()


def standardised(volume_B1DHW: Tensor) -> Tensor:
    """Normal lung (-850 HU) at 0 in units of 180 HU, and 0 outside the lungs, where the volume is 0.

    A small network that sees few cases then starts from lesions instead of from the edge of the lungs.
    """
    return torch.where(volume_B1DHW > 0, (volume_B1DHW - NORMAL_LUNG) / LUNG_UNIT, 0.0)


def initial_state(config: NetworkConfig, seed: int) -> dict[str, Tensor]:
    """The weights that every site starts from: a function of the configuration and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentionResNet(config).state_dict()


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:  # shortcut type B: type A of the known code cuts the gradient
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x), inplace=True)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = _BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(_BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        # on the meta device there is nothing to fill, and normal_ would import torch's compiler for seconds
        if isinstance(module, nn.Conv3d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _min_max(map_BDHW: Tensor) -> Tensor:
    low = map_BDHW.amin(dim=(1, 2, 3), keepdim=True)
    high = map_BDHW.amax(dim=(1, 2, 3), keepdim=True)
    flat = is_flat(low, high)
    return torch.where(flat, 0.0, (map_BDHW - low) / (high - low).masked_fill(flat, 1.0))
