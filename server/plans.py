"""Studies of several parts: k-fold cross-validation (IV-C) and leave-one-site-out.

Each part is a study of its own in a folder of its own: it is resumed by itself, and what is finished stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.ledger import append_event
from server.results import Row, read_results
from server.run_folder import PARTS, write_study
from server.study import PlanTable, SitesTable, StartTable, StudyConfig


@dataclass(frozen=True)
class Part:
    """One fold, or one site that is left out."""

    name: str
    study: StudyConfig

    def folder(self, run_folder: Path) -> Path:
        """Its run folder."""
        return run_folder / PARTS / self.name


def parts_of(study: StudyConfig, run_folder: Path) -> list[Part]:
    """The studies that a plan is made of; none if it is a single one.

    Folds are a function of the study's seed and each site's patients: every part, branch and model has the
    same ones.
    """
    match study.plan.kind:
        case "k-fold":
            return [_part(study, run_folder, f"fold-{fold}", fold=fold) for fold in range(study.folds)]
        case "leave-one-site-out":
            training = study.sites.training
            quorum = min(study.participation.quorum, len(training) - 1)
            participation = study.participation.model_copy(update={"quorum": quorum})
            return [
                _part(
                    study,
                    run_folder,
                    f"without-{site}",
                    sites=SitesTable(training=tuple(s for s in training if s != site), held_out=(site,)),
                    participation=participation,
                )
                for site in training
            ]
    return []


def run_parts(study: StudyConfig, run_folder: Path, run_part: Callable[[Path], None]) -> list[Part]:
    """Run every part that is not complete yet, one after the other; the parts."""
    parts = parts_of(study, run_folder)
    for part in parts:
        folder = part.folder(run_folder)
        results = read_results(folder)
        if results is None or not results["complete"]:
            write_study(folder, part.study)
            append_event(run_folder, "part", part.name)
            run_part(folder)
    return parts


def part_results(parts: list[Part], run_folder: Path) -> dict[str, Row]:
    """results.json of every part, by its name."""
    found = {part.name: read_results(part.folder(run_folder)) for part in parts}
    return {name: results for name, results in found.items() if results is not None}


def _part(study: StudyConfig, run_folder: Path, name: str, **changes: object) -> Part:
    start = study.start
    if start.model:
        start = StartTable(model=str((run_folder / start.model).resolve()))
    update = {"name": f"{study.name}.{name}", "plan": PlanTable(), "start": start, **changes}
    return Part(name, study.model_copy(update=update))
