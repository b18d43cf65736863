"""The model package that a study publishes, opened and verified: networks, ensemble weights, recipe.

model.json, one safetensors a branch, MODEL_CARD.md and SHA256SUMS over them all, as `dsan-server export`
writes them. Whatever is not what it says it is, is refused: a wrong weight gives a plausible probability.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from client.findings import Finding, FindingError
from dsan_model.ensemble import BAND, EnsembleWeights
from dsan_model.network import AttentionResNet, NetworkConfig
from dsan_model.preprocessing import Recipe
from dsan_model.sampling import Branch
from dsan_model.weights import FlatWeights, load_weights

DESCRIPTION, SUMS = "model.json", "SHA256SUMS"
NEEDED = (Branch.US, Branch.SS)  # Eq. 5; the baseline is for comparison

_FIX = "Fetch the package again, as `dsan-server export` wrote it, and compare SHA256SUMS with the sender."
_Count = Annotated[int, Field(ge=1, le=1024)]  # blocks, channels, voxels of a side
_Side = Annotated[int, Field(ge=8, le=1024)]
_Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Four = tuple[_Count, _Count, _Count, _Count]


class _Part(BaseModel):
    """A part of model.json; keys that a later release adds are passed over."""

    model_config = ConfigDict(frozen=True)


class _Network(_Part):
    model_config = ConfigDict(frozen=True, extra="forbid")  # a key that we do not know may change the network

    blocks: _Four
    width: _Count
    stem_kernel: Annotated[int, Field(ge=1, le=15)]
    stem_pool: bool
    strides: _Four = NetworkConfig.strides
    standardise_input: bool = False


class _Input(_Part):
    model_config = ConfigDict(frozen=True, extra="forbid")

    shape_dhw: tuple[_Side, _Side, _Side]
    antialias: bool


class _Ensemble(_Part):
    band: tuple[float, float]
    w_inside: _Weight
    w_outside: _Weight


class _BranchFile(_Part):
    file: str
    digest: str
    round: int | None


class _Study(_Part):
    name: str
    digest: str


class _Description(_Part):
    format_version: Literal[1]
    study: _Study
    complete: bool
    positive: Literal["COVID-19"]
    network: _Network
    input: _Input
    recipe_digest: str
    ensemble: _Ensemble
    branches: dict[Branch, _BranchFile]


@dataclass(frozen=True)
class ModelPackage:
    """What `diagnose` needs of a study; `weights` of US and SS are always there."""

    study: str
    is_complete: bool
    network: NetworkConfig
    recipe: Recipe
    ensemble: EnsembleWeights
    weights: dict[Branch, FlatWeights]
    sha256sums: str  # of the file SHA256SUMS itself: one name for the whole package


def read_model_package(folder: Path) -> ModelPackage:
    """Open and verify a package: every SHA-256, the recipe of this release, architecture and weights.

    Raises FindingError MODEL-MISSING, MODEL-DAMAGED, MODEL-FORMAT, MODEL-RECIPE or MODEL-WEIGHTS.
    """
    sums = _verified(folder)
    description = _description(folder)
    table = description.network
    network = NetworkConfig(
        table.blocks,
        table.width,
        table.stem_kernel,
        table.stem_pool,
        table.strides,
        table.standardise_input,
    )
    recipe = Recipe(description.input.shape_dhw, description.input.antialias)
    if recipe.digest != description.recipe_digest or description.ensemble.band != BAND:
        message = "scans are prepared, or branches combined, in another way by the release that trained it"
        raise _refused(
            "MODEL-RECIPE", DESCRIPTION, message, "Use the release of dsan-federated that trained it."
        )
    weights = {branch: _weights(folder, file, network) for branch, file in description.branches.items()}
    ensemble = EnsembleWeights(description.ensemble.w_inside, description.ensemble.w_outside)
    return ModelPackage(
        description.study.name, description.complete, network, recipe, ensemble, weights, sums
    )


def _verified(folder: Path) -> str:
    """SHA-256 of SHA256SUMS, after every file that it names has been compared with it."""
    try:
        content = (folder / SUMS).read_bytes()
        listed = re.findall(r"^([0-9a-f]{64})  (\S.*)$", content.decode("ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        message = f"the folder has no readable {SUMS}: it is no model package"
        raise _refused("MODEL-MISSING", "the folder given with --model", message, _FIX) from None
    for digest, name in listed:
        if _sha256(folder / name) != digest:
            raise _refused("MODEL-DAMAGED", name, f"it is missing, or is not what {SUMS} says", _FIX)
    names = {name for _, name in listed}
    needed = {DESCRIPTION, *(path.name for path in folder.glob("*.safetensors"))}
    if not needed <= names:
        missing = ", ".join(sorted(needed - names))
        raise _refused("MODEL-DAMAGED", SUMS, f"it does not vouch for {missing}", _FIX)
    return hashlib.sha256(content).hexdigest()


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _description(folder: Path) -> _Description:
    try:
        description = _Description.model_validate_json((folder / DESCRIPTION).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        message = f"{key}: {first['msg']}"
        fix = "Use the release of dsan-federated that wrote the package."
        raise _refused("MODEL-FORMAT", DESCRIPTION, message, fix) from None
    missing = [branch.model_name for branch in NEEDED if branch not in description.branches]
    if missing:
        message = f"the package lacks {' and '.join(missing)}"
        raise _refused("MODEL-FORMAT", DESCRIPTION, message, "Use the package of a study with both branches.")
    return description


def _weights(folder: Path, file: _BranchFile, config: NetworkConfig) -> FlatWeights:
    try:
        weights = load_weights(folder / Path(file.file).name)
    except (SafetensorError, OSError) as error:
        raise _refused("MODEL-WEIGHTS", file.file, f"it cannot be read: {error}", _FIX) from None
    with torch.device("meta"):
        expected = AttentionResNet(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = dict(zip(weights.layout.names, weights.layout.shapes, strict=True))
    if found != shapes:
        differing = sorted(name for name in {*found, *shapes} if found.get(name) != shapes.get(name))
        message = (
            f"{len(differing)} tensors are not those of the network that model.json describes, "
            f"first {differing[0]}: {found.get(differing[0])}, expected {shapes.get(differing[0])}"
        )
        raise _refused("MODEL-WEIGHTS", file.file, message, _FIX)
    if weights.digest != file.digest:
        message = f"its weights have the digest {weights.digest[:16]}..., not {file.digest[:16]}..."
        raise _refused("MODEL-WEIGHTS", file.file, message, _FIX)
    if not bool(torch.isfinite(weights.floats).all()):
        raise _refused("MODEL-WEIGHTS", file.file, "some weights are NaN or infinite", _FIX)
    return weights


def _refused(code: str, where: str, message: str, fix: str) -> FindingError:
    return FindingError(Finding(code, "error", where, message, fix))
