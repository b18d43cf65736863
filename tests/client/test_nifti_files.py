import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_factory import hu_array, image

from client.findings import FindingError
from client.image_files import ImageFile
from client.images import read_ct
from client.nifti_files import read_nifti_header, read_nifti_image

SHAPE_DHW = (5, 6, 7)
VALUES_DHW = np.arange(210, dtype=np.int16).reshape(SHAPE_DHW)


@pytest.fixture
def packed(tmp_path: Path) -> ImageFile:
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(VALUES_DHW), str(path))
    return ImageFile(path, "scan", None)


def test_values_are_the_files_own(packed: ImageFile) -> None:
    header = read_nifti_header(packed)
    values_DHW = sitk.GetArrayFromImage(read_nifti_image(packed, header, SHAPE_DHW))
    assert values_DHW.dtype == np.int16
    np.testing.assert_array_equal(values_DHW, VALUES_DHW)


@pytest.mark.parametrize("position", [-6, -2])  # in the checksum, in the length: the voxels unpack
def test_the_end_of_a_packed_file_is_looked_at(packed: ImageFile, position: int) -> None:
    header = read_nifti_header(packed)
    content = bytearray(packed.path.read_bytes())
    content[position] ^= 1
    packed.path.write_bytes(content)
    with pytest.raises(FindingError, match="IMAGE-DAMAGED"):
        read_nifti_image(packed, header, SHAPE_DHW)


def test_a_file_packed_in_parts_is_read(packed: ImageFile) -> None:
    whole = gzip.decompress(packed.path.read_bytes())
    packed.path.write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))
    values_DHW = sitk.GetArrayFromImage(read_nifti_image(packed, read_nifti_header(packed), SHAPE_DHW))
    np.testing.assert_array_equal(values_DHW, VALUES_DHW)


def test_nan_stays_nan(tmp_path: Path) -> None:
    values = np.where(VALUES_DHW == 7, np.nan, VALUES_DHW).astype(np.float32)
    file = ImageFile(tmp_path / "ct.nii", "scan", None)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(file.path))
    assert (
        np.isnan(sitk.GetArrayFromImage(sitk.ReadImage(str(file.path)))).sum() == 0
    )  # why we read it ourselves
    read = read_nifti_image(file, read_nifti_header(file), SHAPE_DHW)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), values)


@pytest.mark.parametrize("ending", [b"", b"\0" * 100_000], ids=["whole", "filled up with zeros"])
def test_a_file_of_several_gzip_members_is_read_to_its_end(tmp_path: Path, ending: bytes) -> None:
    """As some programs pack in parallel."""
    sitk.WriteImage(image(hu_array()), str(tmp_path / "ct.nii"))
    content = (tmp_path / "ct.nii").read_bytes()
    parts = (content[:300], content[300:5000], content[5000:])
    (tmp_path / "ct.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)) + ending)
    found, _ = read_ct(tmp_path / "ct.nii.gz", None)
    assert (sitk.GetArrayViewFromImage(found) == hu_array()).all()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda packed: packed[:-9], "IMAGE-DAMAGED"),
        (lambda packed: packed[:-8] + bytes(4) + packed[-4:], "IMAGE-DAMAGED"),
        (lambda packed: packed + b"more", "IMAGE-DAMAGED"),
    ],
    ids=["cut off", "another checksum", "more behind it"],
)
def test_a_packing_that_is_not_whole_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], code: str
) -> None:
    sitk.WriteImage(image(hu_array()), str(tmp_path / "ct.nii"))
    packed = gzip.compress((tmp_path / "ct.nii").read_bytes())
    (tmp_path / "ct.nii.gz").write_bytes(change(packed))
    with pytest.raises(FindingError, match=code):
        read_ct(tmp_path / "ct.nii.gz", None)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_voxels_said_to_begin_beyond_the_end_of_any_file_are_a_finding(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(image(hu_array()), str(tmp_path / "ct.nii"))
    content = bytearray((tmp_path / "ct.nii").read_bytes())
    struct.pack_into("<f", content, 108, 1e30)  # vox_offset
    (tmp_path / "ct.nii").write_bytes(content)
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(FindingError, match="IMAGE-"):
        read_ct(tmp_path / name, None)
