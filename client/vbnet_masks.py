"""Lungs and infection by a VB-Net whose weights the site names (III, ref. [10])."""

from functools import lru_cache
from pathlib import Path

import SimpleITK as sitk
import torch

from client.findings import Finding, FindingError
from client.segmentation import Segmentation
from dsan_model.patches import PROBABLE_FROM, masks, probabilities
from dsan_model.segmentation_grid import mask_on_scan, upright_grid, windowed
from dsan_model.segmenter import Segmenter, SegmenterError, load_segmenter
from dsan_model.training import Machine
from dsan_model.vbnet import VBNet, build_vbnet

_FIX = "Name the file of a segmentation study, or of `dsan-client segment-train`, as it was written."


def vbnet_name(weights: Path) -> str:
    """Method, version and weights. Raises FindingError with a VBNET- code."""
    return _loaded(weights)[0].name


def segment_by_vbnet(
    ct: sitk.Image, weights: Path, case_id: str | None = None
) -> tuple[Segmentation, Segmentation]:
    """Lungs, and infection inside them, of a chest CT in HU, on its own grid.

    Raises FindingError with a VBNET- code for the weights, SEG-NO-LUNGS if none are found.
    """
    segmenter, network = _loaded(weights)
    grid = upright_grid(ct, segmenter.config.spacing_mm_xyz)
    machine = Machine(torch.device("cpu"))
    volume_DHW = torch.from_numpy(windowed(grid))
    found_SDHW = probabilities(network, volume_DHW, segmenter.config, machine)
    if not masks(found_SDHW)[0].any():
        fix = "Check that the scan shows a chest and that its values are HU."
        message = f"{segmenter.name} found no lung"
        raise FindingError(Finding("SEG-NO-LUNGS", "error", "scan", message, fix, case_id))
    lung, infection = (
        mask_on_scan(found_DHW, probable_from, grid, ct)
        for found_DHW, probable_from in zip(found_SDHW.numpy(), PROBABLE_FROM, strict=True)
    )
    infection = sitk.And(infection, lung)
    return Segmentation(lung, segmenter.name, ()), Segmentation(infection, segmenter.name, ())


def _loaded(weights: Path) -> tuple[Segmenter, VBNet]:
    try:
        status = weights.stat()
        if weights.is_dir():
            raise SegmenterError("VBNET-MISSING", "it is a folder, not a file of weights")
        return _load(weights, status.st_mtime_ns, status.st_size)
    except OSError as error:
        found = SegmenterError("VBNET-MISSING", f"it cannot be read ({error.strerror})")
    except SegmenterError as error:
        found = error
    where = f"weights of VB-Net, {weights.name}"
    raise FindingError(Finding(found.code, "error", where, found.message, _FIX))


@lru_cache(maxsize=2)
def _load(weights: Path, changed_ns: int, size: int) -> tuple[Segmenter, VBNet]:
    """Once for all cases of a process, as long as the file stays the same."""
    segmenter = load_segmenter(weights)
    network = build_vbnet(segmenter.config.network, segmenter.weights.state_dict(), torch.device("cpu"))
    return segmenter, network.eval()
