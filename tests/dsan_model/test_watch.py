"""The closed set of what a site may say, and the modules generated from watch.proto."""

import importlib.metadata
import math
import subprocess
import sys
from pathlib import Path

import pytest

from client.work import PHASES as WORK_PHASES
from dsan_model.watch import LARGEST_STEPS, PHASES, clean_status, is_about
from dsan_model.watch_pb2 import Order, SiteStatus

ROOT = Path(__file__).parents[2]
GENERATED = ("watch_pb2.py", "watch_pb2.pyi", "watch_pb2_grpc.py")


def full_status() -> SiteStatus:
    return SiteStatus(
        study="eight-sites.1",
        round=7,
        branch="ss",
        phase="training",
        done=30,
        steps=120,
        eta_s=95.5,
        disk_free_bytes=10**12,
        last_error="SITE-OS-28",
        release="0.1.0",
        sent_unix_s=1.79e9,
        phase_since_unix_s=1.78e9,
    )


def test_a_status_of_the_right_form_passes_unchanged() -> None:
    assert clean_status(full_status()) == full_status()
    assert clean_status(SiteStatus()) == SiteStatus()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("study", "../../etc"),
        ("study", "Erika Mustermann"),
        ("study", "a" * 65),
        ("study", "eight\n"),
        ("branch", "left"),
        ("phase", "<script>"),
        ("phase", "/data/patient-17"),
        ("last_error", "cannot read /data/Mustermann.dcm"),
        ("last_error", "AAA" + "-B" * 40),
        ("release", "1.0; rm"),
        ("round", 2**32 - 1),
        ("eta_s", math.nan),
        ("eta_s", math.inf),
        ("eta_s", -1.0),
        ("disk_free_bytes", 2**63),
        ("sent_unix_s", 1e300),
        ("phase_since_unix_s", -math.inf),
    ],
)
def test_a_field_that_is_not_of_its_form_is_dropped_and_the_others_stay(name: str, value: object) -> None:
    status = full_status()
    setattr(status, name, value)
    expected = full_status()
    expected.ClearField(name)
    assert clean_status(status) == expected


def test_done_is_never_more_than_the_steps() -> None:
    assert clean_status(SiteStatus(done=9, steps=4)).done == 4
    dropped = clean_status(SiteStatus(done=9, steps=LARGEST_STEPS + 1))
    assert (dropped.done, dropped.steps) == (0, 0)


def test_a_field_of_another_release_does_not_pass() -> None:
    strange = SiteStatus.FromString(full_status().SerializeToString() + b"\xa2\x06\x04name")
    assert strange.SerializeToString() != full_status().SerializeToString()
    assert clean_status(strange).SerializeToString() == full_status().SerializeToString()


def test_an_order_is_about_its_study_and_the_parts_of_it_and_no_other() -> None:
    order = Order(kind=Order.STOP, study="eight")
    assert all(is_about(order, study) for study in ("eight", "eight.fold-3", "eight.without-north", ""))
    assert not any(is_about(order, study) for study in ("eighty", "eight.2", "nine", "nine.fold-1"))
    assert is_about(Order(kind=Order.STOP), "nine")


def test_every_phase_of_the_work_is_in_the_closed_set() -> None:
    assert set(WORK_PHASES) <= set(PHASES)


def test_the_generated_modules_are_those_of_the_proto(tmp_path: Path) -> None:
    tools = importlib.metadata.version("grpcio-tools")
    if not tools.startswith("1.81."):
        pytest.skip(f"grpcio-tools {tools} generates other text than 1.81")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "dsan_model/watch.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    for name in GENERATED:
        assert (tmp_path / "dsan_model" / name).read_text() == (ROOT / "dsan_model" / name).read_text()
