"""The gate for DICOM series: from its headers, is this one contiguous axial chest CT in HU? (IV-A, IV-B)

SimpleITK's own series reader takes gaps, copies, tilts, mixtures and nonsense calibrations without a word,
so every series is judged here before a pixel is read. Codes: docs/reference/errors.md.
"""

import re
from collections import Counter

from client.dicom_findings import ALL_SLICES, Headers, each_bad, error, has_error, some_files, warning
from client.dicom_geometry import (
    MAX_POSITION_ERROR_MM,
    Stack,
    in_plane_findings,
    orientation_findings,
    stack_slices,
    stacking_findings,
)
from client.dicom_header import SliceHeader
from client.dicom_values import calibration_findings, format_findings
from client.findings import Finding
from client.slice_thickness import MAX_SLICE_THICKNESS_MM, PAPER_THICKNESS_MM, PAPERS_ARE

MIN_SLICES = 8

_ESSENTIAL = (
    *("Modality", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_MULTI_FRAME_CLASSES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # Enhanced, converted
_PROJECTIONS = {"MIP", "MINIP", "MAXIP"}


def audit_series(
    headers: Headers, max_slice_thickness_mm: float = MAX_SLICE_THICKNESS_MM
) -> tuple[Finding, ...]:
    """Everything wrong with a series, errors first and the most telling one before its consequences.

    `headers` are of all DICOM files of one folder, at least one, in any order. No error means that it may
    be read. A series that is not a plain CT, or lacks an essential tag, is not judged further. Findings
    carry no case.
    """
    findings = [*_kind_findings(headers), *_series_findings(headers)]
    if not has_error(findings):
        findings += _tag_findings(headers)
    if not has_error(findings):
        findings += [*_geometry_findings(headers, max_slice_thickness_mm), *_count_findings(headers)]
        findings += [*format_findings(headers), *calibration_findings(headers)]
    return tuple(sorted(findings, key=lambda finding: finding.severity != "error"))


def _kind_findings(headers: Headers) -> list[Finding]:
    """What is no CT image at all, or a CT image that is no slice."""
    others = [header for header in headers if header.modality not in (None, "CT")]
    kinds = ", ".join(sorted({_shown_word(header.modality) for header in others}))
    findings = [
        *each_bad(
            headers,
            lambda header: header.modality not in (None, "CT"),
            "DICOM-MODALITY",
            f"expected Modality CT, found {kinds}",
            "Only CT images are read: leave reports, segmentations, doses and other modalities out.",
        ),
        *each_bad(
            headers,
            lambda header: header.pixels is None,
            "DICOM-NO-PIXELS",
            "the object has no pixel data",
            "Export the images themselves, not headers, reports or references.",
        ),
    ]
    return findings or _not_slices(headers)


def _not_slices(headers: Headers) -> list[Finding]:
    return [
        *each_bad(
            headers,
            lambda header: (header.frames or 1) > 1 or header.sop_class in _MULTI_FRAME_CLASSES,
            "DICOM-MULTIFRAME",
            "several frames in one object (Enhanced CT), which need not form one volume",
            "Export the series as classic CT images, one file per slice.",
        ),
        *each_bad(
            headers,
            lambda header: "LOCALIZER" in header.image_type,
            "DICOM-LOCALIZER",
            "this is a localizer (scout) image, not a slice",
            "Use the axial series of the study and leave the localizer out.",
        ),
        *each_bad(
            headers,
            lambda header: not _PROJECTIONS.isdisjoint(_words(header.image_type)),
            "DICOM-PROJECTION",
            "ImageType names an intensity projection: a pixel is the extreme of a slab, not its density",
            "Use the original axial series.",
        ),
    ]


def _words(image_type: tuple[str, ...]) -> set[str]:
    """The words of ImageType: ("DERIVED", "CSA MIP") has MIP among them; MAX_IP is one word."""
    return {word for value in image_type for word in re.split(r"[^A-Z]+", value.replace("_", ""))}


def _shown_word(word: str | None) -> str:
    """A code word of the standard; anything longer may be a displaced name and is not shown."""
    return word if word and word.isascii() and word.isalnum() and len(word) <= 10 else "an unknown word"


def _series_findings(headers: Headers) -> list[Finding]:
    series = Counter(header.series_uid for header in headers)
    if len(series) == 1:
        return []
    sizes = ", ".join(str(count) for count in sorted(series.values(), reverse=True)[:6])
    message = f"one folder must hold one series; found {len(series)}, of {sizes} files"
    fix = "Give each series a folder of its own, or let `dsan-client import` choose one."
    return [error("DICOM-SERIES", ALL_SLICES, message, fix)]


def _tag_findings(headers: Headers) -> list[Finding]:
    """Tags without which a slice has no place or no values, and numbers that are none."""
    absent = Counter(keyword for header in headers for keyword in _ESSENTIAL if keyword in header.absent)
    malformed = Counter(keyword for header in headers for keyword in header.malformed)
    return [
        *each_bad(
            headers,
            lambda header: not header.absent.isdisjoint(_ESSENTIAL),
            "DICOM-MISSING-TAG",
            f"without a value: {_counts(absent)}",
            "Export the series again without stripping these tags (an anonymiser may have).",
        ),
        *each_bad(
            headers,
            lambda header: bool(header.malformed),
            "DICOM-BAD-TAG",
            f"not the finite numbers that the standard asks for: {_counts(malformed)}",
            "Copy the files from the PACS again; if it stays so, leave the case out.",
        ),
    ]


def _counts(keywords: Counter[str]) -> str:
    shown = [f"{keyword} ({count}x)" for keyword, count in keywords.most_common(5)]
    others = [f"and {len(keywords) - 5} more"] if len(keywords) > 5 else []
    return ", ".join(shown + others)


def _geometry_findings(headers: Headers, max_slice_thickness_mm: float) -> list[Finding]:
    findings = [*orientation_findings(headers), *in_plane_findings(headers)]
    if has_error(findings):
        return findings  # what orders slices along their normal needs one orientation
    stack = stack_slices(headers)
    return [*findings, *stacking_findings(stack), *_thickness_findings(stack, max_slice_thickness_mm)]


def _count_findings(headers: Headers) -> list[Finding]:
    if len(headers) >= MIN_SLICES:
        return []
    message = f"expected at least {MIN_SLICES} slices, found {len(headers)}"
    fix = "Export the whole series; one slice or a few are not a chest CT."
    return [error("DICOM-FEW-SLICES", ALL_SLICES, message, fix)]


def _thickness_findings(stack: Stack, max_slice_thickness_mm: float) -> list[Finding]:
    """Slice thickness and spacing against the paper's 0.625 to 1.5 mm (IV-A); overlap is fine."""
    where = ALL_SLICES
    thickness_mm = max(header.thickness_mm or 0.0 for header in stack.headers)
    widest_mm = max(stack.spacing_mm, thickness_mm)
    thick = f"{thickness_mm:g} mm thick" if thickness_mm > 0 else "of unknown thickness"
    found = f"slices are {thick} and {stack.spacing_mm:.2f} mm apart"
    findings = []
    if widest_mm > max_slice_thickness_mm + 0.01:
        message = f"{found}; at most {max_slice_thickness_mm:g} mm is taken, {PAPERS_ARE}"
        fix = "Use a thinner reconstruction, or raise the limit in site.toml and say so in the study."
        findings.append(error("DICOM-THICKNESS", where, message, fix))
    elif widest_mm > PAPER_THICKNESS_MM + 0.01:
        fix = "Use a thinner reconstruction if there is one."
        findings.append(warning("DICOM-THICKNESS", where, f"{found}; {PAPERS_ARE}", fix))
    if 0 < thickness_mm < stack.spacing_mm - max(MAX_POSITION_ERROR_MM, 0.1 * stack.spacing_mm):
        fix = "Use a contiguous reconstruction if there is one."
        findings.append(warning("DICOM-SAMPLING", where, f"{found}: tissue between was not imaged", fix))
    return findings + _thickness_tag_findings(stack)


def _thickness_tag_findings(stack: Stack) -> list[Finding]:
    def is_none(header: SliceHeader) -> bool:
        return header.thickness_mm is not None and header.thickness_mm <= 0

    bad = [header for header in stack.headers if is_none(header)]
    if not bad:
        return []
    message = "SliceThickness is zero or negative; the distance of the slices is taken instead"
    fix = "None is needed if that distance is right."
    return [warning("DICOM-THICKNESS-TAG", some_files(bad, stack.headers), message, fix)]
