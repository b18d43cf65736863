"""`dsan-server export --onnx`: each branch of a model package as a graph for runtimes other than torch's.

volume (batch, 1, D, H, W), float32, the prepared CT in [0, 1]  ->  probability (batch), P(COVID-19), and
attention (batch, D, H, W), T(A) of Eq. 2. Preparation and Eq. 5 stay with who runs it: model.json has w.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from dsan_model.network import AttentionResNet, attention_map
from dsan_model.sampling import Branch
from dsan_model.weights import load_weights
from server.refusals import ExitCode, RefusedError
from server.study import StudyConfig

EXTRA = ("onnx", "onnxscript")
OPSET = 20


class _Branch(nn.Module):
    """What the graph computes."""

    def __init__(self, network: AttentionResNet, size_DHW: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.size_DHW = size_DHW

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(volume)
        return torch.sigmoid(output.logit_B), attention_map(output.cam_Bdhw, self.size_DHW)


def require_onnx(study: StudyConfig) -> None:
    """RefusedError EXPORT-ONNX-EXTRA or EXPORT-ONNX-TASK unless graphs can be written of this study."""
    missing = [package for package in EXTRA if find_spec(package) is None]
    if missing:
        raise RefusedError(
            "EXPORT-ONNX-EXTRA",
            "--onnx",
            f"not installed: {', '.join(missing)}",
            "Install the extra: pip install -c constraints.txt '.[onnx]'; or export without --onnx.",
            ExitCode.BAD_CONFIGURATION,
        )
    if study.task == "segmentation":
        raise RefusedError(
            "EXPORT-ONNX-TASK",
            "--onnx",
            f"study {study.name} trained VB-Net; graphs are written of the classification networks alone",
            "Export without --onnx.",
            ExitCode.BAD_DATA,
        )


def write_graphs(package: Path, study: StudyConfig, branches: dict[Branch, str]) -> None:
    """Write BRANCH.onnx beside the weights of each branch (their files are given); weights are inside."""
    for branch, weights in branches.items():
        network = AttentionResNet(study.network_config)
        network.load_state_dict(load_weights(package / weights).state_dict())
        _write_graph(network.eval(), study.input.shape_dhw, package / f"{branch}.onnx")


def _write_graph(network: AttentionResNet, size_DHW: tuple[int, int, int], path: Path) -> None:
    example = torch.zeros(2, 1, *size_DHW)  # two cases: of one, the exporter would fix the batch
    with _quiet_exporter():
        program = torch.onnx.export(
            _Branch(network, size_DHW).eval(),
            (example,),
            input_names=["volume"],
            output_names=["probability", "attention"],
            dynamic_shapes={"volume": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks on torchvision and on torch's own deprecations."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        log.setLevel(before)
