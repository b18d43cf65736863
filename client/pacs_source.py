"""A PACS as the source of `dsan-client import`: the studies that labels.csv names come to the site.

OUT/pacs/STUDY/SERIES/*.dcm, all under pseudonyms, is then imported as any other export. A series that is
there whole is not asked for again, so that a transfer that broke off goes on. What is shown names lines of
labels.csv and pseudonyms, no identifier of the PACS.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from client.findings import Finding, FindingError
from client.label_list import LabelLine, read_labels
from client.pacs_export import alone_in, listed_before, writing
from client.preparation import Progress
from client.pseudonyms import KEY_FILE, Pseudonyms, open_pseudonyms
from client.volume_store import is_disk_full, write_atomically

FETCHED = "pacs"
COMPLETE = "complete"  # in a series' folder: it is there whole
MIN_INSTANCES = 8  # of a series that is worth fetching; the gate refuses fewer slices

_WILD = re.compile(r"[*?\\]")  # a PACS takes these for any sign, or for several values
_DIMSE = re.compile(r"dimse://(?P<ae_title>[^@/\\]{1,16})@(?P<host>[^:/]+):(?P<port>\d{1,5})/?")


@dataclass(frozen=True)
class PacsRequest:
    """Which PACS to ask for the studies of `labels`, and as whom."""

    address: str  # dimse://AE-TITLE@HOST:PORT, or the http address of a DICOMweb service
    labels: Path
    out: Path
    ae_title: str = "DSAN"  # our own, to which the PACS sends (DIMSE)
    receive_port: int = 11112  # where we listen for it (DIMSE)
    timeout_s: float = 60.0


@dataclass(frozen=True)
class RemoteSeries:
    """A CT series in the PACS; nothing of it is shown."""

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    n_instances: int | None  # None: the PACS does not say


class Pacs(Protocol):
    """What both ways to ask a PACS can do. Each raises FindingError with a PACS- code."""

    def find_studies(self, identifier: str, value: str) -> list[str]:
        """StudyInstanceUIDs by one of label_list.IDENTIFIERS."""

    def find_series(self, study_uid: str) -> list[RemoteSeries]:
        """The CT series of a study."""

    def fetch(self, series: RemoteSeries, folder: Path) -> None:
        """Write every instance of a series that is not there yet into `folder`, whole or not at all."""


@dataclass(frozen=True)
class Fetched:
    """Where the studies lie now, and what is wrong with some of them."""

    root: Path
    n_series: int  # fetched now
    findings: tuple[Finding, ...]


def is_pacs_address(source: str) -> bool:
    """Whether the source of an import is a PACS, not a folder."""
    return source.startswith(("dimse://", "http://", "https://"))


def fetch_studies(request: PacsRequest, progress: Callable[[Progress], None] | None = None) -> Fetched:
    """Bring the CT series of every labelled study that is no case yet.

    A study that is missing or comes in part is a finding, and the others go on. Raises FindingError where
    nothing can go on: an address that is none, a PACS that is not reached or refuses us, a full disk.
    """
    lines, _ = read_labels(request.labels)  # what is wrong with lines, the import itself will tell
    pseudonyms = _pseudonyms(request.out)
    root = request.out / FETCHED
    findings: list[Finding] = []
    n_fetched = 0
    with _connected(request) as pacs:
        wild = [line for line in lines if _WILD.search(line.value)]
        studies, missing = _find(pacs, [line for line in lines if line not in wild])
        findings += [_wildcards(wild, request.labels.name)] if wild else []
        findings += [_no_study(missing, request.labels.name)] if missing else []
        listed = listed_before(request.out)
        wanted = [uid for uid in studies if pseudonyms.study(uid) not in listed]
        for n_done, study_uid in enumerate(wanted):
            if progress is not None:
                progress(Progress(n_done, len(wanted), 0.0, None))
            for series in _worth_fetching(pacs.find_series(study_uid)):
                folder = root / pseudonyms.study(study_uid) / pseudonyms.study(series.series_uid)
                try:
                    n_fetched += _fetch(pacs, series, folder)
                except FindingError as error:
                    if error.finding.code != "PACS-PARTIAL":
                        raise
                    findings.append(error.finding)
        if progress is not None:
            progress(Progress(len(wanted), len(wanted), 0.0, None))
    root.mkdir(parents=True, exist_ok=True)
    return Fetched(root, n_fetched, tuple(findings))


def instance_path(folder: Path, instance_uid: str) -> Path:
    """The file of an instance, under a name that tells nothing."""
    return folder / f"{hashlib.sha256(instance_uid.encode()).hexdigest()[:24]}.dcm"


def pacs_error(code: str, message: str, fix: str) -> FindingError:
    """An error of the PACS as a whole."""
    return FindingError(Finding(code, "error", "the PACS", message, fix))


def _find(pacs: Pacs, lines: Sequence[LabelLine]) -> tuple[list[str], list[LabelLine]]:
    """Every study that a line names, once, and the lines that name none."""
    studies: dict[str, None] = {}
    missing = []
    for line in lines:
        found = pacs.find_studies(line.identifier, line.value)
        studies |= dict.fromkeys(found)
        if not found:
            missing.append(line)
    return list(studies), missing


def _worth_fetching(series: Sequence[RemoteSeries]) -> list[RemoteSeries]:
    return [each for each in series if each.n_instances is None or each.n_instances >= MIN_INSTANCES]


def _fetch(pacs: Pacs, series: RemoteSeries, folder: Path) -> bool:
    """Fetch a series unless it is there; whether it was fetched now. FindingError PACS-PARTIAL."""
    if (folder / COMPLETE).exists():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pacs.fetch(series, folder)
        n_there = len(list(folder.glob("*.dcm")))
        if series.n_instances is not None and n_there < series.n_instances:
            raise _partial(folder, n_there, series.n_instances)
        write_atomically(folder / COMPLETE, f"{n_there}\n".encode())
    except OSError as error:
        code = "OUTPUT-DISK-FULL" if is_disk_full(error) else "OUTPUT-FILES"
        message = f"a series from the PACS cannot be written: {error.strerror}"
        fix = "Free space, or choose another folder with --out; what was fetched is kept."
        raise FindingError(Finding(code, "error", "the folder given with --out", message, fix)) from None
    return True


def _partial(folder: Path, n_there: int, n_expected: int) -> FindingError:
    message = f"{n_there} of {n_expected} images of series {folder.name} came"
    fix = "Import again: what came is kept, the rest is asked for anew."
    where, case_id = "the PACS", folder.parent.name
    return FindingError(Finding("PACS-PARTIAL", "error", where, message, fix, case_id))


def _numbers(lines: Sequence[LabelLine]) -> str:
    return ", ".join(str(line.line) for line in lines[:10]) + (", ..." if len(lines) > 10 else "")


def _wildcards(lines: Sequence[LabelLine], name: str) -> Finding:
    message = (
        f"{len(lines)} identifiers hold *, ? or \\, which a PACS matches with others: line {_numbers(lines)}"
    )
    fix = "Name these studies by another identifier; they were not asked for."
    return Finding("PACS-WILDCARD", "error", name, message, fix)


def _no_study(lines: Sequence[LabelLine], name: str) -> Finding:
    message = f"the PACS has no study for {len(lines)} lines: line {_numbers(lines)}"
    fix = (
        "Check how the identifiers are written (leading zeros, blanks), and whether we may see these studies."
    )
    return Finding("PACS-NO-STUDY", "error", name, message, fix)


def _pseudonyms(out: Path) -> Pseudonyms:
    with writing("the site's folder"):
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone_in(out), writing(KEY_FILE):
        return open_pseudonyms(out, listed_before(out))


@contextmanager
def _connected(request: PacsRequest) -> Iterator[Pacs]:
    """The PACS behind the address; its packages are an extra. Raises PACS-ADDRESS or PACS-EXTRA."""
    try:
        if request.address.startswith("dimse://"):
            from client.pacs_dimse import DimseAddress, dimse_pacs

            match = _DIMSE.fullmatch(request.address)
            if match is None or not 0 < int(match["port"]) < 65536:
                message = f"{request.address!r} is no address of a PACS"
                fix = "Write dimse://AE-TITLE@HOST:PORT, or the http address of its DICOMweb service."
                raise pacs_error("PACS-ADDRESS", message, fix)
            address = DimseAddress(match["ae_title"], match["host"], int(match["port"]))
            with dimse_pacs(address, request.ae_title, request.receive_port, request.timeout_s) as dimse:
                yield dimse
        else:
            from client.pacs_web import WebPacs

            yield WebPacs(request.address, request.timeout_s)
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is not installed"
        raise pacs_error("PACS-EXTRA", message, "Run `pip install 'dsan-federated[pacs]'`.") from None
