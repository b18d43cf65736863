"""A model package that was damaged after its study was complete: written again from the rounds on disk."""

from pathlib import Path

from dsan_model.sampling import Branch
from dsan_model.traffic import pack
from dsan_model.weights import FlatWeights
from server.export import check_package
from server.model_package import write_model_package
from server.plans import parts_of
from server.refusals import ExitCode, RefusedError
from server.results import Row, read_results
from server.run_state import SUMS, OnDemand, load_round_weights
from server.segmentation_package import write_segmentation_package
from server.study import StudyConfig, read_study


def repair_packages(run_folder: Path) -> list[Path]:
    """Write every model package of a complete study again that is missing or damaged; their folders.

    The weights are those of the selected rounds, as they travelled. Raises RefusedError EXPORT-ROUNDS.
    """
    study = read_study(run_folder / "study.toml")
    if study.plan.kind == "evaluate":
        return []
    folders = [part.folder(run_folder) for part in parts_of(study, run_folder)] or [run_folder]
    return [_repaired(folder) for folder in folders if not _is_whole(folder)]


def _is_whole(run_folder: Path) -> bool:
    package = run_folder / "model"
    try:
        if (package / SUMS).exists():
            check_package(package, read_study(run_folder / "study.toml"))
            return True
    except RefusedError as error:
        return error.code == "EXPORT-MISFIT"  # undamaged, of other settings: `export` refuses it, and says so
    except (OSError, ValueError, KeyError):
        pass
    return False


def _repaired(run_folder: Path) -> Path:
    study, results = read_study(run_folder / "study.toml"), read_results(run_folder)
    assert results is not None  # a study is complete by its results
    models = OnDemand(study.branches, lambda branch: _selected(run_folder, study, results, branch))
    if study.task == "segmentation":
        return write_segmentation_package(run_folder, study, models[Branch.VBNET], results)
    return write_model_package(run_folder, study, models, results)


def _selected(run_folder: Path, study: StudyConfig, results: Row, branch: Branch) -> FlatWeights:
    chosen = int(results["model_selection"][branch.value]["round"])
    try:
        return pack(load_round_weights(run_folder, chosen, branch), study.precision).unpack()
    except (OSError, ValueError) as error:
        raise RefusedError(
            "EXPORT-ROUNDS",
            str(run_folder / "rounds"),
            f"the selected round {chosen} of {branch.model_name} cannot be read ({error})",
            "Restore this folder from a backup; the model package is written from it.",
            ExitCode.BAD_DATA,
        ) from None
