"""A site's cases as the hospital lists them: cohort.csv, checked line by line."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

from client.cohort_table import hidden_characters, nearest, read_lines
from client.findings import Finding
from dsan_model.cases import Label

COLUMNS = (
    "case_id",
    "patient_id",
    "label",
    "image",
    "lung_mask",
    "infection_mask",
    "age",
    "sex",
    "acquired_on",
    "scanner",
)
REQUIRED_CELLS = ("case_id", "patient_id", "label", "image")
LONGEST_TEXT = 64
OLDEST_AGE_YEARS = 120
FIRST_CT = date(1971, 10, 1)

_FIX_PATH = "Keep the files below the table's folder and write paths relative to it, as ct/0412.nii.gz."

T = TypeVar("T")


@dataclass(frozen=True)
class CohortCase:
    """One line of cohort.csv; paths are absolute and lie in the manifest's folder."""

    case_id: str
    patient_id: str
    label: Label
    image: Path  # a DICOM folder or a NIfTI, NRRD or MetaImage file
    lung_mask: Path | None
    infection_mask: Path | None
    age: float | None  # years
    sex: str | None  # "F" or "M"
    acquired_on: date | None
    scanner: str | None
    line: int


def read_cohort(manifest: Path) -> tuple[tuple[CohortCase, ...], tuple[Finding, ...]]:
    """Every usable case of cohort.csv, and a finding for everything that is wrong with the others.

    The table is UTF-8 (with or without a byte order mark), separated by commas, with all ten columns in any
    order. Of lines that share a case_id or a file none is used: nobody can tell here which one is right.
    Raises FindingError if it is no such table at all: missing, empty, another encoding, separator or header.
    """
    header, lines = read_lines(manifest, COLUMNS)
    cases: list[CohortCase] = []
    findings: list[Finding] = []
    for line, cells in lines:
        row = _Row(manifest, line, header, cells)
        case = _case(row)
        findings += row.findings
        if case is not None:
            cases.append(case)
    usable, shared = _without_shared(cases, manifest.name)
    findings += shared + _patients_with_two_labels(usable, manifest.name)
    if not usable:
        findings.append(_no_case(manifest.name))
    return tuple(usable), tuple(findings)


def count_lines(manifest: Path) -> int:
    """How many cases the table lists, usable or not. Raises FindingError as `read_cohort` does."""
    return len(read_lines(manifest, COLUMNS)[1])


# ---- one row ----


class _BadCellError(Exception):
    """What is wrong with a cell: code, reason, cure."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.message, self.fix = code, message, fix


@dataclass
class _Row:
    """One row while it is read; the findings gather here."""

    manifest: Path
    line: int
    header: list[str]
    cells: list[str]
    findings: list[Finding] = field(default_factory=list)

    def cell(self, column: str) -> str:
        return self.cells[self.header.index(column)]

    def read(self, column: str, parse: Callable[[str], T]) -> T | None:
        """The parsed cell; None where it is empty or bad, with a finding if that is wrong."""
        text = self.cell(column)
        try:
            if not text and column in REQUIRED_CELLS:
                raise _BadCellError("COHORT-EMPTY", "the cell is empty", "Fill it in.")
            _refuse_control_characters(text)
            return parse(text) if text else None
        except _BadCellError as bad:
            where = f"{self.manifest.name} line {self.line}, column {column}"
            self.findings.append(Finding(bad.code, "error", where, bad.message, bad.fix, self.case_id))
            return None

    @property
    def case_id(self) -> str | None:
        case_id = self.cell("case_id")
        return case_id if case_id.isprintable() and 0 < len(case_id) <= LONGEST_TEXT else None


def _case(row: _Row) -> CohortCase | None:
    if len(row.cells) != len(row.header):
        where = f"{row.manifest.name} line {row.line}, column {min(len(row.cells), len(row.header))}"
        message = f"the line has {len(row.cells)} cells, the header has {len(row.header)}"
        fix = "Put cells that hold a comma in quotes; leave empty cells between commas."
        row.findings.append(Finding("COHORT-CELLS", "error", where, message, fix))
        return None
    folder = row.manifest.parent.resolve()
    case_id, patient_id = row.read("case_id", _short_text), row.read("patient_id", _short_text)
    label = row.read("label", _label)
    image = row.read("image", lambda text: _path(text, folder, may_be_folder=True))
    lung_mask = row.read("lung_mask", lambda text: _path(text, folder))
    infection_mask = row.read("infection_mask", lambda text: _path(text, folder))
    age, sex = row.read("age", _age), row.read("sex", _sex)
    acquired_on, scanner = row.read("acquired_on", _date), row.read("scanner", _short_text)
    if row.findings or not (case_id and patient_id and label and image):
        return None
    return CohortCase(
        case_id, patient_id, label, image, lung_mask, infection_mask, age, sex, acquired_on, scanner, row.line
    )


def _refuse_control_characters(text: str) -> None:
    names = hidden_characters(text)
    if names:
        raise _BadCellError("COHORT-CONTROL", f"the cell holds the invisible character {names}", "Remove it.")


def _short_text(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        message = f"the text has {len(text)} characters, at most {LONGEST_TEXT} are allowed"
        raise _BadCellError("COHORT-LONG", message, "Shorten it.")
    return text


def _label(text: str) -> Label:
    if text not in list(Label):
        message = f"{text!r} is not a label{nearest(text, list(Label), cutoff=0.3)}"
        raise _BadCellError("COHORT-LABEL", message, f"Write {' or '.join(Label)}.")
    return Label(text)


def _age(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text) or float(text) > OLDEST_AGE_YEARS:
        message = f"{text!r} is not an age from 0 to {OLDEST_AGE_YEARS} years"
        raise _BadCellError(
            "COHORT-AGE", message, "Write the years as a plain number, or leave the cell empty."
        )
    return float(text)


def _sex(text: str) -> str:
    if text not in ("F", "M"):
        raise _BadCellError(
            "COHORT-SEX", f"{text!r} is neither F nor M", "Write F or M, or leave the cell empty."
        )
    return text


def _date(text: str) -> date:
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError("the form is YYYY-MM-DD")
        day = date.fromisoformat(text)
        if not FIRST_CT <= day <= date.today() + timedelta(days=1):  # a day for the time zones
            raise ValueError(f"a CT was made between {FIRST_CT} and today")
    except ValueError as error:
        fix = "Write YYYY-MM-DD, or leave the cell empty."
        raise _BadCellError("COHORT-DATE", f"{text!r} is not the date of a CT: {error}", fix) from None
    return day


def _path(text: str, folder: Path, *, may_be_folder: bool = False) -> Path:
    """The file or folder that a cell names, resolved; `folder` is the manifest's, resolved."""
    if "\\" in text or PureWindowsPath(text).drive or PurePosixPath(text).is_absolute():
        raise _BadCellError("COHORT-PATH", f"{text!r} is no relative path with forward slashes", _FIX_PATH)
    try:
        path = (folder / text).resolve()
        is_there = path.is_file() or (may_be_folder and path.is_dir())
    except (OSError, RuntimeError) as error:  # a name too long, no permission, a loop of links
        raise _BadCellError("COHORT-PATH", f"{text!r} cannot be followed: {error}", _FIX_PATH) from None
    if not path.is_relative_to(folder):
        raise _BadCellError("COHORT-PATH", f"{text!r} leads out of the folder of the table", _FIX_PATH)
    if not is_there:
        kind = "file or folder" if may_be_folder else "file"
        raise _BadCellError(
            "COHORT-MISSING", f"there is no {kind} {text!r}", "Correct the path or restore it."
        )
    return path


# ---- the cohort as a whole ----


def _without_shared(cases: list[CohortCase], name: str) -> tuple[list[CohortCase], list[Finding]]:
    """The cases that share neither their case_id nor a file with another line, and findings on the rest."""
    uses: dict[tuple[str, str], list[tuple[CohortCase, str]]] = defaultdict(list)
    for case in cases:
        uses["COHORT-CASE-TWICE", case.case_id].append((case, "case_id"))
        for column in ("image", "lung_mask", "infection_mask"):
            if path := getattr(case, column):
                uses["COHORT-FILE-TWICE", str(path)].append((case, column))
    findings, bad_lines = [], set()
    for (code, _), users in uses.items():
        if len(users) > 1:
            findings.append(_shared(code, users, name))
            bad_lines |= {case.line for case, _ in users}
    return [case for case in cases if case.line not in bad_lines], findings


def _shared(code: str, users: list[tuple[CohortCase, str]], name: str) -> Finding:
    case, column = users[-1]
    what = f"case_id {case.case_id!r}" if column == "case_id" else f"file {getattr(case, column).name!r}"
    places = " and ".join(f"line {user.line}, column {used_in}" for user, used_in in users)
    fix = "Keep the line that is right; none of these is used."
    where = f"{name} line {case.line}, column {column}"
    return Finding(code, "error", where, f"{places} name the same {what}", fix, case.case_id)


def _patients_with_two_labels(cases: list[CohortCase], name: str) -> list[Finding]:
    by_patient: dict[str, list[CohortCase]] = defaultdict(list)
    for case in cases:
        by_patient[case.patient_id].append(case)
    return [
        Finding(
            "COHORT-TWO-LABELS",
            "warning",
            f"{name} line {scans[-1].line}, column label",
            "one patient has both labels: " + ", ".join(f"line {scan.line} {scan.label}" for scan in scans),
            "Check whether these are two patients; if it is right as it is, nothing needs to be done.",
            scans[-1].case_id,
        )
        for scans in by_patient.values()
        if len({scan.label for scan in scans}) > 1
    ]


def _no_case(name: str) -> Finding:
    return Finding(
        "COHORT-NO-CASE", "error", name, "no line of the table is usable", "Correct the lines named above."
    )
