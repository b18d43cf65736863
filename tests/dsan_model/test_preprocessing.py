"""Pre-processing (IV-B) against the two SimpleITK steps of the paper, and against numbers checked by hand."""

import math
import tracemalloc
from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from dsan_model.preprocessing import PAPER_SHAPE_DHW, PAPER_SPACING_MM_XYZ, Recipe, prepare_case

REAL_CT = Path(__file__).parents[3] / "shared" / "ct" / "covid-ct-md"
LOW_HU, HIGH_HU = -1350.0, 150.0


def image(
    array_DHW: npt.NDArray[np.generic], spacing_mm_xyz: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> sitk.Image:
    made = sitk.GetImageFromArray(array_DHW)
    made.SetSpacing(spacing_mm_xyz)
    made.SetOrigin((-120.0, -80.0, -300.0))
    return made


def everywhere(like: sitk.Image) -> sitk.Image:
    mask = sitk.Image(like.GetSize(), sitk.sitkUInt8) + 1
    mask.CopyInformation(like)
    return mask


def random_scan(shape_DHW: tuple[int, ...], spacing_mm_xyz: tuple[float, ...], seed: int = 0) -> sitk.Image:
    values = np.random.default_rng(seed).integers(-1300, 100, shape_DHW, dtype=np.int16)
    return image(values, spacing_mm_xyz)


# ---- the reference: two runs of SimpleITK's ResampleImageFilter ----


def size_over(extent: float) -> int:
    return max(1, math.ceil(extent - 0.5 - 1e-6))


def resampled(
    source: sitk.Image, spacing_mm_xyz: tuple[float, ...], interpolator: int, fill: float, nudge: float = 0.0
) -> sitk.Image:
    """One step: the same outer edge, the same directions, another spacing."""
    directions = np.reshape(source.GetDirection(), (3, 3))
    old, new = np.array(source.GetSpacing()), np.array(spacing_mm_xyz)
    origin = np.array(source.GetOrigin()) + directions @ ((new - old) / 2 + nudge)
    size = [size_over(extent) for extent in np.array(source.GetSize()) * old / new]
    pixel_type = sitk.sitkFloat32 if interpolator == sitk.sitkLinear else sitk.sitkUInt8
    grid = (origin.tolist(), spacing_mm_xyz, source.GetDirection())
    return sitk.Resample(source, size, sitk.Transform(), interpolator, *grid, fill, pixel_type)


def two_steps(
    source: sitk.Image, shape_DHW: tuple[int, ...], interpolator: int, fill: float, nudge: float = 0.0
) -> npt.NDArray[np.generic]:
    """The paper's two steps on an LPS image, centred in `shape_DHW`."""
    paper = resampled(source, PAPER_SPACING_MM_XYZ, interpolator, fill, nudge)
    factor = min(0.5, *(n / m for n, m in zip(reversed(shape_DHW), paper.GetSize(), strict=True)))
    spacing = tuple(spacing_mm / factor for spacing_mm in PAPER_SPACING_MM_XYZ)
    small = sitk.GetArrayFromImage(resampled(paper, spacing, interpolator, fill, nudge))
    padded = np.full(shape_DHW, fill, small.dtype)
    padded[
        tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(shape_DHW, small.shape, strict=True))
    ] = small
    return padded


def largest_difference_hu(
    volume_DHW: npt.NDArray[np.float32], reference_hu: npt.NDArray[np.generic]
) -> float:
    reference = np.clip(reference_hu, LOW_HU, HIGH_HU)
    return float(np.abs(volume_DHW * (HIGH_HU - LOW_HU) + LOW_HU - reference).max())


@pytest.mark.parametrize(
    ("shape_DHW", "spacing_mm_xyz", "out_DHW"),
    [
        ((40, 60, 50), (0.7168, 0.7168, 1.25), (20, 30, 25)),  # the paper's grid, halved
        ((40, 60, 50), (0.7, 0.7, 1.0), PAPER_SHAPE_DHW),  # factor 0.5, padded
        ((60, 40, 44), (0.9, 0.9, 0.625), (9, 40, 40)),  # z decides the factor
        ((20, 90, 44), (0.6, 0.6, 2.0), (40, 11, 40)),  # y decides
        ((20, 44, 90), (0.6, 0.8, 2.0), (40, 40, 11)),  # x decides
        ((12, 30, 30), (3.6, 3.6, 7.5), (24, 24, 24)),  # coarser than the paper in every axis
        ((9, 33, 31), (1.3, 0.5, 5.0), (17, 19, 23)),
    ],
)
def test_volume_equals_the_two_simpleitk_steps(
    shape_DHW: tuple[int, int, int], spacing_mm_xyz: tuple[float, ...], out_DHW: tuple[int, int, int]
) -> None:
    scan = random_scan(shape_DHW, spacing_mm_xyz)
    lung = everywhere(scan)
    prepared = prepare_case(scan, lung, lung, Recipe(out_DHW))
    reference = two_steps(scan, out_DHW, sitk.sitkLinear, LOW_HU)
    assert prepared.volume_DHW.shape == out_DHW
    assert prepared.volume_DHW.dtype == np.float32
    assert largest_difference_hu(prepared.volume_DHW, reference) < 0.01
    assert prepared.lung_DHW.any()


@settings(max_examples=25, deadline=None)
@given(
    shape_DHW=st.tuples(*[st.integers(6, 24)] * 3),
    spacing_mm_xyz=st.tuples(*[st.floats(0.6, 4.0)] * 3),
    out_DHW=st.tuples(*[st.integers(8, 20)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_grid_equals_the_two_steps_in_the_lungs(
    shape_DHW: tuple[int, int, int],
    spacing_mm_xyz: tuple[float, float, float],
    out_DHW: tuple[int, int, int],
    seed: int,
) -> None:
    scan = random_scan(shape_DHW, spacing_mm_xyz, seed)
    values = np.random.default_rng(seed).integers(0, 2, shape_DHW).astype(np.uint8)
    values[0, 0, 0] = 1
    prepared = prepare_case(scan, image(values, spacing_mm_xyz), everywhere(scan), Recipe(out_DHW))
    reference = two_steps(scan, out_DHW, sitk.sitkLinear, LOW_HU)
    in_lung = np.where(prepared.lung_DHW, reference, LOW_HU)
    assert largest_difference_hu(prepared.volume_DHW, in_lung) < 0.01


@pytest.mark.parametrize("out_DHW", [(20, 30, 25), (9, 17, 19), (7, 40, 40)])
@pytest.mark.parametrize("spacing_mm_xyz", [(0.7, 0.75, 1.0), (1.1, 1.3, 3.0)])
def test_masks_equal_the_two_nearest_neighbour_steps(
    out_DHW: tuple[int, int, int], spacing_mm_xyz: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(1)
    lung = image(rng.integers(0, 2, (24, 50, 44)).astype(np.uint8), spacing_mm_xyz)
    infection = image(rng.integers(0, 2, (24, 50, 44)).astype(np.uint8), spacing_mm_xyz)
    prepared = prepare_case(random_scan((24, 50, 44), spacing_mm_xyz), lung, infection, Recipe(out_DHW))
    # a factor of 0.5 asks for the middle between two voxels: the nudge says which, where rounding would
    expected_lung = two_steps(lung, out_DHW, sitk.sitkNearestNeighbor, 0, nudge=1e-7)
    expected_infection = two_steps(infection, out_DHW, sitk.sitkNearestNeighbor, 0, nudge=1e-7)
    np.testing.assert_array_equal(prepared.lung_DHW, expected_lung == 1)
    np.testing.assert_array_equal(prepared.infection_DHW, (expected_lung == 1) & (expected_infection == 1))


def test_two_steps_leave_half_the_noise_of_one_linear_step() -> None:
    noise = np.random.default_rng(0).normal(-600, 30, (60, 120, 120)).astype(np.int16)
    scan = image(noise, (0.7, 0.7, 1.0))
    prepared = prepare_case(scan, everywhere(scan), everywhere(scan), Recipe())
    noise_hu = prepared.volume_DHW[prepared.lung_DHW].std() * 1500
    assert 7 < noise_hu < 9  # a single linear step leaves 16


# ---- orientation ----


def marked_patient() -> tuple[sitk.Image, sitk.Image, sitk.Image]:
    """Two lungs, and an infection in the right upper front: low x, low y, high z in LPS."""
    shape_DHW = (20, 28, 36)
    hu, lung, infection = (
        np.full(shape_DHW, 40, np.int16),
        np.zeros(shape_DHW, np.uint8),
        np.zeros(shape_DHW, np.uint8),
    )
    lung[3:17, 5:23, 4:15] = lung[3:17, 5:23, 21:32] = 1
    infection[13:16, 6:10, 5:9] = 1
    hu[lung == 1] = -800
    hu[infection == 1] = -300
    hu += np.random.default_rng(0).integers(-20, 20, shape_DHW, dtype=np.int16)
    spacing_mm_xyz = (2.1, 2.0, 3.0)
    return image(hu, spacing_mm_xyz), image(lung, spacing_mm_xyz), image(infection, spacing_mm_xyz)


def every_orientation() -> list[str]:
    return ["".join(code) for axes in permutations(("RL", "AP", "IS")) for code in product(*axes)]


def test_there_are_48_orientations() -> None:
    assert len(set(every_orientation())) == 48


@pytest.mark.parametrize("orientation", every_orientation())
def test_every_orientation_of_the_stored_axes_gives_the_same_prepared_case(orientation: str) -> None:
    recipe = Recipe((18, 30, 36))
    upright = prepare_case(*marked_patient(), recipe)
    turned = prepare_case(*(sitk.DICOMOrient(part, orientation) for part in marked_patient()), recipe)
    np.testing.assert_array_equal(turned.volume_DHW, upright.volume_DHW)
    np.testing.assert_array_equal(turned.lung_DHW, upright.lung_DHW)
    np.testing.assert_array_equal(turned.infection_DHW, upright.infection_DHW)
    assert turned.infection_ratio == upright.infection_ratio
    assert turned.lung_volume_ml == pytest.approx(upright.lung_volume_ml)


def assert_marked_right_upper_front(
    infection_DHW: npt.NDArray[np.bool_], lung_DHW: npt.NDArray[np.bool_]
) -> None:
    infection, lung = np.argwhere(infection_DHW).mean(axis=0), np.argwhere(lung_DHW).mean(axis=0)
    assert infection[0] > lung[0] + 1  # up
    assert infection[1] < lung[1] - 1  # front
    assert infection[2] < lung[2] - 1  # the patient's right


def test_a_mark_in_the_right_lung_lies_at_low_x() -> None:
    prepared = prepare_case(*marked_patient(), Recipe((18, 30, 36)))
    assert_marked_right_upper_front(prepared.infection_DHW, prepared.lung_DHW)


def tilted(part: sitk.Image, degrees: float = 20.0) -> sitk.Image:
    turn = sitk.Euler3DTransform(
        (0, 0, 0), math.radians(degrees) / 2, math.radians(-degrees) / 3, math.radians(degrees)
    )
    part.SetDirection(turn.GetMatrix())
    return part


def test_an_oblique_volume_equals_the_two_steps_onto_an_upright_grid() -> None:
    scan, lung, infection = (tilted(part) for part in marked_patient())
    corners = [
        scan.TransformContinuousIndexToPhysicalPoint(corner)
        for corner in product(*[(-0.5, size - 0.5) for size in scan.GetSize()])
    ]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    spacing = np.array(PAPER_SPACING_MM_XYZ)
    size = [size_over(extent) for extent in (high - low) / spacing]
    origin = (low + spacing / 2).tolist()
    grid = (origin, PAPER_SPACING_MM_XYZ, np.eye(3).ravel().tolist())
    upright = sitk.Resample(scan, size, sitk.Transform(), sitk.sitkLinear, *grid, LOW_HU, sitk.sitkFloat32)
    out_DHW = (40, 48, 60)
    prepared = prepare_case(scan, lung, infection, Recipe(out_DHW))
    reference = two_steps(upright, out_DHW, sitk.sitkLinear, LOW_HU)
    assert largest_difference_hu(prepared.volume_DHW, np.where(prepared.lung_DHW, reference, LOW_HU)) < 0.01
    assert_marked_right_upper_front(prepared.infection_DHW, prepared.lung_DHW)
    in_lung = prepared.volume_DHW[prepared.lung_DHW & ~prepared.infection_DHW]
    assert np.median(in_lung) * 1500 - 1350 == pytest.approx(-800, abs=10)


def test_an_oblique_scan_keeps_its_ratio_and_the_volume_of_its_lungs() -> None:
    upright = prepare_case(*marked_patient(), Recipe((60, 60, 60)))
    turned = prepare_case(*(tilted(part) for part in marked_patient()), Recipe((60, 60, 60)))
    assert turned.infection_ratio == upright.infection_ratio
    assert turned.lung_volume_ml == upright.lung_volume_ml
    voxel_ml = np.prod(turned.spacing_mm_xyz) / 1000
    assert np.count_nonzero(turned.lung_DHW) * voxel_ml == pytest.approx(turned.lung_volume_ml, rel=0.02)


def test_a_direction_rounded_in_a_header_is_no_oblique_scan() -> None:
    recipe = Recipe((18, 30, 36))
    rounded = [tilted(part, degrees=0.02) for part in marked_patient()]
    np.testing.assert_array_equal(
        prepare_case(*rounded, recipe).volume_DHW, prepare_case(*marked_patient(), recipe).volume_DHW
    )


# ---- intensity, padding, scale ----


@pytest.mark.parametrize(
    ("hu", "expected"), [(-3024, 0.0), (-1350, 0.0), (-600, 0.5), (0, 0.9), (150, 1.0), (3000, 1.0)]
)
def test_the_window_maps_to_zero_to_one(hu: int, expected: float) -> None:
    scan = image(np.full((8, 8, 8), hu, np.int16))
    prepared = prepare_case(scan, everywhere(scan), everywhere(scan), Recipe((8, 8, 8)))
    np.testing.assert_allclose(prepared.volume_DHW[prepared.lung_DHW], expected, atol=1e-6)


def test_everything_outside_the_lung_is_zero() -> None:
    scan, lung, infection = marked_patient()
    prepared = prepare_case(scan, lung, infection, Recipe((18, 30, 36)))
    assert prepared.volume_DHW[~prepared.lung_DHW].max() == 0
    assert prepared.volume_DHW[prepared.lung_DHW].min() > 0.2


def test_a_small_scan_is_centred_and_padded_with_zeros() -> None:
    scan = image(np.full((8, 16, 24), 0, np.int16), PAPER_SPACING_MM_XYZ)  # halved: 4, 8, 12
    prepared = prepare_case(scan, everywhere(scan), everywhere(scan), Recipe((10, 12, 13)))
    expected = np.zeros((10, 12, 13), bool)
    expected[3:7, 2:10, 0:12] = True
    np.testing.assert_array_equal(prepared.lung_DHW, expected)
    np.testing.assert_array_equal(prepared.volume_DHW > 0, expected)


@pytest.mark.parametrize(
    ("shape_DHW", "factor"),
    [((240, 32, 32), 0.5), ((300, 32, 32), 0.46), ((32, 640, 32), 0.4), ((32, 32, 800), 0.32)],
)
def test_one_factor_shrinks_all_axes_to_at_most_half_and_into_the_papers_shape(
    shape_DHW: tuple[int, int, int], factor: float
) -> None:
    scan = image(np.zeros(shape_DHW, np.int16), PAPER_SPACING_MM_XYZ)
    prepared = prepare_case(scan, everywhere(scan), everywhere(scan), Recipe())
    assert prepared.scale_factor == pytest.approx(factor)
    assert prepared.spacing_mm_xyz == pytest.approx((0.7168 / factor, 0.7168 / factor, 1.25 / factor))
    assert prepared.volume_DHW.shape == PAPER_SHAPE_DHW
    extent = np.argwhere(prepared.lung_DHW).max(axis=0) - np.argwhere(prepared.lung_DHW).min(axis=0) + 1
    np.testing.assert_allclose(extent, np.array(shape_DHW) * factor, atol=0.5)


# ---- ratio ----


def test_the_ratio_counts_infection_inside_the_lung_on_the_native_grid() -> None:
    lung, infection = np.zeros((10, 10, 10), np.uint8), np.zeros((10, 10, 10), np.uint8)
    lung[2:7, 2:6, 0:10] = 1  # 200 voxels
    infection[6:9, 5:7, 3:6] = 1  # 18, of which 3 inside
    scan = image(np.zeros((10, 10, 10), np.int16), (2.0, 2.0, 5.0))
    prepared = prepare_case(
        scan, image(lung, (2.0, 2.0, 5.0)), image(infection, (2.0, 2.0, 5.0)), Recipe((4, 4, 4))
    )
    assert prepared.infection_ratio == 3 / 200
    assert prepared.lung_volume_ml == pytest.approx(200 * 20 / 1000)
    assert not (prepared.infection_DHW & ~prepared.lung_DHW).any()


@pytest.mark.parametrize("spacing_mm_xyz", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.0), (1.2, 1.2, 1.5)])
def test_the_known_ratio_of_two_spheres_comes_out_within_two_percent(
    spacing_mm_xyz: tuple[float, ...],
) -> None:
    shape_xyz = [round(90 / side) for side in spacing_mm_xyz]
    x, y, z = np.meshgrid(
        *[(np.arange(n) + 0.5) * side - 45 for n, side in zip(shape_xyz, spacing_mm_xyz, strict=True)],
        indexing="ij",
    )
    lung = (x**2 + y**2 + z**2 < 40**2).T.astype(np.uint8)
    infection = ((x + 10) ** 2 + y**2 + (z - 5) ** 2 < 15**2).T.astype(np.uint8)
    scan = image(np.full(lung.shape, -800, np.int16), spacing_mm_xyz)
    prepared = prepare_case(
        scan, image(lung, spacing_mm_xyz), image(infection, spacing_mm_xyz), Recipe((36, 64, 64))
    )
    assert prepared.infection_ratio == pytest.approx((15 / 40) ** 3, rel=0.02)
    assert prepared.lung_volume_ml == pytest.approx(4 / 3 * math.pi * 40**3 / 1000, rel=0.02)
    on_grid = np.count_nonzero(prepared.infection_DHW) / np.count_nonzero(prepared.lung_DHW)
    assert on_grid == pytest.approx((15 / 40) ** 3, rel=0.06)


# ---- recipe ----


def test_antialiasing_averages_what_plain_interpolation_skips() -> None:
    stripes = np.zeros((64, 64, 64), np.int16)
    stripes[:, :, ::2] = -1000  # mean -500; at a tenth of the grid no stripe can be seen
    scan = image(stripes, PAPER_SPACING_MM_XYZ)
    lung = everywhere(scan)
    smooth = prepare_case(scan, lung, lung, Recipe((7, 7, 7), antialias=True))
    plain = prepare_case(scan, lung, lung, Recipe((7, 7, 7), antialias=False))
    smooth_hu = smooth.volume_DHW[smooth.lung_DHW] * 1500 - 1350
    np.testing.assert_allclose(smooth_hu, -500, atol=30)
    assert plain.volume_DHW[plain.lung_DHW].std() * 1500 > 100


def test_antialiasing_keeps_a_flat_scan_flat_to_its_edges() -> None:
    scan = image(np.full((40, 40, 40), -700, np.int16), (3.0, 3.0, 6.0))
    prepared = prepare_case(scan, everywhere(scan), everywhere(scan), Recipe((9, 9, 9), antialias=True))
    np.testing.assert_allclose(prepared.volume_DHW[prepared.lung_DHW] * 1500 - 1350, -700, atol=1e-3)


def test_the_digest_tells_recipes_apart() -> None:
    recipes = [Recipe(), Recipe((24, 48, 48)), Recipe((48, 24, 48)), Recipe(antialias=True)]
    assert len({recipe.digest for recipe in recipes}) == len(recipes)
    assert Recipe((24, 48, 48)).digest == Recipe((24, 48, 48)).digest
    assert len(Recipe().digest) == 64


# ---- wrong input, memory, real scans ----


def test_masks_of_another_size_or_with_other_values_are_refused() -> None:
    scan = image(np.zeros((8, 8, 8), np.int16))
    lung = everywhere(scan)
    with pytest.raises(ValueError, match=r"\(8, 8, 9\).*\(8, 8, 8\)"):
        prepare_case(scan, image(np.ones((9, 8, 8), np.uint8)), lung, Recipe())
    with pytest.raises(ValueError, match="uint8 with the values 0 and 1"):
        prepare_case(scan, lung * 2, lung, Recipe())
    with pytest.raises(ValueError, match="empty"):
        prepare_case(scan, lung * 0, lung, Recipe())


def test_a_lung_that_falls_between_the_voxels_gives_an_empty_volume() -> None:
    speck = np.zeros((40, 40, 40), np.uint8)
    speck[1, 1, 1] = 1
    scan = image(np.zeros((40, 40, 40), np.int16))
    prepared = prepare_case(scan, image(speck), everywhere(scan), Recipe((5, 5, 5)))
    assert not prepared.lung_DHW.any()
    assert not prepared.volume_DHW.any()


def test_a_scan_that_is_almost_flat_has_no_undefined_voxel() -> None:
    scan = image(np.full((2, 400, 4), -600, np.int16))
    prepared = prepare_case(scan, everywhere(scan), everywhere(scan), Recipe((8, 8, 8)))
    np.testing.assert_allclose(prepared.volume_DHW[prepared.lung_DHW], 0.5, atol=1e-6)


def test_the_whole_scan_is_never_copied_to_float32() -> None:
    scan = image(np.zeros((100, 200, 200), np.int16), (0.5, 0.5, 0.625))
    lung = everywhere(scan)
    tracemalloc.start()
    prepare_case(scan, lung, lung, Recipe((32, 64, 64)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100 * 200 * 200 * 2  # float32 would be twice this


@pytest.mark.skipif(not REAL_CT.is_dir(), reason="the real scans are not on this machine")
def test_a_real_scan_equals_the_two_steps() -> None:
    scan = sitk.DICOMOrient(sitk.ReadImage(str(REAL_CT / "cap002_256.nii.gz")), "LPS")
    lung = scan < -500
    prepared = prepare_case(scan, lung, lung, Recipe())
    reference = two_steps(scan, PAPER_SHAPE_DHW, sitk.sitkLinear, LOW_HU)
    in_lung = np.where(prepared.lung_DHW, reference, LOW_HU)
    assert largest_difference_hu(prepared.volume_DHW, in_lung) < 0.05
