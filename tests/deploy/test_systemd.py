"""The units let a daemon do what it must, and little else."""

import re
import subprocess
from pathlib import Path

import pytest
from debian_programs import debian_program

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
LARGEST_EXPOSURE = 2.5


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_exposes_little(unit: Path) -> None:
    command = [str(debian_program("systemd-analyze")), "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, env={"LANG": "C.UTF-8"})
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) < LARGEST_EXPOSURE


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_restarts_for_ever_and_gives_30_s_to_leave(unit: Path) -> None:
    settings = dict(re.findall(r"(?m)^(\w+)=(.*)$", unit.read_text()))
    assert settings["Restart"] == "always"
    assert settings["Type"] == "notify"
    assert float(settings["TimeoutStopSec"]) > 30
    assert settings["RestartPreventExitStatus"] == "78"  # settings that are wrong stay wrong


def test_the_processes_of_a_site_may_list_network_interfaces_as_gloo_and_nccl_do() -> None:
    unit = next(unit for unit in UNITS if unit.name == "dsan-client.service")
    settings = dict(re.findall(r"(?m)^(\w+)=(.*)$", unit.read_text()))
    assert "AF_NETLINK" in settings["RestrictAddressFamilies"].split()  # getifaddrs
