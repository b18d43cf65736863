"""Whole scans for training VB-Net: windowed, on the segmentation grid, not masked, beside the prepared cases.

store/segmentation/volumes/KEY.safetensors has `volume` (float16, D x H x W, -1 to 1), `labels` (1 for lung,
2 for infection, 3 for both), and `lungs` and `infection`: some voxels of each, to lay patches around.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from client.findings import Finding
from client.preparation import PreparedEntry
from client.volume_store import write_atomically
from dsan_model.cases import Case
from dsan_model.dice import STRUCTURES, Structure
from dsan_model.patches import OUTSIDE, Patch, Place, Shape

FORMAT = 1
VOXELS_KEPT = 4096  # of each structure
FOLDER = "segmentation"


@dataclass(frozen=True)
class GridCase:
    """One case on the segmentation grid."""

    volume_DHW: npt.NDArray[np.float32]  # -1 to 1
    mask_SDHW: npt.NDArray[np.bool_]
    infection_ratio: float  # counted on the scan's own grid
    findings: tuple[Finding, ...]  # warnings


@dataclass(frozen=True)
class StoredScan:
    """What the header of a stored scan says."""

    path: Path
    infection_ratio: float
    findings: tuple[Finding, ...]


def write_scan(path: Path, case: GridCase) -> StoredScan:
    """Store a case. Raises OSError, leaving nothing behind, if the disk is full."""
    labels_DHW = sum(np.uint8(1 << s) * mask_DHW for s, mask_DHW in enumerate(case.mask_SDHW))
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:8]))
    tensors: dict[str, npt.NDArray[np.generic]] = {
        "volume": case.volume_DHW.astype(np.float16),
        "labels": np.asarray(labels_DHW, np.uint8),
        **{
            structure.value: _some_voxels(mask_DHW, generator)
            for structure, mask_DHW in zip(STRUCTURES, case.mask_SDHW, strict=True)
        },
    }
    header = {
        "format": FORMAT,
        "infection_ratio": case.infection_ratio,
        "findings": [asdict(finding) for finding in case.findings],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, {"scan": json.dumps(header)}))
    return StoredScan(path, case.infection_ratio, case.findings)


def read_stored_scan(path: Path) -> StoredScan | None:
    """The header of a stored scan; None if it is not there or not whole, and must be made again."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["scan"])
        if header["format"] != FORMAT:
            return None
        findings = tuple(Finding(**finding) for finding in header["findings"])
        return StoredScan(path, float(header["infection_ratio"]), findings)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class StoredScans:
    """A site's stored scans by position; of a patch, only its part of the file is read."""

    entries: tuple[PreparedEntry, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """The case of each position."""
        return tuple(entry.case for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, position: int) -> Shape:
        """Size of a scan, (D, H, W)."""
        with safe_open(self.entries[position].path, framework="numpy") as file:
            depth, height, width = file.get_slice("volume").get_shape()
        return depth, height, width

    def voxels(self, position: int, structure: Structure) -> npt.NDArray[np.int64]:
        """(N, 3), z, y, x: some of the voxels of a structure; none if the scan has none."""
        with safe_open(self.entries[position].path, framework="numpy") as file:
            return file.get_tensor(structure.value).astype(np.int64)  # type: ignore[no-any-return]

    def patch(self, place: Place, patch_DHW: Shape) -> Patch:
        """The patch at a place; beyond the scan it is OUTSIDE and without masks."""
        box = tuple(slice(start, start + side) for start, side in zip(place.corner, patch_DHW, strict=True))
        volume_DHW, labels_DHW = _read(self.entries[place.case].path, box)
        padded_DHW = np.full(patch_DHW, OUTSIDE, np.float16)
        padded_labels_DHW = np.zeros(patch_DHW, np.uint8)
        inside = tuple(slice(0, side) for side in volume_DHW.shape)
        padded_DHW[inside], padded_labels_DHW[inside] = volume_DHW, labels_DHW
        return Patch(torch.from_numpy(padded_DHW), torch.from_numpy(_masks(padded_labels_DHW)))

    def whole(self, position: int) -> Patch:
        """The whole scan."""
        volume_DHW, labels_DHW = _read(self.entries[position].path, (slice(None),) * 3)
        return Patch(torch.from_numpy(volume_DHW), torch.from_numpy(_masks(labels_DHW)))


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
