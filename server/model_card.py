"""MODEL_CARD.md: what the model is, for whom, on what it was trained, and what was measured."""

from typing import Any

from server.differences import differences_from_paper
from server.study import StudyConfig

FIGURES = ("auc", "accuracy", "sensitivity", "specificity", "f1")


def model_card(study: StudyConfig, results: dict[str, Any]) -> str:
    """The card of a classification study; every figure is one of results.json."""
    parts = [
        _head(study, results),
        _training(study, results),
        _measured(results),
        _groups(results),
        _attention(results),
        _limits(study, results),
    ]
    return "\n".join(part.strip() + "\n" for part in parts if part)


def figure(value: float | None) -> str:
    """Three digits, or n/a where it is not defined."""
    return "n/a" if value is None else f"{value:.3f}"


def _head(study: StudyConfig, results: dict[str, Any]) -> str:
    state = "complete" if results["complete"] else "INCOMPLETE: a required site missed a round"
    return f"""
# Model card: {study.name}

Dual-Sampling Attention Network (Ouyang et al., IEEE TMI 2020): P(COVID-19) against community acquired
pneumonia of a chest CT. **For research only; not a medical device.**

- Study `{study.name}`, preset `{study.preset}`, seed {study.seed}; {state}.
- Input: {" x ".join(map(str, study.input.shape_dhw))} (D, H, W), prepared as in section IV-B of the paper.
- Two networks, chosen after round {_chosen(results, "us")} (US) and {_chosen(results, "ss")} (SS), and Eq. 5:
  w = {figure(results["ensemble"]["w_inside"])} where the infection ratio is from 0.001 to 0.030, else
  {figure(results["ensemble"]["w_outside"])}.
"""


def _training(study: StudyConfig, results: dict[str, Any]) -> str:
    rows = [
        f"| {site['name']} | {site['role']} | {_cases(site)} | {site['rounds_completed']} of "
        f"{site['rounds_required']} |"
        for site in results["sites"]
    ]
    n_sites = sum(site["role"] == "training" for site in results["sites"])
    return f"""
## Trained on

{n_sites} sites by federated averaging, {study.rounds} rounds; no scan left its site.

| site | role | COVID-19 / CAP | rounds |
| --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def _measured(results: dict[str, Any]) -> str:
    rows = [f"| {row['set']} | {row['model']} | {_n(row)} | {_figures(row)} |" for row in results["table2"]]
    control = results["controls"]["auc_infection_ratio"]
    return f"""
## Measured

| set | model | COVID-19 / CAP | AUC (95 % CI) | accuracy | sensitivity | specificity | F1 |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

The infection ratio alone reaches an AUC of {figure(control["validation"])} (validation) and
{figure(control["held-out"])} (held-out). F1 is macro-averaged; the threshold is 0.5; n/a marks a figure that
is not defined, such as the AUC of one class. The ensemble was fitted on the validation cases.
"""


def _groups(results: dict[str, Any]) -> str:
    rows = [
        f"| {row['set']} | {row['group']} | {row['model']} | {_n(row)} | {_figures(row)} |"
        for row in results["table3"]
        if row["set"] == "held-out"
    ]
    if not rows:
        return ""
    return f"""
By infection ratio, held-out:

| set | infection ratio | model | COVID-19 / CAP | AUC (95 % CI) | accuracy | sensitivity | specificity | F1 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def _attention(results: dict[str, Any]) -> str:
    rows = [
        f"| {row['set']} | {row['model']} | {row['cases']} | {figure(row['dice_infection'])} | "
        f"{figure(row['mass_in_infection'])} | {figure(row['mass_in_lung'])} |"
        for row in results["attention"]
        if row["group"] == "all"
    ]
    if not rows:
        return ""
    return f"""
Attention maps of COVID-19 cases:

| set | model | cases | Dice with the infection | share inside the infection | share inside the lungs |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def _limits(study: StudyConfig, results: dict[str, Any]) -> str:
    lines = [
        "- It tells COVID-19 from community acquired pneumonia and knows nothing else: a healthy lung, a "
        "tumour or an oedema gets a probability too.",
        "- It needs lung masks; infection ratios come from infection masks, and those of different "
        "segmenters are not comparable.",
        "- Figures are of the sites above. Another scanner, protocol or population may give others.",
    ]
    if results["study"].get("synthetic"):
        lines.append("- **The scans are synthetic.** The figures say that the software works.")
    lines += [f"- {d.what}: {d.here}; in the paper {d.paper}." for d in differences_from_paper(study)]
    return "\n## Limits\n\n" + "\n".join(lines)


def _chosen(results: dict[str, Any], branch: str) -> str:
    return str(results["model_selection"].get(branch, {}).get("round", "n/a"))


def _cases(site: dict[str, Any]) -> str:
    counts = site.get("cases") or {}
    return f"{counts.get('COVID-19', 'n/a')} / {counts.get('CAP', 'n/a')}"


def _n(row: dict[str, Any]) -> str:
    return f"{row['n']['COVID-19']} / {row['n']['CAP']}"


def _figures(row: dict[str, Any]) -> str:
    interval = f" ({figure(row['auc_ci'][0])}-{figure(row['auc_ci'][1])})" if row["auc_ci"] else ""
    auc, *others = (figure(row[key]) for key in FIGURES)
    return " | ".join([auc + interval, *others])
