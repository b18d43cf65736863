import gzip
import struct
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_factory import (
    BAD_MASKS,
    BAD_NIFTI,
    BAD_SCANS,
    META,
    NAN,
    NRRD,
    SHAPE_DHW,
    SPACING_MM_XYZ,
    BadImage,
    damaged_packing,
    dicom_mask,
    hu_array,
    image,
    infection_array,
    lung_array,
    nifti,
    text_header,
    written,
)

from client.findings import Finding, FindingError
from client.images import audit_ct, audit_mask, check_masks, read_ct, read_mask
from dsan_model.preprocessing import Recipe, prepare_case

FORMATS = ("nii", "nii.gz", "nrrd", "mha", "mhd")


def refused(path: Path) -> Finding:
    with pytest.raises(FindingError) as caught:
        read_ct(path, "0412")
    assert caught.value.finding.case_id == "0412"
    assert path.name in caught.value.finding.where
    assert str(path.parent) not in str(caught.value.finding)
    return caught.value.finding


# ---- what is right ----


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_scan(tmp_path: Path, suffix: str) -> None:
    scan = image(hu_array())
    scan.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    ct, findings = read_ct(written(tmp_path, scan, f"ct.{suffix}"), "0412")
    assert findings == ()
    assert ct.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), hu_array())
    for found, expected in ((ct.GetSpacing(), scan.GetSpacing()), (ct.GetOrigin(), scan.GetOrigin())):
        assert found == pytest.approx(expected, abs=1e-4)
    assert ct.GetDirection() == pytest.approx(scan.GetDirection(), abs=1e-6)


@pytest.mark.parametrize("axes", list(permutations(("RL", "AP", "IS"))))
@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
def test_a_mark_in_the_right_lung_stays_right_in_every_orientation_and_format(
    tmp_path: Path, suffix: str, axes: tuple[str, ...]
) -> None:
    recipe = Recipe((14, 22, 26))
    expected = prepare_case(image(hu_array()), image(lung_array()), image(infection_array()), recipe)
    for orientation in map("".join, product(*axes)):
        paths = [
            written(tmp_path, sitk.DICOMOrient(image(array), orientation), f"{name}.{suffix}")
            for name, array in (("ct", hu_array()), ("lung", lung_array()), ("infection", infection_array()))
        ]
        ct, _ = read_ct(paths[0], None)
        prepared = prepare_case(ct, read_mask(paths[1], ct, None), read_mask(paths[2], ct, None), recipe)
        np.testing.assert_allclose(prepared.volume_DHW, expected.volume_DHW, atol=1e-5)
        np.testing.assert_array_equal(prepared.infection_DHW, expected.infection_DHW)
        up, front, right = np.argwhere(prepared.infection_DHW).mean(0) - np.argwhere(prepared.lung_DHW).mean(
            0
        )
        assert up > 1
        assert front < -1
        assert right < -1


@pytest.mark.parametrize("pixel_type", [np.int32, np.int64, np.float64])
def test_other_number_types_come_as_int16_or_float32(tmp_path: Path, pixel_type: type) -> None:
    ct, _ = read_ct(written(tmp_path, image(hu_array().astype(pixel_type)), "ct.nii.gz"), None)
    assert ct.GetPixelID() == (sitk.sitkFloat32 if pixel_type is np.float64 else sitk.sitkInt16)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), hu_array())


def test_the_scale_of_a_nifti_is_applied(tmp_path: Path) -> None:
    path = nifti(tmp_path, {112: ("2f", 0.5, -100.0)}, array=(hu_array() + 100) * 2)
    ct, _ = read_ct(path, None)
    np.testing.assert_allclose(sitk.GetArrayFromImage(ct), hu_array(), atol=0.5)


def test_a_big_endian_nifti_is_read(tmp_path: Path) -> None:
    little = nifti(tmp_path, {}).read_bytes()
    formats = {0: "i", 40: "8h", 68: "4h", 76: "8f", 108: "3f", 252: "2h", 256: "6f", 280: "12f"}
    header = bytearray(little[:352])
    for offset, form in formats.items():
        struct.pack_into(f">{form}", header, offset, *struct.unpack_from(f"<{form}", little, offset))
    (tmp_path / "big.nii").write_bytes(bytes(header) + hu_array().astype(">i2").tobytes())
    ct, _ = read_ct(tmp_path / "big.nii", None)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), hu_array())


def test_no_metadata_of_the_file_is_kept(tmp_path: Path) -> None:
    scan = image(hu_array())
    scan.SetMetaData("0010|0010", "DOE^JANE")
    for suffix in ("nrrd", "mha"):
        ct, _ = read_ct(written(tmp_path, scan, f"ct.{suffix}"), None)
        assert ct.GetMetaDataKeys() == ()


def test_thick_slices_warn_and_very_thick_ones_are_refused(tmp_path: Path) -> None:
    scan = image(hu_array())
    scan.SetSpacing((3.0, 3.0, 2.0))
    _, (finding,) = read_ct(written(tmp_path, scan, "ct.nii.gz"), "0412")
    assert (finding.code, finding.severity, finding.case_id) == ("IMAGE-THICKNESS", "warning", "0412")
    scan.SetSpacing((3.0, 3.0, 8.0))
    path = written(tmp_path, scan, "ct.nii.gz")
    assert "8.00 mm apart; at most 5 mm" in refused(path).message
    assert read_ct(path, None, max_slice_thickness_mm=8.0)[1][0].code == "IMAGE-THICKNESS"


def test_slice_thickness_is_measured_from_foot_to_head(tmp_path: Path) -> None:
    _, findings = read_ct(written(tmp_path, sitk.DICOMOrient(image(hu_array()), "SLP"), "ct.nii.gz"), None)
    assert findings == ()  # the 3 mm are left-right and front-back


# ---- bad NIfTI: SimpleITK reads nearly all of these without a word ----


@pytest.mark.parametrize(
    "bad", [bad for bad in BAD_SCANS if bad.severity == "error"], ids=lambda bad: bad.name
)
def test_a_bad_scan_is_refused_with_its_code(tmp_path: Path, bad: BadImage) -> None:
    finding = refused(bad.write(tmp_path))
    assert (finding.code, finding.severity) == (bad.code, "error")
    assert bad.says in finding.message
    assert finding.fix.endswith(".")
    assert ".." not in finding.fix


@pytest.mark.parametrize(
    "bad", [bad for bad in BAD_SCANS if bad.severity == "warning"], ids=lambda bad: bad.name
)
def test_an_odd_scan_is_read_with_a_warning(tmp_path: Path, bad: BadImage) -> None:
    _, (finding,) = read_ct(bad.write(tmp_path), "0412")
    assert (finding.code, finding.severity, finding.case_id) == (bad.code, "warning", "0412")
    assert bad.says in finding.message


def test_a_nifti_in_metres_is_understood(tmp_path: Path) -> None:
    path = nifti(tmp_path, {123: ("b", 1), 76: ("4f", 1, 0.003, 0.003, 0.00125), 252: ("2h", 1, 0)})
    ct, _ = read_ct(path, None)
    assert ct.GetSpacing() == pytest.approx(SPACING_MM_XYZ)


@pytest.mark.parametrize("keep", [200, 5])
def test_a_cut_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    packed = gzip.compress(nifti(tmp_path, {}).read_bytes())
    (tmp_path / "ct.nii.gz").write_bytes(packed[:keep])
    assert refused(tmp_path / "ct.nii.gz").code in (
        "IMAGE-DAMAGED",
        "IMAGE-UNREADABLE",
    )  # SimpleITK may be first


def test_the_headers_of_these_tests_are_good_but_for_the_change(tmp_path: Path) -> None:
    for path in (text_header(tmp_path / "ct.mha", META, {}), text_header(tmp_path / "ct.nrrd", NRRD, {})):
        ct, findings = read_ct(path, None)
        assert findings == ()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), hu_array())


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_damage_in_packed_pixels_is_found(tmp_path: Path, suffix: str) -> None:
    path = damaged_packing(tmp_path, suffix)
    assert refused(path).code == "IMAGE-DAMAGED"
    path.write_bytes(path.read_bytes()[:-500])
    assert refused(path).code == "IMAGE-DAMAGED"


@pytest.mark.parametrize(
    ("name", "fields", "changes"),
    [
        ("ct.mha", META, {"TransformMatrix": None}),
        ("ct.nrrd", NRRD, {"space": "scanner-xyz"}),
        (
            "ct.nrrd",
            NRRD,
            {"space": None, "space directions": None, "space origin": None, "spacings": "3 3 1.25"},
        ),
    ],
)
def test_a_header_without_orientation_is_a_warning(
    tmp_path: Path, name: str, fields: dict[str, str], changes: dict[str, str | None]
) -> None:
    _, (finding,) = read_ct(text_header(tmp_path / name, fields, changes), None)
    assert (finding.code, finding.severity) == ("IMAGE-ORIENTATION", "warning")


def test_transforms_that_agree_but_for_rounding_are_taken(tmp_path: Path) -> None:
    """A half turn is where a quaternion of 32 bits is least exact."""
    path = nifti(tmp_path, {252: ("2h", 1, 1), 256: ("3f", 0.0, 0.0, 0.99999994)})
    assert read_ct(path, None)[1] == ()


def test_a_transform_without_a_code_may_say_anything(tmp_path: Path) -> None:
    assert read_ct(nifti(tmp_path, {252: ("2h", 1, 0), 280: ("4f", *[NAN] * 4)}), None)[1] == ()


@pytest.mark.parametrize("bad", BAD_NIFTI, ids=lambda bad: bad.name)
def test_nothing_but_the_finding_is_said_about_a_header(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], bad: BadImage
) -> None:
    """SimpleITK's algebra writes matrices to standard error if it is asked to invert them."""
    audit_ct(bad.write(tmp_path), None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["gigabytes declared by a small file", "gigabytes declared by a small gzip"])
def test_what_a_file_cannot_hold_is_found_by_its_header(tmp_path: Path, name: str) -> None:
    for bad in (bad for bad in BAD_SCANS if name in bad.name):
        (finding,) = audit_ct(bad.write(tmp_path), None)
        assert finding.code == "IMAGE-TRUNCATED"


def test_a_wrong_name_for_a_packing_is_told_with_the_right_one(tmp_path: Path) -> None:
    plain = nifti(tmp_path, {}).read_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    assert refused(tmp_path / "ct.nii.gz").fix == "Rename it to .nii."
    assert refused(tmp_path / "packed.nii").fix == "Rename it to .nii.gz."


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "ct.nii.gz").code == "IMAGE-MISSING"


# ---- masks ----


def mask_refused(path: Path, ct: sitk.Image) -> Finding:
    with pytest.raises(FindingError) as caught:
        read_mask(path, ct, "0412", "lung mask")
    assert caught.value.finding.where == f"lung mask {path.name}"
    assert caught.value.finding.case_id == "0412"
    return caught.value.finding


def test_any_label_above_zero_counts(tmp_path: Path) -> None:
    ct = image(hu_array())
    for pixel_type in (np.uint8, np.int16, np.float32):
        labels = lung_array().astype(pixel_type) * np.where(np.arange(SHAPE_DHW[2]) < 12, 1, 2).astype(
            pixel_type
        )
        mask = read_mask(written(tmp_path, image(labels), "lung.nii.gz"), ct, None)
        assert mask.GetPixelID() == sitk.sitkUInt8
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), lung_array())
        assert mask.GetOrigin() == ct.GetOrigin()


def test_a_mask_may_be_stored_in_another_axis_order_than_its_scan(tmp_path: Path) -> None:
    ct = image(hu_array())
    for orientation in ("RAS", "LPI", "SAR"):
        path = written(tmp_path, sitk.DICOMOrient(image(infection_array()), orientation), "m.nii.gz")
        mask = read_mask(path, ct, None)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), infection_array())


@pytest.mark.parametrize("bad", BAD_MASKS, ids=lambda bad: bad.name)
def test_a_bad_mask_is_refused_with_its_code(tmp_path: Path, bad: BadImage) -> None:
    finding = mask_refused(bad.write(tmp_path), image(hu_array()))
    assert finding.code == bad.code
    its_grid, _, the_scans = finding.message.partition(", the scan's is ")
    assert bad.says in its_grid
    if bad.code == "IMAGE-MASK-GEOMETRY":
        assert "24x20x26 voxels of 3 x 3 x 1.25 mm from (-36.5, -22, 110.2) mm" in the_scans


@pytest.mark.parametrize(
    ("modality", "program"), [("SEG", "dcmqi"), ("RTSTRUCT", "plastimatch")], ids=["SEG", "RTSTRUCT"]
)
def test_a_dicom_mask_is_told_how_to_become_a_nifti(tmp_path: Path, modality: str, program: str) -> None:
    (finding,) = audit_mask(dicom_mask(tmp_path, modality), "0412", "lung mask")
    assert (finding.code, finding.where) == ("IMAGE-MASK-DICOM", "lung mask lung.dcm")
    assert program in finding.fix
    assert "folder" not in finding.fix


def test_rounding_in_a_header_is_no_other_geometry(tmp_path: Path) -> None:
    scan = image(lung_array())
    scan.SetOrigin((-36.49, -22.0, 110.25))
    path = written(tmp_path, scan, "lung.nrrd")
    mask = read_mask(path, image(hu_array()), None)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), lung_array())


def test_an_empty_lung_is_refused_and_an_empty_infection_is_not() -> None:
    lung, nothing = image(lung_array()), image(np.zeros(SHAPE_DHW, np.uint8))
    assert check_masks(lung, nothing, "0412") == ()
    with pytest.raises(FindingError, match="IMAGE-LUNG-EMPTY: case 0412"):
        check_masks(nothing, nothing, "0412")


def test_infection_outside_the_lung_is_a_warning() -> None:
    lung, infection = lung_array(), infection_array()
    assert check_masks(image(lung), image(infection), None) == ()
    (finding,) = check_masks(image(lung), image(1 - lung), None)
    assert (finding.code, finding.severity) == ("IMAGE-INFECTION-OUTSIDE", "warning")
    assert "100%" in finding.message
