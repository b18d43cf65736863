"""Whole scans for training VB-Net: windowed, on the segmentation grid, not masked, beside the prepared cases.

store/segmentation/volumes/KEY.safetensors has `volume` (float16, D x H x W, -1 to 1), `labels` (1 for lung,
2 for infection, 3 for both), and `lungs` and `infection`: some voxels of each, to lay patches around.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from safetensors import safe_open

from client.findings import Finding
from client.lung_audit import nothing_left
from client.mask_names import MaskNames
from client.masks import CaseMasks
from client.volume_store import StoredCase, Tensors, write_case_file
from dsan_model.cases import infection_ratio
from dsan_model.dice import STRUCTURES, Structure
from dsan_model.patches import OUTSIDE, Patch, Place, Shape
from dsan_model.segmentation_grid import SegmentationRecipe, mask_on_grid, upright_grid, windowed

VOXELS_KEPT = 4096  # of each structure


def write_scan(
    path: Path,
    ct: sitk.Image,
    masks: CaseMasks,
    recipe: SegmentationRecipe,
    names: MaskNames,
    findings: tuple[Finding, ...],
) -> StoredCase:
    """Bring a scan and its masks onto the grid and store them.

    Raises FindingError IMAGE-LUNG-TINY if no lung is left there, OSError if the disk is full.
    """
    grid = upright_grid(ct, recipe.spacing_mm_xyz)
    volume_DHW = windowed(grid)
    mask_SDHW = np.stack([mask_on_grid(mask, grid) for mask in (masks.lung, masks.infection)])
    lung_volume_ml = _volume_ml(masks.lung)
    if not mask_SDHW[0].any():
        message = f"nothing is left of {lung_volume_ml:.3g} ml of lung at {recipe.spacing_mm_xyz} mm"
        raise nothing_left(message)
    labels_DHW = (
        mask_SDHW.view(np.uint8) << np.arange(len(STRUCTURES), dtype=np.uint8)[:, None, None, None]
    ).sum(0)
    tensors: Tensors = {"volume": volume_DHW.astype(np.float16), "labels": labels_DHW.astype(np.uint8)}
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:8]))
    for structure, mask_DHW in zip(STRUCTURES, mask_SDHW, strict=True):
        tensors[structure.value] = _some_voxels(mask_DHW, generator)
    figures = {
        "infection_ratio": infection_ratio(_voxels(masks.infection), _voxels(masks.lung)),
        "lung_volume_ml": lung_volume_ml,
        "scale_factor": 1.0,
    }
    return write_case_file(path, tensors, figures, recipe, names, findings)


@dataclass(frozen=True)
class StoredScans:
    """A site's stored scans by position; of a patch, only its part of the file is read."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def shape(self, position: int) -> Shape:
        """Size of a scan, (D, H, W)."""
        with safe_open(self.paths[position], framework="numpy") as file:
            depth, height, width = file.get_slice("volume").get_shape()
        return depth, height, width

    def voxels(self, position: int, structure: Structure) -> npt.NDArray[np.int64]:
        """(N, 3), z, y, x: some of the voxels of a structure; none if the scan has none."""
        with safe_open(self.paths[position], framework="numpy") as file:
            return file.get_tensor(structure.value).astype(np.int64)  # type: ignore[no-any-return]

    def patch(self, place: Place, patch_DHW: Shape) -> Patch:
        """The patch at a place; beyond the scan it is OUTSIDE and without masks."""
        box = tuple(slice(start, start + side) for start, side in zip(place.corner, patch_DHW, strict=True))
        volume_DHW, labels_DHW = _read(self.paths[place.case], box)
        padded_DHW = np.full(patch_DHW, OUTSIDE, np.float16)
        padded_labels_DHW = np.zeros(patch_DHW, np.uint8)
        inside = tuple(slice(0, side) for side in volume_DHW.shape)
        padded_DHW[inside], padded_labels_DHW[inside] = volume_DHW, labels_DHW
        return Patch(torch.from_numpy(padded_DHW), torch.from_numpy(_masks(padded_labels_DHW)))

    def whole(self, position: int) -> Patch:
        """The whole scan."""
        volume_DHW, labels_DHW = _read(self.paths[position], (slice(None),) * 3)
        return Patch(torch.from_numpy(volume_DHW), torch.from_numpy(_masks(labels_DHW)))


def _voxels(mask: sitk.Image) -> npt.NDArray[np.bool_]:
    voxels: npt.NDArray[np.bool_] = sitk.GetArrayViewFromImage(mask).view(np.bool_)
    return voxels


def _volume_ml(mask: sitk.Image) -> float:
    return int(np.count_nonzero(_voxels(mask))) * float(np.prod(mask.GetSpacing())) / 1000


def _some_voxels(mask_DHW: npt.NDArray[np.bool_], generator: np.random.Generator) -> npt.NDArray[np.int16]:
    voxels_N3 = np.argwhere(mask_DHW).astype(np.int16)
    if len(voxels_N3) <= VOXELS_KEPT:
        return voxels_N3
    return voxels_N3[np.sort(generator.choice(len(voxels_N3), VOXELS_KEPT, replace=False))]


def _read(path: Path, box: tuple[slice, ...]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    with safe_open(path, framework="numpy") as file:
        volume, labels = file.get_slice("volume"), file.get_slice("labels")
        sizes = volume.get_shape()
        z, y, x = (slice(*part.indices(size)) for part, size in zip(box, sizes, strict=True))
        return volume[z, y, x], labels[z, y, x]


def _masks(labels_DHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.stack([(labels_DHW >> s & 1).astype(bool) for s in range(len(STRUCTURES))])
