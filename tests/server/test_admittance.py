"""Who may take part: enrolment, its refusals, and revocation."""

import json
import ssl
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dsan_daemon.bundle import bundle_digest
from server.admittance import Admitted, enrol_site, revoke_site
from server.centre import Centre, open_centre
from server.founding import found_centre
from server.refusals import RefusedError
from server.sites import read_sites


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    found_centre(tmp_path / "centre", "dsan.example.org")
    return open_centre(tmp_path / "centre")[0]


def admit(centre: Centre, file: Path) -> Admitted:
    return enrol_site(centre, open_centre(centre.folder)[1], file)


def content(centre: Centre) -> dict[str, bytes]:
    """Every file of the centre, to see that nothing changed."""
    files = (path for path in centre.folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in files}


def test_the_fingerprint_is_the_one_that_ssh_keygen_prints(
    centre: Centre, site_keys: ModuleType, tmp_path: Path
) -> None:
    keys = site_keys.make_keys()
    admitted = admit(centre, site_keys.write_request(tmp_path, "hospital-1", keys))
    (tmp_path / "node.pub").write_text(keys.public_key)
    command = ["ssh-keygen", "-l", "-f", str(tmp_path / "node.pub")]
    assert admitted.fingerprint in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_kit_has_all_that_the_site_needs(centre: Centre, site_keys: ModuleType, tmp_path: Path) -> None:
    keys = site_keys.make_keys()
    admitted = admit(centre, site_keys.write_request(tmp_path, "hospital-1", keys))
    kit = json.loads(admitted.kit.read_text())
    assert admitted.kit.name == "hospital-1.kit.json"
    assert {key: kit[key] for key in ("format_version", "name", "server", "bundle_digest")} == {
        "format_version": 1,
        "name": "hospital-1",
        "server": "dsan.example.org:8443",
        "bundle_digest": bundle_digest(),
    }
    assert kit["ca_certificate"] == (centre.tls / "ca.crt").read_text()
    certificate = x509.load_pem_x509_certificate(kit["client_certificate"].encode())
    assert certificate.subject.rfc4514_string() == "CN=hospital-1"
    assert certificate.public_key() == keys.watch.public_key()


@pytest.mark.parametrize(("purpose", "fits"), [("sslclient", True), ("sslserver", False)])
def test_a_sites_certificate_is_good_for_a_client_only(
    centre: Centre, site_keys: ModuleType, tmp_path: Path, purpose: str, fits: bool
) -> None:
    admitted = admit(centre, site_keys.write_request(tmp_path, "a", site_keys.make_keys()))
    (tmp_path / "a.crt").write_text(json.loads(admitted.kit.read_text())["client_certificate"])
    verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(centre.tls / "ca.crt")]
    assert (subprocess.run([*verify, str(tmp_path / "a.crt")], capture_output=True).returncode == 0) is fits


def test_an_enrolled_site_is_on_disk(centre: Centre, site_keys: ModuleType, tmp_path: Path) -> None:
    keys = site_keys.make_keys()
    admit(centre, site_keys.write_request(tmp_path, "hospital-1", keys))
    site = read_sites(centre)["hospital-1"]
    assert (site.public_key, site.fingerprint) == (keys.public_key, keys.fingerprint)
    assert not site.is_revoked
    assert site.node_id is None


def _as_certificate(request: str) -> str:
    return request.replace("CERTIFICATE REQUEST", "CERTIFICATE")


def _as_request(certificate: str) -> str:
    return certificate.replace("CERTIFICATE", "CERTIFICATE REQUEST")


def _other_curve(keys: ModuleType) -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def test_a_request_that_does_not_fit_is_refused_and_changes_nothing(
    centre: Centre, site_keys: ModuleType, tmp_path: Path
) -> None:
    keys, other = site_keys.make_keys(), site_keys.make_keys()
    signed = bytearray(ssl.PEM_cert_to_DER_cert(_as_certificate(keys.signing_request("a"))))
    signed[-1] ^= 1  # the signature is last
    tampered = _as_request(ssl.DER_cert_to_PEM_cert(bytes(signed)))
    wrong: list[tuple[str, str, dict[str, object]]] = [
        ("ENROL-FORMAT", "format_version is 2", {"format_version": 2}),
        ("ENROL-FORMAT", "format_version is True", {"format_version": True}),
        ("ENROL-FORMAT", "surprise", {"surprise": 1}),
        ("ENROL-FORMAT", "public_key", {"public_key": 1}),
        ("ENROL-NAME", "letters, digits", {"name": "../a"}),
        ("ENROL-NAME", "letters, digits", {"name": "x" * 33}),
        ("ENROL-NAME", "file's name", {"name": "b"}),
        ("ENROL-NAME", "asks for the name b", {"certificate_request": keys.signing_request("b")}),
        ("ENROL-REQUEST", "no certificate request", {"certificate_request": "nothing"}),
        ("ENROL-SIGNATURE", "changed on its way", {"certificate_request": tampered}),
        ("ENROL-KEY", "OpenSSH", {"public_key": "ecdsa-sha2-nistp384 AAAA"}),
        ("ENROL-KEY", "nistp256", {"public_key": _other_curve(site_keys)}),
        ("ENROL-FINGERPRINT", keys.fingerprint, {"public_key": keys.public_key, "fingerprint": "SHA256:x"}),
        ("ENROL-FINGERPRINT", other.fingerprint, {"public_key": other.public_key}),
    ]
    before = content(centre)
    for code, message, changes in wrong:
        file = site_keys.write_request(tmp_path, "a", keys, **changes)
        with pytest.raises(RefusedError) as refused:
            admit(centre, file)
        assert refused.value.code == code, changes
        assert message in str(refused.value)
        assert content(centre) == before


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", "ENROL-FORMAT"), ("[]", "ENROL-FORMAT"), ("{}", "ENROL-FORMAT"), ("x" * 70000, "ENROL-FILE")],
)
def test_a_file_that_is_no_request_is_refused(centre: Centre, tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "a.enrol.json").write_text(text)
    with pytest.raises(RefusedError, match=code):
        admit(centre, tmp_path / "a.enrol.json")


def test_a_file_that_is_not_there_is_refused(centre: Centre, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="ENROL-FILE"):
        admit(centre, tmp_path / "a.enrol.json")


def test_two_sites_share_neither_a_name_nor_a_key(
    centre: Centre, site_keys: ModuleType, tmp_path: Path
) -> None:
    keys, other = site_keys.make_keys(), site_keys.make_keys()
    admit(centre, site_keys.write_request(tmp_path, "a", keys))
    for name, used, code in [
        ("a", keys, "ENROL-NAME-TWICE"),
        ("a", other, "ENROL-NAME-TWICE"),
        ("b", keys, "ENROL-KEY-TWICE"),
    ]:
        with pytest.raises(RefusedError, match=code):
            admit(centre, site_keys.write_request(tmp_path, name, used))
    assert set(read_sites(centre)) == {"a"}


def test_a_revoked_site_is_on_the_list_and_keeps_its_date(
    centre: Centre, site_keys: ModuleType, tmp_path: Path
) -> None:
    admit(centre, site_keys.write_request(tmp_path, "a", site_keys.make_keys()))
    admit(centre, site_keys.write_request(tmp_path, "b", site_keys.make_keys()))
    revoke_site(centre, "a")
    site = read_sites(centre)["a"]
    assert site.is_revoked
    listed = x509.load_pem_x509_crl((centre.tls / "crl.pem").read_bytes())
    assert [revoked.serial_number for revoked in listed] == [int(site.certificate_serial, 16)]
    assert not read_sites(centre)["b"].is_revoked
    assert not centre.kit("a").exists()


def test_a_site_is_revoked_once_and_an_unknown_one_never(
    centre: Centre, site_keys: ModuleType, tmp_path: Path
) -> None:
    admit(centre, site_keys.write_request(tmp_path, "a", site_keys.make_keys()))
    revoke_site(centre, "a")
    with pytest.raises(RefusedError, match="REVOKE-ALREADY"):
        revoke_site(centre, "a")
    with pytest.raises(RefusedError, match=r"REVOKE-UNKNOWN.*there are: a"):
        revoke_site(centre, "b")


def test_a_revoked_site_comes_back_with_a_new_key_only(
    centre: Centre, site_keys: ModuleType, tmp_path: Path
) -> None:
    keys, new = site_keys.make_keys(), site_keys.make_keys()
    admit(centre, site_keys.write_request(tmp_path, "a", keys))
    revoke_site(centre, "a")
    for name in ("a", "b"):
        with pytest.raises(RefusedError, match="ENROL-KEY-REVOKED"):
            admit(centre, site_keys.write_request(tmp_path, name, keys))
    admit(centre, site_keys.write_request(tmp_path, "a", new))
    site = read_sites(centre)["a"]
    assert site.fingerprint == new.fingerprint
    assert [earlier.fingerprint for earlier in site.earlier] == [keys.fingerprint]
    assert site.earlier[0].revoked_at is not None
