import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from client.findings import FindingError
from client.model_package import read_model_package
from dsan_model.ensemble import PAPER_WEIGHTS
from dsan_model.network import AttentionResNet
from dsan_model.sampling import Branch

SMALL = {"blocks": [1, 1, 1, 1], "width": 2, "stem_kernel": 3, "stem_pool": False}


@pytest.fixture
def package(cohort_factory: ModuleType, tmp_path: Path) -> Path:
    """A package of all three branches."""
    folder: Path = cohort_factory.write_package(tmp_path / "model")
    return folder


def edit(folder: Path, factory: ModuleType, **changes: object) -> None:
    """Change model.json and seal the package again, as who wrote it wrongly would."""
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    factory.seal(folder)


def code_of(folder: Path) -> str:
    with pytest.raises(FindingError) as caught:
        read_model_package(folder)
    return caught.value.finding.code


def test_a_package_is_read_whole(package: Path, cohort_factory: ModuleType) -> None:
    model = read_model_package(package)
    assert (model.study, model.is_complete) == ("small", True)
    assert (model.network, model.recipe) == (cohort_factory.NETWORK, cohort_factory.RECIPE)
    assert model.ensemble == PAPER_WEIGHTS
    assert set(model.weights) == set(Branch)
    for flat in model.weights.values():
        AttentionResNet(model.network).load_state_dict(flat.state_dict())


def test_a_package_without_the_baseline_is_fine(cohort_factory: ModuleType, tmp_path: Path) -> None:
    folder = cohort_factory.write_package(tmp_path / "model", (Branch.US, Branch.SS))
    assert set(read_model_package(folder).weights) == {Branch.US, Branch.SS}


@pytest.mark.parametrize("name", ["model.json", "us.safetensors", "ss.safetensors", "baseline.safetensors"])
def test_one_flipped_bit_in_any_file_is_refused(name: str, package: Path) -> None:
    content = bytearray((package / name).read_bytes())
    content[-3] ^= 1
    (package / name).write_bytes(content)
    assert code_of(package) == "MODEL-DAMAGED"


def test_a_missing_file_and_one_that_nobody_vouches_for_are_refused(
    package: Path, cohort_factory: ModuleType
) -> None:
    (package / "us.safetensors").rename(package / "other.safetensors")
    assert code_of(package) == "MODEL-DAMAGED"
    sums = package / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "us.safe" not in line))
    assert code_of(package) == "MODEL-DAMAGED"


def test_a_folder_that_is_no_package_is_refused(tmp_path: Path) -> None:
    assert code_of(tmp_path) == "MODEL-MISSING"
    assert code_of(tmp_path / "nowhere") == "MODEL-MISSING"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"format_version": 2}, "MODEL-FORMAT"),
        ({"positive": "CAP"}, "MODEL-FORMAT"),
        ({"ensemble": {"band": [0.001, 0.03], "w_inside": 0.96}}, "MODEL-FORMAT"),
        ({"branches": {}}, "MODEL-FORMAT"),
        ({"network": SMALL | {"new": 1}}, "MODEL-FORMAT"),
        ({"network": SMALL | {"width": 4}}, "MODEL-WEIGHTS"),
        ({"network": SMALL | {"blocks": [1, 2, 1, 1]}}, "MODEL-WEIGHTS"),
        ({"recipe_digest": "0" * 64}, "MODEL-RECIPE"),
        ({"input": {"shape_dhw": [14, 22, 24], "antialias": False}}, "MODEL-RECIPE"),
        ({"ensemble": {"band": [0.002, 0.03], "w_inside": 0.96, "w_outside": 0.35}}, "MODEL-RECIPE"),
    ],
)
def test_a_sealed_package_that_contradicts_itself_is_refused(
    changes: dict[str, object], code: str, package: Path, cohort_factory: ModuleType
) -> None:
    edit(package, cohort_factory, **changes)
    assert code_of(package) == code


def test_weights_of_another_branch_under_its_name_are_refused(
    package: Path, cohort_factory: ModuleType
) -> None:
    (package / "us.safetensors").write_bytes((package / "ss.safetensors").read_bytes())
    cohort_factory.seal(package)
    assert code_of(package) == "MODEL-WEIGHTS"


def test_weights_that_are_not_finite_are_refused(
    cohort_factory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_nan(*arguments: object) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = original(*arguments)
        state["fc.bias"] = torch.full_like(state["fc.bias"], float("nan"))
        return state

    original = cohort_factory._state
    monkeypatch.setattr(cohort_factory, "_state", with_nan)
    assert code_of(cohort_factory.write_package(tmp_path / "model")) == "MODEL-WEIGHTS"


def test_a_file_elsewhere_is_never_opened(package: Path, cohort_factory: ModuleType, tmp_path: Path) -> None:
    table = json.loads((package / "model.json").read_text())
    table["branches"]["us"]["file"] = "../us.safetensors"
    (tmp_path / "us.safetensors").write_bytes(b"not to be read")
    edit(package, cohort_factory, branches=table["branches"])
    read_model_package(package)  # the name alone counts: the package's own file
