"""Given masks on the right grid that are not the lungs of their scan, and the many that are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_factory import CHEST_MM_XYZ, Array, chest

from client.findings import FindingError
from client.images import read_ct
from client.lung_audit import audit_given_infection, audit_given_lungs, lps_view
from client.segmentation import segment_lungs
from dsan_model.cases import Label
from simulation.phantoms import PhantomPlan, phantom
from simulation.scanners import SCANNERS

P002 = Path(__file__).resolve().parents[3] / "shared" / "ct" / "covid-ct-md" / "P002_dicom"
SOUND = chest()


def image(array_DHW: Array) -> sitk.Image:
    made = sitk.GetImageFromArray(array_DHW)
    made.SetSpacing(CHEST_MM_XYZ)
    return made


def lung_codes(lung_DHW: Array, hu_DHW: Array = SOUND.hu) -> list[str]:
    findings = audit_given_lungs(image(hu_DHW), image(lung_DHW.astype(np.uint8)), "0412")
    assert {finding.severity for finding in findings} <= {"warning"}
    assert {finding.case_id for finding in findings} <= {"0412"}
    return [finding.code for finding in findings]


def infection_codes(infection_DHW: Array) -> list[str]:
    findings = audit_given_infection(image(SOUND.hu), image(SOUND.lung), image(infection_DHW), "0412")
    return [finding.code for finding in findings]


def refusal(lung_DHW: Array) -> str:
    with pytest.raises(FindingError) as caught:
        lung_codes(lung_DHW)
    return caught.value.finding.code


# ---- lungs ----


def test_the_lungs_of_the_scan_have_no_finding() -> None:
    assert lung_codes(SOUND.lung) == []


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RPI", "SAL"])
def test_the_orientation_of_the_file_changes_nothing(orientation: str) -> None:
    ct, lung = (sitk.DICOMOrient(image(array), orientation) for array in (SOUND.hu, SOUND.lung))
    assert audit_given_lungs(ct, lung) == ()
    np.testing.assert_array_equal(lps_view(lung), SOUND.lung)
    mirrored = sitk.DICOMOrient(image(SOUND.lung[:, :, ::-1].copy()), orientation)
    with pytest.raises(FindingError, match="IMAGE-LUNG-MIRRORED"):
        audit_given_lungs(ct, mirrored)


def test_lungs_swapped_left_to_right_are_refused() -> None:
    assert refusal(SOUND.lung[:, :, ::-1]) == "IMAGE-LUNG-MIRRORED"


@pytest.mark.parametrize("marked", [SOUND.hu > -200, np.abs(SOUND.hu - 40) < 20])
def test_a_mask_of_tissue_is_refused(marked: Array) -> None:
    assert refusal(marked) == "IMAGE-LUNG-MISFIT"


def test_lungs_of_another_patient_are_a_warning() -> None:
    assert "IMAGE-LUNG-MISFIT" in lung_codes(np.roll(SOUND.lung, (9, 5), (0, 1)))


def test_a_consolidated_lung_that_is_marked_whole_fits() -> None:
    """Half of it without air: much of the mask is dense, but no air lies outside."""
    hu_DHW = SOUND.hu.copy()
    hu_DHW[(SOUND.lung == 1) & (np.arange(40)[:, None, None] < 20)] = 30
    assert lung_codes(SOUND.lung, hu_DHW) == []


def test_a_mask_that_leaves_out_the_consolidation_fits() -> None:
    assert lung_codes(SOUND.lung & (SOUND.hu < -500)) == []


@pytest.mark.parametrize(("keep", "missing"), [(slice(0, 24), "left"), (slice(24, 48), "right")])
def test_one_lung_is_a_warning_that_names_the_other(keep: slice, missing: str) -> None:
    lung_DHW = np.zeros_like(SOUND.lung)
    lung_DHW[:, :, keep] = SOUND.lung[:, :, keep]
    findings = audit_given_lungs(image(SOUND.hu), image(lung_DHW))
    (finding,) = [finding for finding in findings if finding.code == "SEG-ONE-LUNG"]
    assert f"the {missing} lung is missing" in finding.message


@pytest.mark.parametrize(("slices", "end"), [(slice(0, 28), "top"), (slice(12, 40), "bottom")])
def test_lungs_that_end_with_the_scan_are_a_warning(slices: slice, end: str) -> None:
    (finding,) = audit_given_lungs(image(SOUND.hu[slices]), image(SOUND.lung[slices]))
    assert finding.code == "SEG-LUNGS-CUT"
    assert f"cut off at the {end}" in finding.message


@pytest.mark.parametrize("scanner", range(4))
def test_masks_of_phantoms_fit_them(scanner: int) -> None:
    scan = phantom(PhantomPlan(Label.COVID, 0.1, SCANNERS[scanner], (64, 72, 72), 3, 4))
    assert audit_given_lungs(scan.ct, scan.lung) == ()
    assert audit_given_infection(scan.ct, scan.lung, scan.infection) == ()


# ---- infection ----


def test_the_infection_of_the_scan_has_no_finding() -> None:
    assert infection_codes(SOUND.infection) == []


@pytest.mark.parametrize(
    "change",
    [lambda infection: np.roll(infection, -14, 1), lambda infection: infection[:, :, ::-1].copy()],
    ids=["another patient's", "mirrored"],
)
def test_an_infection_that_marks_sound_lung_is_a_warning(change: Callable[[Array], Array]) -> None:
    assert infection_codes(change(SOUND.infection) & SOUND.lung) == ["IMAGE-INFECTION-MISFIT"]


def test_few_voxels_say_nothing() -> None:
    few = np.zeros_like(SOUND.infection)
    few[20, 20, 34:38] = 1
    assert infection_codes(few) == []


# ---- real lungs ----


@pytest.mark.skipif(not P002.is_dir(), reason="../shared/ct is not there")
def test_real_lungs_fit_as_they_are_and_not_mirrored_or_shifted() -> None:
    ct, _ = read_ct(P002, None)
    lung = segment_lungs(ct).mask
    assert audit_given_lungs(ct, lung) == ()

    def on_scan(array_DHW: Array) -> sitk.Image:
        mask = sitk.GetImageFromArray(array_DHW)
        mask.CopyInformation(ct)
        return mask

    lung_DHW = sitk.GetArrayFromImage(lung)
    with pytest.raises(FindingError, match="IMAGE-LUNG-MIRRORED"):
        audit_given_lungs(ct, on_scan(lung_DHW[:, :, ::-1].copy()))
    shifted = on_scan(np.roll(lung_DHW, (15, 60), (0, 1)))  # 3 cm up, 4 cm to the back
    assert "IMAGE-LUNG-MISFIT" in [finding.code for finding in audit_given_lungs(ct, shifted)]
