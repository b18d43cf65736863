"""Which scan `diagnose` takes of what it is given."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest
import SimpleITK as sitk

from client.findings import FindingError
from client.images import read_ct
from client.scan_series import open_scan

LIMIT_MM = 5.0


def series(
    factory: ModuleType, folder: Path, uid: str, study: str = "1.1", n_slices: int = 12, **tags: object
) -> Path:
    slices = factory.good_slices(n_slices)
    for index, data in enumerate(slices):
        data.StudyInstanceUID, data.SeriesInstanceUID = study, uid
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{index + 1}"
        for keyword, value in tags.items():
            setattr(data, keyword, value)
    return Path(factory.write_series(folder, slices))


def voxels(image: sitk.Image) -> bytes:
    return bytes(sitk.GetArrayFromImage(image).tobytes())


@pytest.fixture
def study(dicom_factory: ModuleType, tmp_path: Path) -> Path:
    """A study of three series in folders of folders; the second has a lung kernel."""
    series(dicom_factory, tmp_path / "study" / "A" / "SE1", "1.1.1", ConvolutionKernel="B30f")
    series(dicom_factory, tmp_path / "study" / "A" / "SE2", "1.1.2", ConvolutionKernel="B70f")
    scout = tmp_path / "study" / "SE0"
    series(dicom_factory, scout, "1.1.0", n_slices=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return tmp_path / "study"


def test_of_a_studys_folder_the_series_is_taken_that_import_would_take(study: Path) -> None:
    opened = open_scan(study, LIMIT_MM)
    assert voxels(opened.ct) == voxels(read_ct(study / "A" / "SE2", None)[0])
    assert [(verdict.place, verdict.is_taken) for verdict in opened.series] == [
        ("SE0", False),
        ("A/SE1", False),
        ("A/SE2", True),
    ]
    reasons = [verdict.reason for verdict in opened.series]
    assert "DICOM-LOCALIZER" in reasons[0]
    assert "kernel" in reasons[1]
    assert reasons[2].startswith("chosen: axial")


def test_several_series_in_one_folder_are_told_apart(dicom_factory: ModuleType, tmp_path: Path) -> None:
    for number, kernel in enumerate(("B30f", "B70f"), start=1):
        source = series(dicom_factory, tmp_path / kernel, f"1.1.{number}", ConvolutionKernel=kernel)
        for path in source.iterdir():
            (tmp_path / "mixed").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "mixed" / f"{kernel}-{path.name}")
    opened = open_scan(tmp_path / "mixed", LIMIT_MM)
    assert voxels(opened.ct) == voxels(read_ct(tmp_path / "B70f", None)[0])
    assert [verdict.is_taken for verdict in opened.series] == [False, True]


def test_a_folder_of_one_good_series_is_no_choice(study: Path) -> None:
    assert open_scan(study / "A" / "SE1", LIMIT_MM).series == ()


def test_one_slice_stands_for_its_series_in_its_folder(study: Path, tmp_path: Path) -> None:
    expected = voxels(read_ct(study / "A" / "SE1", None)[0])
    for name in ("SE1", "SE2"):
        for path in (study / "A" / name).iterdir():
            (tmp_path / "flat").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "flat" / f"{name}-{path.name}")
    slice_file = next(iter(sorted((tmp_path / "flat").glob("SE1-*"))))
    opened = open_scan(slice_file, LIMIT_MM)
    assert voxels(opened.ct) == expected
    (verdict,) = opened.series
    assert (verdict.n_slices, verdict.is_taken) == (12, True)
    assert "the file that was given belongs to it" in str(verdict)


def test_a_file_of_several_frames_is_refused_as_the_gate_refuses_it(
    dicom_factory: ModuleType, tmp_path: Path
) -> None:
    folder = series(dicom_factory, tmp_path / "enhanced", "1.1.1", n_slices=1, NumberOfFrames=40)
    with pytest.raises(FindingError, match="DICOM-MULTIFRAME"):
        open_scan(next(folder.iterdir()), LIMIT_MM)


def test_a_folder_of_two_studies_is_refused(dicom_factory: ModuleType, tmp_path: Path) -> None:
    for number in (1, 2):
        series(dicom_factory, tmp_path / "export" / str(number), f"1.{number}.1", study=f"1.{number}")
    with pytest.raises(FindingError, match="DICOM-STUDIES: the image folder: 2 studies"):
        open_scan(tmp_path / "export", LIMIT_MM)


def test_a_study_without_a_good_series_is_refused_for_what_its_longest_one_has(
    dicom_factory: ModuleType, tmp_path: Path
) -> None:
    folder = series(dicom_factory, tmp_path / "study" / "SE1", "1.1.1", Modality="MR")
    series(dicom_factory, folder.parent / "SE2", "1.1.2", n_slices=1)
    with pytest.raises(FindingError, match=r"DICOM-MODALITY: series 1 of 2, the longest \(SE1\)"):
        open_scan(folder.parent, LIMIT_MM)


def test_a_lost_slice_is_no_reason_to_look_elsewhere(study: Path) -> None:
    (study / "A" / "SE1" / "lost.dcm").write_bytes(b"")
    with pytest.raises(FindingError, match="DICOM-EMPTY-FILE"):
        open_scan(study / "A" / "SE1", LIMIT_MM)


def test_a_folder_without_slices_is_refused_as_before(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(FindingError, match="DICOM-NONE"):
        open_scan(tmp_path / "empty", LIMIT_MM)
