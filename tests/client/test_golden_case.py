import hashlib
from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from client.golden_case import golden_findings
from dsan_model import golden_case
from dsan_model.golden_case import GOLDEN, golden_numbers, golden_scan, golden_state
from dsan_model.preprocessing import PreparedCase, Recipe, prepare_case

CPU = torch.device("cpu")


def test_the_golden_case_comes_out_as_stored() -> None:
    assert golden_findings(CPU) == ()
    assert astuple(golden_numbers(CPU)) == pytest.approx(astuple(GOLDEN), rel=1e-5)


def test_scan_masks_and_weights_are_the_same_bits_everywhere() -> None:
    arrays = [sitk.GetArrayFromImage(image) for image in golden_scan()]
    digests = [hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in arrays]
    assert digests == ["7ec390270f811e52", "8a420e3b3d084a92", "014e575215dd400f"]
    state = b"".join(tensor.numpy().tobytes() for tensor in golden_state().values())
    assert hashlib.sha256(state).hexdigest()[:16] == "d48536a4e9a0d6ae"


def _with(change: Callable[[PreparedCase], PreparedCase]) -> Callable[..., PreparedCase]:
    def prepare(ct: sitk.Image, lung: sitk.Image, infection: sitk.Image, recipe: Recipe) -> PreparedCase:
        return change(prepare_case(ct, lung, infection, recipe))

    return prepare


PERTURBED = {
    "a volume that is one per mille brighter": _with(
        lambda case: replace(case, volume_DHW=case.volume_DHW * np.float32(1.001))
    ),
    "a volume that is shifted by a voxel": _with(
        lambda case: replace(case, volume_DHW=np.roll(case.volume_DHW, 1, axis=0))
    ),
    "a volume that is smoothed": lambda ct, lung, infection, recipe: prepare_case(
        ct, lung, infection, replace(recipe, antialias=True)
    ),
    "a mask of nearest neighbours elsewhere": _with(
        lambda case: replace(case, lung_DHW=np.roll(case.lung_DHW, 1, axis=1) | case.lung_DHW)
    ),
    "an infection that is flipped": _with(
        lambda case: replace(case, infection_DHW=case.infection_DHW[:, :, ::-1].copy())
    ),
    "NaN": _with(lambda case: replace(case, volume_DHW=case.volume_DHW * np.float32("nan"))),
}


@pytest.mark.parametrize("name", PERTURBED)
def test_another_preparation_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = golden_numbers(CPU, PERTURBED[name])
    monkeypatch.setattr(golden_case, "golden_numbers", lambda device: numbers)
    findings = golden_findings(CPU)
    assert findings
    assert {(finding.code, finding.severity) for finding in findings} == {("GOLDEN-MISMATCH", "error")}


@pytest.mark.parametrize(
    "layer", ["conv1.weight", "layer2.0.bn1.running_mean", "layer4.0.conv2.weight", "fc.weight"]
)
def test_another_network_is_noticed(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = golden_case.golden_state()
    state[layer] = state[layer] * 1.1 + 0.01
    monkeypatch.setattr(golden_case, "golden_state", lambda: state)
    assert golden_findings(CPU)


def test_a_finding_says_what_was_computed_and_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = replace(GOLDEN, logit=GOLDEN.logit + 0.1)
    monkeypatch.setattr(golden_case, "golden_numbers", lambda device: numbers)
    (finding,) = golden_findings(CPU)
    assert finding.where == "golden case on cpu, logit"
    assert f"{GOLDEN.logit + 0.1:.8g}" in finding.message
    assert f"{GOLDEN.logit:.8g}" in finding.message
