"""NIfTI-1 files (.nii, .nii.gz): header fields that SimpleITK glosses over, and the voxels themselves."""

import io
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from zlib_ng import gzip_ng, zlib_ng

from client.image_files import FIX_RESTORE, MAX_PLACE_MM, ImageFile, first_bytes
from client.image_memory import new_image

HEADER_BYTES = 348

_CHUNK_BYTES = 1 << 18  # unpacked at a time: stays in the cache
_LAST_PLACE = 2**62  # that a file can be asked for; no file is as long
_GZIP = b"\x1f\x8b"
_PACKING_ERROR: type[Exception] = zlib_ng.error  # type: ignore[assignment] # its types name an instance
_NOT_WHOLE = (OSError, EOFError, _PACKING_ERROR)
_FIX_PLACE = "Convert the file again from DICOM; scan and masks alike."
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # metre, millimetre, micrometre; anything else counts as mm
_TYPES = {
    **{2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8"},
    **{256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"},
}


Affine = npt.NDArray[np.float64]  # (3, 4), RAS


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of a header that count here; SimpleITK makes the geometry of the others."""

    dtype: np.dtype[np.generic] | None  # None for colours, complex numbers and the like
    spacing_mm_xyz: tuple[float, float, float]  # pixdim
    sform_spacing_mm_xyz: tuple[float, float, float] | None  # by the affine matrix, if it has one
    qform_mm: Affine | None  # from voxels (x, y, z) to mm, by the quaternion, if it has one
    sform_mm: Affine | None  # by the affine matrix, if it has one
    first_voxel_at: int  # bytes into the unpacked file
    slope: float
    intercept: float
    is_oriented: bool  # one of the two transforms to the patient's axes is there


def read_nifti_header(file: ImageFile) -> NiftiHeader:
    """The header of a NIfTI-1 file. Raises FindingError with an IMAGE- code if there is none."""
    header = _header_bytes(file)
    order = "<" if header[:4] == struct.pack("<i", HEADER_BYTES) else ">"
    if struct.unpack_from(f"{order}i", header)[0] != HEADER_BYTES:
        raise file.error("IMAGE-FORMAT", "it does not begin like a NIfTI-1 file", "Write it as NIfTI-1.")
    (datatype,) = struct.unpack_from(f"{order}h", header, 70)
    x, y, z = struct.unpack_from(f"{order}3f", header, 80)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", header, 108)
    qform, sform = struct.unpack_from(f"{order}2h", header, 252)
    if not np.isfinite([offset, slope, intercept]).all():
        message = f"the header says offset {offset}, slope {slope} and intercept {intercept} of the values"
        raise file.error("IMAGE-HEADER", message, "Write the file again with scl_slope 1 and scl_inter 0.")
    unit_mm = _MM_PER_UNIT.get(header[123] & 7, 1.0)
    has_sides = bool(np.isfinite([x, y, z]).all())  # if not, that is the finding
    qform_mm = _qform(file, header, order, unit_mm) if qform > 0 and has_sides else None
    sform_mm = _sform(file, header, order, unit_mm) if sform > 0 else None
    return NiftiHeader(
        dtype=np.dtype(f"{order}{_TYPES[datatype]}") if datatype in _TYPES else None,
        spacing_mm_xyz=(x * unit_mm, y * unit_mm, z * unit_mm),
        sform_spacing_mm_xyz=None if sform_mm is None else _side_lengths(sform_mm),
        qform_mm=qform_mm,
        sform_mm=sform_mm,
        first_voxel_at=min(max(int(offset), HEADER_BYTES), _LAST_PLACE),
        slope=slope,
        intercept=intercept,
        is_oriented=qform > 0 or sform > 0,
    )


def read_nifti_image(file: ImageFile, header: NiftiHeader, shape_DHW: tuple[int, ...]) -> sitk.Image:
    """All voxels, scaled as the header says, without geometry; NaN stays NaN.

    Raises FindingError for a type that is no number, an early end of the file and a damaged packing.
    """
    if header.dtype is None:
        raise file.error("IMAGE-UNREADABLE", "its voxels are not plain numbers", FIX_RESTORE)
    image, values = new_image(shape_DHW, header.dtype.newbyteorder("="))
    _read_values(file, header, values)
    if not header.dtype.isnative:
        values.byteswap(inplace=True)
    if header.slope in (0.0, 1.0) and (header.slope == 0.0 or header.intercept == 0.0):  # 0: not scaled
        return image
    scaled = values.astype(np.float32) * np.float32(header.slope) + np.float32(header.intercept)
    return sitk.GetImageFromArray(scaled)


def _read_values(file: ImageFile, header: NiftiHeader, values: npt.NDArray[np.generic]) -> None:
    """Fill `values` with the bytes of the file, in the file's own byte order."""
    n_read = 0
    try:
        with _opened(file) as stream:
            _skip(stream, header.first_voxel_at)
            n_read = _fill(values, stream)
            stream.read(_CHUNK_BYTES)  # the end of a packed file is where its checksum is
    except _NOT_WHOLE as error:
        raise file.error("IMAGE-DAMAGED", f"it cannot be unpacked: {error}", FIX_RESTORE) from None
    if n_read < values.nbytes:
        message = f"its voxels end after {n_read} of {values.nbytes} bytes"
        raise file.error("IMAGE-TRUNCATED", message, FIX_RESTORE)


def _qform(file: ImageFile, header: bytes, order: str, unit_mm: float) -> Affine:
    """By the quaternion (b, c, d), the offset and pixdim; a quaternion that is no rotation is an error."""
    quaternion = struct.unpack_from(f"{order}3f", header, 256)
    offset_mm = np.array(struct.unpack_from(f"{order}3f", header, 268)) * unit_mm
    qfac, *sides = struct.unpack_from(f"{order}4f", header, 76)
    length = float(np.linalg.norm(quaternion))
    if not length < 1.001:  # NaN too
        numbers = ", ".join(f"{number:g}" for number in quaternion)
        raise file.error("IMAGE-HEADER", f"its quaternion ({numbers}) is no rotation", _FIX_PLACE)
    _check_place(file, offset_mm, "qoffset")
    turn = sitk.VersorTransform([*quaternion, float(np.sqrt(max(0.0, 1 - length**2)))])
    sides_mm = np.array(sides) * unit_mm * (1, 1, -1 if qfac < 0 else 1)
    return np.column_stack([np.reshape(turn.GetMatrix(), (3, 3)) * sides_mm, offset_mm])


def _sform(file: ImageFile, header: bytes, order: str, unit_mm: float) -> Affine:
    sform_mm = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4)) * unit_mm
    _check_place(file, sform_mm[:, 3], "srow offset")
    if not np.isfinite(sform_mm).all():
        raise file.error("IMAGE-HEADER", f"its srow matrix is {sform_mm[:, :3].tolist()}", _FIX_PLACE)
    return sform_mm


def _check_place(file: ImageFile, offset_mm: npt.NDArray[np.float64], field: str) -> None:
    if not (np.abs(offset_mm) <= MAX_PLACE_MM).all():  # NaN too
        place = ", ".join(f"{number:g}" for number in offset_mm)
        message = f"its {field} puts the first voxel at ({place}) mm"
        raise file.error("IMAGE-HEADER", message, _FIX_PLACE)


def _side_lengths(affine_mm: Affine) -> tuple[float, float, float]:
    x_mm, y_mm, z_mm = (float(side) for side in np.linalg.norm(affine_mm[:, :3], axis=0))
    return (x_mm, y_mm, z_mm)


def _skip(stream: io.BufferedIOBase, n_bytes: int) -> None:
    if stream.seekable():
        stream.seek(n_bytes)
        return
    while n_bytes > 0 and (passed := len(stream.read(min(n_bytes, _CHUNK_BYTES)))):
        n_bytes -= passed


def _fill(values: npt.NDArray[np.generic], stream: io.BufferedIOBase) -> int:
    """Bytes read into `values`; in parts, so that a packed file is not in memory twice."""
    room = values.reshape(-1).view(np.uint8)
    n_read = 0
    while n_read < len(room) and (n := stream.readinto(room[n_read : n_read + _CHUNK_BYTES].data)):
        n_read += n
    return n_read


def _header_bytes(file: ImageFile) -> bytes:
    start = first_bytes(file)
    _refuse_other_packing(file, start)
    try:
        with _opened(file) as stream:
            header = stream.read(_CHUNK_BYTES)[:HEADER_BYTES]  # in a small file, its checksum too
    except _NOT_WHOLE as error:
        raise file.error("IMAGE-DAMAGED", f"it cannot be unpacked: {error}", FIX_RESTORE) from None
    if len(header) < HEADER_BYTES:
        message = f"it ends after {len(header)} of the {HEADER_BYTES} bytes of its header"
        raise file.error("IMAGE-TRUNCATED", message, FIX_RESTORE)
    return header


def _refuse_other_packing(file: ImageFile, start: bytes) -> None:
    """A file whose name says that it is compressed and that is not, or the other way round."""
    is_named_packed = file.suffix == ".nii.gz"
    if is_named_packed and struct.pack("<i", HEADER_BYTES) in (start[:4], start[3::-1]):
        raise file.error(
            "IMAGE-FORMAT", "it is not compressed, though its name says so", "Rename it to .nii."
        )
    if not is_named_packed and start.startswith(_GZIP):
        message = "it is compressed, though its name does not say so"
        raise file.error("IMAGE-FORMAT", message, "Rename it to .nii.gz.")


def _opened(file: ImageFile) -> io.BufferedIOBase:
    if file.suffix != ".nii.gz":
        return file.path.open("rb")
    packed: io.BufferedIOBase = gzip_ng.open(file.path)
    return packed
