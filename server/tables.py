"""The study's tables as CSV, for a spreadsheet or a statistician: full precision, undefined cells empty."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from server.ledger import LedgerEntry
from server.report_input import (
    ClassCounts,
    CohortRow,
    CurvePoint,
    DiceRow,
    Interval,
    ModelScores,
    RunFolder,
    SegmentationPoint,
)

Value = str | int | float | None

SCORE_COLUMNS = (
    *("set", "model", "n_covid", "n_cap", "auc", "auc_ci_low", "auc_ci_high", "auc_error_bound"),
    *("accuracy", "sensitivity", "specificity", "f1"),
)
COHORT_COLUMNS = (
    *("set", "label", "images", "patients", "age_median", "age_min", "age_max", "female", "male"),
)
CURVE_COLUMNS = (
    *("round", "branch", "classification_loss", "attention_loss"),
    *("validation_auc", "validation_auc_error_bound", "learning_rate"),
)
DICE_COLUMNS, ROUND_COLUMNS = tuple(DiceRow.model_fields), tuple(SegmentationPoint.model_fields)
LEDGER_COLUMNS = (
    *("round", "site", "branch", "status", "cases", "steps", "seconds", "bytes", "digest"),
    *("code", "message"),
)


def write_tables(run: RunFolder, folder: Path) -> None:
    """Write every table that the run has; one that it no longer has is removed, so that none is stale."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in csv_tables(run).items():
        path = folder / f"{name}.csv"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text, encoding="utf-8", newline="")


def csv_tables(run: RunFolder) -> dict[str, str | None]:
    """The text of each table by name; None where the run has no such rows."""
    results = run.results
    return {
        "table1": _csv(COHORT_COLUMNS, map(_cohort_values, results.table1)),
        "table2": _csv(SCORE_COLUMNS, map(_score_values, results.table2)),
        "table3": _csv(("group", *SCORE_COLUMNS), ((r.group, *_score_values(r)) for r in results.table3)),
        "per_site": _csv(("site", *SCORE_COLUMNS), ((r.site, *_score_values(r)) for r in results.per_site)),
        "curves": _csv(CURVE_COLUMNS, map(_curve_values, results.curves)),
        "dice": _csv(DICE_COLUMNS, map(_values, results.dice)),
        "segmentation_curves": _csv(ROUND_COLUMNS, map(_values, results.segmentation_curves)),
        "participation": _csv(LEDGER_COLUMNS, map(_ledger_values, run.ledger)),
    }


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> str | None:
    lines = list(rows)
    if not lines:
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def _score_values(row: ModelScores) -> tuple[Value, ...]:
    scores = (row.accuracy, row.sensitivity, row.specificity, row.f1)
    auc = (row.auc, *_ends(row.auc_ci), row.auc_error_bound)
    return (row.set, row.model, *_counts(row.n), *auc, *scores)


def _counts(n: ClassCounts) -> tuple[int, int]:
    return n.covid, n.cap


def _ends(interval: Interval) -> tuple[Value, Value]:
    return interval if interval is not None else (None, None)


def _cohort_values(row: CohortRow) -> tuple[Value, ...]:
    ages = (row.age_median, *_ends(row.age_range))
    return (row.set, row.label, row.images, row.patients, *ages, row.female, row.male)


def _curve_values(point: CurvePoint) -> tuple[Value, ...]:
    losses = (point.classification_loss, point.attention_loss)
    validation = (point.validation_auc, point.validation_auc_error_bound)
    return (point.round, point.branch, *losses, *validation, point.learning_rate)


def _values(row: DiceRow | SegmentationPoint) -> tuple[Value, ...]:
    return tuple(row.model_dump().values())


def _ledger_values(entry: LedgerEntry) -> tuple[Value, ...]:
    work = (entry.cases, entry.steps, entry.seconds, entry.bytes, entry.digest)
    return (entry.round, entry.site, entry.branch, entry.status, *work, entry.code, entry.message)
