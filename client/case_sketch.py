"""A small picture of a case: two planes of the scan itself, both masks' contours, HU in the lungs.

Made while the scan is in memory and kept beside the stored volume, so that the QC page costs no second
reading. It shows the scan as it came, not the prepared volume, which is empty outside the lungs.
"""

# Suffixes: _DHW is (z, y, x) in LPS: from the feet up, front to back, right to left; _HW a plane of it.

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from PIL import Image

from client.lung_sample import lps_view
from client.volume_store import make_private_folder, write_atomically

WIDTH_PX = 210
JPEG_QUALITY = 78
WINDOW_HU = (-1350.0, 150.0)  # IV-B
HISTOGRAM_EDGES_HU = tuple(range(-1100, 201, 25))

Array = npt.NDArray[Any]  # a view of an image's voxels: int16, float32 or uint8


@dataclass(frozen=True)
class View:
    """A plane as a JPEG (base64), and the contours of both masks as paths of an SVG of the same size."""

    jpeg: str
    width_px: int
    height_px: int
    lung_path: str
    infection_path: str


@dataclass(frozen=True)
class CaseSketch:
    """What the QC page shows of a case beside its numbers."""

    size_xyz: tuple[int, ...]
    spacing_mm_xyz: tuple[float, ...]
    axial: View  # the patient's right on the left
    coronal: View  # head up
    histogram: tuple[float, ...]  # shares of the lungs' voxels between HISTOGRAM_EDGES_HU; all of them: 1


def sketch_case(ct: sitk.Image, lung: sitk.Image, infection: sitk.Image) -> CaseSketch:
    """Sketch a scan in HU with its masks (uint8, 0 and 1, on its grid).

    The planes are those with most infection, with most lung where there is none, or else the middle ones.
    """
    hu_DHW, lung_DHW, infection_DHW = (lps_view(image) for image in (ct, lung, infection))
    x_mm, y_mm, z_mm = _lps_extent_mm_xyz(ct)
    shown_DHW = infection_DHW if infection_DHW.any() else lung_DHW
    depth, height, _ = shown_DHW.shape
    z, y = (_fullest(shown_DHW, axis) for axis in (0, 1)) if shown_DHW.any() else (depth // 2, height // 2)
    return CaseSketch(
        ct.GetSize(),
        ct.GetSpacing(),
        _view(hu_DHW[z], lung_DHW[z], infection_DHW[z], round(WIDTH_PX * y_mm / x_mm)),
        _view(hu_DHW[::-1, y], lung_DHW[::-1, y], infection_DHW[::-1, y], round(WIDTH_PX * z_mm / x_mm)),
        _histogram(hu_DHW, lung_DHW),
    )


def sketch_path(volume: Path) -> Path:
    """Where the sketch of a stored volume is kept."""
    return volume.with_suffix(".sketch.json")


def write_sketch(volume: Path, sketch: CaseSketch) -> None:
    """Keep the sketch beside its volume. Raises OSError if the disk is full."""
    make_private_folder(volume.parent)
    write_atomically(sketch_path(volume), json.dumps(asdict(sketch)).encode())


def read_sketch(volume: Path) -> CaseSketch | None:
    """The sketch of a stored volume; None if there is none (an older release) or it is damaged."""
    try:
        table = json.loads(sketch_path(volume).read_bytes())
        return CaseSketch(
            tuple(table["size_xyz"]),
            tuple(table["spacing_mm_xyz"]),
            View(**table["axial"]),
            View(**table["coronal"]),
            tuple(table["histogram"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _lps_extent_mm_xyz(image: sitk.Image) -> tuple[float, ...]:
    stored = np.argmax(np.abs(np.reshape(image.GetDirection(), (3, 3))), axis=1)
    return tuple(image.GetSize()[axis] * image.GetSpacing()[axis] for axis in stored)


def _fullest(mask_DHW: Array, axis: int) -> int:
    """The plane with most voxels of the mask, by every few voxels of it."""
    steps = [slice(None, None, max(1, size // 64)) for size in mask_DHW.shape]
    steps[axis] = slice(None)
    planes = np.moveaxis(mask_DHW[tuple(steps)], axis, 0)
    counts = [np.count_nonzero(plane) for plane in np.ascontiguousarray(planes)]
    return int(np.argmax(counts))


def _view(hu_HW: Array, lung_HW: Array, infection_HW: Array, height_px: int) -> View:
    size_px = (WIDTH_PX, max(1, height_px))
    low, high = WINDOW_HU
    grey_HW = (np.clip(hu_HW, low, high) - low) * (255 / (high - low))
    picture = Image.fromarray(grey_HW.astype(np.uint8)).resize(size_px, Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    jpeg = base64.b64encode(file.getvalue()).decode()
    return View(jpeg, *size_px, _contours(lung_HW, size_px), _contours(infection_HW, size_px))


def _contours(mask_HW: Array, size_px: tuple[int, int]) -> str:
    """The mask's outline as `d` of an SVG path; empty for an empty mask."""
    picture = Image.fromarray(np.ascontiguousarray(mask_HW, np.uint8) * 255)
    shrunk_HW = np.asarray(picture.resize(size_px, Image.Resampling.BOX), np.float32)
    framed_HW = np.pad(shrunk_HW, 1)  # an outline at the border closes too
    lines = contourpy.contour_generator(z=framed_HW).lines(127.5)
    return "".join(_path(np.asarray(line_N2) - 0.5) for line_N2 in lines)


def _path(points_N2: npt.NDArray[np.float64]) -> str:
    kept_N2 = points_N2[::2] if len(points_N2) > 16 else points_N2
    return "M" + " ".join(f"{x:.1f} {y:.1f}" for x, y in kept_N2) + "Z"


def _histogram(hu_DHW: Array, lung_DHW: Array) -> tuple[float, ...]:
    steps = tuple(slice(None, None, max(1, size // 128)) for size in hu_DHW.shape)
    is_lung = lung_DHW[steps] > 0
    hu_N = hu_DHW[steps][is_lung] if is_lung.any() else hu_DHW[lung_DHW > 0]
    low, high = HISTOGRAM_EDGES_HU[0], HISTOGRAM_EDGES_HU[-1]
    counts, _ = np.histogram(np.clip(hu_N, low, high - 1), HISTOGRAM_EDGES_HU)
    return tuple(round(float(share), 5) for share in counts / max(1, hu_N.size))
