"""Sound series become volumes in HU; spoilt ones get their code, and nothing else ever happens."""

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_factory import (
    BAD_SERIES,
    CANARY,
    N_SLICES,
    ORIGIN_MM_XYZ,
    SIDE,
    BadSeries,
    chest_hu,
    compress_rle,
    encode,
    file_name,
    good_slices,
    leaning,
    rewrite,
    store,
    stored,
    write_series,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from client import dicom_header
from client.dicom import audit_dicom_folder, read_dicom_series
from client.dicom_audit import audit_series
from client.dicom_folder import read_headers
from client.findings import Finding, FindingError


def refusal(folder: Path) -> Finding:
    with pytest.raises(FindingError) as caught:
        read_dicom_series(folder, "0412")
    return caught.value.finding


def volume_of(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read_dicom_series(folder, None)[0])


def warnings_of(slices: list[Dataset], folder: Path) -> dict[str, Finding]:
    _, warnings = read_dicom_series(write_series(folder, slices), "0412")
    assert all(finding.severity == "warning" for finding in warnings)
    return {finding.code: finding for finding in warnings}


# ---- sound series ----


def test_a_sound_series_is_read_in_hu_without_a_finding(tmp_path: Path) -> None:
    image, warnings = read_dicom_series(write_series(tmp_path, good_slices()), "0412")
    assert warnings == ()
    assert image.GetPixelID() == sitk.sitkInt16
    assert image.GetSize() == (SIDE, SIDE, N_SLICES)
    assert image.GetSpacing() == (10.0, 10.0, 1.25)
    assert image.GetOrigin() == ORIGIN_MM_XYZ
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), chest_hu())


def test_slices_are_ordered_by_position_whatever_their_names_and_numbers(tmp_path: Path) -> None:
    slices = good_slices()
    write_series(tmp_path, [slices[i] for i in np.random.default_rng(3).permutation(N_SLICES)])
    np.testing.assert_array_equal(volume_of(tmp_path), chest_hu())


def test_an_image_carries_no_dicom_tag(tmp_path: Path) -> None:
    image, _ = read_dicom_series(write_series(tmp_path, good_slices()), None)
    assert image.GetMetaDataKeys() == ()


def test_the_first_pixel_spacing_is_between_rows(tmp_path: Path) -> None:
    slices = good_slices()
    for data in slices:
        data.PixelSpacing = [8, 11]
    image, _ = read_dicom_series(write_series(tmp_path, slices), None)
    assert image.GetSpacing() == (11.0, 8.0, 1.25)


def test_a_mark_keeps_its_place_in_the_patient_in_prone_and_feet_first_scans(tmp_path: Path) -> None:
    """Rows to the right, columns to the back: the same point in mm holds the same value."""
    point_mm = (ORIGIN_MM_XYZ[0] + 40, ORIGIN_MM_XYZ[1] + 70, ORIGIN_MM_XYZ[2] + 5)
    upright, turned = good_slices(), good_slices()
    for slices in (upright, turned):
        values = stored(slices[4])
        values[7, 4] = 1500
        store(slices[4], values)
    for data in turned:
        store(data, stored(data)[::-1, ::-1])
        data.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        data.ImagePositionPatient = [155, 155, data.ImagePositionPatient[2]]
    for name, slices in (("upright", upright), ("turned", turned)):
        image, _ = read_dicom_series(write_series(tmp_path / name, slices), None)
        assert image[image.TransformPhysicalPointToIndex(point_mm)] == 1500 - 1024


def native(slices: list[Dataset]) -> None:
    del slices


def implicit(slices: list[Dataset]) -> None:
    for data in slices:
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def big_endian(slices: list[Dataset]) -> None:
    for data in slices:
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian


def deflated(slices: list[Dataset]) -> None:
    for data in slices:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def signed_16_bit_with_padding(slices: list[Dataset]) -> None:
    for data in slices:
        values = stored(data)
        values[0, :2] = -32768, 32767
        store(data, values)
        data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 15, 1


def unsigned_16_bit(slices: list[Dataset]) -> None:
    for data in slices:
        values = stored(data)
        values[0, 0] = 65535
        store(data, values)
        data.BitsStored, data.HighBit, data.RescaleIntercept = 16, 15, -1024


def signed_12_bit(slices: list[Dataset]) -> None:
    for data in slices:
        store(data, np.clip(stored(data) - 1024, -2048, 2047) & 0x0FFF)
        data.PixelRepresentation, data.RescaleIntercept = 1, 0


def overlay_in_the_high_bits(slices: list[Dataset]) -> None:
    for data in slices:
        store(data, stored(data) | 0xA000)


def fractional_slope(slices: list[Dataset]) -> None:
    for data in slices:
        data.RescaleSlope, data.RescaleIntercept = "0.9875", "-1013.5"


def fractional_slope_and_whole_intercept(slices: list[Dataset]) -> None:
    for data in slices:
        data.RescaleSlope, data.RescaleIntercept = "0.9875", "-1013"


def slope_of_two(slices: list[Dataset]) -> None:
    for data in slices:
        store(data, stored(data) // 2)
        data.RescaleSlope = 2


ENCODINGS = (
    *(native, implicit, big_endian, deflated, compress_rle),
    *(signed_16_bit_with_padding, unsigned_16_bit, signed_12_bit, overlay_in_the_high_bits),
    *(fractional_slope, fractional_slope_and_whole_intercept, slope_of_two),
)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_the_hu_that_simpleitk_reads_slice_by_slice(tmp_path: Path, encoding) -> None:
    slices = good_slices()
    encoding(slices)
    volume = volume_of(write_series(tmp_path, slices))
    for index in range(N_SLICES):
        wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / file_name(index))))[0]
        if encoding in (fractional_slope, fractional_slope_and_whole_intercept):
            assert volume.dtype == np.float32
            np.testing.assert_allclose(volume[index], wanted, rtol=1e-6)
        else:
            assert volume.dtype == np.int16
            np.testing.assert_array_equal(volume[index], np.clip(wanted, -32768, 32767))


def test_padding_below_int16_is_clipped_not_wrapped(tmp_path: Path) -> None:
    slices = good_slices()
    signed_16_bit_with_padding(slices)
    volume = volume_of(write_series(tmp_path, slices))
    assert volume[0, 0, 0] == -32768
    assert volume[0, 0, 1] == 32767 - 1024


# ---- warnings ----


def test_wider_slices_than_the_papers_are_a_warning_up_to_the_limit(tmp_path: Path) -> None:
    slices = good_slices()
    for index, data in enumerate(slices):
        data.ImagePositionPatient[2] = 2.0 * index
        data.SliceThickness = 2
    folder = write_series(tmp_path, slices)
    _, (warning,) = read_dicom_series(folder, "0412")
    assert (warning.code, warning.severity, warning.case_id) == ("DICOM-THICKNESS", "warning", "0412")
    assert "2 mm thick and 2.00 mm apart" in warning.message
    with pytest.raises(FindingError, match=r"at most 1\.8 mm"):
        read_dicom_series(folder, "0412", max_slice_thickness_mm=1.8)


def test_overlapping_slices_are_fine(tmp_path: Path) -> None:
    slices = good_slices()
    for index, data in enumerate(slices):
        data.ImagePositionPatient[2] = 0.7 * index
    assert warnings_of(slices, tmp_path) == {}


def test_tags_that_agree_with_the_positions_are_fine(tmp_path: Path) -> None:
    slices = good_slices()
    for data in slices:
        data.SpacingBetweenSlices, data.GantryDetectorTilt, data.RescaleType = -1.25, 0.2, "HU"
        data.LossyImageCompression = "00"
    assert warnings_of(slices, tmp_path) == {}


def test_positions_rounded_to_a_tenth_of_a_mm_are_fine(tmp_path: Path) -> None:
    slices = good_slices(40)
    for index, data in enumerate(slices):
        data.ImagePositionPatient[2] = round(0.625 * index, 1)
    assert warnings_of(slices, tmp_path) == {}


def test_files_beside_the_slices_are_passed_over_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("seen")
    (tmp_path / "VERSION").write_text("1\n")
    (tmp_path / "DICOMDIR").write_bytes(b"index")
    (tmp_path / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / "previous").mkdir()
    warning = warnings_of(good_slices(), tmp_path)["DICOM-SIDE-FILE"]
    assert warning.message.startswith("3 files or folders")


def test_a_pipe_in_the_folder_does_not_stop_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert set(warnings_of(good_slices(), tmp_path)) == {"DICOM-SIDE-FILE"}


def changed(keyword: str, value: object):
    def edit(slices: list[Dataset]) -> None:
        for data in slices:
            setattr(data, keyword, value)

    return edit


def lean_5_degrees(slices: list[Dataset]) -> None:
    row, column = leaning(5)
    for index, data in enumerate(slices):
        data.ImageOrientationPatient = [round(float(value), 6) for value in (*row, *column)]
        data.ImagePositionPatient = [round(float(v), 4) for v in index * 1.25 * np.cross(row, column)]


def three_times_as_far(slices: list[Dataset]) -> None:
    for data in slices:
        data.ImagePositionPatient[2] = 3 * data.ImagePositionPatient[2]


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lean_5_degrees, "DICOM-OBLIQUE"),
        (three_times_as_far, "DICOM-SAMPLING"),
        (changed("SpacingBetweenSlices", 0.625), "DICOM-SPACING-TAG"),
        (changed("GantryDetectorTilt", 12), "DICOM-TILT-TAG"),
        (changed("SliceThickness", 0), "DICOM-THICKNESS-TAG"),
        (changed("SliceThickness", -1), "DICOM-THICKNESS-TAG"),
        (changed("LossyImageCompression", "01"), "DICOM-LOSSY"),
    ],
)
def test_what_is_odd_but_usable_is_read_with_a_warning(tmp_path: Path, edit, code: str) -> None:
    slices = good_slices()
    edit(slices)
    assert code in warnings_of(slices, tmp_path)


def test_an_oblique_volume_keeps_its_direction(tmp_path: Path) -> None:
    slices = good_slices()
    lean_5_degrees(slices)
    image, _ = read_dicom_series(write_series(tmp_path, slices), None)
    end_mm = image.TransformIndexToPhysicalPoint((0, 0, N_SLICES - 1))
    np.testing.assert_allclose(end_mm, slices[-1].ImagePositionPatient, atol=1e-3)


# ---- spoilt series ----


@pytest.mark.parametrize("bad", BAD_SERIES, ids=lambda bad: bad.name)
def test_a_spoilt_series_is_refused_with_its_code(tmp_path: Path, bad: BadSeries, capfd) -> None:
    folder = tmp_path / "series"
    bad.write(folder)
    finding = refusal(folder)
    assert finding.code == bad.code
    assert (finding.severity, finding.case_id) == ("error", "0412")
    assert finding.fix.endswith(".")
    assert not finding.message.endswith(".")
    assert "CANARY" not in str(finding)
    assert capfd.readouterr().out == ""


def test_there_are_enough_kinds_of_spoilt_series() -> None:
    assert len({bad.name for bad in BAD_SERIES}) == len(BAD_SERIES) >= 100


def test_the_audit_of_headers_names_the_same_first_error(tmp_path: Path) -> None:
    of_pixels = {"DICOM-HU", "DICOM-PIXELS"}
    for number, bad in enumerate(BAD_SERIES):
        folder = tmp_path / str(number)
        bad.write(folder)
        errors = [finding.code for finding in audit_dicom_folder(folder, None) if finding.severity == "error"]
        assert errors[:1] == ([] if bad.code in of_pixels else [bad.code]), bad.name


def test_everything_wrong_with_a_series_is_collected(tmp_path: Path) -> None:
    slices = good_slices()
    del slices[4]
    for data in slices:
        data.PhotometricInterpretation, data.RescaleSlope, data.SliceThickness = "MONOCHROME1", 0, 9
    headers, of_files = read_headers(write_series(tmp_path, slices))
    assert of_files == ()
    assert [finding.code for finding in audit_series(headers)] == [
        "DICOM-GAP",
        "DICOM-THICKNESS",
        "DICOM-MONOCHROME1",
        "DICOM-RESCALE",
    ]


def test_errors_come_before_warnings(tmp_path: Path) -> None:
    slices = good_slices()
    for data in slices:
        data.SliceThickness, data.PhotometricInterpretation = 2, "MONOCHROME1"
    codes = [finding.code for finding in audit_series(read_headers(write_series(tmp_path, slices))[0])]
    assert codes == ["DICOM-MONOCHROME1", "DICOM-THICKNESS"]


def test_files_that_are_bad_in_the_same_way_are_one_finding(tmp_path: Path) -> None:
    slices = good_slices()
    deflated(slices[2:5])
    slices[8].Modality = slices[9].Modality = "MR"
    write_series(tmp_path, slices)
    for index in (2, 3, 4):
        path = tmp_path / file_name(index)
        path.write_bytes(path.read_bytes()[:-9])
    unreadable, modality = audit_dicom_folder(tmp_path, None)
    assert unreadable.where == f"3 of 12 files, first {file_name(4)}"
    assert modality.where == f"2 of 9 files, first {file_name(9)}"
    assert modality.message == "expected Modality CT, found MR"


def test_a_gap_is_told_in_mm_between_two_files(tmp_path: Path) -> None:
    slices = good_slices()
    del slices[4:6]
    finding = refusal(write_series(tmp_path, slices))
    assert "a gap of 3.75 mm between the slices at -196.25 and -192.50 mm" in finding.message
    assert "missing in all: 2 slices in 1 gaps" in finding.message
    assert finding.where == f"between files {file_name(3)} and {file_name(4)}"


def test_a_lost_file_is_named_before_the_gap_that_it_leaves(tmp_path: Path) -> None:
    (write_series(tmp_path, good_slices()) / file_name(5)).write_bytes(b"")
    codes = [finding.code for finding in audit_dicom_folder(tmp_path, None)]
    assert codes == ["DICOM-EMPTY-FILE", "DICOM-GAP"]


def test_declared_sizes_are_refused_before_memory_is_allocated(tmp_path: Path) -> None:
    """2048 x 2048 x 400 voxels pass by their matrix but not by their sum; there are headers only."""
    first = read_headers(write_series(tmp_path, good_slices()))[0][0]
    large = replace(first, rows=2048, columns=2048, pixel_spacing_mm_yx=(0.2, 0.2))
    huge = [replace(large, position_mm_xyz=(0, 0, z)) for z in range(400)]
    assert [finding.code for finding in audit_series(huge)] == ["DICOM-SIZE"]
    assert "DICOM-SIZE" not in [finding.code for finding in audit_series(huge[:300])]


def test_a_slice_that_vanishes_between_audit_and_reading_is_a_finding(tmp_path: Path, monkeypatch) -> None:
    write_series(tmp_path, good_slices())
    headers = read_headers(tmp_path)
    monkeypatch.setattr("client.dicom.read_headers", lambda folder: headers)
    (tmp_path / file_name(2)).unlink()
    assert refusal(tmp_path).code == "DICOM-PIXELS"


# ---- what is read, and what is said ----


def test_only_whitelisted_tags_are_read(tmp_path: Path) -> None:
    groups = {pydicom.datadict.tag_for_keyword(keyword) >> 16 for keyword in dicom_header.WHITELIST}
    assert groups == {0x0008, 0x0018, 0x0020, 0x0028}  # 0x0010 is the patient
    headers, _ = read_headers(write_series(tmp_path, good_slices()))
    assert "CANARY" not in repr(headers)
    assert good_slices()[0].SeriesInstanceUID not in repr(headers)


def test_a_displaced_name_is_not_quoted(tmp_path: Path, capfd, caplog) -> None:
    write_series(tmp_path, good_slices())
    rewrite(tmp_path, "PhotometricInterpretation", CANARY.encode())
    colour = audit_dicom_folder(tmp_path, None)
    rewrite(tmp_path, "Modality", CANARY.encode())
    modality = audit_dicom_folder(tmp_path, None)
    assert [finding.code for finding in (*colour, *modality)] == ["DICOM-COLOUR", "DICOM-MODALITY"]
    assert "CANARY" not in " ".join(str(finding) for finding in (*colour, *modality))
    assert "CANARY" not in caplog.text + "".join(capfd.readouterr())


def test_every_error_code_is_shown_by_a_spoilt_series() -> None:
    sources = Path(dicom_header.__file__).parent.glob("dicom*.py")
    used = set(re.findall(r'"(DICOM-[A-Z0-9-]+)"', "".join(path.read_text() for path in sources)))
    only_warnings = {
        *("DICOM-SIDE-FILE", "DICOM-OBLIQUE", "DICOM-SAMPLING", "DICOM-SPACING-TAG"),
        *("DICOM-TILT-TAG", "DICOM-THICKNESS-TAG", "DICOM-LOSSY"),
    }
    assert used - {bad.code for bad in BAD_SERIES} == only_warnings


# ---- damage at random ----

DAMAGE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def series_bytes() -> dict[str, list[bytes]]:
    """The files of three series, by encoding."""
    series = {}
    for encoding in (native, compress_rle, deflated):
        slices = good_slices()
        encoding(slices)
        series[encoding.__name__] = [encode(data) for data in slices]
    return series


def read_or_refuse(files: list[bytes]) -> str:
    """ "image", or the code of the refusal; anything else propagates and fails the test."""
    with tempfile.TemporaryDirectory() as name:
        for index, content in enumerate(files):
            (Path(name) / f"{index}.dcm").write_bytes(content)
        try:
            image, _ = read_dicom_series(Path(name), None)
        except FindingError as failure:
            return failure.finding.code
        assert image.GetSize() == (SIDE, SIDE, len(files))
        return "image"


@pytest.mark.parametrize("encoding", ["native", "compress_rle", "deflated"])
@DAMAGE
@given(flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes_give_an_image_or_a_finding(series_bytes, encoding: str, flips) -> None:
    files = list(series_bytes[encoding])
    spoilt = bytearray(files[3])
    for position, mask in flips:
        spoilt[position % len(spoilt)] ^= mask
    files[3] = bytes(spoilt)
    read_or_refuse(files)


@pytest.mark.parametrize("encoding", ["native", "compress_rle", "deflated"])
@DAMAGE
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_always_refused(series_bytes, encoding: str, share: float) -> None:
    files = list(series_bytes[encoding])
    files[3] = files[3][: int(share * len(files[3]))]
    assert read_or_refuse(files).startswith("DICOM-")


@DAMAGE
@given(noise=st.binary(max_size=600), keep=st.integers(0, 900))
def test_noise_after_a_sound_beginning_gives_a_finding(series_bytes, noise: bytes, keep: int) -> None:
    files = list(series_bytes["native"])
    files[3] = files[3][:keep] + noise
    assert read_or_refuse(files).startswith("DICOM-")


def test_a_native_series_without_damage_is_an_image_to_the_damage_tests(series_bytes) -> None:
    assert {read_or_refuse(files) for files in series_bytes.values()} == {"image"}
    assert ExplicitVRLittleEndian.encode() in series_bytes["native"][0]
