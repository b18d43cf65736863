"""The files of a DICOM folder: which are slices, which lie beside them, which only pretend (IV-B)."""

from collections import defaultdict
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from client.dicom_findings import error, warning
from client.dicom_header import SliceHeader, read_header
from client.findings import Finding, FindingError

SIDE_SUFFIXES = frozenset(
    {
        *(".txt", ".md", ".log", ".ini", ".inf", ".xml", ".json", ".yaml", ".yml", ".toml", ".csv", ".tsv"),
        *(".pdf", ".doc", ".docx", ".html", ".htm", ".css", ".js", ".exe", ".db", ".gz", ".zip"),
        *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff"),
        *(".nii", ".nrrd", ".nhdr", ".mhd", ".mha", ".raw", ".zraw", ".npy"),
    }
)


class FileKind(StrEnum):
    """What the first bytes and the name of a file say."""

    SLICE = "slice"
    BESIDE = "beside"
    EMPTY = "DICOM-EMPTY-FILE"
    LFS_POINTER = "DICOM-LFS-POINTER"
    NO_PREAMBLE = "DICOM-NO-PREAMBLE"
    NOT_DICOM = "DICOM-NOT-DICOM"
    UNREADABLE = "DICOM-UNREADABLE"


REASONS = {  # message, fix
    FileKind.EMPTY: (
        "the file has no bytes: its slice is lost",
        "Copy the file from the PACS again.",
    ),
    FileKind.LFS_POINTER: (
        "a Git LFS pointer lies where the slice should be",
        "Run `git lfs pull` where the files came from, then copy them again.",
    ),
    FileKind.NO_PREAMBLE: (
        "a DICOM data set without the preamble and file meta information of a DICOM file",
        "Export the series as DICOM files (part 10).",
    ),
    FileKind.NOT_DICOM: (
        "not a DICOM file, and not of a kind that usually lies beside slices",
        "Copy the file from the PACS again if it is a slice; remove it from the folder if it is not.",
    ),
    FileKind.UNREADABLE: (
        "the file cannot be opened",
        "Check its permissions, or what the link points to.",
    ),
}


def read_headers(folder: Path) -> tuple[tuple[SliceHeader, ...], tuple[Finding, ...]]:
    """The headers of all DICOM files directly in `folder`, by name, and what is wrong with its other files.

    Hidden files and DICOMDIR are passed over. Findings carry no case.
    """
    files = _files(folder)
    if files is None:
        fix = "Correct the path in cohort.csv."
        return (), (
            error("DICOM-FOLDER", "the image folder", "there is no such folder, or it cannot be listed", fix),
        )
    kinds: dict[FileKind, list[Path]] = defaultdict(list)
    for path in files:
        kinds[file_kind(path)].append(path)
    headers, findings = _parse(kinds[FileKind.SLICE])
    findings += [_bad_files(kind, kinds[kind], len(files)) for kind in REASONS if kinds[kind]]
    if not headers and not findings:
        findings.append(_nothing(len(files)))
    if kinds[FileKind.BESIDE]:
        findings.append(_beside(kinds[FileKind.BESIDE]))
    return tuple(headers), tuple(findings)


def file_kind(path: Path) -> FileKind:
    """What a file is, by its first bytes, and by its name where these say nothing."""
    if not path.is_file():  # a folder or a pipe lies beside; a link to nothing is a lost slice
        return FileKind.BESIDE if path.exists() else FileKind.UNREADABLE
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return FileKind.UNREADABLE
    if head[128:132] == b"DICM":
        return FileKind.SLICE
    if path.suffix.lower() in SIDE_SUFFIXES:
        return FileKind.BESIDE
    if not head:
        return FileKind.EMPTY
    if head.startswith(b"version https://git-lfs"):
        return FileKind.LFS_POINTER
    if head[:2] in (b"\x08\x00", b"\x02\x00") or head[:4] in (b"\x00\x08\x00\x05", b"\x00\x08\x00\x08"):
        return FileKind.NO_PREAMBLE
    return FileKind.BESIDE if not path.suffix and _is_text(head) else FileKind.NOT_DICOM


def _files(folder: Path) -> list[Path] | None:
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return None
    return [path for path in paths if not path.name.startswith(".") and path.name.upper() != "DICOMDIR"]


def _is_text(head: bytes) -> bool:
    return head.isascii() and b"\0" not in head


def _parse(paths: list[Path]) -> tuple[list[SliceHeader], list[Finding]]:
    headers: list[SliceHeader] = []
    broken: list[Finding] = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except FindingError as failure:
            broken.append(failure.finding)
    if len(broken) > 1:
        first = broken[0].where.removeprefix("file ")
        broken = [replace(broken[0], where=f"{len(broken)} of {len(paths)} files, first {first}")]
    return headers, broken


def _bad_files(kind: FileKind, bad: list[Path], n_files: int) -> Finding:
    message, fix = REASONS[kind]
    return error(str(kind), f"{len(bad)} of {n_files} files, first {bad[0].name}", message, fix)


def _nothing(n_files: int) -> Finding:
    message = f"no DICOM file among {n_files} files"
    fix = "Name the folder that holds the slices themselves, or the NIfTI, NRRD or MetaImage file."
    return error("DICOM-NONE", "the image folder", message, fix)


def _beside(paths: list[Path]) -> Finding:
    message = f"{len(paths)} files or folders that are not slices were passed over"
    return warning(
        "DICOM-SIDE-FILE", f"first {paths[0].name}", message, "None is needed if no slice is among them."
    )
