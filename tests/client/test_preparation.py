import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cohort_factory import RECIPE, SHAPE_DHW, line, write_case, write_image

from client import preparation
from client.cohort import COLUMNS
from client.findings import FindingError
from client.preparation import PreparationResult, Progress, load_prepared, prepare_cohort
from client.qc_page import qc_html, write_qc_page
from client.site import SiteConfig, read_site
from client.volume_store import load_masks, load_volume, verify_volume
from client.worker_pool import WorkerDied
from dsan_model.cases import Label

RECIPE_DHW = list(RECIPE.shape_DHW)


def write_cohort(folder: Path, *lines: str) -> None:
    (folder / "cohort.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


def write_site(folder: Path, shape_dhw: list[int] = RECIPE_DHW) -> SiteConfig:
    (folder / "site.toml").write_text(f'name = "a"\n[recipe]\nshape_dhw = {shape_dhw}\n')
    return read_site(folder / "site.toml")


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    """A site with four good cases."""
    for number in range(4):
        write_case(tmp_path, f"c{number}", infection_rows=number)
    write_cohort(tmp_path, *[line(f"c{number}", "CAP" if number < 2 else "COVID-19") for number in range(4)])
    return write_site(tmp_path)


def codes(result: PreparationResult) -> list[tuple[str | None, str]]:
    return [(finding.case_id, finding.code) for finding in result.findings]


def volumes(site: SiteConfig) -> dict[str, tuple[bytes, int]]:
    """Name, content and time of every stored volume."""
    paths = (site.store_folder / "volumes").glob("*.safetensors")
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def contents(site: SiteConfig) -> dict[str, bytes]:
    return {name: content for name, (content, _) in volumes(site).items()}


# ---- a good cohort ----


def test_every_case_becomes_a_volume_with_its_ratio(site: SiteConfig) -> None:
    result = prepare_cohort(site, workers=2)
    assert result.findings == ()
    assert (result.n_listed, result.n_new, result.n_left_out) == (4, 4, 0)
    assert [entry.case.case_id for entry in result.entries] == ["c0", "c1", "c2", "c3"]
    assert [entry.case.label for entry in result.entries] == [Label.CAP] * 2 + [Label.COVID] * 2
    assert [entry.case.infection_ratio for entry in result.entries] == [n * 20 / 3360 for n in range(4)]
    for entry in result.entries:
        verify_volume(entry.path)
        volume_DHW, (lung_DHW, infection_DHW) = load_volume(entry.path), load_masks(entry.path)
        assert volume_DHW.shape == tuple(RECIPE_DHW)
        healthy_DHW = lung_DHW & ~infection_DHW
        hu_D = [
            float(np.median(slice_HW[healthy_HW])) * 1500 - 1350
            for slice_HW, healthy_HW in zip(volume_DHW, healthy_DHW, strict=True)
            if healthy_HW.any()
        ]
        assert hu_D[1:-1] == pytest.approx([-850] * 3, abs=15)
        assert all(-850 < hu < -180 for hu in (hu_D[0], hu_D[-1]))  # the phantom's lungs end by degrees
        assert not volume_DHW[~lung_DHW].any()


def test_what_was_prepared_is_loaded_again(site: SiteConfig, tmp_path: Path) -> None:
    full = line("c0", patient_id="p9", age="53.5", sex="F", acquired_on="2020-02-03", scanner="uCT 780")
    write_cohort(tmp_path, full, line("c3", "COVID-19", patient_id="p9"))
    result = prepare_cohort(site, workers=1)
    assert load_prepared(site) == result.entries
    first, second = load_prepared(site)
    assert (first.age, first.sex, first.acquired_on, first.scanner) == (
        53.5,
        "F",
        date(2020, 2, 3),
        "uCT 780",
    )
    assert (second.age, second.sex, second.acquired_on, second.scanner) == (None,) * 4
    assert first.case.patient_id == second.case.patient_id == "p9"


def test_the_number_of_workers_changes_no_bit(site: SiteConfig) -> None:
    prepare_cohort(site, workers=1)
    alone = contents(site)
    shutil.rmtree(site.store_folder)
    prepare_cohort(site, workers=3)
    assert contents(site) == alone


def test_progress_counts_up_with_an_estimate(site: SiteConfig) -> None:
    seen: list[Progress] = []
    prepare_cohort(site, workers=2, progress=seen.append)
    assert [progress.done for progress in seen] == [0, 1, 2, 3, 4]
    assert {progress.total for progress in seen} == {4}
    assert seen[0].eta_s is None
    assert all(progress.eta_s is not None and progress.eta_s > 0 for progress in seen[1:-1])
    assert seen[-1].eta_s == 0
    prepare_cohort(site, workers=2, progress=seen.append)
    assert seen[-1].done == 4


# ---- nothing is done twice ----


def test_a_second_run_does_no_work(site: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_cohort(site, workers=2)
    before = volumes(site)

    def no_work(_: object, jobs: Iterable[object], __: int) -> Generator[Any, None, None]:
        assert not list(jobs)
        yield from ()

    monkeypatch.setattr(preparation, "parallel_map", no_work)
    second = prepare_cohort(site, workers=2)
    assert second.n_new == 0
    assert second.entries == first.entries
    assert volumes(site) == before


def test_a_touched_file_is_read_again_but_its_volume_is_kept(site: SiteConfig, tmp_path: Path) -> None:
    prepare_cohort(site, workers=1)
    before = volumes(site)
    (tmp_path / "c1.nii.gz").touch()
    result = prepare_cohort(site, workers=1)
    assert result.n_new == 0
    assert volumes(site) == before


def test_another_scan_or_mask_or_recipe_makes_another_volume(site: SiteConfig, tmp_path: Path) -> None:
    paths = [entry.path for entry in prepare_cohort(site, workers=1).entries]
    write_case(tmp_path, "c1", infection_rows=5)
    changed = prepare_cohort(site, workers=1)
    assert changed.n_new == 1
    assert [old == entry.path for old, entry in zip(paths, changed.entries, strict=True)] == [
        True,
        False,
        True,
        True,
    ]
    assert prepare_cohort(write_site(tmp_path, [16, 22, 26]), workers=1).n_new == 4


def test_volumes_of_no_case_are_counted_and_deleted_when_asked_for(site: SiteConfig, tmp_path: Path) -> None:
    assert prepare_cohort(site, workers=1).unused_bytes == 0
    before = set(volumes(site))
    write_cohort(tmp_path, line("c0"), line("c1"))
    result = prepare_cohort(site, workers=1)
    assert result.unused_bytes > 10_000
    assert set(volumes(site)) == before
    removed = prepare_cohort(site, workers=1, remove_unused=True)
    assert (removed.unused_bytes, removed.n_new) == (result.unused_bytes, 0)
    kept = {entry.path.stem for entry in removed.entries}
    assert {path.name.partition(".")[0] for path in (site.store_folder / "volumes").iterdir()} == kept
    assert load_prepared(site) == removed.entries
    assert prepare_cohort(site, workers=1).unused_bytes == 0


def test_a_damaged_volume_is_made_again(site: SiteConfig) -> None:
    path = prepare_cohort(site, workers=1).entries[2].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    assert prepare_cohort(site, workers=1).n_new == 1
    assert path.read_bytes() == whole


# ---- bad cases are left out, the others go on ----


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shift_grid(path: Path) -> None:
    write_image(path, sitk.GetArrayFromImage(sitk.ReadImage(str(path))), z_mm=5.0)


def empty(path: Path) -> None:
    write_image(path, np.zeros(SHAPE_DHW, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: cut_in_half(folder / "c1.nii.gz"), "IMAGE-"),
        (lambda folder: (folder / "c1.nii.gz").write_bytes(b""), "IMAGE-EMPTY-FILE"),
        (lambda folder: shift_grid(folder / "c1_lung.nii.gz"), "IMAGE-MASK-GEOMETRY"),
        (lambda folder: shift_grid(folder / "c1_infection.nii.gz"), "IMAGE-MASK-GEOMETRY"),
        (lambda folder: empty(folder / "c1_lung.nii.gz"), "IMAGE-LUNG-EMPTY"),
        (lambda folder: shutil.copy(folder / "c1_lung.nii.gz", folder / "c1.nii.gz"), "IMAGE-8-BIT"),
        (lambda folder: shutil.copy(folder / "c1.nii.gz", folder / "c1_lung.nii.gz"), "IMAGE-MASK-VALUES"),
    ],
)  # fmt: skip
def test_a_bad_case_is_left_out_with_its_code(
    site: SiteConfig, tmp_path: Path, spoil: Callable[[Path], object], code: str
) -> None:
    spoil(tmp_path)
    result = prepare_cohort(site, workers=2)
    assert [entry.case.case_id for entry in result.entries] == ["c0", "c2", "c3"]
    ((case_id, found),) = codes(result)
    assert case_id == "c1"
    assert found.startswith(code)
    assert result.n_left_out == 1
    assert [entry.case.case_id for entry in load_prepared(site)] == ["c0", "c2", "c3"]


def test_findings_of_the_table_and_of_the_cases_come_together(site: SiteConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_case(tmp_path, "c4")
    (tmp_path / "c1.nii.gz").write_bytes(b"")
    lines = (
        line("c0"),
        line("c1"),
        line("c2", "flu"),
        line("c3", lung_mask=""),
        line("c4", image="empty"),
    )
    write_cohort(tmp_path, *lines)
    result = prepare_cohort(site, workers=2)
    assert [entry.case.case_id for entry in result.entries] == ["c0"]
    assert codes(result) == [
        ("c2", "COHORT-LABEL"),
        ("c1", "IMAGE-EMPTY-FILE"),
        ("c3", "IMAGE-NO-MASK"),
        ("c4", "DICOM-NONE"),
    ]
    assert result.n_left_out == 4
    assert "cohort.csv line 5, column lung_mask" in str(result.findings[2])


def test_a_bad_case_is_tried_again_once_it_is_mended(site: SiteConfig, tmp_path: Path) -> None:
    whole = (tmp_path / "c1.nii.gz").read_bytes()
    cut_in_half(tmp_path / "c1.nii.gz")
    assert prepare_cohort(site, workers=1).n_left_out == 1
    (tmp_path / "c1.nii.gz").write_bytes(whole)
    result = prepare_cohort(site, workers=1)
    assert (result.n_new, result.n_left_out, result.findings) == (1, 0, ())


def test_warnings_are_kept_with_the_volume(site: SiteConfig, tmp_path: Path) -> None:
    for number in range(4):
        for part in ("", "_lung", "_infection"):
            path = tmp_path / f"c{number}{part}.nii.gz"
            image = sitk.ReadImage(str(path))
            image.SetSpacing((3.0, 3.0, 2.0))
            sitk.WriteImage(image, str(path))
    first = prepare_cohort(site, workers=1)
    assert codes(first) == [(f"c{number}", "IMAGE-THICKNESS") for number in range(4)]
    assert len(first.entries) == 4
    assert prepare_cohort(site, workers=1).findings == first.findings


def test_covid_19_without_infection_is_a_warning_of_the_label_not_of_the_volume(
    site: SiteConfig, tmp_path: Path
) -> None:
    assert prepare_cohort(site, workers=1).findings == ()  # c0 is CAP, its ratio 0
    write_cohort(tmp_path, line("c0", "COVID-19"), line("c1"))
    result = prepare_cohort(site, workers=1)
    assert codes(result) == [("c0", "IMAGE-INFECTION-EMPTY")]
    assert (result.n_new, len(result.entries)) == (0, 2)


def test_one_scan_under_two_names_is_a_warning(site: SiteConfig, tmp_path: Path) -> None:
    for part in ("", "_lung", "_infection"):
        shutil.copy(tmp_path / f"c1{part}.nii.gz", tmp_path / f"c0{part}.nii.gz")
    write_cohort(tmp_path, line("c0", patient_id="p-c1"), line("c1"), line("c2"), line("c3"))
    result = prepare_cohort(site, workers=2)
    assert codes(result) == [("c1", "IMAGE-COPY")]
    assert "line 2 (case c0)" in result.findings[0].message
    assert (len(result.entries), result.n_new) == (4, 4)


def test_a_lower_limit_of_thickness_reaches_cases_that_were_prepared_before(
    site: SiteConfig, tmp_path: Path
) -> None:
    entries = prepare_cohort(site, workers=1).entries
    settings = (tmp_path / "site.toml").read_text()
    (tmp_path / "site.toml").write_text(f"{settings}[audit]\nmax_slice_thickness_mm = 0.5\n")
    strict = read_site(tmp_path / "site.toml")
    with pytest.raises(FindingError, match="PREPARE-GATE-CHANGED"):
        load_prepared(strict)
    assert {code for _, code in codes(prepare_cohort(strict, workers=1))} == {"IMAGE-THICKNESS"}
    assert [entry.case for entry in prepare_cohort(site, workers=1).entries] == [e.case for e in entries]


@pytest.mark.parametrize("cells", [{"label": "COVID-19"}, {"patient_id": "p-c0"}])
def test_one_scan_of_two_patients_or_labels_is_not_used(
    site: SiteConfig, tmp_path: Path, cells: dict[str, str]
) -> None:
    for part in ("", "_lung", "_infection"):
        shutil.copy(tmp_path / f"c1{part}.nii.gz", tmp_path / f"c0{part}.nii.gz")
    same_patient = {"patient_id": "p-c1", **cells}
    write_cohort(tmp_path, line("c0", **same_patient), line("c1"), line("c2"))
    result = prepare_cohort(site, workers=2)
    twice = [case_id for case_id, code in codes(result) if code == "IMAGE-TWICE"]
    assert twice == ["c0", "c1"]
    assert [entry.case.case_id for entry in result.entries] == ["c2"]
    assert (result.n_left_out, result.n_new) == (2, 1)


def test_a_case_that_kills_its_worker_is_left_out(site: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = preparation.parallel_map

    def with_a_crash(function: Any, jobs: list[Any], workers: int) -> Generator[Any, None, None]:
        for job, outcome in real(function, jobs, workers):
            yield job, WorkerDied() if job.case.case_id == "c2" else outcome

    monkeypatch.setattr(preparation, "parallel_map", with_a_crash)
    result = prepare_cohort(site, workers=1)
    assert codes(result) == [("c2", "PREPARE-CRASHED")]
    assert len(result.entries) == 3


# ---- killed, full, busy ----

RUN = (
    "import resource, sys; from pathlib import Path\n"
    "from client.findings import FindingError; from client.preparation import prepare_cohort\n"
    "from client.site import read_site\n"
    "limit = int(sys.argv[2])\n"
    "if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
    "try: prepare_cohort(read_site(Path(sys.argv[1])), 2, lambda p: print(p.done, flush=True))\n"
    "except FindingError as error: print(error, flush=True)\n"
)


def start(site: SiteConfig, file_size_limit: int = 0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", RUN, str(site.home / "site.toml"), str(file_size_limit)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.4, 1.0])
def test_ctrl_c_while_the_workers_start_ends_the_command_with_a_line(
    site: SiteConfig, after_s: float
) -> None:
    run = command(site)
    assert run.stderr is not None
    while "preparing cases" not in run.stderr.readline():  # said before the first worker is asked for
        assert run.poll() is None
    time.sleep(after_s)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, told = run.communicate(timeout=120)
    if run.returncode == 0:
        pytest.skip("it was done before")
    assert run.returncode == 130
    assert told.splitlines()[-1] == "ended; run it again, what is done is kept"
    assert "Traceback" not in told


def command(site: SiteConfig) -> subprocess.Popen[str]:
    """`dsan-client prepare` in a process group of its own, as a shell starts it."""
    arguments = [sys.executable, "-m", "client.cli", "prepare", "--config", str(site.home / "site.toml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*arguments, "--workers", "2"], text=True, start_new_session=True, **pipes)


@pytest.mark.long
def test_the_command_killed_at_any_moment_of_its_run_loses_only_the_cases_in_work(tmp_path: Path) -> None:
    """Ten moments, one drawn at random out of each tenth of the time that an undisturbed run takes."""
    whole = hospital(tmp_path / "undisturbed")
    started = time.monotonic()
    run = command(whole)
    told = run.communicate(timeout=250)
    assert run.returncode == 0, told
    length_s = time.monotonic() - started
    chance = random.Random(0)
    for tenth in range(10):
        killed = kill_at(tmp_path / f"killed{tenth}", (tenth + chance.random()) / 10, length_s)
        kept = volumes(killed)
        for name in kept:
            verify_volume(killed.store_folder / "volumes" / name)
        again = command(killed)
        told = again.communicate(timeout=250)
        assert again.returncode == 0, told
        assert kept.items() <= volumes(killed).items()  # not one volume was made a second time
        assert contents(killed) == contents(whole)
        for name in ("qc.html", "store/index.json"):
            assert (killed.home / name).read_bytes() == (whole.home / name).read_bytes()
        assert not list(killed.home.rglob("*.tmp"))


def hospital(folder: Path) -> SiteConfig:
    """Twelve cases that nobody has prepared yet."""
    for number in range(12):
        write_case(folder, f"k{number}", infection_rows=number % 5)
    write_cohort(folder, *[line(f"k{number}") for number in range(12)])
    return write_site(folder)


def kill_at(folder: Path, share: float, length_s: float) -> SiteConfig:
    """A new hospital whose `prepare` is killed at a share of its run; earlier if it is done before that."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        site = hospital(folder)
        run = command(site)
        try:
            run.communicate(timeout=share * length_s)
        except subprocess.TimeoutExpired:
            run.kill()
            run.communicate()
            return site
        length_s *= 0.9


def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(site: SiteConfig, tmp_path: Path) -> None:
    write_cohort(tmp_path, line("c0"), line("c1"))
    prepare_cohort(site, workers=1)
    index, before = (site.store_folder / "index.json").read_bytes(), volumes(site)
    largest = max(len(content) for content, _ in before.values())
    write_cohort(tmp_path, line("c0"), line("c1"), line("c2"), line("c3"))
    output, _ = start(site, file_size_limit=largest // 2).communicate(timeout=60)
    (message,) = [text for text in output.splitlines() if not text.isdigit()]
    assert message.startswith("error PREPARE-DISK-FULL")
    assert "Free space" in message
    assert volumes(site) == before
    assert (site.store_folder / "index.json").read_bytes() == index
    assert not list(site.store_folder.rglob("*.tmp"))
    assert prepare_cohort(site, workers=1).n_new == 2


def test_a_page_that_finds_no_room_is_one_coded_line_of_the_command(site: SiteConfig) -> None:
    config = site.home / "site.toml"
    prepare_cohort(site, workers=1)
    stored = max(path.stat().st_size for path in site.store_folder.rglob("*") if path.is_file())
    assert len(qc_html(site, prepare_cohort(site, workers=1))) > stored + 1000
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({stored + 500},) * 2)\n"
        "from client.cli import main; main()"
    )
    command = [sys.executable, "-c", limited, "prepare", "--config", str(config), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 70, done.stderr
    assert "PREPARE-DISK-FULL" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (site.home / "qc.html").exists()
    assert len(load_prepared(site)) == 4


def test_what_shows_patients_is_for_its_owner_alone_and_the_users_folder_stays_as_it_is(
    site: SiteConfig,
) -> None:
    site.home.chmod(0o755)
    write_qc_page(site, prepare_cohort(site, workers=2))
    made = [site.home / "qc.html", *site.store_folder.rglob("*")]
    assert len(made) > 12
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file() and path.name != ".lock"} == {
        0o600
    }
    assert {path.stat().st_mode & 0o777 for path in (site.store_folder, *made) if path.is_dir()} == {0o700}
    assert site.home.stat().st_mode & 0o777 == 0o755


def test_the_disk_is_looked_at_first(site: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(site.home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(FindingError, match=r"PREPARE-DISK-SPACE.*4 cases need .* 10 MB left"):
        prepare_cohort(site, workers=1)
    assert not (site.store_folder / "volumes").exists()


def test_two_runs_do_not_share_a_store(site: SiteConfig) -> None:
    site.store_folder.mkdir()
    with (site.store_folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FindingError, match="PREPARE-RUNNING"):
            prepare_cohort(site, workers=1)
    assert prepare_cohort(site, workers=1).n_new == 4


def test_a_store_that_cannot_be_made_is_named(site: SiteConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FindingError, match="PREPARE-STORE"):
        prepare_cohort(site.model_copy(update={"store": "file/store"}), workers=1)


def test_a_table_that_cannot_be_read_ends_the_run(site: SiteConfig, tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").unlink()
    with pytest.raises(FindingError, match="COHORT-FILE"):
        prepare_cohort(site, workers=1)


# ---- loading ----


def change_index(site: SiteConfig, content: str) -> None:
    (site.store_folder / "index.json").write_text(content)


def test_loading_refuses_what_does_not_fit_any_more(site: SiteConfig, tmp_path: Path) -> None:
    with pytest.raises(FindingError, match="PREPARE-NOTHING"):
        load_prepared(site)
    entries = prepare_cohort(site, workers=1).entries
    with pytest.raises(FindingError, match="PREPARE-RECIPE-CHANGED"):
        load_prepared(site.model_copy(update={"recipe": write_site(tmp_path, [16, 22, 26]).recipe}))
    table = (tmp_path / "cohort.csv").read_text()
    write_cohort(tmp_path, line("c0"), line("c1"))
    with pytest.raises(FindingError, match="PREPARE-COHORT-CHANGED"):
        load_prepared(site)
    (tmp_path / "cohort.csv").write_text(table)
    assert load_prepared(site) == entries
    entries[1].path.unlink()
    with pytest.raises(FindingError, match=r"STORE-MISSING.*1 case.* case c1"):
        load_prepared(site)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cases": [{}]}', '{"cases": 3}', "\0"])
def test_a_damaged_index_is_refused(site: SiteConfig, content: str) -> None:
    prepare_cohort(site, workers=1)
    change_index(site, content)
    with pytest.raises(FindingError, match="PREPARE-INDEX"):
        load_prepared(site)


def test_a_cohort_without_a_usable_case_is_refused(site: SiteConfig, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"c{number}.nii.gz").write_bytes(b"")
    result = prepare_cohort(site, workers=1)
    assert (result.entries, result.n_left_out) == ((), 4)
    with pytest.raises(FindingError, match="PREPARE-NO-CASE"):
        load_prepared(site)


def test_the_index_names_no_file_of_the_hospital(site: SiteConfig) -> None:
    prepare_cohort(site, workers=1)
    index = json.loads((site.store_folder / "index.json").read_text())
    assert len(index["cases"]) == 4
    assert ".nii" not in json.dumps(index)
    assert str(site.home) not in json.dumps(index)
