"""A PACS by DICOMweb: QIDO for what there is, WADO for the images, over HTTP.

Name and password come from ~/.netrc, a private authority from REQUESTS_CA_BUNDLE, as requests does it.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from client.dicom_header import quiet_pydicom
from client.pacs_source import RemoteSeries, instance_path, pacs_error
from client.volume_store import write_atomically

KEYWORDS = {"study_uid": "StudyInstanceUID", "accession": "AccessionNumber", "patient_id": "PatientID"}
STUDY, SERIES, INSTANCE, MODALITY, COUNT = "0020000D", "0020000E", "00080018", "00080060", "00201209"


class _Patient(HTTPAdapter):
    """Every request ends after a time; requests alone would wait for ever."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        """As the adapter does, with the time limit."""
        return super().send(request, **(options | {"timeout": self._timeout_s}))


class WebPacs:
    """Questions to a DICOMweb service."""

    def __init__(self, url: str, timeout_s: float) -> None:
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # it logs addresses with identifiers
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Patient(timeout_s))
        with _in_words():
            self._client = DICOMwebClient(url, session=self._session)
        self._client.set_http_retry_params(retry=False)  # it would try for half a minute; we can go on later

    def find_studies(self, identifier: str, value: str) -> list[str]:
        """StudyInstanceUIDs by one identifier."""
        with _in_words():
            found = self._client.search_for_studies(search_filters={KEYWORDS[identifier]: value})
        return [str(_value(study, STUDY)) for study in found]

    def find_series(self, study_uid: str) -> list[RemoteSeries]:
        """The CT series of a study."""
        with _in_words():
            found = self._client.search_for_series(study_uid, fields=["NumberOfSeriesRelatedInstances"])
        return [
            RemoteSeries(study_uid, str(_value(series, SERIES)), _value(series, COUNT))
            for series in found
            if _value(series, MODALITY) == "CT"
        ]

    def fetch(self, series: RemoteSeries, folder: Path) -> None:
        """Every instance that is not there yet, one by one."""
        with _in_words():
            listed = self._client.search_for_instances(series.study_uid, series.series_uid)
            for instance in listed:
                uid = str(_value(instance, INSTANCE))
                path = instance_path(folder, uid)
                if not path.exists():
                    data = self._client.retrieve_instance(series.study_uid, series.series_uid, uid)
                    write_atomically(path, _file(data))


def _file(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    with quiet_pydicom():
        data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _value(row: dict[str, Any], tag: str) -> Any:
    return next(iter(row.get(tag, {}).get("Value", [])), None)


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn what requests raises into findings; no address, as it holds identifiers."""
    try:
        yield
    except requests.Timeout:
        fix = "Try again when the PACS is less busy, or give it longer with --timeout; what came is kept."
        raise pacs_error("PACS-TIMEOUT", "it gave no answer in time", fix) from None
    except requests.ConnectionError:
        message = "the DICOMweb service cannot be reached, or breaks the connection off"
        raise pacs_error(
            "PACS-UNREACHABLE", message, "Check the address, and the firewall between."
        ) from None
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if status in (401, 403):
            fix = "Enter name and password for this host in ~/.netrc, and ask what we may see."
            raise pacs_error("PACS-LOGIN", f"it answers HTTP {status}: it does not let us in", fix) from None
        fix = "Check that the address is that of the DICOMweb root, as http://host:8042/dicom-web."
        raise pacs_error("PACS-REFUSED", f"it answers HTTP {status}", fix) from None
    except (ValueError, requests.RequestException) as error:
        message = f"what answers is no DICOMweb service ({type(error).__name__})"
        fix = "Check that the address is that of the DICOMweb root, as http://host:8042/dicom-web."
        raise pacs_error("PACS-ADDRESS", message, fix) from None
