from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from client.cohort import COLUMNS
from client.findings import FindingError
from client.masks import both_masks
from client.preparation import load_prepared, prepare_cohort
from client.site import SegmentationTable, SiteConfig, read_site
from client.volume_store import read_stored_case
from dsan_model.cases import Label
from simulation.phantoms import PhantomPlan, phantom
from simulation.scanners import SCANNERS

CLASSICAL = 'lungs = "classical"\n'
CRUDE = 'infection = "crude"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A hospital's folder with one scan and its masks."""
    scan = phantom(PhantomPlan(Label.COVID, 0.1, SCANNERS[0], (64, 72, 72), 3, 4))
    for name, image in (("ct", scan.ct), ("lung", scan.lung), ("infection", scan.infection)):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii"))
    return tmp_path


def site(home: Path, segmentation: str, lung: str = "", infection: str = "") -> SiteConfig:
    (home / "cohort.csv").write_text(f"{','.join(COLUMNS)}\n0412,p1,COVID-19,ct.nii,{lung},{infection},,,,\n")
    (home / "site.toml").write_text(
        f'name = "a"\n[recipe]\nshape_dhw = [24, 48, 48]\n[segmentation]\n{segmentation}'
    )
    return read_site(home / "site.toml")


def prepared_source(config: SiteConfig) -> str:
    result = prepare_cohort(config, workers=1)
    assert [finding for finding in result.findings if finding.severity == "error"] == []
    assert read_stored_case(result.entries[0].path).masks == result.entries[0].masks
    assert load_prepared(config) == result.entries
    return str(result.entries[0].masks)


@pytest.mark.parametrize(
    ("segmentation", "lung", "infection", "source"),
    [
        ("", "lung.nii", "infection.nii", "given"),
        (CLASSICAL + CRUDE, "lung.nii", "infection.nii", "given"),
        (CRUDE, "lung.nii", "", "lungs given, infection crude-2"),
        (CLASSICAL, "", "infection.nii", "lungs classical-2, infection given"),
        (CLASSICAL + CRUDE, "", "", "lungs classical-2, infection crude-2"),
    ],
)
def test_a_file_goes_before_the_configured_segmentation(
    home: Path, segmentation: str, lung: str, infection: str, source: str
) -> None:
    assert prepared_source(site(home, segmentation, lung, infection)) == source


@pytest.mark.parametrize(
    ("segmentation", "lung", "column"),
    [
        ("", "", "lung_mask"),
        (CLASSICAL, "", "infection_mask"),
        (CRUDE, "", "lung_mask"),
        ("", "lung.nii", "infection_mask"),
    ],
)
def test_no_mask_is_made_up_that_the_site_did_not_ask_for(
    home: Path, segmentation: str, lung: str, column: str
) -> None:
    result = prepare_cohort(site(home, segmentation, lung), workers=1)
    errors = [finding for finding in result.findings if finding.severity == "error"]
    assert [finding.code for finding in errors] == ["IMAGE-NO-MASK"]
    assert column in errors[0].where
    assert "[segmentation]" in errors[0].fix


def test_a_crude_infection_is_a_warning_that_stays_with_the_volume(home: Path) -> None:
    config = site(home, CRUDE, "lung.nii")
    first, again = (prepare_cohort(config, workers=1) for _ in range(2))
    assert [f.code for f in first.findings if f.code.startswith("SEG-")] == ["SEG-CRUDE-INFECTION"]
    assert again.findings == first.findings
    assert again.n_new == 0


def test_a_scan_without_lungs_is_left_out_and_named(home: Path) -> None:
    ct = sitk.ReadImage(str(home / "ct.nii"))
    hu_DHW = sitk.GetArrayFromImage(ct)
    hu_DHW[sitk.GetArrayFromImage(sitk.ReadImage(str(home / "lung.nii"))) > 0] = np.int16(30)
    solid = sitk.GetImageFromArray(hu_DHW)
    solid.CopyInformation(ct)
    sitk.WriteImage(solid, str(home / "ct.nii"))
    result = prepare_cohort(site(home, CLASSICAL + CRUDE), workers=1)
    assert ("SEG-NO-LUNGS", "0412") in [(finding.code, finding.case_id) for finding in result.findings]
    assert result.entries == ()


def test_a_study_is_not_run_on_masks_of_another_segmentation(home: Path) -> None:
    prepare_cohort(site(home, CLASSICAL + CRUDE), workers=1)
    with pytest.raises(FindingError, match="PREPARE-MASKS-CHANGED"):
        load_prepared(site(home, ""))


def test_one_mask_of_two_labels_saved_for_both_columns_is_told_as_such(home: Path) -> None:
    lung, infection = (sitk.ReadImage(str(home / f"{name}.nii")) for name in ("lung", "infection"))
    for name in ("both.nii", "again.nii"):
        sitk.WriteImage(lung + infection, str(home / name))
    result = prepare_cohort(site(home, "", "both.nii", "again.nii"), workers=1)
    (error,) = [finding for finding in result.findings if finding.severity == "error"]
    assert (error.code, error.case_id) == ("IMAGE-INFECTION-IS-LUNG", "0412")
    assert "its file holds the labels 1, 2" in error.message
    assert "the label of the infection alone" in error.fix


def test_no_network_is_loaded_where_both_masks_are_given(home: Path) -> None:
    ct, *files = (home / f"{name}.nii" for name in ("ct", "lung", "infection"))
    chosen = SegmentationTable(lungs="vbnet", infection="vbnet", weights=str(home / "none"))
    lung, infection = both_masks(*files, chosen, sitk.ReadImage(str(ct)))
    assert lung.source == infection.source == "given"
    with pytest.raises(FindingError, match="VBNET-MISSING"):
        both_masks(files[0], None, chosen, sitk.ReadImage(str(ct)))


def test_an_unknown_segmentation_is_refused(home: Path) -> None:
    with pytest.raises(FindingError, match=r"segmentation\.lungs"):
        site(home, 'lungs = "vbnett"\n')
