"""A model package to start from: its weights and ensemble, verified against the study that wants them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from dsan_model.ensemble import BAND, EnsembleWeights
from dsan_model.network import AttentionResNet
from dsan_model.sampling import Branch
from dsan_model.weights import FlatWeights, load_weights
from server.refusals import ExitCode, RefusedError
from server.run_state import SUMS, is_sealed
from server.study import StudyConfig


@dataclass(frozen=True)
class StartPackage:
    """What a study takes over from another one."""

    study: str  # the one that trained it
    weights: dict[Branch, FlatWeights]
    ensemble: EnsembleWeights
    sha256sums: str  # of the package's list of sums: one name for all of it


def read_start_package(study: StudyConfig, run_folder: Path) -> StartPackage:
    """The package that `[start] model` names; a relative path begins at the run folder.

    RefusedError START-MODEL if it is missing or damaged, START-MISFIT if it is of another network, grid or
    recipe, or lacks a branch of the study.
    """
    folder = run_folder / study.start.model
    if not (folder / SUMS).is_file() or not is_sealed(folder):
        raise _refused(
            "START-MODEL", folder, f"no model package, or not what its {SUMS} says", "Export it again."
        )
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        fitting = _requirements(study)
        differing = [key for key, value in fitting.items() if description[key] != value]
        ensemble = EnsembleWeights(
            float(description["ensemble"]["w_inside"]), float(description["ensemble"]["w_outside"])
        )
        name = str(description["study"]["name"])
        has_same_band = description["ensemble"]["band"] == list(BAND)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(
            "START-MODEL", folder, f"model.json cannot be read ({error})", "Export it again."
        ) from None
    if differing or not has_same_band:
        message = f"the package has another {' and '.join(differing) or 'band of Eq. 5'} than study.toml"
        raise _refused("START-MISFIT", folder, message, "Give the study the package's [network] and [input].")
    weights = {branch: _weights(folder, branch, study) for branch in study.branches}
    sums = hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
    return StartPackage(name, weights, ensemble, sums)


def _requirements(study: StudyConfig) -> dict[str, object]:
    return {
        "network": study.network.model_dump(mode="json"),
        "input": study.input.model_dump(mode="json"),
        "recipe_digest": study.recipe.digest,
    }


def _weights(folder: Path, branch: Branch, study: StudyConfig) -> FlatWeights:
    try:
        weights = load_weights(folder / f"{branch}.safetensors")
    except (OSError, SafetensorError):
        message = f"the package has no readable weights of {branch.model_name}"
        raise _refused("START-MISFIT", folder, message, "Start from a study with this branch.") from None
    with torch.device("meta"):
        expected = AttentionResNet(study.network_config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = dict(zip(weights.layout.names, weights.layout.shapes, strict=True))
    if found != shapes or not bool(torch.isfinite(weights.floats).all()):
        message = f"{branch}: other tensors than the study's network, or values that are not finite"
        raise _refused("START-MISFIT", folder, message, "Use the package of another study.")
    return weights


def _refused(code: str, where: Path, message: str, fix: str) -> RefusedError:
    return RefusedError(code, str(where), message, fix, ExitCode.BAD_CONFIGURATION)
