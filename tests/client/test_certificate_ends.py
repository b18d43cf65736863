"""A site is told before its certificates end, and what to ask for."""

from pathlib import Path

import pytest

from client.certificate_ends import certificate_ends, ending_soon
from server import certificates
from server.certificates import certificate_pem, found_authority, issue_client_certificate, load_authority


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Of a site, with certificates of an authority."""
    found_authority(tmp_path / "tls", "centre")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ca.crt").write_bytes((tmp_path / "tls" / "ca.crt").read_bytes())
    give_certificate(tmp_path / "keys")
    return tmp_path / "keys"


def give_certificate(keys: Path) -> None:
    authority = load_authority(keys.parent / "tls")
    certificate = issue_client_certificate(authority, authority.key.public_key(), "east")
    (keys / "watch.crt").write_bytes(certificate_pem(certificate))


def test_nothing_is_told_for_years(keys: Path) -> None:
    assert set(certificate_ends(keys)) == {"ca", "watch"}
    assert ending_soon(keys, "east") == []


@pytest.mark.parametrize(("years", "words"), [(10 / 365, ", in 10 days: "), (-1 / 365, "ended on ")])
def test_an_end_within_thirty_days_comes_with_the_command_to_ask_for(
    keys: Path, monkeypatch: pytest.MonkeyPatch, years: float, words: str
) -> None:
    monkeypatch.setattr(certificates, "CERTIFICATE_YEARS", years)
    monkeypatch.setattr(certificates, "CLOCK_SKEW", 2 * certificates.CLOCK_SKEW)
    give_certificate(keys)
    (told,) = ending_soon(keys, "east")
    assert "this site's certificate" in told
    assert words in told
    assert "`dsan-server renew east`, and `dsan-client join` the east.kit.json" in told


def test_what_is_not_there_or_no_certificate_has_no_end(keys: Path) -> None:
    (keys / "ca.crt").unlink()
    (keys / "watch.crt").write_text("none")
    assert certificate_ends(keys) == {}
