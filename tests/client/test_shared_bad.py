"""Real bad and tricky DICOM from public collections, where ../shared/ct lies beside the checkout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from client.dicom import audit_dicom_folder, read_dicom_series
from client.findings import FindingError

CT = Path(__file__).parents[3] / "shared" / "ct"
P002 = CT / "covid-ct-md" / "P002_dicom"
SMALL = CT / "bad" / "26_pydicom_small"

pytestmark = pytest.mark.skipif(not CT.is_dir(), reason="../shared/ct is not there")

FOLDERS = {
    "01_gantry_tilt_4slices": "DICOM-TILT",
    "02_missing_slice_ct": "DICOM-GAP",
    "07_reformat_coronal_ricord_jpegll": "DICOM-NOT-AXIAL",
    "11_scout_localizer": "DICOM-LOCALIZER",
    "15_git_lfs_pointer": "DICOM-LFS-POINTER",
    "20_transfer_syntaxes_ct": "DICOM-DUPLICATE",
    "22_no_pixel_data": "DICOM-MODALITY",  # a structured report; DICOM-NO-PIXELS comes second
    "23_enhanced_multiframe_ct": "DICOM-MULTIFRAME",
    "26_pydicom_small": "DICOM-NO-PREAMBLE",
    "33_metaimage_oddities": "DICOM-NONE",  # these three hold no DICOM: client/images.py judges the files
    "40_mask_passed_as_ct": "DICOM-NONE",
    "42_abdomen_not_chest": "DICOM-NONE",
}
SMALL_FILES = {
    "CT_small.dcm": "DICOM-PIXEL-SPACING",
    "ExplVR_BigEnd.dcm": "DICOM-MODALITY",
    "ExplVR_BigEndNoMeta.dcm": "DICOM-NO-PREAMBLE",
    "J2K_pixelrep_mismatch.dcm": "DICOM-NOT-AXIAL",
    "JPEG2000-embedded-sequence-delimiter.dcm": "DICOM-MODALITY",
    "MR_truncated.dcm": "DICOM-MODALITY",
    "SC_rgb_jpeg.dcm": "DICOM-MODALITY",
    "SC_rgb_small_odd.dcm": "DICOM-MODALITY",
    "badVR.dcm": "DICOM-MODALITY",
    "bad_sequence.dcm": "DICOM-FEW-SLICES",
    "empty_charset_LEI.dcm": "DICOM-NO-PIXELS",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "DICOM-MODALITY",
    "examples_palette.dcm": "DICOM-MODALITY",
    "explicit_VR-UN.dcm": "DICOM-FEW-SLICES",
    "image_dfl.dcm": "DICOM-MODALITY",
    "liver_1frame.dcm": "DICOM-MODALITY",
    "meta_missing_tsyntax.dcm": "DICOM-MISSING-TAG",
    "no_meta.dcm": "DICOM-NOT-DICOM",
    "rtdose.dcm": "DICOM-MODALITY",
    "rtplan.dcm": "DICOM-MODALITY",
    "rtplan_truncated.dcm": "DICOM-MODALITY",
    "rtstruct.dcm": "DICOM-NO-PREAMBLE",
    "test-SR.dcm": "DICOM-MODALITY",
}


def code_of(folder: Path) -> str:
    with pytest.raises(FindingError) as caught:
        read_dicom_series(folder, None)
    return caught.value.finding.code


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_bad_input_is_refused_with_its_code(name: str) -> None:
    assert code_of(CT / "bad" / name) == FOLDERS[name]


def test_no_folder_of_bad_input_was_forgotten() -> None:
    assert {path.name for path in (CT / "bad").iterdir() if path.is_dir()} == set(FOLDERS)
    assert {path.name for path in SMALL.iterdir()} == set(SMALL_FILES)


@pytest.mark.parametrize("name", SMALL_FILES)
def test_an_odd_file_alone_is_refused_with_its_code(tmp_path: Path, name: str) -> None:
    shutil.copy(SMALL / name, tmp_path)
    assert code_of(tmp_path) == SMALL_FILES[name]


def test_a_bad_file_spoils_a_good_series_and_is_named(tmp_path: Path) -> None:
    for path in P002.iterdir():
        (tmp_path / path.name).symlink_to(path)
    shutil.copy(CT / "bad" / "15_git_lfs_pointer" / "77.dcm", tmp_path)
    (finding,) = [each for each in audit_dicom_folder(tmp_path, None) if each.severity == "error"]
    assert (finding.code, finding.where) == ("DICOM-LFS-POINTER", "1 of 134 files, first 77.dcm")


def test_a_lossless_covid_scan_of_2_mm_is_read_with_one_warning_and_simpleitks_values() -> None:
    image, warnings = read_dicom_series(P002, None)
    assert [finding.code for finding in warnings] == ["DICOM-THICKNESS"]
    assert image.GetSize() == (512, 512, 133)
    assert image.GetSpacing() == (0.603515625, 0.603515625, 2.0)
    for name in ("IM0001.dcm", "IM0060.dcm", "IM0133.dcm"):
        one = sitk.ReadImage(str(P002 / name))
        index = image.TransformPhysicalPointToIndex(one.GetOrigin())
        values = sitk.GetArrayViewFromImage(image)[index[2]]
        np.testing.assert_array_equal(values, sitk.GetArrayViewFromImage(one)[0])


def test_a_scan_of_8_mm_is_refused_by_thickness() -> None:
    folder = CT / "lung-pet-ct-dx" / "A0002_dicom"
    assert code_of(folder) == "DICOM-THICKNESS"
    image, _ = read_dicom_series(folder, None, max_slice_thickness_mm=8)
    assert image.GetSpacing()[2] == 8.0
