"""A new centre's folder."""

import ipaddress
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from dsan_model.configuration import ConfigurationError
from server.centre import ServerConfig, open_centre
from server.founding import authority_fingerprint, found_centre
from server.refusals import ExitCode, RefusedError
from server.study import StudyConfig, read_study


def test_a_new_centre_has_settings_a_study_keys_and_certificates(tmp_path: Path) -> None:
    found_centre(tmp_path / "centre", "dsan.example.org")
    centre, config = open_centre(tmp_path / "centre")
    assert config == ServerConfig(host="dsan.example.org")
    names = {path.name for path in centre.folder.iterdir()}
    assert names == {"server.toml", "study.toml", "tls", "sites", "runs"}
    assert {path.name: path.stat().st_mode & 0o777 for path in centre.tls.glob("*.key")} == {
        "ca.key": 0o600,
        "server.key": 0o600,
    }


def test_its_study_has_the_papers_values(tmp_path: Path) -> None:
    found_centre(tmp_path, "centre")
    assert read_study(tmp_path / "study.toml") == StudyConfig(name="first-study")


@pytest.mark.parametrize("host", ["dsan.example.org", "localhost", "192.0.2.7", "2001:db8::7"])
def test_the_servers_certificate_verifies_for_its_host(tmp_path: Path, host: str) -> None:
    found_centre(tmp_path, host)
    tls = tmp_path / "tls"
    try:
        name = ["-verify_ip", str(ipaddress.ip_address(host))]
    except ValueError:
        name = ["-verify_hostname", host]
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", *name]
    verify += ["-crl_check", "-CRLfile", "crl.pem", "-CAfile", "ca.crt", "server.crt"]
    done = subprocess.run(verify, cwd=tls, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_fingerprint_is_the_one_that_openssl_prints(tmp_path: Path) -> None:
    fingerprint = found_centre(tmp_path, "centre")
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(tmp_path / "tls/ca.crt")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip().endswith(f"={fingerprint}")
    assert authority_fingerprint(open_centre(tmp_path)[0]) == fingerprint


def test_the_list_of_revoked_certificates_is_valid_as_long_as_the_authority(tmp_path: Path) -> None:
    found_centre(tmp_path, "centre")
    revoked = x509.load_pem_x509_crl((tmp_path / "tls/crl.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((tmp_path / "tls/ca.crt").read_bytes())
    assert list(revoked) == []
    assert revoked.next_update_utc == authority.not_valid_after_utc


def test_a_centre_is_not_written_over(tmp_path: Path) -> None:
    found_centre(tmp_path, "centre")
    before = (tmp_path / "tls/ca.key").read_bytes()
    with pytest.raises(RefusedError, match="CENTRE-EXISTS") as refused:
        found_centre(tmp_path, "other")
    assert refused.value.exit_code == ExitCode.BAD_CONFIGURATION
    assert (tmp_path / "tls/ca.key").read_bytes() == before


def test_a_disk_that_takes_no_more_is_said_by_the_command_without_a_traceback(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "server.cli",
        "init",
        "--host",
        "centre",
        "--dir",
        str(tmp_path / "centre"),
    ]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, 0))
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=full)
    assert done.returncode == ExitCode.FAILED
    assert "CENTRE-OS-27: " in done.stderr
    assert "the operating system refused: File too large" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["", "https://x", "x:8443", "a b", "-x", "x" * 64, "x..y"])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(RefusedError, match="CENTRE-HOST"):
        found_centre(tmp_path / "centre", host)
    assert not (tmp_path / "centre").exists()


def test_a_folder_without_a_centre_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"CENTRE-MISSING.*server\.toml"):
        open_centre(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_folder_of_another_user_is_refused_with_the_command_to_give(tmp_path: Path) -> None:
    found_centre(tmp_path / "centre", "127.0.0.1")
    os.chown(tmp_path / "centre", 65534, 65534)
    with pytest.raises(RefusedError, match=r"CENTRE-OWNER.*belongs to nobody.*runuser -u nobody"):
        open_centre(tmp_path / "centre")


def test_an_unknown_key_of_the_settings_comes_with_the_nearest_known_one(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('host = "x"\nports = 1\n')
    with pytest.raises(ConfigurationError, match=r"unknown key 'ports'; did you mean 'port'"):
        open_centre(tmp_path)
