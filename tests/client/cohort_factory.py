"""Small hospitals on disk and small model packages for tests: NIfTI scans of two lungs with known masks."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from image_factory import densities

from client.cohort import COLUMNS
from client.site import SiteConfig, read_site
from dsan_model.network import NetworkConfig, initial_state
from dsan_model.preprocessing import Recipe
from dsan_model.sampling import Branch
from dsan_model.weights import flatten, save_weights

SHAPE_DHW = (26, 20, 24)
SPACING_MM_XYZ = (3.0, 3.0, 1.25)
RECIPE = Recipe((14, 22, 26))
CLASSIFIERS = (Branch.US, Branch.SS, Branch.BASELINE)
NETWORK = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)


def write_image(path: Path, array_DHW: np.ndarray, z_mm: float = 0.0) -> None:
    image = sitk.GetImageFromArray(array_DHW)
    image.SetSpacing(SPACING_MM_XYZ)
    image.SetOrigin((0.0, 0.0, z_mm))
    sitk.WriteImage(image, str(path))


def write_case(folder: Path, case_id: str, infection_rows: int = 3) -> None:
    """A scan with two lungs of 3360 voxels and an infection of 20 voxels a row in the patient's right one."""
    lung, infection = np.zeros(SHAPE_DHW, np.uint8), np.zeros(SHAPE_DHW, np.uint8)
    lung[3:23, 4:16, 3:10] = lung[3:23, 4:16, 14:21] = 1
    infection[10 : 10 + infection_rows, 5:9, 4:9] = 1
    hu = densities(lung, infection)
    noise = np.random.default_rng(zlib.crc32(case_id.encode())).integers(-30, 30, SHAPE_DHW, dtype=np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / f"{case_id}.nii.gz", hu + noise)
    write_image(folder / f"{case_id}_lung.nii.gz", lung)
    write_image(folder / f"{case_id}_infection.nii.gz", infection)


def line(case_id: str, label: str = "CAP", **cells: str) -> str:
    row = {
        "case_id": case_id,
        "patient_id": f"p-{case_id}",
        "label": label,
        "image": f"{case_id}.nii.gz",
        "lung_mask": f"{case_id}_lung.nii.gz",
        "infection_mask": f"{case_id}_infection.nii.gz",
        **cells,
    }
    return ",".join(row.get(column, "") for column in COLUMNS)


def write_site(folder: Path, *lines: str, settings: str = "") -> SiteConfig:
    """cohort.csv of these lines and a site.toml of the small recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cohort.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    recipe = f"[recipe]\nshape_dhw = {list(RECIPE.shape_DHW)}\n"
    (folder / "site.toml").write_text(f'name = "a"\n{recipe}{settings}')
    return read_site(folder / "site.toml")


def write_hospital(folder: Path) -> SiteConfig:
    """Three good cases, c0 and c1 CAP, c2 COVID-19, with ratios of 0, 20 and 40 in 3360."""
    for number in range(3):
        write_case(folder, f"c{number}", infection_rows=number)
    lines = [line(f"c{number}", "COVID-19" if number == 2 else "CAP") for number in range(3)]
    return write_site(folder, *lines)


def write_package(
    folder: Path,
    branches: tuple[Branch, ...] = CLASSIFIERS,
    network: NetworkConfig = NETWORK,
    states: Mapping[Branch, Mapping[str, torch.Tensor]] | None = None,
    **changes: object,
) -> Path:
    """A model package of `states`, or with random weights; `changes` replace keys of model.json."""
    folder.mkdir(parents=True)
    files = {}
    for seed, branch in enumerate(branches):
        weights = flatten(states[branch] if states else _state(network, seed))
        save_weights(folder / f"{branch}.safetensors", weights)
        files[branch.value] = {"file": f"{branch}.safetensors", "digest": weights.digest, "round": 1}
    table = {
        "format_version": 1,
        "study": {"name": "small", "seed": 0, "digest": "0" * 64},
        "complete": True,
        "positive": "COVID-19",
        "network": {
            "blocks": network.blocks,
            "width": network.width,
            "stem_kernel": network.stem_kernel,
            "stem_pool": network.stem_pool,
        },
        "input": {"shape_dhw": RECIPE.shape_DHW, "antialias": RECIPE.antialias},
        "recipe_digest": RECIPE.digest,
        "ensemble": {"band": [0.001, 0.030], "w_inside": 0.96, "w_outside": 0.35},
        "branches": files,
        **changes,
    }
    (folder / "model.json").write_text(json.dumps(table))
    return seal(folder)


def seal(folder: Path) -> Path:
    """Write SHA256SUMS over what is there."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


def _state(network: NetworkConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights as after some training: statistics and shifts of the normalisations are no longer 0 and 1."""
    state = initial_state(network, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif name.endswith(("running_mean", "bn1.bias", "bn2.bias")):
            state[name] = 0.2 * torch.randn(tensor.shape, generator=generator)
    return state
