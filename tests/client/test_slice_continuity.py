"""Slices whose pixels are lost or out of order, though every header is right, are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from client.findings import FindingError
from client.images import read_ct
from client.slice_continuity import continuity_findings

N_SLICES = 60
SHARED_CT = Path(__file__).parents[3] / "shared" / "ct"


def chest(noise_hu: float = 0.0, thickness_mm: float = 2.0, n_slices: int = N_SLICES) -> sitk.Image:
    """A body that narrows towards the head, with lungs and a spine that move from slice to slice."""
    generator = np.random.default_rng(0)
    z, y, x = np.ogrid[:n_slices, :128, :128]
    height = z * thickness_mm / (N_SLICES * 2.0)
    hu_DHW = np.full((n_slices, 128, 128), -1000.0)
    hu_DHW[((y - 64) / 45) ** 2 + ((x - 64) / (60 - 12 * height)) ** 2 < 1] = 40.0
    for side in (-1, 1):
        lung = ((y - 60) / (30 - 20 * height)) ** 2 + ((x - 64 - side * 25) / (10 + 8 * height)) ** 2 < 1
        hu_DHW[lung] = -850.0
    hu_DHW[((y - 92 - 6 * height) / 7) ** 2 + ((x - 64) / 9) ** 2 < 1] = 500.0
    hu_DHW += generator.normal(0.0, noise_hu, hu_DHW.shape) if noise_hu else 0.0
    image: sitk.Image = sitk.GetImageFromArray(hu_DHW.astype(np.int16))
    image.SetSpacing((3.0, 3.0, thickness_mm))
    return image


def changed(change: Callable[[np.ndarray], np.ndarray]) -> sitk.Image:
    good = chest(noise_hu=30.0)
    image = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(good)))
    image.CopyInformation(good)
    return image


def lost(hu_DHW: np.ndarray, slices: slice, rows: slice = slice(None)) -> np.ndarray:
    hu_DHW[slices, rows] = -1024
    return hu_DHW


@pytest.mark.parametrize(
    ("noise_hu", "thickness_mm", "n_slices"), [(0, 2, 60), (30, 2, 60), (150, 2, 60), (30, 8, 20), (30, 2, 5)]
)
def test_a_sound_scan_passes_whatever_its_noise_and_thickness(
    noise_hu: float, thickness_mm: float, n_slices: int
) -> None:
    assert continuity_findings(chest(noise_hu, thickness_mm, n_slices)) == ()


def test_slices_that_differ_by_their_noise_alone_are_in_order() -> None:
    one = sitk.GetArrayFromImage(chest())[30]
    noise = np.random.default_rng(0).normal(0.0, 60.0, (N_SLICES, *one.shape))
    image = sitk.GetImageFromArray((one + noise).astype(np.int16))
    image.SetSpacing((3.0, 3.0, 1.0))
    assert continuity_findings(image) == ()


def test_blank_slices_above_and_below_the_patient_are_padding() -> None:
    padded = changed(lambda hu: lost(lost(hu, slice(0, 5)), slice(55, None)))
    assert continuity_findings(padded) == ()


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        (lambda hu: lost(hu, slice(30, 31)), "SCAN-ODD-SLICE", "slice 31 from the feet"),
        (lambda hu: lost(hu, slice(30, 31), slice(64, None)), "SCAN-ODD-SLICE", "slice 31 from the feet"),
        (lambda hu: lost(hu, slice(30, 42)), "SCAN-JUMP", "slices 30 and 31 from the feet"),
        (lambda hu: lost(hu, slice(30, 42), slice(64, None)), "SCAN-JUMP", "slices 30 and 31 from the feet"),
        (lambda hu: hu[np.random.default_rng(0).permutation(N_SLICES)], "SCAN-ORDER", "slices"),
    ],
)
def test_lost_pixels_and_a_wrong_order_are_refused(
    change: Callable[[np.ndarray], np.ndarray], code: str, where: str
) -> None:
    (finding,) = continuity_findings(changed(change))
    assert (finding.code, finding.severity, finding.where) == (code, "error", where)


@pytest.mark.parametrize("flipped", [False, True])
def test_slices_are_counted_from_the_feet_however_they_are_stored(flipped: bool, tmp_path: Path) -> None:
    scan = changed(lambda hu: lost(hu, slice(30, 31)))
    sitk.WriteImage(sitk.DICOMOrient(scan, "LPI") if flipped else scan, str(tmp_path / "scan.nii"))
    with pytest.raises(FindingError, match="SCAN-ODD-SLICE: slice 31 from the feet"):
        read_ct(tmp_path / "scan.nii", None)


@pytest.mark.skipif(not SHARED_CT.is_dir(), reason="no real CT here")
@pytest.mark.parametrize(
    "name", ["covid-ct-md/P002_dicom", "covid-ct-md/cap002_256.nii.gz", "cip/ct-64.nrrd"]
)
def test_a_real_scan_passes_and_is_refused_after_losing_a_slice(name: str) -> None:
    ct, _ = read_ct(SHARED_CT / name, None)
    assert continuity_findings(ct) == ()
    damaged = sitk.GetImageFromArray(lost(sitk.GetArrayFromImage(ct), slice(40, 41)))
    damaged.CopyInformation(ct)
    assert [finding.code for finding in continuity_findings(damaged)] == ["SCAN-ODD-SLICE"]
