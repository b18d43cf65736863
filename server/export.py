"""`dsan-server export`: a model package that was checked to the last byte, with a MONAI bundle's metadata."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dsan_daemon.bundle import release
from dsan_model.ensemble import BAND
from dsan_model.network import AttentionResNet
from dsan_model.sampling import Branch
from dsan_model.segmenter import SegmenterError, load_segmenter
from dsan_model.weights import load_weights
from server.onnx_graphs import require_onnx, write_graphs
from server.refusals import ExitCode, RefusedError
from server.run_state import SUMS, is_sealed, seal
from server.study import StudyConfig, read_study

METADATA = "metadata.json"
WINDOW_HU = (-1350, 150)  # what 0 and 1 of a prepared volume are (IV-B)


def export_package(run_folder: Path, out: Path, *, has_onnx: bool = False) -> Path:
    """Copy the run's model package to a new folder, checked before and after; has_onnx: with graphs.

    Raises RefusedError EXPORT-NONE, EXPORT-EXISTS, EXPORT-DAMAGED, EXPORT-MISFIT, EXPORT-ONNX-EXTRA or
    EXPORT-ONNX-TASK.
    """
    package = run_folder / "model"
    study = read_study(run_folder / "study.toml")
    if has_onnx:
        require_onnx(study)
    if not (package / SUMS).exists():
        raise _refused("EXPORT-NONE", package, "the study has no model package yet", "Let it run to its end.")
    if out.exists() and any(out.iterdir()):
        raise _refused("EXPORT-EXISTS", out, "the folder is not empty", "Give a new folder.")
    check_package(package, study)
    shutil.copytree(package, out, dirs_exist_ok=True)
    if (out / SUMS).read_bytes() != (package / SUMS).read_bytes() or not is_sealed(out):
        raise _refused("EXPORT-DAMAGED", out, "the copy differs from the package", "Look at the disk.")
    description = json.loads((out / "model.json").read_text(encoding="utf-8"))
    metadata = bundle_metadata(study, description)
    (out / METADATA).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    if has_onnx:
        write_graphs(out, study, {Branch(b): f["file"] for b, f in description["branches"].items()})
    seal(out)
    return out


def check_package(package: Path, study: StudyConfig) -> None:
    """Every digest, the recipe, the architecture, and that weights are finite. RefusedError EXPORT-..."""
    try:
        sums = (package / SUMS).read_text(encoding="utf-8").splitlines()
        sealed = {line.split("  ", 1)[1] for line in sums}
    except (UnicodeDecodeError, IndexError):
        raise _damaged(package, f"{SUMS} cannot be read") from None
    there = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()} - {SUMS}
    if there != sealed or not is_sealed(package):
        odd = ", ".join(sorted(there ^ sealed)) or "a file"
        message = f"{odd} is missing, too many, or not what {SUMS} says"
        raise _damaged(package, message)
    description = json.loads((package / "model.json").read_text(encoding="utf-8"))
    if description["study"]["digest"] != study.digest:
        raise _misfit(package, "it is of another study than study.toml beside it")
    if study.task == "segmentation":
        _check_segmenter(package, description)
        return
    if description["recipe_digest"] != study.recipe.digest or description["ensemble"]["band"] != list(BAND):
        raise _misfit(package, "it was trained with another preparation, or combines branches in another way")
    for name, branch in description["branches"].items():
        _check_branch(package, Branch(name), branch, study)


def bundle_metadata(study: StudyConfig, description: dict[str, Any]) -> dict[str, Any]:
    """metadata.json of a MONAI bundle: what goes in, what comes out, what is needed."""
    shape = list(study.input.shape_dhw)
    image = {
        "type": "image",
        "format": "hounsfield",
        "modality": "CT",
        "num_channels": 1,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {"0": f"lungs, HU {WINDOW_HU[0]} to {WINDOW_HU[1]}; 0 outside the lungs"},
    }
    logit = {
        "type": "logit",
        "format": "classification",
        "num_channels": 1,
        "spatial_shape": [1],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {"0": "COVID-19 against community acquired pneumonia"},
    }
    return {
        "schema": "meta_schema_20240725.json",
        "version": release(),
        "changelog": {release(): f"study {study.name}"},
        "monai_version": "1.5.0",
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"dsan-federated": release(), "safetensors": version("safetensors")},
        "name": study.name,
        "task": f"{study.task} of chest CT",
        "description": "Dual-Sampling Attention Network (Ouyang et al., IEEE TMI 2020), trained federated",
        "authors": "the sites of the study",
        "copyright": "that of the sites of the study",
        "intended_use": "research only; not a medical device",
        "data_type": "CT with lung masks, prepared by dsan-federated",
        "complete": description["complete"],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logit}},
    }


def _check_branch(package: Path, branch: Branch, described: dict[str, Any], study: StudyConfig) -> None:
    weights = load_weights(package / described["file"])
    with torch.device("meta"):
        expected = AttentionResNet(study.network_config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = dict(zip(weights.layout.names, weights.layout.shapes, strict=True))
    if found != shapes:
        differing = sorted(name for name in {*found, *shapes} if found.get(name) != shapes.get(name))
        raise _misfit(package, f"{branch}: {differing[0]} is not a tensor of the study's network")
    if weights.digest != described["digest"]:
        raise _damaged(package, f"{branch}: the digest of its weights is not the one in model.json")
    if not bool(torch.isfinite(weights.floats).all()):
        raise _misfit(package, f"{branch}: some weights are NaN or infinite")


def _check_segmenter(package: Path, description: dict[str, Any]) -> None:
    try:
        for branch in description["branches"].values():
            load_segmenter(package / branch["file"])
    except SegmenterError as error:
        raise _damaged(package, str(error)) from None


def _damaged(package: Path, message: str) -> RefusedError:
    return _refused(
        "EXPORT-DAMAGED", package, message, "Write it again from the rounds: `dsan-server resume RUN`."
    )


def _misfit(package: Path, message: str) -> RefusedError:
    return _refused("EXPORT-MISFIT", package, message, "Use the release and the study.toml that made it.")


def _refused(code: str, where: Path, message: str, fix: str) -> RefusedError:
    return RefusedError(code, str(where), message, fix, ExitCode.BAD_DATA)
