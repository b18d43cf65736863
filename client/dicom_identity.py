"""Who and what a DICOM file of a PACS export belongs to: a second whitelist, read by `import` alone.

These tags name a patient and a study. They are used to group files, to find the label and to make
pseudonyms, at the hospital, and go no further: nothing of them is shown or stored in clear.
"""

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.tag import Tag

from client.dicom_header import quiet_pydicom

GROUPING = ("PatientID", "StudyInstanceUID", "AccessionNumber", "SeriesInstanceUID", "SOPInstanceUID")
FACTS = (
    "PatientAge",
    "PatientSex",
    "AcquisitionDate",
    "SeriesDate",
    "StudyDate",
    "ConvolutionKernel",
    "ManufacturerModelName",
    "BodyPartExamined",
)
LONGEST_SCANNER = 40
_PLAIN = re.compile(r"[^A-Za-z0-9 ._/+-]")
_YEARS_PER = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What groups a file with others; nothing of it is shown."""

    path: Path
    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    accession: str = field(repr=False)
    series_uid: str = field(repr=False)
    instance_uid: str = field(repr=False)


@dataclass(frozen=True)
class ScanFacts:
    """What a cohort's line says of a scan beside its label; None where the tag is absent or nonsense."""

    age: float | None  # years
    sex: str | None  # "F" or "M"
    acquired_on: date | None
    scanner: str | None
    kernel: str | None
    body_part: str | None = None


def read_identity(path: Path) -> FileIdentity:
    """Who a DICOM file belongs to; empty where a tag is absent. Raises whatever pydicom stumbles over."""
    dataset = _read(path, GROUPING)
    return FileIdentity(path, *(_text(dataset, keyword) for keyword in GROUPING))


def read_scan_facts(path: Path) -> ScanFacts:
    """Age, sex, date, scanner and kernel of the scan that a slice belongs to."""
    text = {keyword: _text(dataset, keyword) for dataset in [_read(path, FACTS)] for keyword in FACTS}
    days = (_date(text[keyword]) for keyword in ("AcquisitionDate", "SeriesDate", "StudyDate"))
    return ScanFacts(
        _age(text["PatientAge"]),
        text["PatientSex"] if text["PatientSex"] in ("F", "M") else None,
        next((day for day in days if day), None),
        _plain(text["ManufacturerModelName"], LONGEST_SCANNER),
        _plain(text["ConvolutionKernel"].split("\\")[0], 16),
        _plain(text["BodyPartExamined"].upper(), 16),
    )


def _read(path: Path, keywords: tuple[str, ...]) -> FileDataset:
    with quiet_pydicom():
        return dcmread(path, stop_before_pixels=True, specific_tags=[Tag(keyword) for keyword in keywords])


def _text(dataset: FileDataset, keyword: str) -> str:
    """The value: ASCII in practice; else UTF-8, or Latin-1 where it is none, which loses nothing."""
    element = dataset.get_item(Tag(keyword))
    value = b"" if element is None else element.value
    raw = value if isinstance(value, bytes) else str(value or "").encode("utf-8", "replace")
    try:
        return raw.decode("utf-8").strip(" \0")
    except UnicodeDecodeError:
        return raw.decode("latin-1").strip(" \0")


def _plain(text: str, longest: int) -> str | None:
    return _PLAIN.sub("", text).strip()[:longest] or None


def _age(text: str) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([YMWD])", text)
    years = float(match[1]) * _YEARS_PER[match[2]] if match else None
    return round(years, 2) if years is not None and years <= 120 else None


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if re.fullmatch(r"\d{8}", text) else None
    except ValueError:
        return None
