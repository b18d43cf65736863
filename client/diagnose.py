"""One scan, a published model: P(COVID-19) and where the networks looked (Eq. 5, Fig. 5). Research only.

Axis letters: D H W the prepared grid, d h w the feature grid, B a batch of one.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from client.findings import Finding, FindingError
from client.images import check_masks
from client.lung_audit import nothing_left
from client.masks import audit_fit, both_masks
from client.model_package import ModelPackage, read_model_package
from client.scan_series import SeriesVerdict, open_scan
from client.segmentation import Segmentation
from client.site import SegmentationTable
from client.slice_thickness import MAX_SLICE_THICKNESS_MM
from dsan_model.ensemble import BAND, ensemble_probability
from dsan_model.explain import Panel
from dsan_model.network import AttentionResNet, NetworkOutput, attention_feature_map, attention_map
from dsan_model.preprocessing import PreparedCase, prepare_case
from dsan_model.sampling import Branch
from dsan_model.training import build_network

BANNER = "RESEARCH USE ONLY. Not a medical device; not for decisions about a patient."
LARGE_VOXELS = 1_000_000  # below, a network takes a fraction of a second in float32 too
PANEL_TITLES = {
    Branch.US: "Attention RN34 + US",
    Branch.SS: "Attention RN34 + SS",
    Branch.BASELINE: "Grad-CAM RN34 + US",
}

_log = logging.getLogger(__name__)


class Precision(StrEnum):
    """What the convolutions are computed in; the rest is float32 always."""

    AUTO = "auto"  # bfloat16 where a CPU multiplies it and the volume is large
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"  # P(COVID-19) differs by less than 0.01


@dataclass(frozen=True)
class Scan:
    """What to diagnose: a DICOM folder, a slice or an image file; masks that are None are segmented."""

    image: Path
    lung_mask: Path | None = None
    infection_mask: Path | None = None
    max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
    vbnet: Path | None = None  # weights that segment instead of the built-in method
    lungmask: Path | None = None  # weights that find the lungs instead


@dataclass(frozen=True)
class Model:
    """A package with its networks on a device, ready for many scans."""

    package: ModelPackage
    networks: dict[Branch, AttentionResNet]
    device: torch.device
    precision: Precision  # not AUTO


@dataclass(frozen=True)
class Diagnosis:
    """What came of a scan; probabilities are P(COVID-19), times are seconds."""

    probability: float
    by_branch: dict[Branch, float]
    infection_ratio: float
    lung_volume_ml: float
    w: float
    mask_source: dict[str, str]  # "lung", "infection"
    findings: tuple[Finding, ...]  # warnings
    seconds: dict[str, float]
    scan_sha256: str  # of its voxels and where they lie: one scan, however its files are called
    series: tuple[SeriesVerdict, ...]  # where one had to be chosen
    panel: Panel = field(repr=False)  # its caption is the banner alone

    @property
    def is_inside_band(self) -> bool:
        """Whether w is that for infection ratios inside the band of Eq. 5."""
        return BAND[0] <= self.infection_ratio <= BAND[1]


def load_model(folder: Path, device: torch.device, precision: Precision = Precision.AUTO) -> Model:
    """Open a model package and put its networks on a device. Raises FindingError with a MODEL- code."""
    package = read_model_package(folder)
    networks = {
        branch: with_folded_norms(build_network(package.network, flat.state_dict(), device))
        for branch, flat in package.weights.items()
    }
    is_large = int(np.prod(package.recipe.shape_DHW)) >= LARGE_VOXELS
    if precision is Precision.AUTO:
        uses_bf16 = device.type == "cpu" and is_large and _cpu_has_bf16()
        precision = Precision.BFLOAT16 if uses_bf16 else Precision.FLOAT32
    return Model(package, networks, device, precision)


def diagnose(model: Model, scan: Scan) -> Diagnosis:
    """Read, segment where needed, prepare (IV-B), and run every network of the package.

    Raises FindingError with the codes of the gate, of segmentation, or DIAGNOSE-FAILED.
    """
    try:
        return _diagnose(model, scan)
    except FindingError:
        raise
    except Exception as error:  # the next scan shall have its turn
        _log.debug("diagnose", exc_info=True)
        message = f"{type(error).__name__}: {error}"
        fix = "Report the message with the kind of scan; other scans go on."
        raise FindingError(Finding("DIAGNOSE-FAILED", "error", "the scan", message, fix)) from None


def with_folded_norms(network: AttentionResNet) -> AttentionResNet:
    """The network itself, each normalisation folded into the convolution before it: a tenth less time.

    For inference only; the logit stays the same but for rounding.
    """
    network.eval()
    for module in list(network.modules()):
        for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            layers = dict(module.named_children())
            before, after = layers.get(convolution), layers.get(norm)
            if isinstance(before, nn.Conv3d) and isinstance(after, nn.BatchNorm3d):
                module.register_module(convolution, fuse_conv_bn_eval(before, after))
                module.register_module(norm, nn.Identity())
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def forward(network: AttentionResNet, volume_DHW: Tensor, precision: Precision) -> NetworkOutput:
    """One case through a network; with bfloat16 the features alone are computed in it, no A, no logit."""
    device = network.fc.weight.device
    volume_B1DHW = volume_DHW.float()[None, None].to(device).contiguous(memory_format=torch.channels_last_3d)
    uses_bf16 = precision is Precision.BFLOAT16
    with torch.inference_mode():
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16):
            features_BCdhw = network.features(volume_B1DHW)
        features_BCdhw = features_BCdhw.float()
        logit_B1 = network.fc(features_BCdhw.mean(dim=(2, 3, 4)))
        return NetworkOutput(logit_B1[:, 0], attention_feature_map(features_BCdhw, network.fc.weight))


def _diagnose(model: Model, scan: Scan) -> Diagnosis:
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        opened = open_scan(scan.image, scan.max_slice_thickness_mm)
        ct = opened.ct
        scan_sha256 = _voxel_digest(ct)
    with _timed(seconds, "masks"):
        lung, infection = _masks(scan, ct)
        of_masks = check_masks(lung.mask, infection.mask, None) + audit_fit(ct, lung, infection, None)
    with _timed(seconds, "prepare"):
        prepared = _prepared(model, ct, lung.mask, infection.mask)
    volume_DHW = torch.from_numpy(prepared.volume_DHW)
    outputs = {}
    for branch, network in model.networks.items():
        with _timed(seconds, f"network_{branch}"):
            outputs[branch] = forward(network, volume_DHW, model.precision)
    seconds["networks"] = sum(seconds[f"network_{branch}"] for branch in outputs)
    with _timed(seconds, "attention"):
        maps = {branch: _heat(branch, output, prepared) for branch, output in outputs.items()}
        picture_DHW = _unmasked(model, ct, infection.mask)
    by_branch = {branch: float(expit(output.logit_B.item())) for branch, output in outputs.items()}
    ratio, weights = prepared.infection_ratio, model.package.ensemble
    us, ss = by_branch[Branch.US], by_branch[Branch.SS]
    probability = float(ensemble_probability([us], [ss], [ratio], weights)[0])
    is_inside = BAND[0] <= ratio <= BAND[1]
    return Diagnosis(
        probability,
        by_branch,
        ratio,
        prepared.lung_volume_ml,
        weights.w_inside if is_inside else weights.w_outside,
        {"lung": lung.source, "infection": infection.source},
        (*opened.findings, *lung.findings, *infection.findings, *of_masks),
        seconds,
        scan_sha256,
        opened.series,
        Panel(
            picture_DHW,
            prepared.lung_DHW,
            prepared.infection_DHW,
            {PANEL_TITLES[branch]: maps[branch] for branch in PANEL_TITLES if branch in maps},
            prepared.spacing_mm_xyz,
            BANNER,
        ),
    )


def _voxel_digest(ct: sitk.Image) -> str:
    grid = (ct.GetSize(), ct.GetSpacing(), ct.GetOrigin(), ct.GetDirection())
    digest = hashlib.sha256(str(grid).encode())
    digest.update(sitk.GetArrayViewFromImage(ct).data)
    return digest.hexdigest()


def _masks(scan: Scan, ct: sitk.Image) -> tuple[Segmentation, Segmentation]:
    vbnet, lungmask = scan.vbnet, scan.lungmask
    chosen = SegmentationTable(
        lungs="lungmask" if lungmask else "vbnet" if vbnet else "classical",
        infection="vbnet" if vbnet else "crude",
        weights=str(vbnet.absolute()) if vbnet else "",
        lungmask_weights=str(lungmask.absolute()) if lungmask else "",
    )
    return both_masks(scan.lung_mask, scan.infection_mask, chosen, ct)


def _prepared(model: Model, ct: sitk.Image, lung: sitk.Image, infection: sitk.Image) -> PreparedCase:
    prepared = prepare_case(ct, lung, infection, model.package.recipe)
    if not prepared.lung_DHW.any():
        message = f"nothing is left of {prepared.lung_volume_ml:.3g} ml of lung on the prepared grid"
        raise nothing_left(message)
    return prepared


def _unmasked(model: Model, ct: sitk.Image, infection: sitk.Image) -> npt.NDArray[np.float32]:
    """The scan on the prepared grid with the chest wall, for the eye alone."""
    everywhere = sitk.Image(ct.GetSize(), sitk.sitkUInt8) + 1
    everywhere.CopyInformation(ct)
    return prepare_case(ct, everywhere, infection, model.package.recipe).volume_DHW


def _heat(branch: Branch, output: NetworkOutput, prepared: PreparedCase) -> npt.NDArray[np.float32]:
    """T(A) of a branch with attention; of the baseline Grad-CAM, which is A up to a factor, as in panels."""
    depth, height, width = prepared.volume_DHW.shape
    if branch.has_attention_loss:
        attention: npt.NDArray[np.float32] = (
            attention_map(output.cam_Bdhw, (depth, height, width))[0].cpu().numpy()
        )
        return attention
    cam_BDHW = torch.nn.functional.interpolate(
        output.cam_Bdhw[:, None], (depth, height, width), mode="trilinear"
    )[:, 0]
    heat: npt.NDArray[np.float32] = (cam_BDHW[0] / cam_BDHW.max().clamp(min=1e-12)).cpu().numpy()
    return heat


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[step] = time.perf_counter() - started


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself: AMX, or the AVX-512 instructions for it.

    Without them float32 is faster: with plain AVX-512 a branch took 9.1 s of a core in bfloat16, 5.5 in
    float32, 4.9 with folded normalisation.
    """
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
