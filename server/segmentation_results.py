"""results.json of a segmentation study: Dice by set, site and structure; nothing of a classification."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsan_model.cases import RatioGroup
from dsan_model.dice import STRUCTURES, DiceCounts
from dsan_model.protocol import CaseSet, added_dice
from dsan_model.sampling import Branch
from server.differences import differences_from_paper
from server.enrolment import Enrolled
from server.exchange import Exchange, Failure
from server.held_out import HeldOut
from server.results import (
    FORMAT_VERSION,
    Row,
    case_weighted_mean,
    failure_rows,
    ratio_histogram,
    selection_row,
    site_rows,
    table1,
    timing,
    traffic,
)
from server.run_state import RunState
from server.selection import Selection, validation_counts
from server.study import StudyConfig

ALL = "all"


@dataclass(frozen=True)
class SegmentationOutcome:
    """Everything that a segmentation study came to, before it is written down."""

    study: StudyConfig
    enrolled: Enrolled
    state: RunState
    unvalidated: dict[str, Failure]  # sites that did not validate the last round
    selection: Selection
    held_out: HeldOut

    @property
    def failures(self) -> dict[str, Failure]:
        """Why a site is missing somewhere, the earliest reason of each; none of them is complete."""
        return {**self.held_out.failures, **self.unvalidated, **self.enrolled.failures}


def segmentation_results(
    run_folder: Path, outcome: SegmentationOutcome, exchange: Exchange, total_s: float
) -> Row:
    """What results.json says; figures that are not defined are None."""
    study, state, selection = outcome.study, outcome.state, outcome.selection
    sites = site_rows(run_folder, study, outcome.enrolled, outcome.failures)
    return {
        "format_version": FORMAT_VERSION,
        "study": {
            "name": study.name,
            "seed": study.seed,
            "preset": study.preset,
            "task": study.task,
            "spacing_mm_xyz": list(study.segmentation.spacing_mm_xyz),
            "patch_dhw": list(study.segmentation.patch_dhw),
        },
        "complete": all(site["complete"] for site in sites),
        "sites": sites,
        "model_selection": {Branch.VBNET.value: selection_row(selection, "validation_dice")},
        "dice": _dice_rows(outcome),
        "timing": timing(state, total_s),
        "traffic": traffic(state, exchange),
        "shrunk": [difference._asdict() for difference in differences_from_paper(study)],
        "table1": table1(outcome.enrolled),
        "segmentation_curves": _curves(state),
        "ratio_histogram": ratio_histogram(outcome.enrolled),
        "failures": failure_rows(outcome.failures),
    }


def _dice_rows(outcome: SegmentationOutcome) -> list[Row]:
    validated = outcome.state.validation[outcome.selection.round]
    sets = {
        CaseSet.VALIDATION: {site: added_dice([counts[Branch.VBNET]]) for site, counts in validated.items()},
        CaseSet.HELD_OUT: {
            site: added_dice([reply.branches[Branch.VBNET]])
            for site, reply in outcome.held_out.replies.items()
        },
    }
    return [row for case_set, by_site in sets.items() for row in _rows_of_set(case_set, by_site)]


def _rows_of_set(case_set: CaseSet, by_site: Mapping[str, DiceCounts]) -> list[Row]:
    """All sites together, by ratio group too, then each site."""
    rows = []
    for site, counts in [(ALL, added_dice(by_site.values())), *sorted(by_site.items())]:
        for structure in STRUCTURES:
            for group in (None, *RatioGroup) if site == ALL else (None,):
                rows.append(
                    {
                        "set": case_set.value,
                        "site": site,
                        "structure": structure.value,
                        "group": ALL if group is None else group.value,
                        "cases": counts.cases(structure, group),
                        "dice": counts.mean_dice(structure, group),
                        "pooled_dice": counts.pooled_dice(structure, group),
                    }
                )
    return rows


def _curves(state: RunState) -> list[Row]:
    rows = []
    for record in state.history:
        training = [site[Branch.VBNET] for site in record.training.values()]
        validated = DiceCounts.empty()
        if record.round < len(state.validation):
            validated = added_dice(validation_counts(state, record.round, Branch.VBNET))
        rows.append(
            {
                "round": record.round,
                "dice_loss": case_weighted_mean((t.classification_loss, t.cases) for t in training),
                "learning_rate": training[0].learning_rate,
                **{f"validation_dice_{s}": validated.mean_dice(s) for s in STRUCTURES},
            }
        )
    return rows
