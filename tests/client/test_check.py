import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import SimpleITK as sitk

from client import check, machine_audit
from client.check import check_site
from client.check_report import check_json, check_text
from client.finding_table import exit_code
from client.findings import Finding
from client.preparation import Progress
from dsan_model.cases import Label

CONFIG = Path("site.toml")


def test_a_good_site_has_no_findings(cohort_factory: ModuleType, tmp_path: Path) -> None:
    result = check_site(cohort_factory.write_hospital(tmp_path))
    assert result.findings == ()
    assert (result.n_listed, result.n_usable, result.n_patients) == (3, 3, 3)
    assert result.n_by_label == {Label.COVID: 1, Label.CAP: 2}
    assert result.n_by_masks == {"given": 3}
    assert exit_code(result.findings) == 0
    assert check_text(result, CONFIG).endswith("next: dsan-client prepare --config site.toml")


def test_nothing_is_written(cohort_factory: ModuleType, tmp_path: Path) -> None:
    site = cohort_factory.write_hospital(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check_site(site)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_lines_scans_and_masks_are_found_and_the_others_go_on(
    cohort_factory: ModuleType, dicom_factory: ModuleType, tmp_path: Path
) -> None:
    line = cohort_factory.line
    for case_id in ("good", "thick", "maskless", "broken"):
        cohort_factory.write_case(tmp_path, case_id)
    thick = sitk.ReadImage(str(tmp_path / "thick.nii.gz"))
    thick.SetSpacing((3, 3, 8))
    sitk.WriteImage(thick, str(tmp_path / "thick.nii.gz"))
    (tmp_path / "broken_lung.nii.gz").write_bytes(b"no image")
    series = dicom_factory.write_series(tmp_path / "gap", dicom_factory.good_slices())
    (series / dicom_factory.file_name(5)).unlink()
    site = cohort_factory.write_site(
        tmp_path,
        line("good", "COVID-19"),
        line("thick"),
        line("maskless", infection_mask=""),
        line("broken"),
        line("gap", image="gap", lung_mask="", infection_mask=""),
        line("other", "covid"),
    )
    seen: list[Progress] = []
    result = check_site(site, seen.append)
    codes = {(finding.case_id, finding.code) for finding in result.findings}
    assert codes >= {
        ("thick", "IMAGE-THICKNESS"),
        ("maskless", "IMAGE-NO-MASK"),
        ("gap", "DICOM-GAP"),
        ("broken", "IMAGE-DAMAGED"),
        ("other", "COHORT-LABEL"),
    }
    assert (result.n_listed, result.n_usable) == (6, 1)
    assert "good" not in {finding.case_id for finding in result.findings}
    assert exit_code(result.findings) == 65
    assert sorted(progress.done for progress in seen) == [1, 2, 3, 4, 5]


def test_a_mask_that_the_site_segments_itself_is_not_missing(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    cohort_factory.write_case(tmp_path, "c0")
    settings = '[segmentation]\nlungs = "classical"\ninfection = "crude"\n'
    bare = cohort_factory.line("c0", lung_mask="", infection_mask="")
    result = check_site(cohort_factory.write_site(tmp_path, bare, settings=settings))
    assert result.findings == ()
    assert "masks     1 lungs classical-2, infection crude-2" in check_text(result, CONFIG)


def test_a_table_that_cannot_be_read_is_a_finding(cohort_factory: ModuleType, tmp_path: Path) -> None:
    site = cohort_factory.write_hospital(tmp_path)
    site.manifest.unlink()
    result = check_site(site)
    assert [finding.code for finding in result.findings] == ["COHORT-FILE"]
    assert result.n_usable == 0
    assert exit_code(result.findings) == 65


def test_a_golden_case_that_comes_out_wrong_exits_70(
    cohort_factory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding("GOLDEN-MISMATCH", "error", "golden case", "computed 1, expected 2", "Explain it.")
    monkeypatch.setattr(check, "golden_findings", lambda device: (wrong,))
    result = check_site(cohort_factory.write_hospital(tmp_path))
    assert exit_code(result.findings) == 70
    text = check_text(result, CONFIG)
    assert "golden    WRONG on cpu" in text
    assert "next: heed the errors above" in text


def test_a_gpu_that_is_asked_for_and_absent_is_bad_configuration(
    cohort_factory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_audit.torch.cuda, "is_available", lambda: False)
    cohort_factory.write_case(tmp_path, "c0")
    settings = '[machine]\ndevice = "cuda"\n'
    site = cohort_factory.write_site(tmp_path, cohort_factory.line("c0"), settings=settings)
    result = check_site(site)
    assert [finding.code for finding in result.findings] == ["MACHINE-NO-GPU"]
    assert exit_code(result.findings) == 78


def test_a_disk_too_small_for_the_cohort_is_an_error_and_memory_a_warning(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    site = cohort_factory.write_hospital(tmp_path)
    machine = replace(machine_audit.read_machine(site), disk_free_bytes=1000, memory_bytes=10**9, workers=2)
    findings = machine_audit.machine_findings(machine, site, n_cases=3)
    assert {(finding.code, finding.severity) for finding in findings} == {
        ("MACHINE-DISK", "error"),
        ("MACHINE-MEMORY", "warning"),
    }


def test_the_json_has_every_finding_and_its_groups(cohort_factory: ModuleType, tmp_path: Path) -> None:
    cohort_factory.write_case(tmp_path, "c0")
    lines = [cohort_factory.line("c0"), *(cohort_factory.line(f"x{i}") for i in range(7))]
    result = check_site(cohort_factory.write_site(tmp_path, *lines))
    table = json.loads(json.dumps(check_json(result)))
    assert table["exit_code"] == 65
    assert table["cohort"] == {
        "listed": 8,
        "usable": 1,
        "patients": 1,
        "COVID-19": 0,
        "CAP": 1,
        "masks": {"given": 1},
    }
    group = table["groups"][0]
    assert group["code"] == "COHORT-MISSING"
    assert (group["count"], group["n_cases"], group["first_cases"]) == (21, 7, [f"x{i}" for i in range(5)])
    assert len(table["findings"]) == 21
    assert table["machine"]["versions"]["torch"].startswith("2.13")
