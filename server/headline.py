"""What a finished study comes to, as a person reads it in a terminal."""

from typing import Any


def results_table(results: dict[str, Any]) -> str:
    """Table II of results.json as text, with what the infection ratio alone reaches below each set.

    Of a segmentation study, Dice.
    """
    if "dice" in results:
        return _dice_table(results["dice"])
    lines = [f"{'set':<11} {'model':<24} {'COVID/CAP':>10} {'AUC':>6}  {'95 % CI':<13} {'acc':>6} {'F1':>6}"]
    control = results["controls"]["auc_infection_ratio"]
    for case_set in ("validation", "held-out"):
        rows = [row for row in results["table2"] if row["set"] == case_set]
        for row in rows:
            interval = "-".join(f"{x:.3f}" for x in row["auc_ci"]) if row["auc_ci"] else "n/a"
            n = f"{row['n']['COVID-19']}/{row['n']['CAP']}"
            lines.append(
                f"{case_set:<11} {row['model']:<24} {n:>10} {_figure(row['auc'])}  {interval:<13} "
                f"{_figure(row['accuracy'])} {_figure(row['f1'])}"
            )
        lines.append(f"{case_set:<11} {'infection ratio alone':<24} {'':>10} {_figure(control[case_set])}")
    return "\n".join(lines)


def _dice_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'set':<11} {'structure':<11} {'ratio':<12} {'cases':>5} {'mean Dice':>9} {'of all voxels':>13}"
    ]
    for row in rows:
        if row["site"] == "all":
            figures = f"{_figure(row['dice']):>9} {_figure(row['pooled_dice']):>13}"
            where = f"{row['set']:<11} {row['structure']:<11} {row['group']:<12}"
            lines.append(f"{where} {row['cases']:>5} {figures}")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return f"{'n/a':>6}" if value is None else f"{value:6.3f}"
