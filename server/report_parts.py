"""The report's section on a study of several parts: mean, deviation, paired t-tests (Table II, IV-D)."""

from server.report_blocks import Block, Cell, Head, Note, Row, Section, Table, p_text, score_text
from server.report_input import Plan, PlanMeans, PlanTest

METRIC_HEADS = {"auc": "AUC", "accuracy": "Accuracy", "sensitivity": "Sensitivity"} | {
    "specificity": "Specificity",
    "f1": "F1",
}


def parts_section(plan: Plan | None) -> tuple[Section, ...]:
    """The section; none for a study of one part."""
    if plan is None:
        return ()
    names = ", ".join(part.name + ("" if part.complete else " (incomplete)") for part in plan.parts)
    blocks: list[Block] = [
        Note(f"{plan.kind}: {len(plan.parts)} parts, each a study with a report of its own: {names}."),
        Note(
            f"In the tables of this page the {plan.pooled} set is pooled over all parts: every case is "
            "scored by one of them. Below: mean and standard deviation over the parts."
        ),
        _means_table(plan.table2_means),
    ]
    tests = [test for test in plan.t_tests if test.p_value is not None]
    if tests:
        blocks += [
            Note("Paired t-tests over the parts, as in the paper's section IV-D:"),
            _tests_table(tests),
        ]
    return (Section("parts", "Parts of the study: mean and deviation", tuple(blocks)),)


def _means_table(rows: tuple[PlanMeans, ...]) -> Table:
    header = (Head("Set"), Head("Model"), *(Head(title) for title in METRIC_HEADS.values()))
    return Table(
        (header,),
        tuple(
            Row(
                (Head(row.set), Head(row.model)),
                tuple(Cell(_mean_text(row, metric)) for metric in METRIC_HEADS),
            )
            for row in rows
        ),
    )


def _mean_text(row: PlanMeans, metric: str) -> str:
    moments = row.moments(metric)
    if moments.mean is None:
        return score_text(None)
    return score_text(moments.mean) + (f" ± {score_text(moments.std)}" if moments.std is not None else "")


def _tests_table(tests: list[PlanTest]) -> Table:
    header = (Head("Set"), Head("Models"), Head("Metric"), Head("t"), Head("p"))
    return Table(
        (header,),
        tuple(
            Row(
                (
                    Head(test.set),
                    Head(f"{test.model_a} against {test.model_b}"),
                    Head(METRIC_HEADS[test.metric]),
                ),
                (Cell(f"{test.t:.2f}" if test.t is not None else ""), Cell(p_text(test.p_value or 0.0))),
            )
            for test in tests
        ),
    )
