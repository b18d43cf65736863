import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from client.cohort import read_cohort
from client.images import read_ct, read_mask
from client.site import read_site
from dsan_model.cases import Label, RatioGroup, infection_ratio, ratio_group
from dsan_model.preprocessing import Recipe
from simulation.hospitals import HospitalPlan, draw_cases, plan_hospitals, write_hospitals
from simulation.phantoms import phantom
from simulation.scanners import SCANNERS

SHAPE_DHW = (16, 32, 32)
RECIPE = Recipe((16, 32, 32), antialias=True)
PLANS = plan_hospitals(3, 4, seed=5)  # DICOM of one class, NIfTI of both, and the held-out one


def write(out: Path, **changes: object) -> tuple[Path, ...]:
    arguments = {"plans": PLANS, "shape_DHW": SHAPE_DHW, "seed": 5, "recipe": RECIPE, "workers": 2} | changes
    return write_hospitals(out, **arguments)  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hospitals")
    write(out)
    return out


def test_eight_hospitals_differ_in_size_mix_scanner_and_format() -> None:
    *training, held_out = plan_hospitals(8, 60, seed=0)
    assert [plan.name for plan in training] == [f"hospital-{i}" for i in range(1, 8)]
    sizes = [plan.cases for plan in training]
    assert (min(sizes), max(sizes), sum(sizes)) == (36, 84, 420)
    assert sum(plan.n_covid for plan in training) == 210
    assert [plan.n_cap == 0 for plan in training].count(True) == 1
    assert all(plan.n_covid > 0 for plan in training)
    assert len({plan.n_covid / plan.cases for plan in training}) > 4
    assert sorted(plan.cases for plan in training if plan.file_format == "dicom") == sorted(sizes)[:2]
    assert held_out.held_out
    assert not any(plan.held_out for plan in training)
    assert (held_out.name, held_out.n_covid, held_out.n_cap) == ("hospital-8", 30, 30)
    assert len({plan.scanner for plan in (*training, held_out)}) == 8


@pytest.mark.parametrize("n_sites", range(2, 11))
@pytest.mark.parametrize("seed", [0, 1])
def test_training_hospitals_together_are_balanced(n_sites: int, seed: int) -> None:
    *training, held_out = plan_hospitals(n_sites, 60, seed)
    n_covid, n = sum(plan.n_covid for plan in training), sum(plan.cases for plan in training)
    assert abs(2 * n_covid - n) <= 1
    assert n == pytest.approx(60 * (n_sites - 1), abs=n_sites)
    assert sum(plan.n_cap == 0 for plan in training) == (n_sites > 2)
    assert held_out.n_covid == held_out.n_cap


def test_the_held_out_hospital_is_cap_only_on_request() -> None:
    *training, held_out = plan_hospitals(8, 60, seed=0, held_out_mix="cap-only")
    assert (held_out.n_covid, held_out.n_cap) == (0, 60)
    assert tuple(training) == plan_hospitals(8, 60, seed=0)[:-1]


@pytest.mark.parametrize("file_format", ["dicom", "nifti"])
def test_a_format_can_be_asked_for_at_all_hospitals(file_format: str) -> None:
    plans = plan_hospitals(8, 60, seed=0, file_format=file_format)
    assert {plan.file_format for plan in plans} == {file_format}


def test_plans_that_cannot_be_are_refused_with_their_values() -> None:
    with pytest.raises(ValueError, match="1 sites of 60 cases"):
        plan_hospitals(1, 60, seed=0)
    with pytest.raises(ValueError, match="'covid-only'"):
        plan_hospitals(8, 60, seed=0, held_out_mix="covid-only")
    with pytest.raises(ValueError, match="'nrrd'"):
        plan_hospitals(8, 60, seed=0, file_format="nrrd")


@pytest.mark.parametrize(
    ("held_out", "patients", "ages", "female"),
    [
        (False, {Label.COVID: 1053, Label.CAP: 690}, {Label.COVID: 50, Label.CAP: 57}, 0.506),
        (True, {Label.COVID: 839, Label.CAP: 1083}, {Label.COVID: 50, Label.CAP: 42}, 0.535),
    ],
)
def test_demographics_follow_table_1(
    held_out: bool, patients: dict[Label, int], ages: dict[Label, int], female: float
) -> None:
    plan = HospitalPlan("hospital-1", 1200, 1200, SCANNERS[0], "nifti", held_out)
    cases = list(draw_cases(Path(), plan, SHAPE_DHW, seed=0))
    of_patient = {case.patient_id: case for case in cases}
    for label in Label:
        of_label = [case for case in of_patient.values() if case.plan.label is label]
        assert len(of_label) == pytest.approx(patients[label], abs=1)
        assert np.median([case.age for case in of_label]) == pytest.approx(ages[label], abs=2)
        assert 8 <= min(case.age for case in of_label) < 30
        assert 75 < max(case.age for case in of_label) <= 98
    assert np.mean([case.sex == "F" for case in of_patient.values()]) == pytest.approx(female, abs=0.01)


def test_each_hospital_follows_table_3() -> None:
    plan = HospitalPlan("hospital-1", 100, 100, SCANNERS[0], "nifti", False)
    cases = [case.plan for case in draw_cases(Path(), plan, SHAPE_DHW, seed=0)]
    for label, shares in ((Label.COVID, (13.8, 29.1, 57.1)), (Label.CAP, (76.7, 16.8, 6.5))):
        groups = Counter(ratio_group(case.infection_ratio) for case in cases if case.label is label)
        np.testing.assert_allclose([groups[group] for group in RatioGroup], shares, atol=1.0)


def test_scans_of_a_patient_share_anatomy_and_identity_but_not_date_and_lesion() -> None:
    plan = HospitalPlan("hospital-1", 0, 60, SCANNERS[0], "nifti", False)
    cases = list(draw_cases(Path(), plan, SHAPE_DHW, seed=0))
    assert len({case.plan.lesion_seed for case in cases}) == 60
    repeated = [p for p, n in Counter(case.patient_id for case in cases).items() if n > 1]
    assert len(repeated) > 10
    for patient in repeated:
        scans = [case for case in cases if case.patient_id == patient]
        assert len({(case.plan.anatomy_seed, case.age, case.sex) for case in scans}) == 1
        assert len({case.acquired_on for case in scans}) == len(scans)


def test_pseudonyms_and_file_names_do_not_tell_the_class() -> None:
    cases = list(draw_cases(Path(), PLANS[-1], SHAPE_DHW, seed=0))
    assert [case.case_id for case in cases] == ["h3-0001", "h3-0002", "h3-0003", "h3-0004"]
    assert [case.plan.label for case in cases] != sorted(case.plan.label for case in cases)
    for case in cases:
        assert re.fullmatch("P[0-9A-F]{8}", case.patient_id)
        assert Path(case.image).name.removesuffix(".nii") == case.case_id


def test_the_client_reads_every_case_back_as_it_was_made(hospitals: Path) -> None:
    for plan in PLANS:
        site = read_site(hospitals / plan.name / "site.toml")
        assert (site.name, site.preprocessing_recipe) == (plan.name, RECIPE)
        cases, findings = read_cohort(site.manifest)
        assert findings == ()
        made_cases = list(draw_cases(Path(), plan, SHAPE_DHW, seed=5))
        for case, made in zip(cases, made_cases, strict=True):
            assert (case.case_id, case.patient_id, case.label) == (
                made.case_id,
                made.patient_id,
                made.plan.label,
            )
            assert (case.age, case.sex, case.acquired_on) == (made.age, made.sex, made.acquired_on)
            assert case.scanner == plan.scanner.name
            assert case.image.is_dir() == (plan.file_format == "dicom")
            ct, warnings = read_ct(case.image, case.case_id, site.audit.max_slice_thickness_mm)
            assert {finding.code.partition("-")[2] for finding in warnings} <= {"THICKNESS"}
            wanted = phantom(made.plan)
            masks = [
                read_mask(path, ct, case.case_id) for path in (case.lung_mask, case.infection_mask) if path
            ]
            for read, original in zip((ct, *masks), (wanted.ct, wanted.lung, wanted.infection), strict=True):
                in_order = sitk.DICOMOrient(read, "LPS"), sitk.DICOMOrient(original, "LPS")
                assert np.array_equal(*map(sitk.GetArrayFromImage, in_order))
                np.testing.assert_allclose(in_order[0].GetOrigin(), in_order[1].GetOrigin(), atol=1e-3)
                np.testing.assert_allclose(in_order[0].GetSpacing(), in_order[1].GetSpacing(), atol=1e-5)
            lung, infection = (sitk.GetArrayFromImage(mask) > 0 for mask in masks)
            assert infection_ratio(infection, lung) == wanted.infection_ratio


def test_dicom_files_are_ct_images_under_pseudonyms_in_no_order(hospitals: Path) -> None:
    plan = next(plan for plan in PLANS if plan.file_format == "dicom")
    cases, _ = read_cohort(hospitals / plan.name / "cohort.csv")
    instances: list[str] = []
    for case in cases:
        headers = [pydicom.dcmread(path) for path in sorted(case.image.iterdir())]
        instances += [header.SOPInstanceUID for header in headers]
        assert {header.SOPClassUID.name for header in headers} == {"CT Image Storage"}
        assert {(str(header.PatientName), header.PatientID) for header in headers} == {
            (case.patient_id, case.patient_id)
        }
        assert {header.SeriesInstanceUID for header in headers} == {headers[0].SeriesInstanceUID}
        heights = [float(header.ImagePositionPatient[2]) for header in headers]
        assert heights not in (sorted(heights), sorted(heights, reverse=True))
    assert len(set(instances)) == len(instances) == SHAPE_DHW[0] * len(cases)


def test_writing_twice_gives_the_same_bytes_with_any_number_of_workers(
    hospitals: Path, tmp_path: Path
) -> None:
    calls: list[tuple[int, int]] = []
    sites = write(tmp_path, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert digests(tmp_path) == digests(hospitals)
    assert sites == tuple(tmp_path / plan.name / "site.toml" for plan in PLANS)
    total = sum(plan.cases for plan in PLANS)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_a_killed_call_is_finished_by_the_next_one(hospitals: Path, tmp_path: Path) -> None:
    out = tmp_path / "hospitals"
    shutil.copytree(hospitals, out)
    cut = {plan.file_format: out / plan.name for plan in PLANS[:2]}
    (cut["dicom"] / "cohort.csv").unlink()
    series = next((cut["dicom"] / "images").iterdir())
    series.rename(series.with_name(f".{series.name}.tmp"))  # killed before the folder got its name
    next(series.with_name(f".{series.name}.tmp").iterdir()).unlink()
    next((cut["nifti"] / "masks").iterdir()).unlink()
    untouched = next((out / PLANS[-1].name / "images").iterdir()).stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    write(out, progress=lambda done, total: calls.append((done, total)))
    assert digests(out) == digests(hospitals)
    assert len(calls) == 2
    assert next((out / PLANS[-1].name / "images").iterdir()).stat().st_mtime_ns == untouched


@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"shape_DHW": (16, 32, 40)}, {"recipe": Recipe((8, 32, 32))}]
)
def test_another_hospital_is_never_written_over(hospitals: Path, change: dict[str, object]) -> None:
    before = digests(hospitals)
    with pytest.raises(FileExistsError, match=r"hospital-1: holds files"):
        write(hospitals, **change)
    assert digests(hospitals) == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / PLANS[0].name).mkdir()
    (tmp_path / PLANS[0].name / "cohort.csv").write_text("case_id\n")
    with pytest.raises(FileExistsError, match="remove this one"):
        write(tmp_path)


def test_a_site_with_thick_slices_says_so_in_its_settings(hospitals: Path) -> None:
    thickness_mm = {plan.name: plan.scanner.field_of_view_mm_xyz[2] / SHAPE_DHW[0] for plan in PLANS}
    for name, expected in thickness_mm.items():
        found = read_site(hospitals / name / "site.toml").audit.max_slice_thickness_mm
        assert expected <= found < expected + 0.1
