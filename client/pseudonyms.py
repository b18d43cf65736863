"""Pseudonyms of patients and studies: HMAC-SHA-256 under a key that is made at the site and stays there."""

import hashlib
import hmac
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from client.findings import Finding, FindingError
from dsan_daemon.files import PRIVATE, write_atomically

KEY_FILE = "pseudonym.key"
HEX_DIGITS = 16  # 64 bits: two of a million studies collide once in 40 million cohorts
KEY_BYTES = 32
_STUDY = re.compile(rf"c-[0-9a-f]{{{HEX_DIGITS}}}")
_NEW_KEY = "with a new key every patient gets another name"


@dataclass(frozen=True)
class Pseudonyms:
    """Names for patients and studies that nobody can turn back or guess without the key."""

    key: bytes = field(repr=False)

    def patient(self, patient_id: str) -> str:
        """The same for every study of a patient."""
        return f"p-{self._code('patient', patient_id)}"

    def study(self, study_uid: str) -> str:
        """The case_id of a study."""
        return f"c-{self._code('study', study_uid)}"

    def _code(self, kind: str, identifier: str) -> str:
        text = f"{kind}\0{identifier}".encode()
        return hmac.new(self.key, text, hashlib.sha256).hexdigest()[:HEX_DIGITS]


def open_pseudonyms(folder: Path, listed: Iterable[str] = ()) -> Pseudonyms:
    """The site's pseudonyms; the key is made once, whole or not at all, readable by its owner alone.

    `listed` are the cases that the site has already. Raises FindingError IMPORT-KEY for a key that others may
    read, that is none, or that is gone while cases bear its pseudonyms: with a new key every patient would
    get another name. OSError if it cannot be written. One process at a time may call it.
    """
    path = folder / KEY_FILE
    if not path.exists():
        n_named = sum(_STUDY.fullmatch(case_id) is not None for case_id in listed)
        if n_named:
            message = f"there is no such file, but cohort.csv lists {n_named} cases under its pseudonyms"
            raise _refused(message, f"Restore it from a backup: {_NEW_KEY}. Or begin with an empty folder.")
        write_atomically(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode(), PRIVATE)
    return Pseudonyms(_read_key(path))


def _read_key(path: Path) -> bytes:
    try:
        mode, text = stat.S_IMODE(path.stat().st_mode), path.read_text("ascii", errors="replace").strip()
    except OSError as error:
        raise _refused(f"it cannot be read ({error.strerror})", "Restore its permissions.") from None
    if mode & 0o077:
        message = f"its permissions are {mode:03o}: others than its owner may use it"
        raise _refused(message, f"Run `chmod 600 {KEY_FILE}`, and ask who may have copied it.")
    if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text):
        message = f"it does not hold {2 * KEY_BYTES} hexadecimal digits"
        raise _refused(message, f"Restore it from a backup: {_NEW_KEY}.")
    return bytes.fromhex(text)


def _refused(message: str, fix: str) -> FindingError:
    return FindingError(Finding("IMPORT-KEY", "error", KEY_FILE, message, fix))
