import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from client.findings import FindingError
from client.pseudonyms import Pseudonyms, open_pseudonyms


def test_a_pseudonym_is_an_hmac_of_the_identifier_under_the_key() -> None:
    names = Pseudonyms(b"k" * 32)
    expected = hmac.new(b"k" * 32, b"patient\0P002", hashlib.sha256).hexdigest()[:16]
    assert names.patient("P002") == f"p-{expected}"
    assert names.study("P002") != names.patient("P002")
    assert Pseudonyms(b"j" * 32).patient("P002") != names.patient("P002")


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    first = open_pseudonyms(tmp_path)
    assert open_pseudonyms(tmp_path) == first
    assert stat.S_IMODE((tmp_path / "pseudonym.key").stat().st_mode) == 0o600
    assert len(first.key) == 32
    other = tmp_path / "other"
    other.mkdir()
    assert open_pseudonyms(other) != first


def test_the_key_is_in_no_representation() -> None:
    assert "kkkk" not in repr(Pseudonyms(b"k" * 32))


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    open_pseudonyms(tmp_path)
    (tmp_path / "pseudonym.key").chmod(0o640)
    with pytest.raises(FindingError, match=r"IMPORT-KEY.*640"):
        open_pseudonyms(tmp_path)


@pytest.mark.parametrize("text", ["", "ab", "g" * 64, "A" * 64])
def test_a_damaged_key_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    open_pseudonyms(tmp_path)
    (tmp_path / "pseudonym.key").write_text(text)
    with pytest.raises(FindingError, match=r"IMPORT-KEY.*64 hexadecimal digits"):
        open_pseudonyms(tmp_path)
    assert (tmp_path / "pseudonym.key").read_text() == text
