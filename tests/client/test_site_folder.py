"""`init`: a folder becomes a site's; what is there stays, and a second call changes no key."""

import json
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from typer.testing import CliRunner

from client.cli import app
from client.findings import FindingError
from client.site import read_site
from client.site_folder import init_site

CENTRE = "centre.example.org:8443"


def test_an_empty_folder_gets_settings_keys_and_a_request(tmp_path: Path) -> None:
    result = init_site(tmp_path / "site", "st-mary", CENTRE)
    site = read_site(tmp_path / "site" / "site.toml")
    assert (site.name, site.server.address) == ("st-mary", CENTRE)
    request = json.loads(result.request_file.read_text())
    assert result.request_file.name == "st-mary.enrol.json"
    assert set(request) == {
        *("format_version", "name", "public_key", "certificate_request", "fingerprint", "release")
    }


def test_the_keys_are_of_the_kinds_that_flower_and_sitewatch_take_and_nobody_else_may_read_them(
    tmp_path: Path,
) -> None:
    result = init_site(tmp_path, "st-mary", CENTRE)
    keys = tmp_path / "keys"
    node = load_ssh_private_key((keys / "node.key").read_bytes(), None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert node.curve.name == "secp384r1"
    assert load_ssh_public_key((keys / "node.pub").read_bytes()) == node.public_key()
    assert load_ssh_public_key(result.request.public_key.encode()) == node.public_key()
    asked = x509.load_pem_x509_csr(result.request.certificate_request.encode())
    assert asked.is_signature_valid
    assert asked.subject.rfc4514_string() == "CN=st-mary"
    for name in ("node.key", "watch.key"):
        assert stat.S_IMODE((keys / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    result = init_site(tmp_path, "st-mary", CENTRE)
    try:
        command = ["ssh-keygen", "-l", "-f", str(tmp_path / "keys" / "node.pub")]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    assert result.request.fingerprint in printed


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    init_site(tmp_path, "st-mary", CENTRE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert init_site(tmp_path, "st-mary", CENTRE).changes == ()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_lost_public_parts_are_made_anew_from_the_private_keys(tmp_path: Path) -> None:
    before = init_site(tmp_path, "st-mary", CENTRE).request
    for name in ("node.pub", "watch.csr"):
        (tmp_path / "keys" / name).unlink()
    after = init_site(tmp_path, "st-mary", CENTRE).request
    assert after.public_key == before.public_key
    requests = [x509.load_pem_x509_csr(r.certificate_request.encode()) for r in (before, after)]
    assert requests[0].public_key() == requests[1].public_key()


def test_what_the_engineer_wrote_stays_and_the_server_table_is_added(tmp_path: Path) -> None:
    written = '# ours\nname = "st-mary"\nstore = "/data/store"  # large disk\n\n[machine]\nworkers = 3\n'
    (tmp_path / "site.toml").write_text(written)
    result = init_site(tmp_path, "st-mary", CENTRE)
    text = (tmp_path / "site.toml").read_text()
    assert text.startswith(written.rstrip())
    assert read_site(tmp_path / "site.toml").server.address == CENTRE
    assert any("[server]" in change and CENTRE in change for change in result.changes)


@pytest.mark.parametrize(
    "server", ['[server]\naddress = ""\n', "[server]\n", '[server]  # the centre\naddress = ""\n']
)
def test_an_empty_server_table_gets_the_address(tmp_path: Path, server: str) -> None:
    (tmp_path / "site.toml").write_text(f'name = "st-mary"\n{server}[machine]\nworkers = 3\n')
    init_site(tmp_path, "st-mary", CENTRE)
    site = read_site(tmp_path / "site.toml")
    assert (site.server.address, site.machine.workers) == (CENTRE, 3)


def test_another_address_that_is_there_stays_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "st-mary"\n[server]\naddress = "10.0.0.5:9000"\n')
    result = init_site(tmp_path, "st-mary", CENTRE)
    assert read_site(tmp_path / "site.toml").server.address == "10.0.0.5:9000"
    assert any("10.0.0.5:9000" in change and CENTRE in change for change in result.changes)


def test_a_name_that_was_corrected_is_asked_for_anew_with_the_same_keys(tmp_path: Path) -> None:
    init_site(tmp_path, "st-marry", "centre:8443")
    before = (tmp_path / "keys" / "node.pub").read_text().split()[1]
    config = tmp_path / "site.toml"
    config.write_text(config.read_text().replace("st-marry", "st-mary"))
    init_site(tmp_path, "st-mary", "centre:8443")
    request = x509.load_pem_x509_csr((tmp_path / "keys" / "watch.csr").read_bytes())
    assert request.subject.rfc4514_string() == "CN=st-mary"
    assert (tmp_path / "keys" / "node.pub").read_text().split()[1] == before


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FindingError, match="1 to 65535"):
        init_site(tmp_path, "st-mary", "centre:99999")


def test_the_folder_of_another_site_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "my-hospital"\n')
    with pytest.raises(FindingError) as caught:
        init_site(tmp_path, "st-mary", CENTRE)
    assert caught.value.finding.code == "SITE-OTHER-NAME"
    assert "my-hospital" in caught.value.finding.message
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("name", "address"),
    [("St Mary", CENTRE), ("", CENTRE), ("st-mary", "centre"), ("st-mary", "http://centre:8443")],
)
def test_a_name_or_an_address_that_is_none_leaves_no_settings_behind(
    tmp_path: Path, name: str, address: str
) -> None:
    with pytest.raises(FindingError) as caught:
        init_site(tmp_path / "site", name, address)
    finding = caught.value.finding
    assert (finding.code, finding.where) == ("SITE-VALUE", "NAME" if address == CENTRE else "option --server")
    assert "pattern" not in finding.message
    assert not (tmp_path / "site").exists()


def test_a_key_that_cannot_be_read_is_refused_and_not_replaced(tmp_path: Path) -> None:
    init_site(tmp_path, "st-mary", CENTRE)
    (tmp_path / "keys" / "node.key").write_text("torn")
    with pytest.raises(FindingError) as caught:
        init_site(tmp_path, "st-mary", CENTRE)
    assert caught.value.finding.code == "KEYS-UNREADABLE"
    assert (tmp_path / "keys" / "node.key").read_text() == "torn"


def test_the_command_prints_the_fingerprint_and_what_comes_next(tmp_path: Path) -> None:
    arguments = ["init", "st-mary", "--server", CENTRE, "--dir", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    request = json.loads((tmp_path / "st-mary.enrol.json").read_text())
    assert request["fingerprint"] in result.stdout
    assert "dsan-client join st-mary.kit.json" in result.stdout
