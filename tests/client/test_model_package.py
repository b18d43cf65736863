import json
from pathlib import Path
from types import ModuleType

import pytest
from package_factory import BAD_PACKAGES, BadPackage, edit

from client.findings import FindingError
from client.model_package import read_model_package
from dsan_model.ensemble import PAPER_WEIGHTS
from dsan_model.network import AttentionResNet
from dsan_model.sampling import Branch


@pytest.fixture
def package(cohort_factory: ModuleType, tmp_path: Path) -> Path:
    """A package of all three branches."""
    folder: Path = cohort_factory.write_package(tmp_path / "model")
    return folder


def code_of(folder: Path) -> str:
    with pytest.raises(FindingError) as caught:
        read_model_package(folder)
    return caught.value.finding.code


def test_a_package_is_read_whole(package: Path, cohort_factory: ModuleType) -> None:
    model = read_model_package(package)
    assert (model.study, model.is_complete) == ("small", True)
    assert (model.network, model.recipe) == (cohort_factory.NETWORK, cohort_factory.RECIPE)
    assert model.ensemble == PAPER_WEIGHTS
    assert set(model.weights) == set(cohort_factory.CLASSIFIERS)
    for flat in model.weights.values():
        AttentionResNet(model.network).load_state_dict(flat.state_dict())


def test_a_package_without_the_baseline_is_fine(cohort_factory: ModuleType, tmp_path: Path) -> None:
    folder = cohort_factory.write_package(tmp_path / "model", (Branch.US, Branch.SS))
    assert set(read_model_package(folder).weights) == {Branch.US, Branch.SS}


@pytest.mark.parametrize("bad", BAD_PACKAGES, ids=lambda bad: bad.name)
def test_a_bad_package_is_refused_with_its_code(bad: BadPackage, tmp_path: Path) -> None:
    assert code_of(bad.write(tmp_path / "model")) == bad.code


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert code_of(tmp_path / "nowhere") == "MODEL-MISSING"


def test_a_file_elsewhere_is_never_opened(package: Path, tmp_path: Path) -> None:
    table = json.loads((package / "model.json").read_text())
    table["branches"]["us"]["file"] = "../us.safetensors"
    (tmp_path / "us.safetensors").write_bytes(b"not to be read")
    edit(package, branches=table["branches"])
    read_model_package(package)  # the name alone counts: the package's own file
