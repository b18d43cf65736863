"""Real bad and tricky DICOM from public collections, where ../shared/ct lies beside the checkout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from shared_bad import BAD, CT, FILES, FOLDERS, SMALL, SMALL_FILES

from client.dicom import audit_dicom_folder, read_dicom_series
from client.findings import FindingError
from client.images import read_ct
from client.segmentation import segment_lungs

P002 = CT / "covid-ct-md" / "P002_dicom"

pytestmark = pytest.mark.skipif(not CT.is_dir(), reason="../shared/ct is not there")


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
    images = {f"{path.parent.name}/{path.name}" for path in BAD.glob("*/*") if ".mh" in path.name}
    assert images <= set(FILES)


@pytest.mark.parametrize("name", SMALL_FILES)
def test_an_odd_file_alone_is_refused_with_its_code(tmp_path: Path, name: str) -> None:
    shutil.copy(SMALL / name, tmp_path)
    assert code_of(tmp_path) == SMALL_FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_with_its_code(name: str) -> None:
    with pytest.raises(FindingError, match=FILES[name]):
        segment_lungs(read_ct(BAD / name, None)[0])


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
