"""Image pre-processing (IV-B): a CT in Hounsfield units and its masks become one (D, H, W) volume in [0, 1].

The paper resamples to a common spacing and then shrinks all axes by one factor. Both steps are linear
interpolations along the axes, so that per axis the product of their two matrices is one banded matrix:
the volume is resampled in one pass, slice by slice, and equals the two steps to rounding.

Suffixes: _DHW is (z, y, x) from the feet up, from front to back, from the patient's right to left (LPS);
_xyz is SimpleITK's order.
"""

import hashlib
import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from dsan_model.cases import infection_ratio

PAPER_SHAPE_DHW = (138, 256, 256)
PAPER_SPACING_MM_XYZ = (0.7168, 0.7168, 1.25)
LARGEST_SCALE_FACTOR = 0.5  # "approximately the half sizes"
WINDOW_HU = (-1350.0, 150.0)  # window 1500, level -600; its lower end is also what lies outside the scan
RECIPE_VERSION = (
    1  # raise it with every change that alters a prepared volume: stored volumes are then made anew
)

# An axis that leans less than this (3.4 minutes of arc, 0.3 mm across a chest) is called aligned: header
# rounding is below it, and a rotation that small is resampled along the volume's own axes.
_ALIGNED_WITHIN = 1e-3

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recipe:
    """What a study may vary of the preparation; the defaults are the paper's.

    `antialias` widens the second step's kernel to the size of an output voxel and averages lung alone. It is
    for presets that shrink the volume far below the paper's half, where plain linear interpolation would skip
    most voxels.
    """

    shape_DHW: tuple[int, int, int] = PAPER_SHAPE_DHW
    antialias: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides how a volume comes out; part of the key of a stored volume."""
        text = (
            f"version {RECIPE_VERSION}; shape {self.shape_DHW}; antialias {self.antialias}; "
            f"spacing {PAPER_SPACING_MM_XYZ}; factor {LARGEST_SCALE_FACTOR}; window {WINDOW_HU}"
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PreparedCase:
    """What the networks see of a case: the volume and both masks on the same grid, and the native ratio."""

    volume_DHW: Array  # 0 to 1; 0 outside the lung
    lung_DHW: Mask
    infection_DHW: Mask  # inside the lung only
    infection_ratio: float  # infection in lung over lung, counted on the scan's own grid (Fig. 1)
    lung_volume_ml: float
    scale_factor: float  # of the second step, the same in all three axes

    @property
    def spacing_mm_xyz(self) -> tuple[float, float, float]:
        """Size of a voxel of the prepared grid."""
        x, y, z = (spacing_mm / self.scale_factor for spacing_mm in PAPER_SPACING_MM_XYZ)
        return (x, y, z)


def prepare_case(ct: sitk.Image, lung: sitk.Image, infection: sitk.Image, recipe: Recipe) -> PreparedCase:
    """Resample, shrink, pad, window and mask one case (IV-B).

    `ct` is 3-D in HU; the masks are uint8, 0 and 1, on the same voxel grid. Any order and direction of the
    stored axes comes out the same; an oblique volume is first resampled onto an upright grid that holds all
    of it. Raises ValueError for masks of another size or with other values, and for an empty lung mask.
    """
    _check_mask(lung, ct)
    _check_mask(infection, ct)
    ratio = infection_ratio(_lps_mask(infection), _lps_mask(lung))
    lung_volume_ml = int(np.count_nonzero(_lps_mask(lung))) * float(np.prod(ct.GetSpacing())) / 1000
    if _is_oblique(ct):
        ct = _upright(ct)
        lung, infection = _onto_grid(lung, ct), _onto_grid(infection, ct)

    axes, scale_factor = _plan_axes(ct, recipe.shape_DHW)
    lung_DHW = _resample_mask(_lps_mask(lung), axes, recipe.shape_DHW)
    infection_DHW = _resample_mask(_lps_mask(infection), axes, recipe.shape_DHW) & lung_DHW
    averaged_over = _lps_mask(lung) if recipe.antialias else None
    volume_DHW = _resample_ct(_lps_array(ct), axes, lung_DHW, averaged_over)
    return PreparedCase(volume_DHW, lung_DHW, infection_DHW, ratio, lung_volume_ml, scale_factor)


def _check_mask(mask: sitk.Image, ct: sitk.Image) -> None:
    if mask.GetSize() != ct.GetSize():
        raise ValueError(f"the mask has {mask.GetSize()} voxels (x, y, z), the scan {ct.GetSize()}")
    values = sitk.GetArrayViewFromImage(mask)
    if values.dtype != np.uint8 or values.max() > 1:
        raise ValueError(f"a mask is uint8 with the values 0 and 1, not {values.dtype} up to {values.max()}")


# ---- the patient's axes ----


def _is_oblique(image: sitk.Image) -> bool:
    cosines = np.abs(np.reshape(image.GetDirection(), (3, 3)))
    return bool(np.sort(cosines, axis=0)[:2].max() > _ALIGNED_WITHIN)


def _stored_axes_of_lps(image: sitk.Image) -> tuple[list[int], list[bool]]:
    """For the patient's x, y and z: which stored axis runs along it, and whether it runs backwards."""
    cosines = np.reshape(image.GetDirection(), (3, 3))
    stored_axes = [int(axis) for axis in np.argmax(np.abs(cosines), axis=1)]
    return stored_axes, [bool(cosines[lps, stored] < 0) for lps, stored in enumerate(stored_axes)]


def _lps_array(image: sitk.Image) -> npt.NDArray[np.generic]:
    """The voxels as (z, y, x) in LPS: a view that lives as long as `image`."""
    stored_axes, is_reversed = _stored_axes_of_lps(image)
    array: npt.NDArray[np.generic] = sitk.GetArrayViewFromImage(image)
    array = array.transpose([2 - axis for axis in reversed(stored_axes)])
    return array[tuple(slice(None, None, -1 if backwards else 1) for backwards in reversed(is_reversed))]


def _lps_mask(mask: sitk.Image) -> Mask:
    return _lps_array(mask).view(np.bool_)


def _upright(ct: sitk.Image) -> sitk.Image:
    """First step of the two for an oblique volume: onto the smallest LPS grid that holds all of it."""
    outer_index = [(-0.5, size - 0.5) for size in ct.GetSize()]
    corners_mm_xyz = [ct.TransformContinuousIndexToPhysicalPoint(corner) for corner in product(*outer_index)]
    low_mm_xyz, high_mm_xyz = np.min(corners_mm_xyz, axis=0), np.max(corners_mm_xyz, axis=0)
    spacing_mm_xyz = np.array(PAPER_SPACING_MM_XYZ)
    size_xyz = [_grid_size(extent) for extent in (high_mm_xyz - low_mm_xyz) / spacing_mm_xyz]
    grid = sitk.Image(size_xyz, sitk.sitkUInt8)
    grid.SetSpacing(PAPER_SPACING_MM_XYZ)
    grid.SetOrigin((low_mm_xyz + spacing_mm_xyz / 2).tolist())
    return sitk.Resample(ct, grid, sitk.Transform(), sitk.sitkLinear, WINDOW_HU[0], sitk.sitkFloat32)


def _onto_grid(mask: sitk.Image, grid: sitk.Image) -> sitk.Image:
    return sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)


# ---- the two steps along one axis ----


@dataclass(frozen=True)
class _Axis:
    """One axis of the patient on its way through both steps; a step is in voxels of the grid before it."""

    n_native: int
    n_paper: int
    n_out: int
    paper_step: float
    out_step: float
    pad_before: int

    @property
    def inside(self) -> slice:
        """Where this axis lies in the padded output."""
        return slice(self.pad_before, self.pad_before + self.n_out)


def _plan_axes(ct: sitk.Image, shape_DHW: tuple[int, int, int]) -> tuple[list[_Axis], float]:
    """The three axes in (z, y, x), and the one scale factor of the second step."""
    stored_axes, _ = _stored_axes_of_lps(ct)
    sizes = [ct.GetSize()[axis] for axis in reversed(stored_axes)]
    steps = [
        paper_mm / ct.GetSpacing()[axis]
        for paper_mm, axis in zip(reversed(PAPER_SPACING_MM_XYZ), reversed(stored_axes), strict=True)
    ]
    paper_sizes = [_grid_size(n / step) for n, step in zip(sizes, steps, strict=True)]
    factor = min(LARGEST_SCALE_FACTOR, *(out / n for out, n in zip(shape_DHW, paper_sizes, strict=True)))
    axes = []
    for n_native, n_paper, step, n_padded in zip(sizes, paper_sizes, steps, shape_DHW, strict=True):
        n_out = _grid_size(n_paper * factor)
        axes.append(_Axis(n_native, n_paper, n_out, step, 1 / factor, (n_padded - n_out) // 2))
    return axes, factor


def _grid_size(extent_voxels: float) -> int:
    """Voxels of a grid over an extent; a half rounds down, so that no voxel's centre lies off the scan."""
    return max(1, math.ceil(extent_voxels - 0.5 - 1e-6))


def _positions(n_out: int, step: float) -> npt.NDArray[np.float64]:
    """Centres of the new voxels on the old grid; both grids begin at the same outer edge."""
    return (np.arange(n_out, dtype=np.float64) + 0.5) * step - 0.5


def _linear_matrix(n_out: int, n_in: int, step: float, half_width: float) -> npt.NDArray[np.float64]:
    """(n_out, n_in) weights of a triangle kernel; half-width 1 is linear interpolation, held at the ends."""
    # clipped only where an axis is so short beside the others that its one voxel lies off its end
    centres = np.clip(_positions(n_out, step), -0.5, n_in - 0.5)
    distance = np.abs(centres[:, None] - np.arange(n_in))
    weights = np.maximum(0.0, 1.0 - distance / half_width)
    normalised: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _two_step_matrix(axis: _Axis, *, antialias: bool) -> Array:
    """(n_out, n_native): from the native grid to the paper's spacing and on to the prepared grid."""
    to_paper = _linear_matrix(axis.n_paper, axis.n_native, axis.paper_step, 1.0)
    to_out = _linear_matrix(axis.n_out, axis.n_paper, axis.out_step, axis.out_step if antialias else 1.0)
    return (to_out @ to_paper).astype(np.float32)


def _two_step_nearest(axis: _Axis) -> npt.NDArray[np.intp]:
    """(n_out,) native voxel that each prepared voxel takes its mask from."""
    to_paper = _nearest(axis.n_paper, axis.n_native, axis.paper_step)
    return to_paper[_nearest(axis.n_out, axis.n_paper, axis.out_step)]


def _nearest(n_out: int, n_in: int, step: float) -> npt.NDArray[np.intp]:
    # a centre between two voxels takes the upper one, whatever the rounding of the step
    nearest = np.floor(_positions(n_out, step) + 0.5 + 1e-9).astype(np.intp)
    return np.minimum(nearest, n_in - 1)


# ---- the volume ----


def _resample_mask(mask_DHW: Mask, axes: list[_Axis], shape_DHW: tuple[int, int, int]) -> Mask:
    z, y, x = (_two_step_nearest(axis) for axis in axes)
    padded = np.zeros(shape_DHW, dtype=np.bool_)
    inside = padded[tuple(axis.inside for axis in axes)]
    for row, source in enumerate(z):
        inside[row] = mask_DHW[source][y][:, x]
    return padded


def _resample_ct(
    ct_DHW: npt.NDArray[np.generic], axes: list[_Axis], lung_DHW: Mask, averaged_over_DHW: Mask | None
) -> Array:
    """Windowed and masked volume, slice by slice; of the scan only what the lung needs is touched.

    `lung_DHW` is on the prepared grid. With a native mask to average over (antialias), a prepared voxel is
    the mean of the lung in its reach: at 6 mm a rim of averaged chest wall would hide the pleura.
    """
    volume_DHW = np.zeros(lung_DHW.shape, dtype=np.float32)
    if not lung_DHW.any():
        return volume_DHW
    box = _bounding_box(lung_DHW)
    weights_z, weights_y, weights_x = (
        _two_step_matrix(axis, antialias=averaged_over_DHW is not None)[
            rows.start - axis.pad_before : rows.stop - axis.pad_before
        ]
        for axis, rows in zip(axes, box, strict=True)
    )
    used_y, used_x = _nonzero_range(weights_y.any(axis=0)), _nonzero_range(weights_x.any(axis=0))
    weights_y, weights_x = weights_y[:, used_y], weights_x[:, used_x]
    low_hu, high_hu = WINDOW_HU
    for row, weights in enumerate(weights_z, start=box[0].start):
        used_z = _nonzero_range(weights)
        slab_hu = ct_DHW[used_z, used_y, used_x].astype(np.float32)
        if averaged_over_DHW is None:
            slice_hu = weights_y @ np.tensordot(weights[used_z], slab_hu, axes=1) @ weights_x.T
        else:
            share_DHW = averaged_over_DHW[used_z, used_y, used_x].astype(np.float32)
            above_low = (np.clip(slab_hu, low_hu, high_hu) - low_hu) * share_DHW
            share = weights_y @ np.tensordot(weights[used_z], share_DHW, axes=1) @ weights_x.T
            total = weights_y @ np.tensordot(weights[used_z], above_low, axes=1) @ weights_x.T
            slice_hu = low_hu + total / np.maximum(share, 1e-6)
        scaled = (np.clip(slice_hu, low_hu, high_hu) - low_hu) / (high_hu - low_hu)
        volume_DHW[row, box[1], box[2]] = scaled * lung_DHW[row, box[1], box[2]]
    return volume_DHW


def _bounding_box(mask_DHW: Mask) -> tuple[slice, slice, slice]:
    return (
        _nonzero_range(mask_DHW.any(axis=(1, 2))),
        _nonzero_range(mask_DHW.any(axis=(0, 2))),
        _nonzero_range(mask_DHW.any(axis=(0, 1))),
    )


def _nonzero_range(weights: npt.ArrayLike) -> slice:
    """From the first to the last non-zero entry of a 1-D array."""
    used = np.flatnonzero(weights)
    return slice(int(used[0]), int(used[-1]) + 1)
