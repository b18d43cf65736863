"""Prepared volumes on the hospital's disk: one safetensors file a case, named by what it was made from.

KEY.safetensors holds `volume` (float16, D x H x W) and the bits of both masks; its header the ratio, the
warnings and the recipe. KEY.safetensors.sha256 beside it is a line for `sha256sum -c`. A file is there
completely or not at all: temporary file, fsync, rename, fsync of the folder.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from client.findings import Finding, FindingError
from client.mask_names import MaskNames
from dsan_daemon import files
from dsan_model.preprocessing import PreparedCase, Recipe
from dsan_model.segmentation_grid import SegmentationRecipe

Tensors = dict[str, npt.NDArray[np.generic]]

STORE_FORMAT = 2
LARGE_CHEST_MM3 = 420.0 * 420 * 360  # that a scan covers
_FIX_PREPARE = "Delete the file and run `dsan-client prepare` again."


@dataclass(frozen=True)
class StoredCase:
    """What the header of a stored volume says; the volume itself is read by `load_volume`."""

    path: Path
    shape_DHW: tuple[int, int, int]
    infection_ratio: float
    lung_volume_ml: float
    scale_factor: float
    recipe_digest: str
    masks: MaskNames
    findings: tuple[Finding, ...]  # the warnings about the scan and its masks


def volume_key(
    input_digests: tuple[str, ...], masks: MaskNames, recipe: Recipe | SegmentationRecipe, gate: str
) -> str:
    """Name (hex) of the volume made from these inputs: same content, recipe and gate, same name."""
    return hashlib.sha256(" ".join((*input_digests, str(masks), recipe.digest, gate)).encode()).hexdigest()


def volume_path(store: Path, key: str) -> Path:
    """Where the volume of this key is kept."""
    return store / "volumes" / f"{key}.safetensors"


def volume_bytes(recipe: Recipe | SegmentationRecipe) -> int:
    """What one stored volume takes on disk, nearly: float16 and two bits a voxel, or three bytes."""
    if isinstance(recipe, SegmentationRecipe):
        return int(LARGE_CHEST_MM3 / np.prod(recipe.spacing_mm_xyz)) * 3
    return int(np.prod(recipe.shape_DHW)) * 9 // 4 + 4096


def write_volume(
    path: Path, prepared: PreparedCase, recipe: Recipe, masks: MaskNames, findings: tuple[Finding, ...]
) -> StoredCase:
    """Store a prepared case at `path`. Raises OSError, leaving nothing behind, if the disk is full."""
    tensors: Tensors = {
        "volume": torch.from_numpy(prepared.volume_DHW).half().numpy(),  # numpy takes longer
        "lung_bits": np.packbits(prepared.lung_DHW),
        "infection_bits": np.packbits(prepared.infection_DHW),
    }
    figures = {
        "infection_ratio": prepared.infection_ratio,
        "lung_volume_ml": prepared.lung_volume_ml,
        "scale_factor": prepared.scale_factor,
    }
    return write_case_file(path, tensors, figures, recipe, masks, findings)


def write_case_file(
    path: Path,
    tensors: Tensors,
    figures: dict[str, float],
    recipe: Recipe | SegmentationRecipe,
    masks: MaskNames,
    findings: tuple[Finding, ...],
) -> StoredCase:
    """Store tensors of a case, `volume` among them, with its figures. Raises OSError if the disk is full."""
    header = {
        "format": STORE_FORMAT,
        **figures,
        "recipe_digest": recipe.digest,
        "masks": asdict(masks),
        "findings": [asdict(finding) for finding in findings],
    }
    content = save(tensors, {"case": json.dumps(header)})  # one entry: safetensors shuffles several
    make_private_folder(path.parent)
    checksum = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    write_atomically(_checksum_path(path), checksum.encode())
    write_atomically(path, content)  # last: a volume that is there has its checksum
    return read_stored_case(path)


def read_stored_case(path: Path) -> StoredCase:
    """The header of a stored volume. Raises FindingError STORE-MISSING or STORE-DAMAGED.

    A file that is cut off is noticed here, a flipped bit only by `verify_volume`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["case"])
            depth, height, width = file.get_slice("volume").get_shape()
        if header["format"] != STORE_FORMAT:
            raise ValueError(f"its format is {header['format']}, not {STORE_FORMAT}")
        return StoredCase(
            path,
            (depth, height, width),
            header["infection_ratio"],
            header["lung_volume_ml"],
            header["scale_factor"],
            header["recipe_digest"],
            MaskNames(**header["masks"]),
            tuple(Finding(**finding) for finding in header["findings"]),
        )
    except FileNotFoundError:
        message = "the volume is not in the store"
        raise _stored_error("STORE-MISSING", path, message) from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _stored_error("STORE-DAMAGED", path, f"the file is damaged: {error}") from None


def load_volume(path: Path) -> npt.NDArray[np.float16]:
    """(D, H, W), 0 to 1: a copy out of the mapped file, a few milliseconds at the paper's size."""
    with safe_open(path, framework="numpy") as file:
        volume_DHW: npt.NDArray[np.float16] = file.get_tensor("volume")
    return volume_DHW


def load_masks(path: Path) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Lung and infection, each (D, H, W)."""
    with safe_open(path, framework="numpy") as file:
        shape_DHW = file.get_slice("volume").get_shape()
        lung, infection = (
            np.unpackbits(file.get_tensor(name), count=int(np.prod(shape_DHW)))
            .view(np.bool_)
            .reshape(shape_DHW)
            for name in ("lung_bits", "infection_bits")
        )
    return lung, infection


def verify_volume(path: Path) -> None:
    """Compare a stored file with its SHA-256. Raises FindingError STORE-MISSING or STORE-DAMAGED."""
    try:
        expected = _checksum_path(path).read_text().split()[0]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IndexError):
        raise _stored_error("STORE-MISSING", path, "the volume or its checksum is not in the store") from None
    if found != expected:
        message = f"its SHA-256 is {found}, written was {expected}"
        raise _stored_error("STORE-DAMAGED", path, message)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` at once and for good; after any failure the old file is still there.

    The file is readable by its owner alone, whatever the folder's rights are.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    files.write_atomically(path, content, files.PRIVATE, partial)


def make_private_folder(folder: Path) -> None:
    """Make a folder and those above it, for their owner alone; one that is there stays as it is."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for want of space or quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remove_leftovers(store: Path) -> None:
    """Delete the temporary files of a run that was killed; nobody else may be writing to the store."""
    for temporary in (*store.glob(".*.tmp"), *(store / "volumes").glob(".*.tmp")):
        temporary.unlink(missing_ok=True)


def unused_files(store: Path, used: Iterable[Path]) -> tuple[Path, ...]:
    """Volumes that none of those in `used` is, with their checksums and sketches: of masks, recipes or cases
    that are no longer."""
    keys = {path.stem for path in used}
    folder = store / "volumes"
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple(path for path in files if path.name.partition(".")[0] not in keys)


def _checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _stored_error(code: str, path: Path, message: str) -> FindingError:
    return FindingError(Finding(code, "error", f"store, {path.name}", message, _FIX_PREPARE))
