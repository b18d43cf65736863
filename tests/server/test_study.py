"""study.toml: the paper's values by default, everything else checked, named and told."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsan_model.configuration import ConfigurationError
from dsan_model.network import AttentionResNet, NetworkConfig
from dsan_model.preprocessing import Recipe
from dsan_model.sampling import Branch
from dsan_model.training import TrainingConfig
from server.study import PRESETS, StudyConfig, preset_study, read_study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.toml"


def study_of(path: Path, text: str) -> StudyConfig:
    path.write_text(f'name = "north-south"\n{text}\n')
    return read_study(path)


def problem_of(path: Path, text: str) -> str:
    """The one thing wrong with a study.toml of this text."""
    with pytest.raises(ConfigurationError) as caught:
        study_of(path, text)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    return problem.removeprefix(f"{path}: ")


def changed(**values: Any) -> StudyConfig:
    return StudyConfig.model_validate({"name": "study", **values})


# ---- the paper's values ----


def test_a_study_that_says_nothing_but_its_name_is_the_papers(path: Path) -> None:
    study = study_of(path, "")
    assert study.input.shape_dhw == (138, 256, 256)
    assert study.recipe == Recipe()
    assert study.network_config == NetworkConfig((3, 4, 6, 3), 64, 7, True, (1, 2, 2, 1))
    assert study.terms().training == TrainingConfig(
        optimiser="adam",
        learning_rate=2e-4,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        decay_every_epochs=5,
        decay_factor=0.1,
        batch_size=20,
        local_epochs=1,
        attention_weight=0.5,
    )
    assert (study.rounds, study.folds, study.fold) == (20, 5, 0)
    assert study.branches == (Branch.US, Branch.SS)


def test_the_preset_full_is_the_paper() -> None:
    study = preset_study("full", "study", seed=3)
    assert study == StudyConfig(name="study", seed=3)


def test_the_terms_repeat_the_study_for_the_sites() -> None:
    study = changed(seed=9, fold=2, baseline=True, network={"width": 8}, input={"antialias": True})
    terms = study.terms()
    assert (terms.name, terms.seed, terms.folds, terms.fold) == ("study", 9, 5, 2)
    assert terms.branches == (Branch.US, Branch.SS, Branch.BASELINE)
    assert terms.network.width == 8
    assert terms.input_shape_dhw == study.input.shape_dhw
    assert terms.recipe_digest == Recipe(antialias=True).digest
    assert terms.digest == study.digest


# ---- presets ----


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_study_that_keeps_its_name(preset: str) -> None:
    study = preset_study(preset, "study", seed=5)
    assert (study.preset, study.name, study.seed) == (preset, "study", 5)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_changes_the_method(preset: str) -> None:
    study, paper = preset_study(preset, "study", 0), StudyConfig(name="paper")
    kept = ("optimiser", "batch_size", "local_epochs", "attention_weight", "weight_decay", "decay_factor")
    assert [getattr(study.training, key) for key in kept] == [getattr(paper.training, key) for key in kept]
    assert study.network_config.strides == (1, 2, 2, 1)
    assert study.branches == paper.branches
    assert study.folds == paper.folds


def test_the_demo_keeps_a_feature_map_of_at_least_3_x_6_x_6() -> None:
    study = preset_study("demo", "study", 0)
    assert study.input.shape_dhw == (32, 64, 64)
    with torch.device("meta"):
        volume_B1DHW = torch.empty(1, 1, *study.input.shape_dhw)
        features_BCdhw = AttentionResNet(study.network_config).features(volume_B1DHW)
    assert all(n >= least for n, least in zip(features_BCdhw.shape[2:], (3, 6, 6), strict=True))


# ---- the digest ----


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"seed": 1},
        {"rounds": 21},
        {"folds": 4},
        {"fold": 1},
        {"baseline": True},
        {"input": {"shape_dhw": (138, 256, 255)}},
        {"input": {"antialias": True}},
        {"network": {"width": 32}},
        {"network": {"stem_pool": False}},
        {"training": {"learning_rate": 1e-4}},
        {"training": {"attention_weight": 0.4}},
        {"training": {"local_epochs": 2}},
    ],
    ids=str,
)
def test_the_digest_changes_with_all_that_a_site_computes(change: dict[str, Any]) -> None:
    assert changed(**change).digest != changed().digest


@pytest.mark.parametrize(
    "change",
    [
        {"sites": {"training": ("north", "south"), "held_out": ("east",)}},
        {"participation": {"deadline_h": 1.0, "quorum": 3, "largest_relative_update": 2.0}},
        {"preset": "demo"},
    ],
    ids=str,
)
def test_the_digest_does_not_change_with_who_takes_part(change: dict[str, Any]) -> None:
    assert changed(**change).digest == changed().digest


def test_the_same_file_has_the_same_digest_however_it_is_written(path: Path) -> None:
    first = study_of(path, "seed = 3\n[training]\nlearning_rate = 1\n[network]\nwidth = 8").digest
    second = study_of(path, "[network]\nwidth = 8\n[training]\nlearning_rate = 1.0\nbatch_size = 20").digest
    assert second != first
    again = study_of(path, "seed = 3\n[network]\nwidth = 8\n[training]\nlearning_rate = 1.0\nbatch_size = 20")
    assert again.digest == first


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ronds = 3", "unknown key 'ronds'; did you mean 'rounds'?"),
        ("[trainig]", "unknown key 'trainig'; did you mean 'training'?"),
        (
            "[training]\nlerning_rate = 1.0",
            "unknown key 'training.lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("[network]\nmu = 34", "unknown key 'network.mu'; known here: blocks, width, stem_kernel, stem_pool"),
        ("[network]\nstrides = [1, 2, 2, 2]", "unknown key 'network.strides'; known here: blocks, width"),
        ("[sites]\nheldout = []", "unknown key 'sites.heldout'; did you mean 'held_out'?"),
        (
            "[participation]\ndeadline_s = 3",
            "unknown key 'participation.deadline_s'; did you mean 'deadline_h'?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(path: Path, text: str, problem: str) -> None:
    assert problem_of(path, text).startswith(problem)


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("seed = -1", "seed", "-1"),
        ('seed = "0"', "seed", "'0'"),
        ("rounds = 0", "rounds", "0"),
        ("rounds = 2.5", "rounds", "2.5"),
        ("folds = 1", "folds", "1"),
        ("baseline = 1", "baseline", "1"),
        ("[input]\nshape_dhw = [138, 256, 0]", "input.shape_dhw.2", "0"),
        ("[input]\nshape_dhw = 138", "input.shape_dhw", "138"),
        ("[network]\nstem_kernel = 4", "network.stem_kernel", "4"),
        ("[network]\nwidth = true", "network.width", "True"),
        ('[training]\noptimiser = "adamw"', "training.optimiser", "'adamw'"),
        ("[training]\nlearning_rate = 0.0", "training.learning_rate", "0.0"),
        ("[training]\ndecay_factor = 1.5", "training.decay_factor", "1.5"),
        ("[training]\nbatch_size = 0", "training.batch_size", "0"),
        ("[training]\nattention_weight = -0.5", "training.attention_weight", "-0.5"),
        ("[participation]\ndeadline_h = 0", "participation.deadline_h", "0"),
        ("[participation]\nquorum = -1", "participation.quorum", "-1"),
        ('[sites]\ntraining = ["north east"]', "sites.training.0", "'north east'"),
        (f'[sites]\ntraining = ["{33 * "n"}"]', "sites.training.0", "'nnn"),
        ('[sites]\ntraining = "north"', "sites.training", "'north'"),
    ],
)
def test_a_bad_value_is_named_with_its_key(path: Path, text: str, key: str, found: str) -> None:
    problem = problem_of(path, text)
    assert problem.startswith(f"key '{key}': ")
    assert f"(found {found}" in problem


@pytest.mark.parametrize("name", ["", "a/b", "../up", "two words", ".hidden", "n" * 65])
def test_a_name_that_could_not_be_a_folder_is_refused(path: Path, name: str) -> None:
    path.write_text(f'name = "{name}"\n')
    with pytest.raises(ConfigurationError, match="key 'name'"):
        read_study(path)


def test_a_study_needs_a_name(path: Path) -> None:
    path.write_text("seed = 1\n")
    with pytest.raises(ConfigurationError, match="key 'name' is missing"):
        read_study(path)


def test_a_fold_that_does_not_exist_is_refused(path: Path) -> None:
    assert problem_of(path, "fold = 5") == "fold 5 does not exist: there are folds 0 to 4"


def test_a_site_cannot_train_and_be_held_out(path: Path) -> None:
    problem = problem_of(path, '[sites]\ntraining = ["a", "b"]\nheld_out = ["b"]')
    assert "b: a site trains or is held out, not both" in problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[sites]\ntraining = ["a", "b", "a"]', "training names a more than once"),
        (
            '[sites]\ntraining = ["a", "b"]\n[participation]\nquorum = 3',
            "quorum is 3, and there are 2 training",
        ),
        ("[input]\nshape_dhw = [1, 64, 64]", "input.shape_dhw.0"),
        ("[input]\nshape_dhw = [64, 64, 1000000]", "input.shape_dhw.2"),
    ],
)
def test_what_cannot_work_is_refused(path: Path, text: str, reason: str) -> None:
    path.write_text(f'name = "study"\n{text}\n')
    with pytest.raises(ConfigurationError, match=reason):
        read_study(path)


def test_a_date_is_no_name(path: Path) -> None:
    path.write_text("name = 1979-05-27\n")
    with pytest.raises(ConfigurationError, match="1979-05-27"):
        read_study(path)
