"""Given masks on the right grid that are not the lungs of their scan, and the many that are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_factory import CHEST_MM_XYZ, Array, chest

from client.findings import FindingError
from client.images import read_ct
from client.infection_audit import audit_infection
from client.lung_audit import audit_lungs
from client.lung_sample import lps_view
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
    findings = audit_lungs(image(hu_DHW), image(lung_DHW.astype(np.uint8)), case_id="0412")
    assert {finding.severity for finding in findings} <= {"warning"}
    assert {finding.case_id for finding in findings} <= {"0412"}
    return [finding.code for finding in findings]


def infection_codes(infection_DHW: Array) -> list[str]:
    findings = audit_infection(image(SOUND.hu), image(SOUND.lung), image(infection_DHW), None, "0412")
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
    assert audit_lungs(ct, lung) == ()
    np.testing.assert_array_equal(lps_view(lung), SOUND.lung)
    mirrored = sitk.DICOMOrient(image(SOUND.lung[:, :, ::-1].copy()), orientation)
    with pytest.raises(FindingError, match="IMAGE-LUNG-MIRRORED"):
        audit_lungs(ct, mirrored)


def test_lungs_swapped_left_to_right_are_refused() -> None:
    assert refusal(SOUND.lung[:, :, ::-1]) == "IMAGE-LUNG-MIRRORED"


@pytest.mark.parametrize("marked", [SOUND.hu > -200, np.abs(SOUND.hu - 40) < 20])
def test_a_mask_of_tissue_is_refused(marked: Array) -> None:
    assert refusal(marked) == "IMAGE-LUNG-MISFIT"


BODY = SOUND.lung.astype(bool) | (SOUND.hu > -200)


@pytest.mark.parametrize("marked", [BODY, np.ones_like(BODY)], ids=["the body", "everything"])
def test_a_mask_of_the_body_with_its_lungs_is_refused(marked: Array) -> None:
    assert refusal(marked) == "IMAGE-LUNG-TOO-LARGE"


def test_more_than_twelve_litres_are_no_lungs() -> None:
    """Where the field of view ends inside the lungs, no air inside the body says so."""
    everywhere = np.ones((40, 40, 48), np.uint8)
    air, mask = (sitk.GetImageFromArray(array) for array in (everywhere.astype(np.int16) * -850, everywhere))
    for made in (air, mask):
        made.SetSpacing((5.3, 5.3, 5.3))
    assert [finding.code for finding in audit_lungs(air, mask)] == ["SEG-LUNGS-CUT"]
    for made in (air, mask):
        made.SetSpacing((5.5, 5.5, 5.5))
    with pytest.raises(FindingError, match=r"IMAGE-LUNG-TOO-LARGE.*it marks 12\.8 l"):
        audit_lungs(air, mask)


@pytest.mark.parametrize(
    "kept", [slice(20, None), slice(None, None, 2), slice(1, None, 2)], ids=["upper half", "even", "odd"]
)
def test_lungs_with_half_of_their_slices_blank_are_a_warning(kept: slice) -> None:
    lung_DHW = np.zeros_like(SOUND.lung)
    lung_DHW[kept] = SOUND.lung[kept]
    assert set(lung_codes(lung_DHW)) == {"IMAGE-LUNG-PART"}


def test_gas_of_the_bowel_that_the_mask_leaves_out_is_no_lung() -> None:
    hu_DHW = SOUND.hu.copy()
    hu_DHW[10:34, 10:30, 21:25] = -990  # a third of the lungs' volume, beside them
    lung_DHW = SOUND.lung.copy()
    lung_DHW[:, :, 19:27] = 0
    hu_DHW[(SOUND.lung == 1) & (lung_DHW == 0)] = 40
    assert "IMAGE-LUNG-PART" not in lung_codes(lung_DHW, hu_DHW)


def test_lungs_white_but_for_a_quarter_are_a_warning() -> None:
    hu_DHW = SOUND.hu.copy()
    hu_DHW[(SOUND.lung == 1) & (np.arange(40)[:, None, None] < 30)] = 30
    assert lung_codes(SOUND.lung, hu_DHW) == ["IMAGE-LUNG-MISFIT"]


def test_a_mask_of_a_network_is_not_called_given() -> None:
    findings = audit_lungs(image(SOUND.hu), image(np.roll(SOUND.lung, (9, 5), (0, 1))), "lungmask-0.2.20+ab")
    (finding,) = [finding for finding in findings if finding.code == "IMAGE-LUNG-MISFIT"]
    assert "(lungmask-0.2.20+ab)" in finding.message
    assert "another method" in finding.fix
    assert "drawn on this very scan" not in finding.fix


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
    findings = audit_lungs(image(SOUND.hu), image(lung_DHW))
    (finding,) = [finding for finding in findings if finding.code == "SEG-ONE-LUNG"]
    assert f"the {missing} lung is missing" in finding.message


@pytest.mark.parametrize(("slices", "end"), [(slice(0, 28), "top"), (slice(12, 40), "bottom")])
def test_lungs_that_end_with_the_scan_are_a_warning(slices: slice, end: str) -> None:
    (finding,) = audit_lungs(image(SOUND.hu[slices]), image(SOUND.lung[slices]))
    assert finding.code == "SEG-LUNGS-CUT"
    assert f"cut off at the {end}" in finding.message


@pytest.mark.parametrize("scanner", range(4))
def test_masks_of_phantoms_fit_them(scanner: int) -> None:
    scan = phantom(PhantomPlan(Label.COVID, 0.1, SCANNERS[scanner], (64, 72, 72), 3, 4))
    assert audit_lungs(scan.ct, scan.lung) == ()
    assert audit_infection(scan.ct, scan.lung, scan.infection, None) == ()


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


@pytest.mark.parametrize(
    "marked",
    [SOUND.lung, np.ones_like(SOUND.lung), SOUND.lung & (np.arange(40) > 9)[:, None]],
    ids=["the lungs", "everything", "most of the sound lungs"],
)
def test_the_lungs_for_the_infection_are_refused(marked: Array) -> None:
    with pytest.raises(FindingError, match="IMAGE-INFECTION-IS-LUNG: case 0412"):
        infection_codes(marked)


def test_nearly_all_of_white_lungs_may_be_infected() -> None:
    white = np.where(SOUND.lung == 1, -400, SOUND.hu).astype(np.int16)
    most = SOUND.lung & (np.arange(40) > 9)[:, None]
    assert most.sum() > 0.9 * SOUND.lung.sum()
    assert audit_infection(image(white), image(SOUND.lung), image(most), None) == ()


def test_few_voxels_say_nothing() -> None:
    few = np.zeros_like(SOUND.infection)
    few[20, 20, 34:38] = 1
    assert infection_codes(few) == []


# ---- real lungs ----


@pytest.mark.skipif(not P002.is_dir(), reason="../shared/ct is not there")
def test_real_lungs_fit_as_they_are_and_not_mirrored_or_shifted() -> None:
    ct, _ = read_ct(P002, None)
    lung = segment_lungs(ct).mask
    assert audit_lungs(ct, lung) == ()

    def on_scan(array_DHW: Array) -> sitk.Image:
        mask = sitk.GetImageFromArray(array_DHW)
        mask.CopyInformation(ct)
        return mask

    lung_DHW = sitk.GetArrayFromImage(lung)
    with pytest.raises(FindingError, match="IMAGE-LUNG-MIRRORED"):
        audit_lungs(ct, on_scan(lung_DHW[:, :, ::-1].copy()))
    shifted = on_scan(np.roll(lung_DHW, (15, 60), (0, 1)))  # 3 cm up, 4 cm to the back
    assert "IMAGE-LUNG-MISFIT" in [finding.code for finding in audit_lungs(ct, shifted)]
