"""A model package leaves only if every byte, the recipe and the architecture fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from client.model_package import read_model_package
from dsan_model.cases import SizeGroup
from dsan_model.network import initial_state
from dsan_model.protocol import BranchTraining
from dsan_model.sampling import Branch
from dsan_model.traffic import pack
from dsan_model.weights import FlatWeights, flatten, load_weights, save_weights
from server import export
from server.export import export_package
from server.model_package import write_model_package
from server.package_repair import repair_packages
from server.refusals import RefusedError
from server.results import write_results
from server.run_folder import write_study
from server.run_state import RoundRecord, RunState, is_sealed, save_round, seal
from server.study import StudyConfig, preset_study, read_study

BRANCHES = (Branch.US, Branch.SS)


def results() -> dict[str, object]:
    row = {"n": {"COVID-19": 3, "CAP": 2}, "auc": 0.75, "auc_ci": [0.5, 1.0], "accuracy": 0.6}
    row |= {
        "sensitivity": 0.7,
        "specificity": 0.5,
        "f1": 0.55,
        "model": "Attention RN34 + US",
        "set": "held-out",
    }
    return {
        "complete": True,
        "study": {"name": "first", "synthetic": True},
        "sites": [
            {
                "name": "north",
                "role": "training",
                "cases": {"COVID-19": 3, "CAP": 2},
                "rounds_completed": 2,
                "rounds_required": 2,
            }
        ],
        "model_selection": {"us": {"round": 2}, "ss": {"round": 1}},
        "ensemble": {"w_inside": 0.96, "w_outside": 0.35},
        "controls": {"auc_infection_ratio": {"validation": None, "held-out": 0.81}},
        "table2": [row],
        "table3": [row | {"group": ">0.030"}],
        "attention": [
            {
                "set": "held-out",
                "model": "Attention RN34 + US",
                "group": "all",
                "cases": 3,
                "dice_infection": 0.352,
                "mass_in_infection": 0.303,
                "mass_in_lung": 0.9,
            }
        ],
    }


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    study = preset_study("tiny", "first", 0)
    write_study(tmp_path / "first", study)
    write_model_package(tmp_path / "first", study, models(study), results())
    return tmp_path / "first"


def models(study: StudyConfig) -> dict[Branch, FlatWeights]:
    return {
        branch: flatten(initial_state(study.network_config, seed)) for seed, branch in enumerate(BRANCHES)
    }


def test_what_is_exported_is_read_by_diagnose_and_has_the_same_weights(
    run_folder: Path, tmp_path: Path
) -> None:
    out = export_package(run_folder, tmp_path / "out")
    package = read_model_package(out)
    assert {branch: weights.digest for branch, weights in package.weights.items()} == {
        branch: load_weights(run_folder / "model" / f"{branch}.safetensors").digest for branch in BRANCHES
    }
    assert is_sealed(out)
    assert "metadata.json" in (out / "SHA256SUMS").read_text()


def test_graphs_are_sealed_with_the_package_and_diagnose_still_reads_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def write(package: Path, study: StudyConfig, branches: dict[Branch, str]) -> None:
        asked.append(branches)
        (package / "us.onnx").write_bytes(b"graph")

    monkeypatch.setattr(export, "require_onnx", lambda study: None)
    monkeypatch.setattr(export, "write_graphs", write)
    out = export_package(run_folder, tmp_path / "out", has_onnx=True)
    assert asked == [{Branch.US: "us.safetensors", Branch.SS: "ss.safetensors"}]
    assert is_sealed(out)
    assert "us.onnx" in (out / "SHA256SUMS").read_text()
    read_model_package(out)


def test_the_metadata_are_those_of_a_monai_bundle(run_folder: Path, tmp_path: Path) -> None:
    metadata = json.loads((export_package(run_folder, tmp_path / "out") / "metadata.json").read_text())
    required = {"version", "monai_version", "pytorch_version", "numpy_version", "task", "network_data_format"}
    assert required <= set(metadata)
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [16, 32, 32]
    assert image["num_channels"] == 1


def test_the_card_says_what_was_measured(run_folder: Path) -> None:
    card = (run_folder / "model" / "MODEL_CARD.md").read_text()
    assert "| north | training | 3 / 2 | 2 of 2 |" in card
    assert (
        "| held-out | Attention RN34 + US | 3 / 2 | 0.750 (0.500-1.000) | 0.600 | 0.700 | 0.500 | 0.550 |"
        in card
    )
    assert "AUC of n/a (validation) and\n0.810 (held-out)" in card
    assert "| held-out | Attention RN34 + US | 3 | 0.352 | 0.303 | 0.900 |" in card
    assert "w = 0.960 where the infection ratio is from 0.001 to 0.030, else\n  0.350" in card
    assert "synthetic" in card


def flip_a_bit(package: Path) -> None:
    path = package / "us.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_a_bit_and_seal(package: Path) -> None:
    flip_a_bit(package)
    seal(package)


def add_a_file(package: Path) -> None:
    (package / "more.safetensors").write_bytes(b"x")


def tear_the_sums(package: Path) -> None:
    (package / "SHA256SUMS").write_bytes(b"abc123")


def blank_the_sums(package: Path) -> None:
    (package / "SHA256SUMS").write_bytes(b"\xff\xfe")


def drop_the_card(package: Path) -> None:
    (package / "MODEL_CARD.md").unlink()


def other_network(package: Path) -> None:
    study = preset_study("tiny", "first", 0)
    wider = study.network_config.__class__(**(vars(study.network_config) | {"width": 8}))
    save_weights(package / "us.safetensors", flatten(initial_state(wider, 0)))
    seal(package)


def not_finite(package: Path) -> None:
    weights = load_weights(package / "us.safetensors")
    weights.floats[0] = torch.nan
    spoilt = FlatWeights(weights.layout, weights.floats, weights.integers)
    save_weights(package / "us.safetensors", spoilt)
    change_description(package, lambda text: text["branches"]["us"].update(digest=spoilt.digest))


def change_description(package: Path, change) -> None:  # type: ignore[no-untyped-def]
    text = json.loads((package / "model.json").read_text())
    change(text)
    (package / "model.json").write_text(json.dumps(text))
    seal(package)


def other_recipe(package: Path) -> None:
    change_description(package, lambda text: text.update(recipe_digest="0" * 64))


def other_study(package: Path) -> None:
    change_description(package, lambda text: text["study"].update(digest="0" * 64))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (flip_a_bit, "EXPORT-DAMAGED"),
        (flip_a_bit_and_seal, "EXPORT-DAMAGED"),
        (add_a_file, "EXPORT-DAMAGED"),
        (drop_the_card, "EXPORT-DAMAGED"),
        (tear_the_sums, "EXPORT-DAMAGED"),
        (blank_the_sums, "EXPORT-DAMAGED"),
        (other_network, "EXPORT-MISFIT"),
        (not_finite, "EXPORT-MISFIT"),
        (other_recipe, "EXPORT-MISFIT"),
        (other_study, "EXPORT-MISFIT"),
    ],
)
def test_a_package_that_does_not_fit_is_not_exported(
    run_folder: Path, tmp_path: Path, spoil, code: str
) -> None:  # type: ignore[no-untyped-def]
    spoil(run_folder / "model")
    with pytest.raises(RefusedError, match=code):
        export_package(run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_and_nothing_is_made_of_nothing(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="EXPORT-EXISTS"):
        export_package(run_folder, tmp_path)
    shutil.rmtree(run_folder / "model")
    with pytest.raises(RefusedError, match="EXPORT-NONE"):
        export_package(run_folder, tmp_path / "out")


def of_rounds(run_folder: Path, study: StudyConfig) -> None:
    """The rounds, results and package of a complete study; SS is of round 1."""
    branches = models(study)
    state = RunState(0, branches)
    for number in (1, 2):
        training = BranchTraining(5, 1, 1.0, 1e-3, 0.7, 0.2, dict.fromkeys(SizeGroup, 1))
        record = RoundRecord(number, study.digest, {"north": dict.fromkeys(BRANCHES, training)}, 1.0, 1, 1)
        state = state.after_round(record, {})
        save_round(run_folder, state)
    travelled = {branch: pack(weights, study.precision).unpack() for branch, weights in branches.items()}
    write_model_package(run_folder, study, travelled, results())
    write_results(run_folder, results())


@pytest.mark.parametrize("spoil", ["us.safetensors", "SHA256SUMS", "MODEL_CARD.md"])
def test_a_damaged_package_of_a_complete_study_is_written_again_from_its_rounds(
    run_folder: Path, tmp_path: Path, spoil: str
) -> None:
    study = read_study(run_folder / "study.toml")
    of_rounds(run_folder, study)
    assert repair_packages(run_folder) == []
    whole = (run_folder / "model" / "SHA256SUMS").read_bytes()
    (run_folder / "model" / spoil).unlink()
    with pytest.raises(RefusedError, match=r"EXPORT-(DAMAGED.*dsan-server resume RUN|NONE)"):
        export_package(run_folder, tmp_path / "out")
    assert repair_packages(run_folder) == [run_folder / "model"]
    assert (run_folder / "model" / "SHA256SUMS").read_bytes() == whole
    export_package(run_folder, tmp_path / "out")


def test_a_package_whose_round_is_damaged_too_is_not_made_up(run_folder: Path) -> None:
    of_rounds(run_folder, read_study(run_folder / "study.toml"))
    (run_folder / "model" / "us.safetensors").write_bytes(b"torn")
    (run_folder / "rounds" / "0002" / "us.safetensors").write_bytes(b"torn")
    with pytest.raises(RefusedError, match=r"EXPORT-ROUNDS.*round 2 of Attention RN34"):
        repair_packages(run_folder)


def test_a_whole_package_beside_another_study_is_left_as_it_is(run_folder: Path) -> None:
    of_rounds(run_folder, read_study(run_folder / "study.toml"))
    study_file, described = run_folder / "study.toml", (run_folder / "model" / "model.json").read_bytes()
    study_file.write_text(study_file.read_text().replace("seed = 0", "seed = 9"))
    assert read_study(study_file).seed == 9
    assert repair_packages(run_folder) == []
    assert (run_folder / "model" / "model.json").read_bytes() == described
