import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from client.diagnose import Model, Precision, Scan, diagnose, forward, load_model
from client.diagnose_report import DiagnoseRequest, diagnose_scans, output_folders
from client.findings import FindingError
from client.images import read_ct, read_mask
from dsan_model.explain import attention_of, grad_cam
from dsan_model.network import NetworkConfig
from dsan_model.preprocessing import prepare_case
from dsan_model.sampling import Branch
from dsan_model.training import build_network

CPU = torch.device("cpu")


@pytest.fixture
def model(cohort_factory: ModuleType, tmp_path: Path) -> Model:
    return load_model(cohort_factory.write_package(tmp_path / "model"), CPU)


def scan(factory: ModuleType, folder: Path, name: str = "c0", infection_rows: int = 3) -> Scan:
    factory.write_case(folder, name, infection_rows)
    return Scan(
        folder / f"{name}.nii.gz", folder / f"{name}_lung.nii.gz", folder / f"{name}_infection.nii.gz"
    )


def test_probabilities_are_those_of_the_published_weights(
    model: Model, cohort_factory: ModuleType, tmp_path: Path
) -> None:
    case = scan(cohort_factory, tmp_path)
    found = diagnose(model, case)
    ct, _ = read_ct(case.image, None)
    masks = [read_mask(path, ct, None) for path in (case.lung_mask, case.infection_mask) if path]
    prepared = prepare_case(ct, masks[0], masks[1], cohort_factory.RECIPE)
    for branch, flat in model.package.weights.items():
        network = build_network(model.package.network, flat.state_dict(), CPU)  # as it was trained
        logit, attention_DHW = attention_of(network, torch.from_numpy(prepared.volume_DHW))
        assert found.by_branch[branch] == pytest.approx(float(expit(logit)), abs=1e-6)
        if branch.has_attention_loss:
            shown_DHW = found.panel.attention[branch.model_name]
            np.testing.assert_allclose(shown_DHW, attention_DHW.numpy(), atol=2e-3)
    assert found.infection_ratio == prepared.infection_ratio == 60 / 3360
    assert len(set(found.by_branch.values())) == 3


@pytest.mark.parametrize(("rows", "w", "is_inside"), [(0, 0.35, False), (3, 0.96, True), (6, 0.35, False)])
def test_the_band_of_the_infection_ratio_decides_w(
    rows: int, w: float, is_inside: bool, model: Model, cohort_factory: ModuleType, tmp_path: Path
) -> None:
    found = diagnose(model, scan(cohort_factory, tmp_path, infection_rows=rows))
    assert (found.w, found.is_inside_band) == (w, is_inside)
    us, ss = found.by_branch[Branch.US], found.by_branch[Branch.SS]
    assert found.probability == pytest.approx(w * us + (1 - w) * ss, abs=1e-12)


def test_the_heat_of_the_baseline_is_grad_cam(
    model: Model, cohort_factory: ModuleType, tmp_path: Path
) -> None:
    network = model.networks[Branch.BASELINE]
    volume_DHW = torch.rand(cohort_factory.RECIPE.shape_DHW, generator=torch.Generator().manual_seed(0))
    cam_dhw = forward(network, volume_DHW, Precision.FLOAT32).cam_Bdhw[0]
    reference_dhw = grad_cam(network, volume_DHW)
    assert reference_dhw.max() > 0
    torch.testing.assert_close(
        cam_dhw / cam_dhw.max(), reference_dhw / reference_dhw.max(), atol=1e-5, rtol=0
    )


def test_bfloat16_changes_the_probability_by_less_than_a_hundredth(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    config = NetworkConfig(blocks=(1, 1, 1, 1), width=8, stem_kernel=7)
    folder = cohort_factory.write_package(tmp_path / "model", network=config)
    exact = load_model(folder, CPU, Precision.FLOAT32)
    rough = load_model(folder, CPU, Precision.BFLOAT16)
    generator = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(4):
        volume_DHW = torch.rand((40, 48, 48), generator=generator)
        for branch in exact.networks:
            logits = [
                forward(each.networks[branch], volume_DHW, each.precision).logit_B for each in (exact, rough)
            ]
            p, q = (float(torch.sigmoid(logit)) for logit in logits)
            differences.append(abs(p - q))
            assert 0.02 < p < 0.98  # where an error of the logit shows
    assert max(differences) < 0.01
    assert max(differences) > 1e-6  # it was bfloat16


def test_a_small_network_is_computed_in_float32_by_itself(model: Model) -> None:
    assert model.precision is Precision.FLOAT32


def test_what_no_mask_is_given_for_is_segmented_and_the_result_says_so(
    model: Model, cohort_factory: ModuleType, tmp_path: Path
) -> None:
    real = Path(__file__).parents[3] / "shared" / "ct" / "covid-ct-md" / "cap002_256.nii.gz"
    if not real.exists():
        pytest.skip("the real scans are not here")
    found = diagnose(model, Scan(real))
    assert found.mask_source == {"lung": "classical-1", "infection": "crude-1"}
    assert "SEG-CRUDE-INFECTION" in {finding.code for finding in found.findings}
    assert 0.001 < found.infection_ratio < 0.03
    assert 1500 < found.lung_volume_ml < 8000


def test_many_scans_are_diagnosed_with_one_model_and_a_bad_one_stops_no_other(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    package = cohort_factory.write_package(tmp_path / "model")
    good = [scan(cohort_factory, tmp_path / name, "ct") for name in ("a", "b")]
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    scans = (good[0], Scan(bad), good[1])
    request = DiagnoseRequest(scans, package, tmp_path / "out", "cpu", Precision.AUTO)
    said: list[str] = []
    outcome = diagnose_scans(request, import_s=1.25, say=said.append)
    assert [finding.code for finding in outcome.errors] == ["IMAGE-DAMAGED"]
    assert len(said) == 1  # the model is loaded once
    for folder in ("ct", "ct-2"):
        result = json.loads((tmp_path / "out" / folder / "result.json").read_text())
        assert result["probability"] == outcome.results[0]["probability"]
        assert result["notice"].startswith("RESEARCH USE ONLY")
        assert result["seconds"]["import"] == 1.25
        assert {"load", "read", "masks", "prepare", "networks", "attention", "panel"} <= set(
            result["seconds"]
        )
        assert result["model"]["weights"].keys() == {"us", "ss", "baseline"}
    assert not (tmp_path / "out" / "bad").exists()
    assert outcome.text.startswith("RESEARCH USE ONLY")
    assert "next: look at" in outcome.text


def test_the_panel_shows_the_chest_wall_masks_and_every_map_under_the_banner(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    package = cohort_factory.write_package(tmp_path / "model")
    found = diagnose(load_model(package, CPU), scan(cohort_factory, tmp_path))
    assert list(found.panel.attention) == [
        "Attention RN34 + US",
        "Attention RN34 + SS",
        "Grad-CAM RN34 + US",
    ]
    assert found.panel.caption.startswith("RESEARCH USE ONLY")
    outside = ~found.panel.lung_DHW
    assert np.median(found.panel.ct_DHW[outside & (found.panel.ct_DHW > 0)]) == pytest.approx(0.93, abs=0.03)
    request = DiagnoseRequest(
        (scan(cohort_factory, tmp_path),), package, tmp_path / "out", "cpu", Precision.AUTO
    )
    diagnose_scans(request, import_s=0, say=lambda line: None)
    with Image.open(tmp_path / "out" / "panel.png") as picture:
        assert picture.width > 1000
        assert "Software" not in picture.info


def test_lungs_that_vanish_on_the_prepared_grid_are_refused(
    model: Model, cohort_factory: ModuleType, tmp_path: Path
) -> None:
    case = scan(cohort_factory, tmp_path)
    lung = np.zeros(cohort_factory.SHAPE_DHW, np.uint8)
    lung[8, 8, 7] = 1
    cohort_factory.write_image(tmp_path / "c0_lung.nii.gz", lung)
    with pytest.raises(FindingError, match="IMAGE-LUNG-TINY"):
        diagnose(model, case)


def test_what_goes_wrong_unexpectedly_is_a_coded_finding(
    model: Model, cohort_factory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("client.diagnose.prepare_case", broken)
    with pytest.raises(FindingError, match=r"DIAGNOSE-FAILED.*RuntimeError: out of memory"):
        diagnose(model, scan(cohort_factory, tmp_path))


def test_a_gpu_that_is_absent_is_bad_configuration(cohort_factory: ModuleType, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    package = cohort_factory.write_package(tmp_path / "model")
    request = DiagnoseRequest((), package, tmp_path, "cuda", Precision.AUTO)
    with pytest.raises(FindingError, match="MACHINE-NO-GPU"):
        diagnose_scans(request, import_s=0, say=lambda line: None)


def test_a_result_that_cannot_be_written_is_a_coded_finding(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    package = cohort_factory.write_package(tmp_path / "model")
    (tmp_path / "out").write_text("a file where the folder should be")
    request = DiagnoseRequest(
        (scan(cohort_factory, tmp_path),), package, tmp_path / "out", "cpu", Precision.AUTO
    )
    with pytest.raises(FindingError, match="OUTPUT-FILES"):
        diagnose_scans(request, import_s=0, say=lambda line: None)
    shutil.rmtree(package)


def test_several_inputs_get_folders_of_their_own_and_one_gets_none() -> None:
    out = Path("out")
    assert output_folders([Path("a/ct.nii.gz")], out) == [out]
    inputs = [Path("a/ct.nii.gz"), Path("b/ct.nrrd"), Path("c/other"), Path("d/ct")]
    assert output_folders(inputs, out) == [out / "ct", out / "ct-2", out / "other", out / "ct-3"]
