import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from client.findings import FindingError
from client.images import read_ct
from client.segmentation import estimate_infection, segment_lungs
from dsan_model.cases import Label
from simulation.phantoms import Phantom, PhantomPlan, phantom
from simulation.scanners import SCANNERS

REAL = Path(__file__).resolve().parents[3] / "shared" / "ct"
SHAPE_DHW = (64, 96, 96)
needs_real_ct = pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real CT is not here")


def chest(scanner: int = 0, infection_ratio: float = 0.1) -> Phantom:
    return phantom(PhantomPlan(Label.COVID, infection_ratio, SCANNERS[scanner], SHAPE_DHW, 3, 4))


@pytest.fixture(scope="module")
def lying() -> Phantom:
    return chest()


def voxels(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image) > 0


def dice(one: sitk.Image, other: sitk.Image) -> float:
    a, b = voxels(one), voxels(other)
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def volume_ml(mask: sitk.Image) -> float:
    return float(voxels(mask).sum() * np.prod(mask.GetSpacing()) / 1000)


def changed(ct: sitk.Image, change: Callable[[np.ndarray], None]) -> sitk.Image:
    hu_DHW = sitk.GetArrayFromImage(ct)
    change(hu_DHW)
    image = sitk.GetImageFromArray(hu_DHW)
    image.CopyInformation(ct)
    return image


def codes(segmentation: object) -> list[str]:
    return [finding.code for finding in segmentation.findings]


# ---- lungs ----


@pytest.mark.parametrize("scanner", [0, 3], ids=["LPS", "LPI"])
def test_lungs_of_a_phantom_are_found_with_their_ground_glass(scanner: int) -> None:
    scan = chest(scanner)
    lungs = segment_lungs(scan.ct)
    assert lungs.source == "classical-2"
    assert codes(lungs) == []
    assert dice(lungs.mask, scan.lung) > 0.94
    assert (voxels(lungs.mask) & voxels(scan.infection)).sum() > 0.9 * voxels(scan.infection).sum()


@pytest.mark.parametrize("orientation", ["LPI", "RAS", "SPL"])
def test_the_same_scan_has_the_same_masks_however_its_axes_are_stored(
    lying: Phantom, orientation: str
) -> None:
    ct = lying.ct[:-1, :-1, :-1]  # odd sides: blocks of voxels do not come out even
    stored = sitk.DICOMOrient(ct, orientation)
    lungs, others = segment_lungs(ct), segment_lungs(stored)
    infection, other = estimate_infection(ct, lungs.mask), estimate_infection(stored, others.mask)
    for one, turned in ((lungs, others), (infection, other)):
        assert (voxels(one.mask) == voxels(sitk.DICOMOrient(turned.mask, "LPS"))).all()


def test_mask_lies_on_the_grid_of_its_scan(lying: Phantom) -> None:
    mask = segment_lungs(lying.ct).mask
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) == {0, 1}
    assert mask.GetSize() == lying.ct.GetSize()
    assert mask.GetSpacing() == lying.ct.GetSpacing()
    assert mask.GetOrigin() == lying.ct.GetOrigin()
    assert mask.GetDirection() == lying.ct.GetDirection()


def test_an_oblique_float_scan_has_the_same_lungs(lying: Phantom) -> None:
    upright = segment_lungs(lying.ct).mask
    turned, tilt = sitk.Cast(lying.ct, sitk.sitkFloat32), np.deg2rad(8)
    axes = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    turned.SetDirection((axes @ np.reshape(lying.ct.GetDirection(), (3, 3))).ravel().tolist())
    assert dice(segment_lungs(turned).mask, upright) > 0.95


def test_trachea_is_not_lung(lying: Phantom) -> None:
    hu_DHW = sitk.GetArrayFromImage(lying.ct)
    lung_DHW = voxels(lying.lung)
    top = (
        int(np.flatnonzero(lung_DHW.any(axis=(1, 2)))[-1]) - 4
    )  # of the lungs' tips, the trachea between them
    middle_W = slice(SHAPE_DHW[2] // 2 - 4, SHAPE_DHW[2] // 2 + 5)
    trachea_HW = (hu_DHW[top, 30:60, middle_W] < -800) & ~lung_DHW[top, 30:60, middle_W]
    found_HW = voxels(segment_lungs(lying.ct).mask)[top, 30:60, middle_W]
    assert trachea_HW.sum() > 5
    assert not (found_HW & trachea_HW).any()


def test_gas_in_the_stomach_is_not_lung(lying: Phantom) -> None:
    def blow_up(hu_DHW: np.ndarray) -> None:
        z, y, x = np.ogrid[: SHAPE_DHW[0], : SHAPE_DHW[1], : SHAPE_DHW[2]]
        stomach_DHW = ((z - 4) / 5) ** 2 + ((y - 38) / 10) ** 2 + ((x - 58) / 10) ** 2 < 1  # 120 ml
        assert not (stomach_DHW & voxels(lying.lung)).any()
        hu_DHW[stomach_DHW] = -1000

    clean, gassy = segment_lungs(lying.ct).mask, segment_lungs(changed(lying.ct, blow_up)).mask
    assert abs(volume_ml(gassy) - volume_ml(clean)) < 5


def test_a_body_without_lungs_is_an_error() -> None:
    hu_DHW = np.full((40, 64, 64), -1000, np.int16)
    hu_DHW[:, 10:54, 8:56] = 40
    body = sitk.GetImageFromArray(hu_DHW)
    body.SetSpacing((5, 5, 5))
    with pytest.raises(FindingError) as error:
        segment_lungs(body, "0412")
    assert error.value.finding.code == "SEG-NO-LUNGS"
    assert error.value.finding.case_id == "0412"


def test_a_lung_without_air_is_told(lying: Phantom) -> None:
    right_DHW = voxels(lying.lung)
    right_DHW[:, :, SHAPE_DHW[2] // 2 :] = False  # the phantom is LPS: the patient's right comes first
    lungs = segment_lungs(changed(lying.ct, lambda hu_DHW: hu_DHW.__setitem__(right_DHW, 30)), "0412")
    assert codes(lungs) == ["SEG-ONE-LUNG"]
    assert "right lung is missing" in lungs.findings[0].message


@pytest.mark.parametrize(("part", "end"), [(slice(0, 40), "top"), (slice(28, None), "bottom")])
def test_lungs_that_are_cut_off_are_told(lying: Phantom, part: slice, end: str) -> None:
    lungs = segment_lungs(lying.ct[:, :, part])
    assert codes(lungs) == ["SEG-LUNGS-CUT"]
    assert f"cut off at the {end} (" in lungs.findings[0].message


# ---- infection ----


def test_estimate_finds_most_of_a_large_ground_glass_and_says_that_it_is_crude(lying: Phantom) -> None:
    infection = estimate_infection(lying.ct, lying.lung, "0412")
    assert infection.source == "crude-2"
    assert codes(infection) == ["SEG-CRUDE-INFECTION"]
    assert infection.mask.GetSize() == lying.ct.GetSize()
    assert dice(infection.mask, lying.infection) > 0.6
    assert not (voxels(infection.mask) & ~voxels(lying.lung)).any()


def test_estimate_finds_next_to_nothing_in_a_healthy_lung() -> None:
    healthy = chest(infection_ratio=1e-6)
    infection = estimate_infection(healthy.ct, healthy.lung)
    assert voxels(infection.mask).sum() < 0.005 * voxels(healthy.lung).sum()


def test_estimate_of_an_empty_lung_mask_is_empty(lying: Phantom) -> None:
    assert not voxels(estimate_infection(lying.ct, lying.lung * 0).mask).any()


# ---- real scans ----


@needs_real_ct
def test_lungs_agree_with_the_label_map_of_the_chest_imaging_platform() -> None:
    ct, _ = read_ct(REAL / "cip" / "ct-64.nrrd", None)
    labelled = sitk.ReadImage(str(REAL / "cip" / "wholeLung-64.nrrd")) > 0
    found = segment_lungs(ct).mask
    assert volume_ml(labelled) == pytest.approx(4554, abs=1)
    assert volume_ml(found) == pytest.approx(4674, rel=0.01)  # measured; 4 mm voxels, airways aside
    assert dice(found, labelled) > 0.975  # measured 0.980


@needs_real_ct
@pytest.mark.parametrize(
    ("name", "file", "lungs_ml", "infection_ml", "in_labelled_slices"),
    [
        ("P002", "P002_dicom", 3906, 116, 0.9),
        ("cap002", "cap002_256.nii.gz", 3958, 17, 0.0),  # by eye some of it is vessels
        ("normal002", "normal002_256.nii.gz", 4485, 0, 0.0),
    ],
)
def test_real_scans_give_what_was_looked_at(
    name: str, file: str, lungs_ml: float, infection_ml: float, in_labelled_slices: float
) -> None:
    ct, _ = read_ct(REAL / "covid-ct-md" / file, name)
    lung = segment_lungs(ct, name).mask
    infection = estimate_infection(ct, lung, name).mask
    assert volume_ml(lung) == pytest.approx(lungs_ml, rel=0.02)
    assert volume_ml(infection) == pytest.approx(infection_ml, rel=0.1, abs=1)
    by_slice = voxels(infection).sum(axis=(1, 2))
    with (REAL / "covid-ct-md" / "slice_labels.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["case"] == name and row["infected"] == "1"]
    labelled = [int(row["z_index_in_nii"]) for row in rows]
    assert by_slice[labelled].sum() >= in_labelled_slices * by_slice.sum()


@needs_real_ct
def test_an_abdomen_is_no_chest() -> None:
    folder = REAL / "bad" / "42_abdomen_not_chest"
    scan = next(path for path in folder.iterdir() if path.is_dir() or path.suffix in (".gz", ".nii", ".nrrd"))
    with pytest.raises(FindingError, match="SEG-NO-LUNGS"):
        segment_lungs(read_ct(scan, None)[0])
