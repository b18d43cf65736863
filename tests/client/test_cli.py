import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from client.cli import app

COMMANDS = ("import", "check", "prepare", "diagnose")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: dsan-client {command}" in result.stdout.replace("\n", " ").replace("  ", " ")


def test_help_answers_without_loading_what_takes_seconds() -> None:
    code = (
        "import sys; from client.cli import app; from typer.testing import CliRunner; "
        "CliRunner().invoke(app, ['diagnose', '--help']); "
        "print([name for name in ('torch', 'numpy', 'SimpleITK', 'pydicom') if name in sys.modules])"
    )
    started = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
    assert time.perf_counter() - started < 10  # on a loaded machine; 0.4 s on an idle one


def test_check_of_a_good_site_exits_0_and_says_what_comes_next(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    cohort_factory.write_hospital(tmp_path)
    result = run("check", "--config", tmp_path / "site.toml")
    assert result.exit_code == 0, result.output
    assert "no findings" in result.stdout
    assert result.stdout.splitlines()[-1] == f"next: dsan-client prepare --config {tmp_path / 'site.toml'}"


def test_check_with_json_writes_json_alone_on_stdout(cohort_factory: ModuleType, tmp_path: Path) -> None:
    cohort_factory.write_case(tmp_path, "c0")
    cohort_factory.write_site(tmp_path, cohort_factory.line("c0"), cohort_factory.line("gone"))
    result = run("check", "--config", tmp_path / "site.toml", "--json")
    assert result.exit_code == 65
    assert json.loads(result.stdout)["exit_code"] == 65
    assert "checking cases: 1 of 1" in result.stderr


def test_prepare_leaves_bad_cases_out_and_exits_65(cohort_factory: ModuleType, tmp_path: Path) -> None:
    cohort_factory.write_case(tmp_path, "c0")
    cohort_factory.write_site(tmp_path, cohort_factory.line("c0"), cohort_factory.line("gone"))
    result = run("prepare", "--config", tmp_path / "site.toml", "--workers", 1)
    assert result.exit_code == 65, result.output
    assert "prepared  1 of 2 cases" in result.stdout
    assert "COHORT-MISSING" in result.stdout
    assert "preparing cases: 1 of 1" in result.stderr
    assert (tmp_path / "qc.html").is_file()


def test_prepare_of_a_good_cohort_exits_0(cohort_factory: ModuleType, tmp_path: Path) -> None:
    cohort_factory.write_hospital(tmp_path)
    config = tmp_path / "site.toml"
    alone = run("prepare", "--config", config, "--workers", 1)
    assert alone.exit_code == 0
    assert alone.stdout.splitlines()[-1].endswith(
        f"dsan-client init NAME --server HOST:PORT --dir {tmp_path}"
    )
    config.write_text(config.read_text() + '\n[server]\naddress = "dsan.example.org:8443"\n')
    joined = run("prepare", "--config", config, "--workers", 1)
    assert joined.stdout.splitlines()[-1].endswith(f"dsan-client start --config {config}")


def test_import_then_prepare_by_the_commands(dicom_factory: ModuleType, tmp_path: Path) -> None:
    dicom_factory.write_series(tmp_path / "export" / "a" / "b", dicom_factory.good_slices())
    (tmp_path / "labels.csv").write_text("patient_id,label\nCANARY-ID,CAP\n")
    out = tmp_path / "hospital"
    result = run("import", tmp_path / "export", "--labels", tmp_path / "labels.csv", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("next: name the masks in")
    assert "CANARY" not in result.output
    prepared = run("prepare", "--config", out / "site.toml", "--workers", 1)
    assert prepared.exit_code == 65
    assert "IMAGE-NO-MASK" in prepared.stdout
    assert "CANARY" not in prepared.output


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    result = run("diagnose", "scan.nii", "--model", "model", "--out", "out", "--max-slice-thickness", "nan")
    assert result.exit_code == 2
    assert "nan is not a number" in result.output


def test_diagnose_writes_result_and_panel(cohort_factory: ModuleType, tmp_path: Path) -> None:
    cohort_factory.write_case(tmp_path, "c0")
    model = cohort_factory.write_package(tmp_path / "model")
    masks = ("--lung-mask", tmp_path / "c0_lung.nii.gz", "--infection-mask", tmp_path / "c0_infection.nii.gz")
    result = run(
        "diagnose", tmp_path / "c0.nii.gz", "--model", model, "--out", tmp_path / "out", *masks, "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0] == json.loads((tmp_path / "out" / "result.json").read_text())
    assert (tmp_path / "out" / "panel.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("check", "--config", "nowhere.toml"), "SITE-FILE", 78),
        (("prepare", "--config", "nowhere.toml"), "SITE-FILE", 78),
        (("import", "nowhere", "--labels", "nowhere.csv", "--out", "out"), "IMPORT-LABELS", 65),
        (("diagnose", "x", "--model", "nowhere", "--out", "out"), "MODEL-MISSING", 65),
    ],
)
def test_what_cannot_begin_is_refused_by_code_on_stderr(
    arguments: tuple[str, ...], code: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == exit_code
    assert code in result.stderr
    assert "fix: " in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("diagnose", "a", "b", "--lung-mask", "c", "--model", "m", "--out", "o"),
        ("import", "a"),
        ("prepare", "--workers", "-1"),
        ("nonsense",),
    ],
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_disk_that_takes_no_more_is_said_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "client.cli", "init", "st-mary", "--server", "centre:8443"]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, 0))
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=full, cwd=tmp_path)
    assert done.returncode == 70
    assert "SITE-OS-27" in done.stderr
    assert "Traceback" not in done.stderr
