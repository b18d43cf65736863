"""Are the pixels of a series readable CT values in HU, by its headers and then by themselves? (IV-B)

Declared sizes are judged before memory is allocated for them.
"""

import numpy as np
import numpy.typing as npt

from client.dicom_findings import (
    ALL_SLICES,
    Headers,
    each_bad,
    error,
    has_error,
    mixed_values,
    some_files,
    warning,
)
from client.dicom_header import SliceHeader
from client.findings import Finding

MAX_MATRIX = 2048  # rows, columns
MAX_VOXELS = 1024 * 1024 * 1500  # 3 GB of int16
MAX_SLOPE = 100.0
MAX_INTERCEPT_HU = 10_000.0
AIR_BELOW_HU = -500  # air around the patient and in the lungs
TISSUE_HU = (-200, 200)  # fat, muscle, blood
DENSE_ABOVE_HU = 300  # bone, contrast agent, metal
MIN_AIR, MIN_TISSUE, MAX_DENSE = 0.02, 0.05, 0.3  # shares of the voxels

Volume = npt.NDArray[np.int16] | npt.NDArray[np.float32]

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_JPEG_FAMILY = (50, 51, 53, 55, 57, 70, 80, 81, 90, 91, 201, 202, 203)  # JPEG, JPEG-LS, JPEG 2000, HTJ2K
_COMPRESSED = ("1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{number}" for number in _JPEG_FAMILY))
_LOSSY = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 81, 91, 203))
_HU_NAMES = ("HU", "US", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "HOUNDSFIELD UNIT")  # US is "unspecified"


def format_findings(headers: Headers) -> list[Finding]:
    """Sizes, colour, bits and encoding: what cannot be decoded, or decodes to something else than CT."""
    findings = [
        *mixed_values(headers, lambda h: (h.rows, h.columns), "DICOM-MIXED-SIZE", "(rows, columns)"),
        *_sizes(headers),
        *_colours(headers),
        *_bits(headers),
        *_transfer_syntaxes(headers),
    ]
    return findings if has_error(findings) else findings + _pixel_lengths(headers)


def calibration_findings(headers: Headers) -> list[Finding]:
    """RescaleSlope and RescaleIntercept that are missing, absurd, mixed, or lead to another unit than HU."""
    lost = each_bad(
        headers,
        lambda header: header.slope is None or header.intercept is None,
        "DICOM-RESCALE",
        "no RescaleSlope or RescaleIntercept: stored values cannot be turned into HU",
        "Export the series again without stripping these tags.",
    )
    return [
        *(lost or _absurd_rescale(headers)),
        *mixed_values(headers, lambda h: (h.slope, h.intercept), "DICOM-MIXED-RESCALE", "(slope, intercept)"),
        *each_bad(
            headers,
            lambda header: header.rescale_type is not None and header.rescale_type.upper() not in _HU_NAMES,
            "DICOM-RESCALE-TYPE",
            "RescaleType says that the values are not Hounsfield units",
            "Use the CT images themselves, not maps of iodine, atomic number or density.",
        ),
    ]


def plausibility_findings(volume_DHW: Volume) -> list[Finding]:
    """A chest CT in HU holds air and soft tissue and little bone; masks, wrong calibrations, noise do not.

    `volume_DHW` is in HU. About every 64th voxel of a full-sized scan is looked at.
    """
    step_d, step_h, step_w = (max(1, size // 128) for size in volume_DHW.shape)
    sample: Volume = volume_DHW[::step_d, ::step_h, ::step_w].copy()  # gathered once, read often
    air = np.count_nonzero(sample < AIR_BELOW_HU) / sample.size
    tissue = np.count_nonzero((sample > TISSUE_HU[0]) & (sample < TISSUE_HU[1])) / sample.size
    dense = np.count_nonzero(sample > DENSE_ABOVE_HU) / sample.size
    if air >= MIN_AIR and tissue >= MIN_TISSUE and dense <= MAX_DENSE:
        return []
    message = (
        f"values {sample.min():g} to {sample.max():g} are not HU of a chest: {air:.1%} below {AIR_BELOW_HU} "
        f"(air; at least {MIN_AIR:.0%}), {tissue:.1%} in {TISSUE_HU} (tissue; at least {MIN_TISSUE:.0%}), "
        f"{dense:.1%} above {DENSE_ABOVE_HU} (bone; at most {MAX_DENSE:.0%})"
    )
    fix = "Check that this is a CT and not a mask, and that its RescaleSlope and RescaleIntercept are right."
    return [error("DICOM-HU", "pixel values", message, fix)]


def _sizes(headers: Headers) -> list[Finding]:
    sides = [side for header in headers for side in (header.rows or 0, header.columns or 0)]
    voxels = sum((header.rows or 0) * (header.columns or 0) for header in headers)
    if min(sides) > 0 and max(sides) <= MAX_MATRIX and voxels <= MAX_VOXELS:
        return []
    message = (
        f"{len(headers)} slices declare sides of {min(sides)} to {max(sides)} pixels and {voxels} voxels; "
        f"at most {MAX_MATRIX} and {MAX_VOXELS} are read"
    )
    fix = "Check Rows and Columns; nothing was read into memory."
    return [error("DICOM-SIZE", ALL_SLICES, message, fix)]


def _is_colour(header: SliceHeader) -> bool:
    return header.samples_per_pixel != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2")


def _colours(headers: Headers) -> list[Finding]:
    return [
        *each_bad(
            headers,
            _is_colour,
            "DICOM-COLOUR",
            "expected one sample per pixel in MONOCHROME2; this is a colour or palette image",
            "Use the original CT images, not screenshots or colour maps.",
        ),
        *each_bad(
            headers,
            lambda header: not _is_colour(header) and header.photometric == "MONOCHROME1",
            "DICOM-MONOCHROME1",
            "MONOCHROME1 shows low values bright: whether its values are HU cannot be known",
            "Export the original CT images, which are MONOCHROME2.",
        ),
    ]


def _bits(headers: Headers) -> list[Finding]:
    def are_bad(header: SliceHeader) -> bool:
        stored = header.bits_stored or 0
        is_sound = 8 < stored <= 16 and header.high_bit == stored - 1
        return not (header.bits_allocated == 16 and is_sound and header.pixel_representation in (0, 1))

    bad = [header for header in headers if are_bad(header)]
    if not bad:
        return mixed_values(
            headers,
            lambda header: (header.bits_stored, header.pixel_representation),
            "DICOM-MIXED-FORMAT",
            "(bits stored, signed)",
        )
    message = (
        "expected 9 to 16 bits in 16 with the high bit one less, signed or not; found "
        f"{bad[0].bits_stored} in {bad[0].bits_allocated}, high bit {bad[0].high_bit}, "
        f"PixelRepresentation {bad[0].pixel_representation}"
    )
    fix = "Export the original CT images: 8-bit and converted copies have lost the Hounsfield scale."
    return [error("DICOM-BITS", some_files(bad, headers), message, fix)]


def _transfer_syntaxes(headers: Headers) -> list[Finding]:
    findings = each_bad(
        headers,
        lambda header: header.transfer_syntax not in (*_NATIVE, *_COMPRESSED),
        "DICOM-TRANSFER-SYNTAX",
        "the transfer syntax is missing, or none that can be read",
        "Export as Explicit VR Little Endian, or with lossless JPEG, JPEG-LS or JPEG 2000.",
    )
    lossy = [header for header in headers if header.is_lossy or header.transfer_syntax in _LOSSY]
    if lossy:
        fix = "Use the original without such compression if there is one."
        message = "compressed with loss: HU are not those of the scanner"
        findings.append(warning("DICOM-LOSSY", some_files(lossy, headers), message, fix))
    return findings


def _pixel_lengths(headers: Headers) -> list[Finding]:
    rows, columns = headers[0].rows or 0, headers[0].columns or 0
    expected = f"{rows} x {columns} x 2 = {rows * columns * 2} bytes"
    return [
        *each_bad(
            headers,
            lambda header: header.pixels is not None and header.pixels.is_truncated,
            "DICOM-TRUNCATED",
            f"the file ends before its pixel data ({expected} uncompressed) do",
            "Copy the files from the PACS again.",
        ),
        *each_bad(
            headers,
            lambda header: _declares_other_length(header, rows * columns * 2),
            "DICOM-PIXEL-LENGTH",
            f"the pixel data are not the declared {expected}",
            "Copy the files from the PACS again; if it stays so, leave the case out.",
        ),
    ]


def _declares_other_length(header: SliceHeader, expected_bytes: int) -> bool:
    """Native pixel data have exactly their size; compressed ones come in fragments, without a length."""
    declared_bytes = header.pixels.declared_bytes if header.pixels else None
    if header.transfer_syntax in _COMPRESSED:
        return declared_bytes is not None
    return declared_bytes != expected_bytes


def _absurd_rescale(headers: Headers) -> list[Finding]:
    def is_absurd(header: SliceHeader) -> bool:
        slope, intercept = header.slope or 0.0, header.intercept or 0.0
        return not 1 / MAX_SLOPE <= slope <= MAX_SLOPE or abs(intercept) > MAX_INTERCEPT_HU

    bad = [header for header in headers if is_absurd(header)]
    if not bad:
        return []
    message = (
        f"RescaleSlope {bad[0].slope:g} and RescaleIntercept {bad[0].intercept:g} make no HU: a slope is "
        f"{1 / MAX_SLOPE:g} to {MAX_SLOPE:g}, an intercept at most {MAX_INTERCEPT_HU:g} from 0"
    )
    fix = "Export the series again with its true calibration."
    return [error("DICOM-RESCALE", some_files(bad, headers), message, fix)]
