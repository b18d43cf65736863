import gzip
import struct
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from client.findings import Finding, FindingError
from client.images import check_masks, read_ct, read_mask
from dsan_model.preprocessing import Recipe, prepare_case

BAD = Path(__file__).parents[3] / "shared" / "ct" / "bad"
needs_bad = pytest.mark.skipif(not BAD.is_dir(), reason="the real bad files are not on this machine")

SHAPE_DHW = (26, 20, 24)
SPACING_MM_XYZ = (3.0, 3.0, 1.25)
FORMATS = ("nii", "nii.gz", "nrrd", "mha", "mhd")


def image(array_DHW: npt.NDArray[np.generic]) -> sitk.Image:
    made = sitk.GetImageFromArray(array_DHW)
    made.SetSpacing(SPACING_MM_XYZ)
    made.SetOrigin((-36.5, -22.0, 110.25))
    return made


def lung_array() -> npt.NDArray[np.uint8]:
    lung = np.zeros(SHAPE_DHW, np.uint8)
    lung[3:23, 4:16, 3:10] = lung[3:23, 4:16, 14:21] = 1
    return lung


def infection_array() -> npt.NDArray[np.uint8]:
    """In the right upper front: high z, low y, low x."""
    infection = np.zeros(SHAPE_DHW, np.uint8)
    infection[17:22, 5:9, 4:8] = 1
    return infection


def hu_array() -> npt.NDArray[np.int16]:
    hu = np.full(SHAPE_DHW, 40, np.int16)
    hu[lung_array() == 1] = -850
    hu[infection_array() == 1] = -300
    return hu + np.random.default_rng(0).integers(-30, 30, SHAPE_DHW, dtype=np.int16)


def written(folder: Path, made: sitk.Image, name: str) -> Path:
    path = folder / name
    sitk.WriteImage(made, str(path), useCompression=name.endswith(("gz", "nrrd")))
    return path


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


def nifti(
    folder: Path, fields: dict[int, tuple[object, ...]], array: npt.NDArray[np.generic] | None = None
) -> Path:
    """An uncompressed NIfTI with header fields overwritten: {offset: (struct format, values...)}."""
    path = written(folder, image(hu_array() if array is None else array), "ct.nii")
    content = bytearray(path.read_bytes())
    for offset, (form, *values) in fields.items():
        struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)
    return path


NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({80: ("f", 0.0)}, "IMAGE-SPACING", "0 x 3 x 1.25 mm"),
        ({80: ("f", -3.0)}, "IMAGE-SPACING", "-3 x 3 x 1.25 mm"),
        ({84: ("f", NAN)}, "IMAGE-SPACING", "nan"),
        ({88: ("f", float("inf"))}, "IMAGE-SPACING", "inf"),
        ({80: ("3f", 2.0, 2.0, 1.25)}, "IMAGE-SPACING", "contradicts itself"),
        ({252: ("2h", 0, 1), 80: ("3f", 2.0, 2.0, 1.25)}, "IMAGE-SPACING", "contradicts itself"),
        ({112: ("f", NAN)}, "IMAGE-HEADER", "slope nan"),
        ({116: ("f", float("inf"))}, "IMAGE-HEADER", "intercept inf"),
        ({112: ("2f", 1e6, 0.0)}, "IMAGE-HU", "not HU"),
        ({112: ("2f", 1e-3, 0.0)}, "IMAGE-HU", "not HU"),
        ({112: ("2f", 1.0, 1024.0)}, "IMAGE-HU", "not HU"),
        ({42: ("3h", 32000, 32000, 32000)}, "IMAGE-SIZE", "32000 x 32000 x 32000"),
        ({42: ("3h", 24, 20, 27)}, "IMAGE-TRUNCATED", "of 25920 bytes"),
        ({40: ("4h", 2, 24, 520, 1)}, "IMAGE-DIMENSION", "24 x 520"),
        ({40: ("5h", 4, 24, 20, 13, 2)}, "IMAGE-DIMENSION", "24 x 20 x 13 x 2"),
        ({70: ("2h", 128, 24)}, "IMAGE-COLOUR", "3 values"),
        ({70: ("2h", 2, 8)}, "IMAGE-8-BIT", "8 bits"),
        ({0: ("i", 540)}, "IMAGE-FORMAT", "NIfTI-1"),
        ({252: ("2h", 0, 1), 280: ("12f", *[0.0] * 12)}, "IMAGE-DIRECTION", "orthonormal"),
        (
            {252: ("2h", 0, 1), 280: ("12f", 3, 1, 0, 0, 0, 3, 0, 0, 0, 0, 1.25, 0)},
            "IMAGE-DIRECTION",
            "orthonormal",
        ),
        ({76: ("4f", 1, 0.003, 0.003, 0.00125), 252: ("2h", 1, 0)}, "IMAGE-EXTENT", "30 to 2000 mm"),
        ({76: ("4f", 1, 300, 300, 4), 252: ("2h", 1, 0)}, "IMAGE-EXTENT", "30 to 2000 mm"),
    ],
)
def test_a_nifti_with_a_bad_header_is_refused(
    tmp_path: Path, fields: dict[int, tuple[object, ...]], code: str, says: str
) -> None:
    finding = refused(nifti(tmp_path, fields))
    assert (finding.code, finding.severity) == (code, "error")
    assert says in finding.message


def test_a_nifti_in_metres_is_understood(tmp_path: Path) -> None:
    path = nifti(tmp_path, {123: ("b", 1), 76: ("4f", 1, 0.003, 0.003, 0.00125), 252: ("2h", 1, 0)})
    ct, _ = read_ct(path, None)
    assert ct.GetSpacing() == pytest.approx(SPACING_MM_XYZ)


def test_a_nifti_without_orientation_is_a_warning(tmp_path: Path) -> None:
    _, (finding,) = read_ct(nifti(tmp_path, {252: ("2h", 0, 0)}), None)
    assert (finding.code, finding.severity) == ("IMAGE-ORIENTATION", "warning")


@pytest.mark.parametrize("keep", [100, 349, 9000])
def test_a_cut_nifti_is_refused(tmp_path: Path, keep: int) -> None:
    whole = nifti(tmp_path, {}).read_bytes()
    (tmp_path / "cut.nii").write_bytes(whole[:keep])
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(whole[:keep]))
    assert refused(tmp_path / "cut.nii").code == "IMAGE-TRUNCATED"
    assert refused(tmp_path / "cut.nii.gz").code == "IMAGE-TRUNCATED"


@pytest.mark.parametrize("keep", [-9, 10_000, 200, 5])
def test_a_cut_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    packed = gzip.compress(nifti(tmp_path, {}).read_bytes())
    (tmp_path / "ct.nii.gz").write_bytes(packed[:keep])
    assert refused(tmp_path / "ct.nii.gz").code in (
        "IMAGE-DAMAGED",
        "IMAGE-UNREADABLE",
    )  # SimpleITK may be first


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_found_in_every_format(
    tmp_path: Path, suffix: str, value: float
) -> None:
    values = hu_array().astype(np.float32)
    values[5, 6, 7] = value
    assert refused(written(tmp_path, image(values), f"ct.{suffix}")).code == "IMAGE-NOT-FINITE"


# ---- bad MetaImage and NRRD ----

META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "3 3 1.25",
    "DimSize": "24 20 26",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "24 20 26",
    "space directions": "(3,0,0) (0,3,0) (0,0,1.25)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(0,0,0)",
}


def text_header(path: Path, fields: dict[str, str], changes: dict[str, str | None]) -> Path:
    """A MetaImage or NRRD of the scan, with fields changed, added, or (None) left out."""
    is_meta = "NDims" in fields
    lines = [
        f"{key}{' = ' if is_meta else ': '}{value}" for key, value in {**fields, **changes}.items() if value
    ]
    if is_meta:  # this one ends the header
        lines.sort(key=lambda line: line.startswith("ElementDataFile"))
    text = "\n".join(lines) + "\n" if is_meta else "NRRD0004\n" + "\n".join(lines) + "\n\n"
    path.write_bytes(text.encode() + hu_array().tobytes())
    return path


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ElementSpacing": "0 3 1.25"}, "IMAGE-SPACING"),
        ({"ElementSpacing": "-3 3 1.25"}, "IMAGE-SPACING"),
        ({"ElementSpacing": None}, "IMAGE-SPACING"),
        ({"ElementSpacing": "nan 3 1.25"}, "IMAGE-HEADER"),
        ({"Offset": "0 inf 0"}, "IMAGE-HEADER"),
        ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "IMAGE-DIRECTION"),
        ({"TransformMatrix": "1 0.3 0 0 1 0 0 0 1"}, "IMAGE-DIRECTION"),
        ({"TransformMatrix": "2 0 0 0 2 0 0 0 2"}, "IMAGE-DIRECTION"),
        ({"DimSize": "32000 32000 32000"}, "IMAGE-SIZE"),
        ({"DimSize": "24 -20 26"}, "IMAGE-SIZE"),
        ({"DimSize": "24 20 0"}, "IMAGE-DIMENSION"),
        ({"DimSize": "24 20 1"}, "IMAGE-DIMENSION"),
        ({"DimSize": "24 20 27"}, "IMAGE-UNREADABLE"),
        ({"ElementType": "MET_FOO"}, "IMAGE-UNREADABLE"),
        ({"ElementType": "MET_UCHAR"}, "IMAGE-8-BIT"),
        ({"ElementNumberOfChannels": "3"}, "IMAGE-COLOUR"),
        ({"CompressedData": "True"}, "IMAGE-DAMAGED"),
        ({"ElementDataFile": None}, "IMAGE-FORMAT"),
        ({"ElementDataFile": "/etc/passwd"}, "IMAGE-DATA-FILE"),
        ({"ElementDataFile": "../ct.raw"}, "IMAGE-DATA-FILE"),
        ({"ElementDataFile": "link.raw"}, "IMAGE-DATA-FILE"),
        ({"ElementDataFile": "none.raw"}, "IMAGE-DATA-FILE"),
        ({"ElementDataFile": "LIST"}, "IMAGE-DATA-FILE"),
        ({"ElementDataFile": "ct%03d.raw 1 26 1"}, "IMAGE-DATA-FILE"),
    ],
)
def test_a_bad_metaimage_is_refused(tmp_path: Path, changes: dict[str, str | None], code: str) -> None:
    outside = tmp_path / "ct.raw"
    outside.write_bytes(hu_array().tobytes())
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "link.raw").symlink_to(outside)
    assert refused(text_header(folder / "ct.mha", META, changes)).code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"space directions": "(0,0,0) (0,3,0) (0,0,1.25)"}, "IMAGE-SPACING"),
        ({"space directions": None, "space": None, "space origin": None}, "IMAGE-SPACING"),
        ({"space directions": "(nan,0,0) (0,3,0) (0,0,1.25)"}, "IMAGE-HEADER"),
        ({"space origin": "(nan,0,0)"}, "IMAGE-HEADER"),
        ({"space directions": "(3,1,0) (0,3,0) (0,0,1.25)"}, "IMAGE-DIRECTION"),
        ({"sizes": "32000 32000 32000"}, "IMAGE-SIZE"),
        ({"sizes": "24 20 27"}, "IMAGE-UNREADABLE"),
        ({"type": "unsigned char"}, "IMAGE-8-BIT"),
        ({"encoding": "gzip"}, "IMAGE-DAMAGED"),
        ({"data file": "/etc/passwd"}, "IMAGE-DATA-FILE"),
        ({"data file": "LIST"}, "IMAGE-DATA-FILE"),
        ({"byte skip": "-1"}, "IMAGE-FORMAT"),
    ],
)
def test_a_bad_nrrd_is_refused(tmp_path: Path, changes: dict[str, str | None], code: str) -> None:
    assert refused(text_header(tmp_path / "ct.nrrd", NRRD, changes)).code == code


def test_the_headers_of_these_tests_are_good_but_for_the_change(tmp_path: Path) -> None:
    for path in (text_header(tmp_path / "ct.mha", META, {}), text_header(tmp_path / "ct.nrrd", NRRD, {})):
        ct, findings = read_ct(path, None)
        assert findings == ()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), hu_array())


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_damage_in_packed_pixels_is_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ct.{suffix}"
    sitk.WriteImage(image(hu_array()), str(path), useCompression=True)
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0x10
    path.write_bytes(content)
    assert refused(path).code == "IMAGE-DAMAGED"
    path.write_bytes(content[: len(content) // 2])
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


# ---- what is no scan at all ----


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("ct.nii.gz", b"", "IMAGE-EMPTY-FILE"),
        ("ct.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "IMAGE-LFS-POINTER"),
        ("ct.mha", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "IMAGE-LFS-POINTER"),
        ("ct.png", b"\x89PNG", "IMAGE-FORMAT"),
        ("IM0001.dcm", b"\0" * 128 + b"DICM", "IMAGE-FORMAT"),
        ("ct.nii", b"hello" * 100, "IMAGE-FORMAT"),
        ("ct.nii.gz", b"hello" * 100, "IMAGE-DAMAGED"),
        ("ct.nrrd", b"hello" * 100, "IMAGE-FORMAT"),
        ("ct.mhd", b"hello" * 100, "IMAGE-FORMAT"),
        ("ct.mhd", b"\xff\xfe\nElementDataFile = LOCAL\nElementSpacing = 1 1 1\n", "IMAGE-SPACING"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name).code == code


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "ct.nii.gz").code == "IMAGE-MISSING"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (lung_array().astype(np.int16), "IMAGE-MASK-AS-CT"),
        (lung_array().astype(np.float32) * 2, "IMAGE-MASK-AS-CT"),
        ((np.clip(hu_array(), -1000, 150) + 1000.0) / 1150 * 255, "IMAGE-MASK-AS-CT"),
        (lung_array(), "IMAGE-8-BIT"),
        (hu_array().astype(np.int32) + 1024, "IMAGE-HU"),
        ((hu_array().astype(np.int32) + 1024).astype(np.uint16), "IMAGE-HU"),
        (np.zeros(SHAPE_DHW, np.int16) - 1000, "IMAGE-HU"),
        (hu_array().astype(np.float64) * 1e9, "IMAGE-HU"),
    ],
)
def test_values_that_are_no_hu_are_refused(
    tmp_path: Path, values: npt.NDArray[np.generic], code: str
) -> None:
    assert refused(written(tmp_path, image(values), "ct.nrrd")).code == code


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


def shifted(made: sitk.Image, shift_mm: float) -> sitk.Image:
    x, y, z = made.GetOrigin()
    made.SetOrigin((x + shift_mm, y, z))
    return made


def respaced(made: sitk.Image) -> sitk.Image:
    made.SetSpacing((3.0, 3.0, 1.3))
    return made


def turned(made: sitk.Image) -> sitk.Image:
    made.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))  # the voxels stay, the axis flips: the other lung
    return made


def transposed(made: sitk.Image) -> sitk.Image:
    return image(np.ascontiguousarray(sitk.GetArrayFromImage(made).transpose(0, 2, 1)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda made: made[:, :, 1:], "24x20x25 voxels"),
        (lambda made: shifted(made, 1.5), "from (-35,"),
        (respaced, "3 x 3 x 1.3 mm"),
        (turned, "axes [[-1.0"),
        (transposed, "20x24x26 voxels"),
    ],
)
def test_a_mask_of_another_geometry_is_refused_with_both_grids(
    tmp_path: Path, change: Callable[[sitk.Image], sitk.Image], says: str
) -> None:
    path = written(tmp_path, change(image(lung_array())), "lung.nrrd")
    finding = mask_refused(path, image(hu_array()))
    assert finding.code == "IMAGE-MASK-GEOMETRY"
    its_grid, the_scans = finding.message.split(", the scan's is ")
    assert says in its_grid
    assert "24x20x26 voxels of 3 x 3 x 1.25 mm from (-36.5, -22, 110.2) mm" in the_scans


def test_rounding_in_a_header_is_no_other_geometry(tmp_path: Path) -> None:
    path = written(tmp_path, shifted(image(lung_array()), 0.01), "lung.nrrd")
    mask = read_mask(path, image(hu_array()), None)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), lung_array())


@pytest.mark.parametrize(
    "values", [hu_array(), lung_array() * np.float32(0.7), np.where(lung_array(), np.float32(np.nan), 0)]
)
def test_a_mask_with_values_that_are_no_labels_is_refused(
    tmp_path: Path, values: npt.NDArray[np.generic]
) -> None:
    path = written(tmp_path, image(values), "lung.nii.gz")
    assert mask_refused(path, image(hu_array())).code == "IMAGE-MASK-VALUES"


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


# ---- the real bad files ----


@needs_bad
@pytest.mark.parametrize("path", sorted(BAD.glob("33_metaimage_oddities/*.mh*")), ids=lambda path: path.name)
def test_real_odd_metaimages_are_refused(path: Path) -> None:
    assert refused(path).code in {
        "IMAGE-COLOUR", "IMAGE-DATA-FILE", "IMAGE-DIMENSION", "IMAGE-EXTENT", "IMAGE-SPACING",
    }  # fmt: skip


@needs_bad
def test_a_real_mask_given_as_a_scan_is_refused() -> None:
    (path,) = BAD.glob("40_mask_passed_as_ct/*.mhd")
    assert refused(path).code == "IMAGE-8-BIT"
