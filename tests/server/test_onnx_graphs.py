"""The graphs that `export --onnx` writes compute what the networks compute, in another runtime."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dsan_model.network import AttentionResNet, attention_map, initial_state
from dsan_model.sampling import Branch
from dsan_model.weights import flatten, save_weights
from server import onnx_graphs
from server.onnx_graphs import require_onnx, write_graphs
from server.refusals import RefusedError
from server.study import preset_study

STUDY = preset_study("tiny", "first", 0)
TOLERANCE = 1e-4


def network(branch: Branch) -> AttentionResNet:
    """A network whose running statistics are not those of the start, as after training."""
    made = AttentionResNet(STUDY.network_config)
    made.load_state_dict(initial_state(STUDY.network_config, len(branch)))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        made.train()(volumes(8))
    return made.eval()


def volumes(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    noise = torch.rand(n, 1, *STUDY.input.shape_dhw, generator=generator)
    return noise * (noise > 0.3)


@pytest.mark.slow
def test_a_graph_gives_the_probability_and_the_attention_of_its_branch(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    networks = {branch: network(branch) for branch in (Branch.US, Branch.BASELINE)}
    files = {branch: f"{branch}.safetensors" for branch in networks}
    for branch, made in networks.items():
        save_weights(tmp_path / files[branch], flatten(made.state_dict()))
    write_graphs(tmp_path, STUDY, files)
    for branch, made in networks.items():
        session = runtime.InferenceSession(tmp_path / f"{branch}.onnx", providers=["CPUExecutionProvider"])
        for n in (1, 3):  # of cases; the graph was traced with two
            with torch.no_grad():
                logit_B, cam_Bdhw = made(volumes(n))
                expected = torch.sigmoid(logit_B), attention_map(cam_Bdhw, STUDY.input.shape_dhw)
            probability, attention = session.run(["probability", "attention"], {"volume": volumes(n).numpy()})
            assert attention.shape == (n, *STUDY.input.shape_dhw)
            assert np.ptp(attention) > 0.5  # a map, not a constant
            np.testing.assert_allclose(probability, expected[0], rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(attention, expected[1], rtol=0, atol=TOLERANCE)


def test_without_the_extra_the_refusal_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graphs, "EXTRA", ("json", "no_such_package"))
    with pytest.raises(RefusedError, match="EXPORT-ONNX-EXTRA: --onnx: not installed: no_such_package"):
        require_onnx(STUDY)


def test_a_segmentation_study_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graphs, "EXTRA", ())
    with pytest.raises(RefusedError, match="EXPORT-ONNX-TASK"):
        require_onnx(STUDY.model_copy(update={"task": "segmentation"}))
