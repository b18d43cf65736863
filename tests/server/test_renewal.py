"""Certificates with a later end: keys stay, old certificates stay good, the operator is told in time."""

import json
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from typer.testing import CliRunner

from server import certificates
from server.admittance import enrol_site, revoke_site
from server.centre import Centre, ServerConfig, open_centre
from server.cli import app
from server.expiry import endings
from server.founding import found_centre
from server.refusals import RefusedError
from server.renewal import renew_consortium, renew_server, renew_sites
from server.sites import read_sites
from server.status import centre_status
from server.status_text import status_json, status_text

TEN_DAYS = 10 / 365  # years


@pytest.fixture
def centre(tmp_path: Path, site_keys: ModuleType) -> Centre:
    """With two sites."""
    found_centre(tmp_path / "centre", "dsan.example.org")
    centre, config = open_centre(tmp_path / "centre")
    for name in ("east", "west"):
        enrol_site(centre, config, site_keys.write_request(tmp_path, name, site_keys.make_keys()))
    return centre


def settings(centre: Centre) -> ServerConfig:
    return open_centre(centre.folder)[1]


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def of_kit(centre: Centre, site: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(
        json.loads(centre.kit(site).read_text())["client_certificate"].encode()
    )


def verifies(tls: Path, authority: Path, certificate: Path, purpose: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-crl_check", "-CRLfile", "crl.pem"]
    command += ["-CAfile", str(authority), str(certificate)]
    return subprocess.run(command, cwd=tls, capture_output=True).returncode == 0


def test_the_servers_new_certificate_has_its_key_its_host_and_a_later_end(centre: Centre) -> None:
    old = read(centre.tls / "server.crt")
    time.sleep(1.1)  # ends are whole seconds
    ends = renew_server(centre, settings(centre))
    new = read(centre.tls / "server.crt")
    assert new.not_valid_after_utc == ends > old.not_valid_after_utc
    assert new.public_key() == old.public_key()
    assert new.serial_number != old.serial_number
    assert verifies(centre.tls, centre.tls / "ca.crt", centre.tls / "server.crt", "sslserver")


def test_a_site_gets_a_certificate_for_its_key_and_the_old_one_stays_good(
    centre: Centre, tmp_path: Path
) -> None:
    old, others = of_kit(centre, "east"), centre.kit("west").read_bytes()
    (renewed,) = renew_sites(centre, settings(centre), ["east"])
    new = of_kit(centre, "east")
    assert (renewed.name, renewed.kit, renewed.ends) == ("east", centre.kit("east"), new.not_valid_after_utc)
    assert (new.public_key(), new.subject) == (old.public_key(), old.subject)
    assert new.serial_number != old.serial_number
    assert centre.kit("west").read_bytes() == others
    for name, certificate in (("old", old), ("new", new)):
        path = tmp_path / f"{name}.crt"
        path.write_bytes(certificates.certificate_pem(certificate))
        assert verifies(centre.tls, centre.tls / "ca.crt", path, "sslclient")


def test_revoking_a_site_ends_every_certificate_that_it_was_given(centre: Centre) -> None:
    serials = {of_kit(centre, "east").serial_number}
    for _ in range(2):
        renew_sites(centre, settings(centre), ["east"])
        serials.add(of_kit(centre, "east").serial_number)
    revoke_site(centre, "east")
    revoked = x509.load_pem_x509_crl((centre.tls / "crl.pem").read_bytes())
    assert {entry.serial_number for entry in revoked} == serials
    assert len(serials) == 3


@pytest.mark.parametrize("name", ["north", "west"])
def test_a_site_that_takes_no_part_gets_nothing_and_neither_do_the_others(centre: Centre, name: str) -> None:
    revoke_site(centre, "west")
    before = read_sites(centre)
    with pytest.raises(RefusedError, match=rf"RENEW-UNKNOWN: {name}: not enrolled, .* east"):
        renew_sites(centre, settings(centre), ["east", name])
    assert read_sites(centre) == before


def test_the_authority_is_renewed_and_both_its_certificates_vouch_for_old_and_new(
    centre: Centre, tmp_path: Path
) -> None:
    revoke_site(centre, "west")
    old = {name: tmp_path / f"old-{name}" for name in ("ca.crt", "server.crt")}
    for name, path in old.items():
        path.write_bytes((centre.tls / name).read_bytes())
    time.sleep(1.1)
    ends, sites = renew_consortium(centre, settings(centre))
    assert [site.name for site in sites] == ["east"]
    assert json.loads(centre.kit("east").read_text())["ca_certificate"] == (centre.tls / "ca.crt").read_text()
    assert read(centre.tls / "ca.crt").not_valid_after_utc == ends > read(old["ca.crt"]).not_valid_after_utc
    for authority in (old["ca.crt"], centre.tls / "ca.crt"):
        for certificate in (old["server.crt"], centre.tls / "server.crt"):
            assert verifies(centre.tls, authority, certificate, "sslserver")
    revoked = x509.load_pem_x509_crl((centre.tls / "crl.pem").read_bytes())
    assert revoked.next_update_utc == ends
    assert len(list(revoked)) == 1


def test_no_certificate_outlives_the_authority_that_signed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_YEARS", 2)
    found_centre(tmp_path, "centre")
    assert (
        read(tmp_path / "tls/server.crt").not_valid_after_utc
        == read(tmp_path / "tls/ca.crt").not_valid_after_utc
    )


def test_status_tells_what_ends_within_thirty_days_and_the_command_that_renews_it(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert centre_status(centre.folder).warnings == []
    monkeypatch.setattr(certificates, "CERTIFICATE_YEARS", TEN_DAYS)
    renew_server(centre, settings(centre))
    renew_sites(centre, settings(centre), ["west"])
    told = status_text(centre.folder)
    assert "! the server's certificate ends on " in told
    assert "in 10 days: `dsan-server renew`\n" in told
    assert "! the certificate of west ends on " in told
    assert "`dsan-server renew west`, and send it west.kit.json" in told
    found = json.loads(status_json(centre.folder))["certificates"]
    assert [(entry["kind"], entry["site"]) for entry in found] == [
        *(("ca", ""), ("server", ""), ("crl", "")),
        *(("site", "east"), ("site", "west")),
    ]


def test_what_has_ended_is_told_as_ended(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "CERTIFICATE_YEARS", 0)
    renew_server(centre, settings(centre))
    server = next(ending for ending in endings(centre.folder) if ending.kind == "server")
    assert "the server's certificate ended on " in server.in_words(server.ends + 1)


def test_a_site_that_was_revoked_or_whose_file_is_damaged_has_no_end_to_tell(centre: Centre) -> None:
    revoke_site(centre, "east")
    (centre.sites / "west.json").write_text("{")
    assert [ending.kind for ending in endings(centre.folder)] == ["ca", "server", "crl"]


def test_the_command_says_what_comes_next(centre: Centre) -> None:
    def renew(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["renew", *arguments, "--dir", str(centre.folder)])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "the server's certificate lasts until 20" in renew()
    assert f"send it {centre.kit('east')}, for `dsan-client join`" in renew("east")
    told = renew("--authority")
    assert "fingerprint of its new certificate" in told
    assert "east: until 20" in told
    both = CliRunner().invoke(app, ["renew", "east", "--authority", "--dir", str(centre.folder)])
    assert both.exit_code == 2
