import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from client import diagnose_report
from client.diagnose import Model, Precision, Scan, _cpu_has_bf16, diagnose, forward, load_model
from client.diagnose_report import DiagnoseRequest, diagnose_scans, output_folders, panel_caption
from client.findings import FindingError
from client.images import read_ct, read_mask
from client.scan_series import OpenedScan, SeriesVerdict
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
    assert found.mask_source == {"lung": "classical-2", "infection": "crude-2"}
    assert "SEG-CRUDE-INFECTION" in {finding.code for finding in found.findings}
    assert 0.001 < found.infection_ratio < 0.03
    assert 1500 < found.lung_volume_ml < 8000


def test_weights_of_lungmask_find_the_lungs_in_place_of_the_built_in_method(
    model: Model, cohort_factory: ModuleType, tmp_path: Path
) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "other.pth")
    case = scan(cohort_factory, tmp_path)
    chosen = Scan(case.image, infection_mask=case.infection_mask, lungmask=tmp_path / "other.pth")
    with pytest.raises(FindingError, match=r"SEG-(WEIGHTS|EXTRA)") as caught:  # the package may be absent
        diagnose(model, chosen)
    assert "lungmask" in str(caught.value)
    given = Scan(case.image, case.lung_mask, case.infection_mask, lungmask=tmp_path / "other.pth")
    assert diagnose(model, given).mask_source == {"lung": "given", "infection": "given"}


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


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["x/scan-2", "x/scan"], ["scan-2", "scan"]),
        (["x/scan", "y/scan", "x/scan-2"], ["scan", "scan-3", "scan-2"]),
        (["1.2.840.1", "1.2.840.2", "x/1.2.840.1"], ["1.2.840.1", "1.2.840.2", "1.2.840.1-2"]),
        (["a/thorax v1.2.nii.gz", "a/thorax v1.3.mha", "a/IM 1.dcm"], ["thorax v1.2", "thorax v1.3", "IM 1"]),
    ],
)
def test_each_input_has_a_folder_of_its_own_that_is_called_like_it(
    inputs: list[str], names: list[str]
) -> None:
    out = Path("out")
    assert output_folders([Path(name) for name in inputs], out) == [out / name for name in names]


def results(folder: Path) -> dict[str, str]:
    """Name of each result's folder, and whose it is."""
    found = sorted(folder.glob("*/result.json"))
    return {path.parent.name: json.loads(path.read_text())["input"] for path in found}


def test_a_later_call_writes_over_the_result_of_the_same_scan_alone(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    package = cohort_factory.write_package(tmp_path / "model")
    scans = [scan(cohort_factory, tmp_path / name, "ct", infection_rows=n) for n, name in enumerate("abc")]

    def call(*chosen: Scan) -> dict[str, str]:
        request = DiagnoseRequest(chosen, package, tmp_path / "out", "cpu", Precision.AUTO)
        assert diagnose_scans(request, import_s=0, say=lambda line: None).errors == ()
        return results(tmp_path / "out")

    a, b, c = scans
    first = call(a, b)
    assert first == {"ct": str(a.image), "ct-2": str(b.image)}
    assert call(b, a) == first
    assert call(c, b) == {**first, "ct-3": str(c.image)}


def test_one_scan_does_not_take_the_place_of_another_in_out(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    package = cohort_factory.write_package(tmp_path / "model")
    first, other = (scan(cohort_factory, tmp_path / name, "ct", n) for n, name in enumerate("ab"))

    def call(case: Scan) -> None:
        request = DiagnoseRequest((case,), package, tmp_path / "out", "cpu", Precision.AUTO)
        diagnose_scans(request, import_s=0, say=lambda line: None)

    call(first)
    call(first)
    before = (tmp_path / "out" / "result.json").read_bytes()
    with pytest.raises(FindingError, match="OUTPUT-TAKEN"):
        call(other)
    assert (tmp_path / "out" / "result.json").read_bytes() == before


def test_results_never_come_among_the_slices_of_a_scan(cohort_factory: ModuleType, tmp_path: Path) -> None:
    package = cohort_factory.write_package(tmp_path / "model")
    scans = [scan(cohort_factory, tmp_path / "scans", name) for name in ("a", "b")]
    (tmp_path / "scans" / "a").mkdir()
    (tmp_path / "scans" / "a" / "report.pdf").write_bytes(b"%PDF")
    request = DiagnoseRequest(tuple(scans), package, tmp_path / "scans", "cpu", Precision.AUTO)
    diagnose_scans(request, import_s=0, say=lambda line: None)
    assert set(results(tmp_path / "scans")) == {"a-2", "b"}


def test_where_every_scan_is_refused_there_is_no_picture_to_look_at(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    package = cohort_factory.write_package(tmp_path / "model")
    for name in ("bad", "worse"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"nothing")
    bad, worse = (Scan(tmp_path / f"{name}.nii.gz") for name in ("bad", "worse"))
    for scans in ((bad,), (bad, worse)):
        request = DiagnoseRequest(scans, package, tmp_path / "out", "cpu", Precision.AUTO)
        text = diagnose_scans(request, import_s=0, say=lambda line: None).text
        assert text.splitlines()[-1].startswith("next: nothing was written; mend what is said above")
        assert "panel.png" not in text
    assert not (tmp_path / "out").exists()


def test_the_series_that_was_taken_is_said_and_kept(
    cohort_factory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = scan(cohort_factory, tmp_path)
    package = cohort_factory.write_package(tmp_path / "model")
    verdict = SeriesVerdict(2, "ST1/SE2", 26, is_taken=True, reason="chosen: axial")
    opened = OpenedScan(*read_ct(case.image, None), (verdict,))
    monkeypatch.setattr("client.diagnose.open_scan", lambda *_: opened)
    request = DiagnoseRequest((case,), package, tmp_path / "out", "cpu", Precision.AUTO)
    said: list[str] = []
    diagnose_scans(request, import_s=0, say=said.append)
    assert said[-1] == "c0: series 2 (ST1/SE2, 26 slices) taken: chosen: axial"
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["series"] == [
        {"number": 2, "place": "ST1/SE2", "n_slices": 26, "is_taken": True, "reason": "chosen: axial"}
    ]


def test_the_caption_names_scan_and_model(cohort_factory: ModuleType, tmp_path: Path, model: Model) -> None:
    found = diagnose(model, scan(cohort_factory, tmp_path))
    banner, names, figures = panel_caption("1.2.840.1", found, model).splitlines()
    assert banner.startswith("RESEARCH USE ONLY")
    assert names == "1.2.840.1, by the model of study small"
    assert figures.startswith(f"P(COVID-19) {found.probability:.2f}: US ")
    assert len(panel_caption("x" * 200, found, model).splitlines()[1]) < 130


def test_what_findings_advise_are_options_of_the_command(cohort_factory: ModuleType, tmp_path: Path) -> None:
    """What is replaced stands in the findings' sources, so that no replacement falls out of use."""
    client = Path(diagnose_report.__file__).parent
    texts = "".join(path.read_text() for path in client.glob("*.py") if path.name != "diagnose_report.py")
    assert [text for text in diagnose_report.FIXES if text not in texts] == []
    package = cohort_factory.write_package(tmp_path / "model")
    case = replace(scan(cohort_factory, tmp_path), max_slice_thickness_mm=1.0)
    request = DiagnoseRequest((case,), package, tmp_path / "out", "cpu", Precision.AUTO)
    (finding,) = diagnose_scans(request, import_s=0, say=lambda line: None).errors
    assert finding.code == "IMAGE-THICKNESS"
    assert "--max-slice-thickness" in finding.fix


def test_result_and_picture_are_for_their_owner_alone(cohort_factory: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o755)
    package = cohort_factory.write_package(tmp_path / "model")
    request = DiagnoseRequest(
        (scan(cohort_factory, tmp_path),), package, tmp_path / "out", "cpu", Precision.AUTO
    )
    diagnose_scans(request, import_s=0, say=lambda line: None)
    for name in ("result.json", "panel.png"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_f": True}, False),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert _cpu_has_bf16() is expected
