import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from small_study import Simulate

from client.cohort import read_cohort
from client.site import read_site
from client.volume_store import read_stored_case
from dsan_model.cases import Label
from dsan_model.preprocessing import Recipe
from simulation.command import real_hospitals_command
from simulation.real_hospitals import NORMAL_SCAN, implant, read_normal_lungs, write_real_hospitals

REAL = Path(__file__).resolve().parents[3] / "shared" / "ct"
needs_real_ct = pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real CT is not here")


def voxels(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image) > 0


def test_a_folder_without_the_scans_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="covid-ct-md"):
        write_real_hospitals(tmp_path / "nothing", tmp_path / "out", 4, Recipe(), 0)
    assert real_hospitals_command(tmp_path / "nothing", tmp_path / "out", 4, "tiny", 0) == 65
    assert not (tmp_path / "out").exists()


@needs_real_ct
def test_a_lesion_takes_the_share_of_the_lungs_that_was_asked_for() -> None:
    normal = read_normal_lungs(REAL / NORMAL_SCAN)
    n_lung = int(voxels(normal.lung).sum())
    before_DHW = sitk.GetArrayFromImage(normal.ct).astype(float)
    rise_hu = {}
    for label in Label:
        ct, infection = implant(normal, label, 0.02, np.random.default_rng(5))
        assert int(voxels(infection).sum()) == round(0.02 * n_lung)
        assert not (voxels(infection) & ~voxels(normal.lung)).any()
        change_DHW = sitk.GetArrayFromImage(ct) - before_DHW
        rise_hu[label] = float(np.median(change_DHW[voxels(infection)]))
        assert abs(np.median(change_DHW[voxels(normal.lung) & ~voxels(infection)])) < 2
    assert 150 < rise_hu[Label.COVID] < 500  # ground glass
    assert rise_hu[Label.CAP] > 600  # consolidation


@needs_real_ct
@pytest.mark.slow
def test_a_study_runs_over_real_anatomy_and_shows_its_attention(tmp_path: Path, simulate: Simulate) -> None:
    hospitals, out = tmp_path / "hospitals", tmp_path / "run"
    assert real_hospitals_command(REAL, hospitals, 4, "tiny", 0) == 0
    assert real_hospitals_command(REAL, hospitals, 4, "tiny", 0) == 65  # nothing is overwritten
    for name in ("hospital-1", "hospital-2", "hospital-3"):
        cases, findings = read_cohort(hospitals / name / "cohort.csv")
        assert findings == ()
        assert sorted(case.label for case in cases) == [Label.CAP, Label.CAP, Label.COVID, Label.COVID]

    options = ("--preset", "tiny", "--held-out", "hospital-3", "--rounds", "1", "--workers", "1")
    assert simulate("run", "--hospitals", hospitals, "--out", out, *options) == 0
    results = json.loads((out / "results.json").read_text())
    assert [sum(site["cases"].values()) for site in results["sites"]] == [4, 4, 4]
    panels = json.loads((out / "figures" / "panels" / "panels.json").read_text())
    assert "held-out" in [panel["set"] for panel in panels]
    assert all((out / "figures" / "panels" / panel["file"]).stat().st_size > 5000 for panel in panels)
    report = (out / "report.html").read_text()
    assert all(panel["case"] in report for panel in panels)

    store = read_site(hospitals / "hospital-1" / "site.toml").store_folder
    sources = {str(read_stored_case(path).masks) for path in (store / "volumes").glob("*.safetensors")}
    assert sources == {"given", "lungs classical-2, infection crude-2"}
