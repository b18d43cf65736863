"""A PACS by DIMSE: C-FIND for what there is, C-MOVE to a storage service of our own for the images."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.association import Association

from client.dicom_header import quiet_pydicom
from client.pacs_source import RemoteSeries, instance_path, pacs_error
from client.volume_store import write_atomically

FIND, MOVE = UID("1.2.840.10008.5.1.4.1.2.2.1"), UID("1.2.840.10008.5.1.4.1.2.2.2")  # Study Root
KEYWORDS = {"study_uid": "StudyInstanceUID", "accession": "AccessionNumber", "patient_id": "PatientID"}
PENDING, SUCCESS, SOME_FAILED = (0xFF00, 0xFF01), 0x0000, 0xB000
DESTINATION_UNKNOWN = 0xA801
OUT_OF_RESOURCES, NOT_ASKED_FOR = 0xA700, 0xA900  # our answers to an image

_FIX_AE_TITLE = (
    "Have AE title, address and port of this computer entered in the PACS as a place to send images to, or "
    "give the title that is with --ae-title."
)
_FIX_TIMEOUT = "Try again when the PACS is less busy, or give it longer with --timeout; what came is kept."


@dataclass(frozen=True)
class DimseAddress:
    """Where a PACS listens, and what it is called."""

    ae_title: str
    host: str
    port: int


@dataclass
class _Inbox:
    """What is being sent to us: the series that was asked for, and where its files go."""

    series_uid: str = ""
    folder: Path = field(default_factory=Path)
    failure: OSError | None = None


@contextmanager
def dimse_pacs(
    address: DimseAddress, ae_title: str, receive_port: int, timeout_s: float
) -> Iterator["DimsePacs"]:
    """The PACS, with our storage service open for what it sends. Raises PACS-PORT if it cannot be opened."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it logs what is asked for and found
    inbox = _Inbox()
    receiver = AE(ae_title=ae_title)
    for storage in (CTImageStorage, EnhancedCTImageStorage):
        receiver.add_supported_context(storage, ALL_TRANSFER_SYNTAXES)
    handlers: list[Any] = [(evt.EVT_C_STORE, _take, [inbox])]
    try:
        server: Any = receiver.start_server(("", receive_port), block=False, evt_handlers=handlers)
    except OSError as error:
        message = f"we cannot listen on port {receive_port} for the images: {error.strerror}"
        fix = "Choose a free port with --receive-port, and have it entered in the PACS for our AE title."
        raise pacs_error("PACS-PORT", message, fix) from None
    try:
        yield DimsePacs(address, ae_title, timeout_s, inbox)
    finally:
        server.shutdown()


class DimsePacs:
    """Questions to a PACS, an association for each."""

    def __init__(self, address: DimseAddress, ae_title: str, timeout_s: float, inbox: _Inbox) -> None:
        self._address = address
        self._inbox = inbox
        self._caller = AE(ae_title=ae_title)
        self._caller.connection_timeout = self._caller.acse_timeout = min(timeout_s, 15.0)
        self._caller.dimse_timeout = self._caller.network_timeout = timeout_s
        self._timeout_s = timeout_s
        self._caller.add_requested_context(FIND)
        self._caller.add_requested_context(MOVE)

    def find_studies(self, identifier: str, value: str) -> list[str]:
        """StudyInstanceUIDs by one identifier."""
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = ""
        setattr(query, KEYWORDS[identifier], value)
        return [str(found.StudyInstanceUID) for found in self._find(query)]

    def find_series(self, study_uid: str) -> list[RemoteSeries]:
        """The CT series of a study."""
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, ""
        query.Modality, query.NumberOfSeriesRelatedInstances = "CT", None
        return [
            RemoteSeries(study_uid, str(found.SeriesInstanceUID), _count(found))
            for found in self._find(query)
            if found.get("Modality", "CT") == "CT"
        ]

    def fetch(self, series: RemoteSeries, folder: Path) -> None:
        """Have the PACS send a series to us."""
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = series.study_uid, series.series_uid
        self._inbox.series_uid, self._inbox.folder, self._inbox.failure = series.series_uid, folder, None
        own_title = str(self._caller.ae_title)
        with self._associated() as association:
            for status, _ in association.send_c_move(query, own_title, MOVE):
                self._check_move(status, folder)
        if self._inbox.failure is not None:
            raise self._inbox.failure

    def _find(self, query: Dataset) -> list[Dataset]:
        found = []
        with self._associated() as association, quiet_pydicom():
            for status, dataset in association.send_c_find(query, FIND):
                self._check(status)
                if status.Status in PENDING and dataset is not None:
                    found.append(dataset)
        return found

    @contextmanager
    def _associated(self) -> Iterator[Association]:
        address = self._address
        association = self._caller.associate(address.host, address.port, ae_title=address.ae_title)
        if not association.is_established:
            raise _no_association(association, address, str(self._caller.ae_title))
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _check_move(self, status: Dataset, folder: Path) -> None:
        """As `_check`; but a failure after some images came is told by their number when all is done."""
        if status.get("Status") == DESTINATION_UNKNOWN:
            message = f"it does not know our AE title {self._caller.ae_title} as a place to send images to"
            raise pacs_error("PACS-AE-UNKNOWN", message, _FIX_AE_TITLE)
        if status.get("Status") is None or not any(folder.glob("*.dcm")):
            self._check(status)

    def _check(self, status: Dataset) -> None:
        """Raise for an answer that ends the matter."""
        code = status.get("Status")
        if code is None:
            message = f"it gave no answer within {self._timeout_s:g} s, or broke the connection off"
            raise pacs_error("PACS-TIMEOUT", message, _FIX_TIMEOUT)
        if code not in (*PENDING, SUCCESS, SOME_FAILED):
            message = f"it answered {self._caller.ae_title} with status 0x{code:04X}"
            raise pacs_error("PACS-REFUSED", message, _FIX_AE_TITLE)


def _take(event: evt.Event, inbox: _Inbox) -> int:
    """An image that is sent to us: kept if it is of the series that was asked for."""
    with quiet_pydicom():
        if event.dataset.get("SeriesInstanceUID") != inbox.series_uid:
            return NOT_ASKED_FOR
        path = instance_path(inbox.folder, str(event.dataset.SOPInstanceUID))
    try:
        write_atomically(path, event.encoded_dataset())
    except OSError as error:
        inbox.failure = error
        return OUT_OF_RESOURCES
    return SUCCESS


def _no_association(association: Association, address: DimseAddress, own_title: str) -> Exception:
    where = f"{address.ae_title} at {address.host}:{address.port}"
    if association.is_rejected:
        answer: Any = association.acceptor.primitive
        message = f"{where} rejects the association of {own_title}: {answer.reason_str}"
        fix = "Check its AE title, and have ours entered in the PACS (or give the one that is by --ae-title)."
        return pacs_error("PACS-REJECTED", message, fix)
    message = f"{where} cannot be reached, or breaks the connection off"
    return pacs_error("PACS-UNREACHABLE", message, "Check host and port, and the firewall between.")


def _count(found: Any) -> int | None:
    value = found.get("NumberOfSeriesRelatedInstances")
    return int(value) if value not in (None, "") else None
