"""Where a network looked: attention maps against infection masks, Grad-CAM of the baseline, panels (Fig. 5).

Axis letters: B batch, C channel, D H W the input grid, d h w the feature grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsan_model.network import AttentionResNet, attention_map

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AttentionScores:
    """How an attention map lies on a case, each 0 to 1.

    `dice_infection` is 2 sum(T M) / (sum T + sum M) with the infection mask M; the masses are the shares of
    sum T that fall inside the infection and inside the lungs.
    """

    dice_infection: float
    mass_in_infection: float
    mass_in_lung: float


def attention_scores(attention_DHW: Tensor, infection_DHW: Tensor, lung_DHW: Tensor) -> AttentionScores:
    """Compare T(A) of Eq. 2 with boolean masks on the same grid; a map that is zero everywhere scores 0."""
    mass = float(attention_DHW.sum(dtype=torch.float64))
    inside = float(attention_DHW[infection_DHW].sum(dtype=torch.float64))
    in_lung = float(attention_DHW[lung_DHW].sum(dtype=torch.float64))
    area = mass + float(infection_DHW.sum())
    if mass == 0.0 or area == 0.0:
        return AttentionScores(0.0, 0.0, 0.0)
    return AttentionScores(2 * inside / area, inside / mass, in_lung / mass)


@torch.inference_mode()
def attention_of(network: AttentionResNet, volume_DHW: Tensor) -> tuple[float, Tensor]:
    """Logit and attention map T(A), (D, H, W) on the CPU, of one prepared volume."""
    network.eval()
    device = network.fc.weight.device
    output = network(volume_DHW.float()[None, None].to(device))
    size_DHW = (volume_DHW.shape[0], volume_DHW.shape[1], volume_DHW.shape[2])
    return float(output.logit_B[0]), attention_map(output.cam_Bdhw, size_DHW)[0].cpu()


def grad_cam(network: AttentionResNet, volume_DHW: Tensor) -> Tensor:
    """Grad-CAM [29] of the last feature maps towards COVID-19, (d, h, w), as Fig. 5 shows for RN34 + US.

    With global average pooling before the FC layer it is A of Eq. 1 divided by the number of cells.
    """
    network.eval()
    device = network.fc.weight.device
    features_BCdhw = network.features(volume_DHW.float()[None, None].to(device)).detach().requires_grad_()
    network.fc(features_BCdhw.mean(dim=(2, 3, 4))).sum().backward()
    assert features_BCdhw.grad is not None
    weight_BC = features_BCdhw.grad.mean(dim=(2, 3, 4), keepdim=True)
    return torch.relu((weight_BC * features_BCdhw).sum(dim=1)).detach()[0].cpu()


@dataclass(frozen=True)
class Panel:
    """What a picture in the manner of Fig. 5 shows of one case; all arrays are (D, H, W)."""

    ct_DHW: Volume  # [0, 1]
    lung_DHW: Mask
    infection_DHW: Mask
    attention: dict[str, Volume]  # title to T(A), [0, 1]
    spacing_mm_xyz: tuple[float, float, float]
    caption: str


def draw_panel(panel: Panel, path: Path) -> None:
    """Write the panel as PNG: axial above, coronal below; CT, masks, then one column for each map.

    The planes are those with most infection, or through the middle of the lungs where there is none. The
    patient's right is on the viewer's left, the feet are at the bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: most messages to a site draw nothing
    from matplotlib.figure import Figure

    titles = ["Input", "Lung and infection", *panel.attention]
    figure = Figure(figsize=(2.15 * len(titles), 4.0), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(titles), squeeze=False)
    x, y, z = panel.spacing_mm_xyz
    for row, (cut, aspect) in enumerate(((_axial(panel), y / x), (_coronal(panel), z / x))):
        for column, title in enumerate(titles):
            ax = axes[row, column]
            ax.set_axis_off()
            ax.imshow(cut(panel.ct_DHW), cmap="gray", vmin=0, vmax=1, aspect=aspect)
            if column == 1:
                _contour(ax, cut(panel.lung_DHW), "#56B4E9")
                _contour(ax, cut(panel.infection_DHW), "#E69F00")
            elif column > 1:
                heat = cut(panel.attention[title])
                ax.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(heat, 0, 0.75), aspect=aspect)
            if row == 0:
                ax.set_title(title, color="white", fontsize=8)
        corner = axes[row, 0].transAxes
        box = {"facecolor": "black", "edgecolor": "none", "boxstyle": "square,pad=0.15"}
        text = axes[row, 0].text(0.03, 0.965, "R", color="#F0E442", fontsize=8, va="top", transform=corner)
        text.set_bbox(box)
    figure.suptitle(panel.caption, color="white", fontsize=8.5)
    figure.savefig(path, dpi=110, facecolor="black", metadata={"Software": None})


def _axial(panel: Panel) -> Callable[[Volume | Mask], Volume | Mask]:
    z = int(_weight(panel).sum(axis=(1, 2)).argmax())
    _, rows, columns = _around_lungs(panel)
    return lambda array: array[z, rows, columns]


def _coronal(panel: Panel) -> Callable[[Volume | Mask], Volume | Mask]:
    y = int(_weight(panel).sum(axis=(0, 2)).argmax())
    slices, _, columns = _around_lungs(panel)
    return lambda array: array[slices, y, columns][::-1]  # the arrays start at the feet


def _around_lungs(panel: Panel) -> tuple[slice, slice, slice]:
    """The box of the lungs and a twelfth of the volume around it: a prepared volume is mostly padding."""
    if not panel.lung_DHW.any():
        return slice(None), slice(None), slice(None)
    box = []
    for axis, n in enumerate(panel.lung_DHW.shape):
        used = np.flatnonzero(panel.lung_DHW.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(max(0, int(used[0]) - n // 12), int(used[-1]) + 1 + n // 12))
    return box[0], box[1], box[2]


def _weight(panel: Panel) -> Mask:
    return panel.infection_DHW if panel.infection_DHW.any() else panel.lung_DHW


def _contour(ax, mask, colour: str) -> None:  # type: ignore[no-untyped-def]
    if mask.any():
        ax.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=0.9)
