"""The attention loss (Eq. 3) and the total loss (Eq. 4).

Axis letters: B batch, D H W the input grid, d h w the feature grid of the network, Z the slices of a slab.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dsan_model.network import ALPHA, BETA, NetworkOutput, is_flat

SLAB_VOXELS = 1 << 19  # T exists for so many voxels at a time: a few MB, which stays in the cache


@dataclass(frozen=True)
class Losses:
    """The terms of Eq. 4 for one batch; `attention` is None for a batch without COVID-19."""

    total: Tensor
    classification: Tensor
    attention: Tensor | None


def total_loss(
    output: NetworkOutput, label_B: Tensor, infection_BDHW: Tensor, attention_weight: float
) -> Losses:
    """Eq. 4: L_c + lambda L_ex, with L_ex the mean of Eq. 3 over the COVID-19 cases of the batch.

    `label_B` is 1.0 for COVID-19 and 0.0 for CAP; `infection_BDHW` is boolean. With `attention_weight`
    (lambda) 0 the attention term is left out: RN34 without attention.
    """
    classification = F.binary_cross_entropy_with_logits(output.logit_B.float(), label_B)
    is_covid_B = label_B > 0.5
    if attention_weight == 0.0 or not bool(is_covid_B.any()):
        return Losses(classification, classification, None)
    attention = attention_loss(output.cam_Bdhw[is_covid_B], infection_BDHW[is_covid_B]).mean()
    return Losses(classification + attention_weight * attention, classification, attention)


def attention_loss(cam_Bdhw: Tensor, infection_BDHW: Tensor) -> Tensor:
    """Eq. 3 of each case, (B,): squared error of T(A) against the mask over the sum of both.

    `cam_Bdhw` is A of Eq. 1; `infection_BDHW` a boolean mask at input size. The gradient reaches A through
    the minimum and the maximum of the normalisation too: without them it drowns the classification.
    T is never stored: forward and backward recompute it slab by slab from the small map.
    """
    cam = cam_Bdhw if cam_Bdhw.dtype == torch.float64 else cam_Bdhw.float()
    with torch.autocast(cam.device.type, enabled=False):  # it would make the matrix products bfloat16
        loss_B: Tensor = _AttentionLoss.apply(cam, infection_BDHW)  # type: ignore[no-untyped-call]
    return loss_B


class _Statistics(NamedTuple):
    """What the gradient needs of the forward pass, each (B,)."""

    low: Tensor  # min of the up-sampled map
    high: Tensor
    squared_error: Tensor  # numerator of Eq. 3, float64
    area: Tensor  # denominator of Eq. 3, float64


class _AttentionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cam_Bdhw, infection_BDHW):  # type: ignore[no-untyped-def]
        statistics = _statistics(_Upsampling(cam_Bdhw, infection_BDHW.shape[1:]), infection_BDHW)
        ctx.save_for_backward(cam_Bdhw, infection_BDHW, *statistics)
        return (statistics.squared_error / statistics.area).to(cam_Bdhw.dtype)

    @staticmethod
    def backward(ctx, grad_B):  # type: ignore[no-untyped-def]
        cam_Bdhw, infection_BDHW, *saved = ctx.saved_tensors
        upsampling = _Upsampling(cam_Bdhw, infection_BDHW.shape[1:])
        gradient = _gradient(upsampling, infection_BDHW, _Statistics(*saved))
        return gradient * _per_case(grad_B), None


class _Upsampling:
    """Trilinear up-sampling (align_corners=False) as three small matrices, by slabs of Z slices.

    A slab is (B, Z, H * W). Each matrix row sums to 1, so a scale and an offset of the planes are the same
    scale and offset of the up-sampled map.
    """

    def __init__(self, cam_Bdhw: Tensor, size_DHW: torch.Size) -> None:
        self.to_D, self.to_H, self.to_W = (
            _interpolation_matrix(n_in, n_out, cam_Bdhw)
            for n_in, n_out in zip(cam_Bdhw.shape[1:], size_DHW, strict=True)
        )
        self.planes_BdF = (self.to_H @ cam_Bdhw @ self.to_W.T).flatten(2)
        self.in_plane_HW = size_DHW[1:]
        slices = max(1, SLAB_VOXELS // (cam_Bdhw.shape[0] * size_DHW[1] * size_DHW[2]))
        starts = range(0, size_DHW[0], slices)
        self.slabs = [_Slab(self.to_D, slice(z, min(z + slices, size_DHW[0]))) for z in starts]

    def to_cam(self, gradient_BdF: Tensor) -> Tensor:
        """The transpose of the in-plane up-sampling: (B, d, H * W) to (B, d, h, w)."""
        gradient_BdHW = gradient_BdF.reshape(*gradient_BdF.shape[:2], *self.in_plane_HW)
        return self.to_H.T @ gradient_BdHW @ self.to_W


class _Slab:
    """Some slices of the input grid and the few planes of the feature grid that they depend on."""

    def __init__(self, to_D: Tensor, z: slice) -> None:
        used = to_D[z].any(dim=0).nonzero()
        self.z = z
        self.planes = slice(int(used[0]), int(used[-1]) + 1)
        self.rows_Zd = to_D[z, self.planes]

    def of(self, planes_BdF: Tensor) -> Tensor:
        """The up-sampled map of the slab, (B, Z, H * W)."""
        return self.rows_Zd @ planes_BdF[:, self.planes]

    def add_transposed(self, into_BdF: Tensor, slab_BZF: Tensor) -> None:
        """Add the transpose of `of`, applied to the slab's gradient."""
        into_BdF[:, self.planes] += self.rows_Zd.T @ slab_BZF

    def mask(self, infection_BDHW: Tensor, like: Tensor) -> Tensor:
        """The slab of the infection mask, (B, Z, H * W), as zeros and ones."""
        return infection_BDHW[:, self.z].flatten(2).to(like.dtype)


def _interpolation_matrix(n_in: int, n_out: int, like: Tensor) -> Tensor:
    """(n_out, n_in) weights of torch's linear interpolation with align_corners=False."""
    centre = ((torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5).clamp(min=0.0)
    left = centre.floor().long().clamp(max=n_in - 1)
    right = (left + 1).clamp(max=n_in - 1)
    weight = centre - left
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64)
    row = torch.arange(n_out)
    matrix.index_put_((row, left), 1 - weight, accumulate=True)
    matrix.index_put_((row, right), weight, accumulate=True)
    return matrix.to(like)


def _statistics(upsampling: _Upsampling, infection_BDHW: Tensor) -> _Statistics:
    planes = upsampling.planes_BdF
    low = torch.stack([slab.of(planes).amin(dim=(1, 2)) for slab in upsampling.slabs]).amin(dim=0)
    high = torch.stack([slab.of(planes).amax(dim=(1, 2)) for slab in upsampling.slabs]).amax(dim=0)
    exponents = _exponents(planes, low, high)
    squared_error = torch.zeros_like(low, dtype=torch.float64)
    area = torch.zeros_like(squared_error)
    for slab in upsampling.slabs:
        t = slab.of(exponents).sigmoid_()
        mask = slab.mask(infection_BDHW, t)
        area += t.sum(dim=(1, 2)) + mask.sum(dim=(1, 2))
        squared_error += t.sub_(mask).square_().sum(dim=(1, 2))
    return _Statistics(low, high, squared_error, area)


def _exponents(planes_BdF: Tensor, low_B: Tensor, high_B: Tensor) -> Tensor:
    """alpha (A - beta) of Eq. 2 before its up-sampling, A being normalised; a flat map counts as zero."""
    slope = torch.where(is_flat(low_B, high_B), 0.0, ALPHA / (high_B - low_B))
    offset = slope * low_B + ALPHA * BETA
    return planes_BdF * slope[:, None, None] - offset[:, None, None]


def _gradient(upsampling: _Upsampling, infection_BDHW: Tensor, statistics: _Statistics) -> Tensor:
    """d loss / d A: through each voxel's value, and through the minimum and the maximum of the map."""
    planes = upsampling.planes_BdF
    low, high, squared_error, area = statistics
    exponents = _exponents(planes, low, high)
    half_loss = (squared_error / (2 * area)).to(low.dtype)[:, None, None]
    through_value = torch.zeros_like(planes)
    total, moment = torch.zeros_like(area), torch.zeros_like(area)
    for slab in upsampling.slabs:
        exponent = slab.of(exponents)
        t = exponent.sigmoid()
        error = (t - slab.mask(infection_BDHW, t)).sub_(half_loss)
        gradient = torch.ops.aten.sigmoid_backward(error, t)  # error * t * (1 - t), in one pass
        total += gradient.sum(dim=(1, 2))
        moment += exponent.mul_(gradient).sum(dim=(1, 2))
        slab.add_transposed(through_value, gradient)
    through_high = moment / ALPHA + BETA * total  # the gradient, weighted by the normalised map
    at_low, at_high = _ties(upsampling, low), _ties(upsampling, high)
    by_plane = through_value - at_high * _per_case(through_high, at_high)[..., 0]
    by_plane += at_low * _per_case(through_high - total, at_low)[..., 0]
    scale = torch.where(is_flat(low, high), 0.0, 2 * ALPHA / area / (high - low))
    return upsampling.to_cam(by_plane) * _per_case(scale, planes)


def _ties(upsampling: _Upsampling, extreme_B: Tensor) -> Tensor:
    """Transposed up-sampling of the voxels that attain an extreme, each case's summing to 1."""
    into = torch.zeros_like(upsampling.planes_BdF)
    count = torch.zeros_like(extreme_B)
    for slab in upsampling.slabs:
        attained = (slab.of(upsampling.planes_BdF) == extreme_B[:, None, None]).to(into.dtype)
        in_slab = attained.sum(dim=(1, 2))
        if in_slab.any():
            count += in_slab
            slab.add_transposed(into, attained)
    return into / count[:, None, None]


def _per_case(value_B: Tensor, like: Tensor | None = None) -> Tensor:
    value = value_B if like is None else value_B.to(like.dtype)
    return value[:, None, None, None]
