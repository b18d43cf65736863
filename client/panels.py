"""Pictures of attention in the manner of Fig. 5. They show patients' scans, so they stay at the site."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from scipy.special import expit

from client.preparation import PreparedEntry
from client.site import SiteConfig
from client.volume_store import load_masks, load_volume, read_stored_case
from dsan_model.cases import RatioGroup
from dsan_model.ensemble import ensemble_probability
from dsan_model.explain import Panel, Volume, attention_of, draw_panel, grad_cam
from dsan_model.network import AttentionResNet
from dsan_model.preprocessing import PAPER_SPACING_MM_XYZ
from dsan_model.protocol import ExplainRequest
from dsan_model.sampling import Branch

TITLES = {
    Branch.BASELINE: "Grad-CAM RN34 + US",
    Branch.US: "Attention RN34 + US",
    Branch.SS: "Attention RN34 + SS",
}


def draw_panels(
    site: SiteConfig,
    request: ExplainRequest,
    networks: Mapping[Branch, AttentionResNet],
    entries: list[PreparedEntry],
) -> None:
    """Draw up to `request.panels` COVID-19 cases, one of each ratio group first, into the panel folder.

    SET.json beside them (validation or held-out) lists them with label, infection ratio and P(COVID-19).
    """
    folder = site.panel_folder / request.terms.digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, entry in enumerate(_chosen(entries, request.panels)):
        path = folder / f"{request.cases}-{number}.png"
        listed.append(_draw(site, request, networks, entry, path))
    text = json.dumps(listed, indent=1)
    (folder / f"{request.cases}.json").write_text(text, encoding="utf-8")


def _chosen(entries: list[PreparedEntry], n_panels: int) -> list[PreparedEntry]:
    """The middle case by infection ratio of each group of Table III, then the next ones."""
    by_group = [
        sorted(
            (e for e in entries if e.case.ratio_group is group), key=lambda entry: entry.case.infection_ratio
        )
        for group in reversed(RatioGroup)
    ]
    ordered: list[PreparedEntry] = []
    for rank in range(n_panels):
        for group in by_group:
            if rank < len(group):
                ordered.append(group[(len(group) // 2 + rank) % len(group)])
    return ordered[:n_panels]


def _draw(
    site: SiteConfig,
    request: ExplainRequest,
    networks: Mapping[Branch, AttentionResNet],
    entry: PreparedEntry,
    path: Path,
) -> dict[str, object]:
    volume = torch.from_numpy(load_volume(entry.path))
    found = {branch: attention_of(network, volume) for branch, network in networks.items()}
    maps: dict[str, Volume] = {
        TITLES[branch]: _heat(branch, networks[branch], volume, attention.numpy())
        for branch, (_, attention) in sorted(found.items(), key=lambda item: list(TITLES).index(item[0]))
    }
    ratio = entry.case.infection_ratio
    p_us, p_ss = (expit(found[branch][0]) for branch in (Branch.US, Branch.SS))
    probability = float(ensemble_probability([p_us], [p_ss], [ratio], request.ensemble)[0])
    caption = f"{entry.case.label}, infection ratio {ratio:.3f}, P(COVID-19) {probability:.2f}"
    x, y, z = (mm / read_stored_case(entry.path).scale_factor for mm in PAPER_SPACING_MM_XYZ)
    draw_panel(Panel(volume.float().numpy(), *load_masks(entry.path), maps, (x, y, z), caption), path)
    return {
        "file": path.name,
        "site": site.name,
        "set": request.cases.value,
        "case": entry.case.case_id,
        "label": entry.case.label.value,
        "infection_ratio": ratio,
        "probability": probability,
        "caption": "",
    }


def _heat(branch: Branch, network: AttentionResNet, volume: torch.Tensor, attention: Volume) -> Volume:
    """T(A) of a branch with attention; Grad-CAM, up-sampled and scaled to its maximum, of the baseline."""
    if branch.has_attention_loss:
        return attention
    cam_1dhw = grad_cam(network, volume)[None]
    size_DHW = (volume.shape[0], volume.shape[1], volume.shape[2])
    upsampled = torch.nn.functional.interpolate(cam_1dhw[:, None], size_DHW, mode="trilinear")[0, 0]
    heat: Volume = (upsampled / upsampled.max().clamp(min=1e-12)).numpy()
    return heat
