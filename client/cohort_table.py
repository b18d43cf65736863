"""cohort.csv as a table: encoding, separator, header and lines, before any cell is understood."""

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from client.findings import Finding, FindingError

_FIX_ENCODING = "Save the table as CSV UTF-8."
_NO_UTF8 = {  # first bytes; UTF-32's begin as UTF-16's
    b"PK\x03\x04": "a workbook",
    b"\xd0\xcf\x11\xe0": "a workbook of an old Excel",
    b"\xff\xfe\0\0": "in UTF-32",
    b"\0\0\xfe\xff": "in UTF-32",
    b"\xff\xfe": "in UTF-16",
    b"\xfe\xff": "in UTF-16",
}


def read_lines(manifest: Path, columns: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the number and stripped cells of every line below it that is not blank.

    Raises FindingError if the file is no such table: missing, empty, not UTF-8 (a byte order mark is fine),
    not separated by commas, an open quote, or a header that is not `columns` in some order.
    """
    lines = _lines(_text(manifest, columns), manifest.name)
    header = _checked_header(*next(lines, (1, [])), columns, manifest.name)
    return header, list(lines)


def read_some_columns(
    table: Path, column: str, one_of: Sequence[str]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The same of a table that has `column`, at least one of `one_of`, and whatever else a hospital keeps.

    No message quotes anything of the table: a line that stands where the header is missing may hold names.
    """
    lines = _lines(_text(table, (column, *one_of)), table.name)
    number, header = next(lines, (1, []))
    where = f"{table.name} line {number}"
    _check_separators(where, header)
    known = (column, *one_of)
    problems = [f"column {name} is there twice" for name in known if header.count(name) > 1]
    if column not in header:
        problems.append(f"no column is called {column}")
    if not set(one_of) & set(header):
        problems.append(f"no column is called {' or '.join(one_of)}")
    if problems:
        fix = f"Let the first line name them: {column} and {' or '.join(one_of)}; others are passed over."
        raise _unreadable("COHORT-COLUMNS", where, "; ".join(problems), fix)
    return header, list(lines)


def _text(manifest: Path, columns: Sequence[str]) -> str:
    """The file as text with LF line ends."""
    try:
        raw = manifest.read_bytes()
    except OSError as error:
        reason = f"the table cannot be read ({error.strerror})"
        fix = "Check the path (`cohort` in site.toml for the list of cases) and the rights of the file."
        raise _unreadable("COHORT-FILE", str(manifest), reason, fix) from None
    if not raw.strip():
        raise _unreadable(
            "COHORT-EMPTY-FILE", manifest.name, "the file is empty", f"Write {','.join(columns)}."
        )
    kind = next((kind for mark, kind in _NO_UTF8.items() if raw.startswith(mark)), None)
    if kind is None and b"\0" in raw:
        kind = "in UTF-16 without its mark, or no text: it holds zero bytes"
    if kind is not None:
        raise _unreadable("COHORT-ENCODING", manifest.name, f"the file is {kind}", _FIX_ENCODING)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        reason = f"byte 0x{raw[error.start]:02x} is not UTF-8 (is the file Latin-1 or Windows-1252?)"
        raise _unreadable("COHORT-ENCODING", f"{manifest.name} line {line}", reason, _FIX_ENCODING) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and stripped cells of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    while True:
        try:
            cells = [cell.strip(" \t\u00a0") for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            fix = 'Write a quote inside a cell as two quotes (""), and close every quote on its line.'
            raise _unreadable("COHORT-QUOTES", f"{name} line {line}", str(error), fix) from None
        if any(cells):
            yield line, cells
        line = reader.line_num + 1


def _checked_header(line: int, header: list[str], columns: Sequence[str], name: str) -> list[str]:
    where = f"{name} line {line}"
    _check_separators(where, header)
    problems = [f"column {column} is missing" for column in columns if column not in header]
    problems += [f"column {column} is there twice" for column in columns if header.count(column) > 1]
    problems += [
        f"column {position} is called {column!r}, which is none of ours{nearest(column, columns)}"
        for position, column in enumerate(header, start=1)
        if column not in columns
    ]
    if problems:
        fix = f"The first line must be {','.join(columns)} (in any order)."
        raise _unreadable("COHORT-COLUMNS", where, "; ".join(problems), fix)
    return header


def _check_separators(where: str, header: list[str]) -> None:
    separators = [sign for sign in ";\t|" if sign in "".join(header)]
    if len(header) == 1 and separators:
        reason = f"the cells are separated by {separators[0]!r}, not by commas"
        raise _unreadable("COHORT-SEPARATOR", where, reason, "Save the table with commas.")


def hidden_characters(text: str) -> str:
    """The names of control and format characters in a cell, as "U+200B"; nothing if there are none."""
    hidden = {f"U+{ord(sign):04X}" for sign in text if unicodedata.category(sign) in ("Cc", "Cf")}
    return ", ".join(sorted(hidden))


def nearest(text: str, known: Sequence[str], cutoff: float = 0.5) -> str:
    """A question after the name that was perhaps meant, or nothing."""
    matches = get_close_matches(text.casefold(), [name.casefold() for name in known], n=1, cutoff=cutoff)
    return "".join(f" (did you mean {name}?)" for name in known if name.casefold() in matches)


def _unreadable(code: str, where: str, message: str, fix: str) -> FindingError:
    return FindingError(Finding(code, "error", where, message, fix))
