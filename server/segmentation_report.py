"""The sections of the report that only a segmentation study has: Dice, and its rounds."""

from collections.abc import Mapping, Sequence, Set

from dsan_model.sampling import Branch
from server.report_blocks import (
    GROUP_TITLE,
    SET_TITLE,
    Cell,
    Head,
    Note,
    Row,
    Section,
    Table,
    count_text,
    score_text,
)
from server.report_input import DiceRow, RunFolder, SegmentationPoint, SelectedRound

ALL = "all"


def dice_section(run: RunFolder) -> Section:
    """How well VB-Net segments lungs and infection."""
    anchor, title = "dice", "Dice"
    rows = run.results.dice
    if not rows:
        return Section(anchor, title, left_out="Left out: results.json has no readable “dice”.")
    text = (
        "Mean: over the cases whose mask is not empty. All voxels: of all cases together, with what is found "
        "where nothing is. Counted on the grid that the network works on. No case of either set was trained "
        "on; held-out sites never train."
    )
    return Section(anchor, title, (_by_group(rows), _by_site(rows), Note(text, "small")))


def rounds_section(run: RunFolder) -> Section:
    """Loss and validation Dice of every round."""
    anchor, title = "rounds", "Training by round"
    points = run.results.segmentation_curves
    if not points:
        return Section(
            anchor, title, left_out="Left out: results.json has no readable “segmentation_curves”."
        )
    header = (Head("Round"), Head("Dice loss"), Head("Lungs"), Head("Infection"), Head("Learning rate"))
    rows = tuple(Row((Head(str(point.round)),), _point_cells(point)) for point in points)
    chosen = ", ".join(str(selected.round) for selected in run.results.model_selection.values())
    text = f"Lungs, infection: mean Dice on the validation cases after the round. Kept: round {chosen}."
    notes = selection_notes(run.results.model_selection, {point.round for point in points})
    return Section(anchor, title, (Table((header,), rows), Note(text, "small"), *notes))


def selection_notes(selection: Mapping[Branch, SelectedRound], rounds: Set[int]) -> tuple[Note, ...]:
    """A warning where rounds were left out of the selection, as other sites had validated them."""
    chosen = next(iter(selection.values()), None)
    if chosen is None or not chosen.compared_rounds:
        return ()
    left_out = sorted(rounds - set(chosen.compared_rounds))
    if not left_out:
        return ()
    text = (
        f"Rounds {', '.join(map(str, left_out))} were not compared: other sites had validated them. The best "
        f"of the other {len(chosen.compared_rounds)} is by the validation cases of "
        f"{', '.join(chosen.compared_sites)}."
    )
    return (Note(text, "warning"),)


def _by_group(rows: Sequence[DiceRow]) -> Table:
    shown = [row for row in rows if row.site == ALL]
    header = (Head("Set"), Head("Structure"), Head("Infection ratio"), *_figures_header())
    return Table(
        (header,),
        tuple(
            Row(
                (Head(SET_TITLE[row.set]), Head(row.structure), Head(GROUP_TITLE.get(row.group, row.group))),
                _figure_cells(row),
                starts_group=row.group == ALL,
            )
            for row in shown
        ),
    )


def _by_site(rows: Sequence[DiceRow]) -> Table:
    shown = [row for row in rows if row.site != ALL]
    header = (Head("Site"), Head("Set"), Head("Structure"), *_figures_header())
    return Table(
        (header,),
        tuple(
            Row(
                (Head(row.site, is_site=True), Head(SET_TITLE[row.set]), Head(row.structure)),
                _figure_cells(row),
                starts_group=row.structure == "lungs",
            )
            for row in shown
        ),
    )


def _figures_header() -> tuple[Head, ...]:
    return Head("Cases"), Head("Mean"), Head("All voxels")


def _figure_cells(row: DiceRow) -> tuple[Cell, ...]:
    return (
        Cell(count_text(row.cases)),
        Cell(score_text(row.dice), is_undefined=row.dice is None),
        Cell(score_text(row.pooled_dice), is_undefined=row.pooled_dice is None),
    )


def _point_cells(point: SegmentationPoint) -> tuple[Cell, ...]:
    scores = (point.dice_loss, point.validation_dice_lungs, point.validation_dice_infection)
    cells = [Cell(score_text(value), is_undefined=value is None) for value in scores]
    return (*cells, Cell("" if point.learning_rate is None else f"{point.learning_rate:g}"))
