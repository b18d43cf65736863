"""A new run folder, or one to go on with: it belongs to one study."""

import json
from pathlib import Path

from dsan_daemon.files import write_atomically
from server.study import StudyConfig, read_study

PARTS = "parts"  # of a study of several parts: folds, sites left out


class StudyMismatchError(Exception):
    """The output folder holds another study, or the hospitals do not fit this one."""


def whole_run(run_folder: Path) -> Path:
    """The folder of the run to which a part belongs; one that is not a part is its own."""
    return run_folder.parents[1] if run_folder.parent.name == PARTS else run_folder


def write_study(run_folder: Path, study: StudyConfig) -> None:
    """Put study.toml into the run folder, or check that the study there is the same one."""
    path = run_folder / "study.toml"
    if path.exists() and not _is_same_study(read_study(path), study):
        raise StudyMismatchError(
            f"{run_folder}: holds another study: give the same settings to resume it, or another --out"
        )
    run_folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, study_toml(study).encode())


def _is_same_study(there: StudyConfig, here: StudyConfig) -> bool:
    """Whether a run can be resumed with these settings; how long and for whom it waits may change."""
    return there.model_copy(update={"participation": here.participation}) == here


def study_toml(study: StudyConfig) -> str:
    """A study as study.toml, every key of it: a flat table with sub-tables of plain values."""
    table = study.model_dump(mode="json")
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
    return "\n".join(lines) + "\n"
