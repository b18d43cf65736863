"""The report of a run: what stands on the page, what is left out and why, and its tables as files.

`complete_study` is a made-up study with numbers of the right kind: scores are drawn, every figure is computed
from them. `python tests/server/test_report.py FOLDER` writes such runs with their reports, to be looked at.
"""

import csv
import html
import json
import re
import struct
import sys
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import rankdata

from server import paper_results
from server.paper_results import MODELS, RATIO_GROUPS
from server.participation import missed_rounds, participation
from server.report import report_html, write_report
from server.report_blocks import bytes_text, duration_text, rounds_text
from server.report_input import ReportError, read_run_folder
from server.svg import ticks

Json = dict[str, Any]  # as read from or written to JSON

N_ROUNDS = 12
SITES = tuple(f"hospital-{n}" for n in range(1, 9))
HELD_OUT = SITES[-1]
BRANCHES = ("us", "ss", "baseline")
MINIMAL_KEYS = ("format_version", "study", "complete", "sites")


# ---- a made-up study


def a_cohort(rng: np.random.Generator, n_covid: int, n_cap: int) -> Json:
    """Truth, infection ratio and a score of every model, for one site."""
    truth = np.r_[np.ones(n_covid, bool), np.zeros(n_cap, bool)]
    ratio = 10 ** np.where(truth, rng.normal(-1.4, 0.6, truth.size), rng.normal(-2.3, 0.8, truth.size))
    signal = np.where(truth, 1.0, -1.0) + 0.3 * (np.log10(ratio) + 1.9)
    logit = {
        model: strength * signal + rng.normal(0, 1.6, truth.size)
        for model, strength in zip(MODELS[:3], (0.9, 1.4, 1.2), strict=True)
    }
    logit[MODELS[3]] = 0.6 * logit[MODELS[1]] + 0.4 * logit[MODELS[2]]
    return {"truth": truth, "ratio": np.clip(ratio, 1e-4, 0.9), "logit": logit}


def together(cohorts: list[Json]) -> Json:
    joined = {key: np.concatenate([c[key] for c in cohorts]) for key in ("truth", "ratio")}
    joined["logit"] = {model: np.concatenate([c["logit"][model] for c in cohorts]) for model in MODELS}
    return joined


def auc(truth: np.ndarray, score: np.ndarray) -> float | None:
    n_covid, n_cap = int(truth.sum()), int((~truth).sum())
    if n_covid == 0 or n_cap == 0:
        return None
    return float((rankdata(score)[truth].sum() - n_covid * (n_covid + 1) / 2) / (n_covid * n_cap))


def scores(cohort: Json, model: str, chosen: np.ndarray, set_name: str) -> Json:
    """One row of table2, table3 or per_site."""
    truth, logit = cohort["truth"][chosen], cohort["logit"][model][chosen]
    positive = logit >= 0
    n_covid, n_cap = int(truth.sum()), int((~truth).sum())
    sensitivity = float(positive[truth].mean()) if n_covid else None
    specificity = float((~positive[~truth]).mean()) if n_cap else None
    area = auc(truth, logit)
    f1 = None
    if n_covid and n_cap:
        hits, alarms = int((positive & truth).sum()), int((positive & ~truth).sum())
        misses, quiet = n_covid - hits, n_cap - alarms
        f1 = hits / (2 * hits + alarms + misses) + quiet / (2 * quiet + alarms + misses)
    return {
        "set": set_name,
        "model": model,
        "n": {"COVID-19": n_covid, "CAP": n_cap},
        "auc": area,
        "auc_ci": None if area is None else [max(0.0, area - 0.041), min(1.0, area + 0.033)],
        "auc_error_bound": None if area is None else 0.0007,
        "accuracy": float((positive == truth).mean()) if truth.size else None,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": f1,
    }


def in_group(cohort: Json, group: str) -> np.ndarray:
    ratio = cohort["ratio"]
    return {"<0.005": ratio < 0.005, ">0.030": ratio > 0.030}.get(group, (ratio >= 0.005) & (ratio <= 0.030))


def roc_curve(cohort: Json, model: str, set_name: str) -> Json:
    truth, logit = cohort["truth"], cohort["logit"][model]
    edges = np.r_[np.inf, np.linspace(8, -8, 200), -np.inf]
    tpr = [float((logit[truth] >= edge).mean()) for edge in edges]
    fpr = [float((logit[~truth] >= edge).mean()) for edge in edges]
    return {"set": set_name, "model": model, "fpr": fpr, "tpr": tpr, "auc": auc(truth, logit)}


def a_curve(rng: np.random.Generator, branch: str) -> list[Json]:
    fall = np.exp(-np.arange(N_ROUNDS) / 4)
    gain = {"us": 0.93, "ss": 0.90, "baseline": 0.87}[branch]
    return [
        {
            "round": i + 1,
            "branch": branch,
            "classification_loss": float(0.25 + 0.45 * fall[i] + rng.normal(0, 0.015)),
            "attention_loss": None if branch == "baseline" else float(0.35 + 0.6 * fall[i]),
            "validation_auc": float(gain - 0.3 * fall[i] + rng.normal(0, 0.008)),
            "validation_auc_error_bound": 0.0008,
            "learning_rate": 2e-3 / 10 ** (i // 5),
        }
        for i in range(N_ROUNDS)
    ]


def ledger_lines(site: str, n_cases: int) -> list[Json]:
    return [
        {
            "event": "round",
            "round": round_,
            "site": site,
            "branch": branch,
            "cases": n_cases,
            "steps": -(-n_cases // 20),
            "seconds": round(0.04 * n_cases + 0.1 * (round_ % 3), 2),
            "bytes": 1_843_200,
            "digest": f"{round_:02x}" * 32,
            "status": "accepted",
            "code": None,
            "message": None,
        }
        for round_ in range(1, N_ROUNDS + 1)
        for branch in BRANCHES
    ]


def complete_study(seed: int = 0) -> tuple[Json, list[Json]]:
    """results.json and ledger.jsonl of seven training sites, one with COVID-19 only, and a held-out one."""
    results, ledger = json.loads(complete_study_text(seed))
    return results, ledger


@cache
def complete_study_text(seed: int) -> str:
    rng = np.random.default_rng(seed)
    sizes = {site: (8 + 5 * i, 30 - 4 * i) for i, site in enumerate(SITES[:7])} | {HELD_OUT: (34, 28)}
    sizes["hospital-4"] = (22, 0)
    cohorts = {site: a_cohort(rng, *sizes[site]) for site in SITES}
    pooled = {"validation": together([cohorts[s] for s in SITES[:7]]), "held-out": cohorts[HELD_OUT]}
    curves = [point for branch in BRANCHES for point in a_curve(rng, branch)]
    edges = np.logspace(-4, 0, 25)
    everything = {name: np.ones(c["truth"].size, bool) for name, c in pooled.items()}
    results = {
        "format_version": 1,
        "study": {
            "name": "eight-sites",
            "seed": seed,
            "preset": "demo",
            "input_shape_dhw": [24, 48, 48],
            "positive": "COVID-19",
            "synthetic": True,
        },
        "complete": True,
        "sites": [
            {
                "name": site,
                "role": "held-out" if site == HELD_OUT else "training",
                "cases": {"COVID-19": sizes[site][0], "CAP": sizes[site][1]},
                "rounds_completed": 0 if site == HELD_OUT else N_ROUNDS,
                "rounds_required": 0 if site == HELD_OUT else N_ROUNDS,
            }
            for site in SITES
        ],
        "model_selection": {branch: best_round(curves, branch) for branch in BRANCHES},
        "controls": {
            "auc_infection_ratio": {name: auc(c["truth"], c["ratio"]) for name, c in pooled.items()},
        },
        "ensemble": {
            "band": [0.001, 0.030],
            "w_inside": 0.71,
            "w_outside": 0.42,
            "objective": "accuracy, then AUC",
            "w_inside_ci": [0.48, 0.95],
            "w_outside_ci": [0.20, 0.66],
        },
        "table2": [scores(c, m, everything[name], name) for name, c in pooled.items() for m in MODELS],
        "table3": [
            {**scores(c, model, in_group(c, group), name), "group": group}
            for name, c in pooled.items()
            for model in MODELS
            for group in RATIO_GROUPS
        ],
        "per_site": [
            {**scores(c, model, np.ones(c["truth"].size, bool), evaluated_set(site)), "site": site}
            for site, c in cohorts.items()
            for model in MODELS
        ],
        "attention": [
            attention_scores(name, model, group)
            for name in pooled
            for model in MODELS[:3]
            for group in ATTENTION_GROUPS
        ],
        "roc": [roc_curve(c, model, name) for name, c in pooled.items() for model in MODELS],
        "curves": curves,
        "ratio_histogram": {
            "edges": edges.tolist(),
            "sets": {
                "training": ratio_counts(pooled["validation"], edges),
                "held-out": ratio_counts(pooled["held-out"], edges),
            },
        },
        **SAMPLING,
        "shrunk": [
            {"what": "input volume (D × H × W)", "paper": "138 × 256 × 256", "here": "24 × 48 × 48"},
            {"what": "network", "paper": "ResNet-34, width 64", "here": "ResNet-10, width 16"},
            {"what": "rounds", "paper": "20", "here": "12"},
            {"what": "learning rate", "paper": 2e-4, "here": 2e-3},
            {"what": "training cases", "paper": 2186, "here": 285},
        ],
        "table1": [
            demographics(set_name, label)
            for set_name in ("training", "held-out")
            for label in ("COVID-19", "CAP", "total")
        ],
        "timing": {
            "total_s": 321.4,
            "rounds": [
                {"round": r, "branch": b, "slowest_site_train_s": 5.9 + 0.3 * (r % 3), "overhead_s": 0.7}
                for r in range(1, N_ROUNDS + 1)
                for b in BRANCHES
            ],
        },
        "traffic": {"bytes_to_sites": 512_000_000, "bytes_from_sites": 487_654_321},
    }
    ledger = [line for site in SITES[:7] for line in ledger_lines(site, sum(sizes[site]))]
    return json.dumps([results, ledger])


def evaluated_set(site: str) -> str:
    return "held-out" if site == HELD_OUT else "validation"


def ratio_counts(cohort: Json, edges: np.ndarray) -> Json:
    return {
        label: np.histogram(cohort["ratio"][cohort["truth"] == is_covid], edges)[0].tolist()
        for label, is_covid in (("COVID-19", True), ("CAP", False))
    }


def best_round(curves: list[Json], branch: str) -> Json:
    best = max((p for p in curves if p["branch"] == branch), key=lambda point: point["validation_auc"])
    return {"round": best["round"], "validation_auc": best["validation_auc"]}


ATTENTION_GROUPS = ("all", *RATIO_GROUPS)


def attention_scores(set_name: str, model: str, group: str) -> Json:
    base = {MODELS[0]: 0.032, MODELS[1]: 0.194, MODELS[2]: 0.171}[model]
    bigger = {"all": 1.0, "<0.005": 0.3, "0.005-0.030": 0.8, ">0.030": 1.5}[group]
    return {
        "set": set_name,
        "model": model,
        "group": group,
        "dice_infection": base * bigger,
        "mass_in_infection": base * bigger * 1.4,
        "mass_in_lung": min(0.95, 0.5 + 2 * base),
    }


def demographics(set_name: str, label: str) -> Json:
    images, patients = {"training": (285, 214), "held-out": (62, 47)}[set_name]
    return {
        "set": set_name,
        "label": label,
        "images": images if label == "total" else images // 2,
        "patients": patients if label == "total" else patients // 2,
        "age_median": 52.5,
        "age_range": [14, 91],
        "female": patients // 4,
        "male": patients // 4 + 1,
    }


GROUP_SHARES = {"small COVID-19": 0.31, "large COVID-19": 0.20, "small CAP": 0.19, "large CAP": 0.30}
UNIFORM_SHARES = (0.17, 0.39, 0.24, 0.20)
SAMPLING = {
    "sampling": [
        {"branch": branch, "group": group, "expected": share, "drawn": round(3420 * share) + 9 * (-1) ** i}
        for branch in ("us", "ss")
        for i, (group, share) in enumerate(
            zip(
                GROUP_SHARES,
                (0.17, 0.39, 0.24, 0.20) if branch == "us" else GROUP_SHARES.values(),
                strict=True,
            )
        )
    ],
    "sampling_test": [
        {"branch": "us", "chi_square": 0.42, "p_value": 0.936},
        {"branch": "ss", "chi_square": 3.17, "p_value": 0.366},
    ],
}


def png(rgb_HWC: np.ndarray) -> bytes:
    """The smallest PNG writer that will do."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = rgb_HWC.shape
    lines = b"".join(b"\0" + line.tobytes() for line in rgb_HWC.astype(np.uint8))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def a_panel(n_columns: int = 6, size_px: int = 160) -> bytes:
    """Ovals for lungs, a growing warm spot: enough to see how pictures stand on the page."""
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    tiles = []
    for column in range(n_columns):
        lungs = 60.0 * (((np.abs(x) - 0.42) / 0.34) ** 2 + (y / 0.7) ** 2 < 1)
        spot = np.exp(-((x - 0.45) ** 2 + (y - 0.2) ** 2) * (30 - 4 * column))
        tiles.append(np.stack([lungs + 190 * spot, lungs + 80 * spot, lungs + 40], axis=-1))
    return png(np.hstack(tiles))


def write_run(
    folder: Path, results: Json, ledger: list[Json] | None = None, panels: list[Json] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if ledger is not None:
        lines = "".join(json.dumps(line) + "\n" for line in ledger)
        (folder / "ledger.jsonl").write_text(lines, encoding="utf-8")
    if panels is not None:
        pictures = folder / "figures" / "panels"
        pictures.mkdir(parents=True)
        for panel in panels:
            (pictures / panel["file"]).write_bytes(a_panel())
        (pictures / "panels.json").write_text(json.dumps(panels), encoding="utf-8")
    return folder


PANELS = [
    {
        "file": f"panel-{i}.png",
        "site": HELD_OUT,
        "set": "held-out",
        "case": f"case-{i:03d}",
        "label": "COVID-19",
        "infection_ratio": ratio,
        "probability": 0.912,
        "caption": "Left to right: CT, lung, infection, Grad-CAM of RN34 + US, attention US, attention SS.",
    }
    for i, ratio in enumerate((0.0031, 0.0174, 0.1262))
]


def incomplete_study(seed: int = 0) -> tuple[Json, list[Json]]:
    """hospital-3 missed rounds 4 to 6, hospital-5 was rejected once, hospital-7 has no line in round 9."""
    results, ledger = complete_study(seed)
    results["complete"] = False
    for site, n_missed in ((2, 3), (4, 1), (6, 1)):
        results["sites"][site]["rounds_completed"] -= n_missed
    kept = []
    for line in ledger:
        if line["site"] == "hospital-3" and line["round"] in (4, 5, 6):
            line |= {"status": "missing", "code": "ROUND-DEADLINE", "message": "no reply before the deadline"}
            line |= {"cases": None, "steps": None, "seconds": None, "bytes": None, "digest": None}
        if (line["site"], line["round"], line["branch"]) == ("hospital-5", 2, "ss"):
            line |= {
                "status": "rejected",
                "code": "UPDATE-NORM",
                "message": "norm 812.4 is above the bound of 10.0",
            }
        if (line["site"], line["round"]) != ("hospital-7", 9):
            kept.append(line)
    return results, kept


# ---- the page


def text_of(page: str) -> str:
    """What a reader sees: no markup, no styles, single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def section(page: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}">.*?</section>', page, flags=re.DOTALL)
    assert found is not None, f"no section {anchor}"
    return found.group()


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def complete_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(write_run(tmp_path_factory.mktemp("complete"), *complete_study(), PANELS))


def a_study_where(tmp_path: Path, **changes: Any) -> str:
    results, ledger = complete_study()
    return page_of(write_run(tmp_path, results | changes, ledger))


def changed_rows(key: str, set_name: str, **values: Any) -> list[Json]:
    rows = complete_study()[0][key]
    return [row | values if row["set"] == set_name else row for row in rows]


def test_the_page_has_every_section_and_leaves_none_out(complete_page: str) -> None:
    anchors = (
        *("headline", "shrunk", "table2", "table3", "roc", "curves", "ratios", "attention"),
        *("ensemble", "sampling", "table1", "sites", "participation", "time"),
    )
    assert re.findall(r'<section id="([^"]+)">', complete_page) == list(anchors)
    assert "Left out" not in complete_page


def test_the_page_needs_nothing_from_outside(complete_page: str) -> None:
    assert all(
        target.startswith(("data:image/png;base64,", "#"))
        for target in re.findall(r'(?:src|href)="([^"]*)"', complete_page)
    )
    for outside in ("http://", "https://", "url(", "@import", "<script", "<link", "<iframe"):
        assert outside not in complete_page


def test_the_head_names_study_preset_seed_and_state(complete_page: str) -> None:
    head = text_of(complete_page.split("</header>")[0])
    assert "eight-sites" in head
    assert "Preset demo" in head
    assert "Seed 0" in head
    assert "COMPLETE All 7 training sites took part in every required round." in head
    assert "INCOMPLETE" not in head
    assert "Synthetic data." in head


def test_data_that_are_not_said_to_be_synthetic_are_for_research_only(tmp_path: Path) -> None:
    study = {"name": "real", "seed": 1, "preset": "full"}
    page = a_study_where(tmp_path, study=study)
    assert "Research use only." in text_of(page)
    assert "Synthetic data" not in page


def test_an_incomplete_study_says_who_missed_what(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, *incomplete_study()))
    head = text_of(page.split("</header>")[0])
    assert "INCOMPLETE" in head
    assert "hospital-3 missed rounds 4–6 of US, SS and baseline: ROUND-DEADLINE." in head
    assert "hospital-5 was rejected in round 2 of SS: UPDATE-NORM." in head
    assert "hospital-7 has no record of round 9 of US, SS and baseline." in head
    assert "hospital-1 " not in head
    assert "do not report them as its result" in head
    assert "norm 812.4 is above the bound of 10.0" in text_of(section(page, "participation"))


def test_an_incomplete_study_without_a_ledger_still_names_the_sites(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, incomplete_study()[0]))
    assert "hospital-3 completed 9 of 12 required rounds." in text_of(page.split("</header>")[0])
    assert "no round in ledger.jsonl" in section(page, "participation")


def test_a_complete_study_whose_ledger_disagrees_says_so(tmp_path: Path) -> None:
    results, ledger = incomplete_study()
    head = text_of(page_of(write_run(tmp_path, results | {"complete": True}, ledger)).split("</header>")[0])
    assert "this does not agree with it" in head
    assert "hospital-3 missed rounds 4–6" in head


def test_the_headline_shows_auc_interval_and_the_ratio_alone(complete_page: str) -> None:
    results, _ = complete_study()
    headline = text_of(section(complete_page, "headline")).replace("\u00a0", " ")
    for row in results["table2"]:
        low, high = row["auc_ci"]
        assert f"{row['auc']:.3f} [{low:.3f}, {high:.3f}]" in headline
    for control in results["controls"]["auc_infection_ratio"].values():
        assert f"{control:.3f}" in headline


@pytest.mark.parametrize(
    ("ds_auc", "interval", "control", "sentence"),
    [
        (
            0.9204,
            [0.88, 0.95],
            0.8096,
            "DS beats the infection ratio alone by 0.110 (AUC 0.920 against 0.810).",
        ),
        (0.83, [0.79, 0.87], 0.81, "Its interval starts at 0.790, so the gain may be chance."),
        (0.80, [0.75, 0.85], 0.81, "(AUC 0.800 against 0.810): the mere size of the infection tells more."),
        (
            0.8101,
            [0.75, 0.85],
            0.81,
            "DS does not beat the infection ratio alone (AUC 0.810 against 0.810): the mere size of the",
        ),
        (0.83, [0.79, 0.87], None, "DS reaches an AUC of 0.830; the infection ratio alone was not measured."),
    ],
)
def test_one_sentence_says_whether_ds_beats_the_ratio(
    tmp_path: Path, ds_auc: float, interval: list[float], control: float | None, sentence: str
) -> None:
    rows = [
        row | {"auc": ds_auc, "auc_ci": interval} if row["model"] == MODELS[3] else row
        for row in complete_study()[0]["table2"]
    ]
    controls = {"auc_infection_ratio": {"validation": control, "held-out": control}}
    page = a_study_where(tmp_path, table2=rows, controls=controls)
    assert sentence in text_of(section(page, "headline"))


def test_ds_below_us_is_said(tmp_path: Path) -> None:
    auc_of = {MODELS[1]: 0.948, MODELS[3]: 0.944}
    rows = [row | {"auc": auc_of.get(row["model"], 0.9)} for row in complete_study()[0]["table2"]]
    assert "It is 0.004 below US alone." in text_of(section(a_study_where(tmp_path, table2=rows), "headline"))


def test_table_two_has_the_papers_rows_and_values(complete_page: str) -> None:
    table = section(complete_page, "table2")
    order = [text_of(head) for head in re.findall(r'<th scope="row".*?</th>', table)]
    metrics = ("AUC", "Accuracy", "Sensitivity", "Specificity", "F1-score")
    assert order == [name for metric in metrics for name in (metric, *MODELS)]
    for rows in paper_results.TABLE2.values():
        for published in rows.values():
            assert f'<small class="alone">{published[0]}</small>' in table
            assert f'<small class="alone">{published[1]}</small>' in table


def test_the_best_value_is_bold_and_so_are_equals_as_printed(tmp_path: Path) -> None:
    sensitivity = dict(zip(MODELS, (0.8, 0.90004, 0.7, 0.90001), strict=True))
    rows = [row | {"sensitivity": sensitivity[row["model"]]} for row in complete_study()[0]["table2"]]
    table = section(a_study_where(tmp_path, table2=rows), "table2")
    lines = table[table.index("Sensitivity") : table.index("Specificity")]
    assert lines.count("<b>0.900</b>") == 4  # two models, two sets
    assert lines.count("<b>") == 4


def test_table_three_counts_images_and_shows_every_group(complete_page: str) -> None:
    results, _ = complete_study()
    table = text_of(section(complete_page, "table3"))
    for row in results["table3"]:
        assert f"{row['auc']:.3f}" in table
    n = [row["n"] for row in results["table3"] if row["model"] == MODELS[0]]
    images = " ".join(
        f"{count['COVID-19']} {paper}"
        for count, paper in zip(n, paper_results.TABLE3_IMAGES["COVID-19"], strict=True)
    )
    assert f"No. of images COVID-19 {images} CAP" in table


def test_a_set_of_one_class_shows_why_figures_are_not_defined(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("auc", "auc_ci", "auc_error_bound", "sensitivity", "f1"))
    results, ledger = complete_study()
    for key in ("table2", "table3"):
        results[key] = changed_rows(key, "held-out", n={"COVID-19": 0, "CAP": 28}, **nothing)
    results["controls"]["auc_infection_ratio"]["held-out"] = None
    results["roc"] = [curve for curve in results["roc"] if curve["set"] == "validation"]
    page = page_of(write_run(tmp_path, results, ledger))
    headline = text_of(section(page, "headline"))
    assert headline.count("n/a no COVID-19 case") == 5  # four models and the ratio
    assert (
        "the AUC is not defined: no COVID-19 case. At a probability of 0.5 the specificity of DS is"
        in headline
    )
    assert "No curve: no COVID-19 case" in section(page, "roc")
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text_of(page))


def test_a_site_of_one_class_has_no_auc_and_says_why(complete_page: str) -> None:
    line = re.search(r">hospital-4</th>.*?</tr>", section(complete_page, "sites"), flags=re.DOTALL)
    assert line is not None
    assert text_of(line.group()).count("n/a no CAP case") == 6  # AUC of four models, specificity, F1


def test_nan_in_results_is_undefined_and_not_a_number(tmp_path: Path) -> None:
    rows = changed_rows("table2", "held-out", auc=float("nan"), auc_ci=None)
    page = a_study_where(tmp_path, table2=rows)
    assert text_of(section(page, "headline")).count("n/a not given") == 4


def test_a_study_without_baseline_says_so(tmp_path: Path) -> None:
    rows = [row for row in complete_study()[0]["table2"] if row["model"] != MODELS[0]]
    table = text_of(section(a_study_where(tmp_path, table2=rows), "table2"))
    assert "RN34 + US was not trained in this study (option --baseline)." in table
    assert table.count("RN34 + US") - table.count("Attention RN34 + US") == 1  # in that sentence only


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&'
    results, ledger = complete_study()
    text = json.dumps([results, ledger]).replace("hospital-2", json.dumps(evil)[1:-1])
    results, ledger = json.loads(text)
    results["study"]["name"] = results["ensemble"]["objective"] = results["shrunk"][0]["what"] = evil
    results["sampling"][0]["group"] = evil
    ledger[40] |= {"status": "rejected", "code": evil, "message": evil}
    page = page_of(write_run(tmp_path, results, ledger, [PANELS[0] | {"caption": evil, "case": evil}]))
    assert evil not in page
    assert "<script" not in page
    assert page.count(html.escape("<script>alert(")) >= 14


def test_minimal_results_leave_every_other_section_out_with_the_reason(tmp_path: Path) -> None:
    results, _ = complete_study()
    page = page_of(write_run(tmp_path, {key: results[key] for key in MINIMAL_KEYS}))
    for key in ("table2", "table3", "roc", "curves", "ratio_histogram", "ensemble", "sampling", "table1"):
        assert f"Left out: results.json has no “{key}”." in page
    assert "hospital-8" in section(page, "sites")
    assert list((tmp_path / "tables").iterdir()) == []


def test_a_section_that_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path) -> None:
    results, ledger = complete_study()
    results["sampling"][2]["drawn"] = "many"
    results["ratio_histogram"]["edges"] = [1, 2, 3]
    page = page_of(write_run(tmp_path, results, ledger))
    assert "sampling.2.drawn: Input should be a valid integer" in section(page, "sampling")
    assert "training COVID-19 has 24 bins, the edges make 2" in section(page, "ratios")
    assert "Left out" not in section(page, "table2")


def thinned(value: Any) -> Any:
    """The same study with one row in every list of rows: quick to render."""
    if isinstance(value, dict):
        return {key: thinned(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [thinned(value[0])]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys below a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for key, item in inner for place in places(item, (*path, key))]
    return [path, *below] if path and isinstance(path[-1], str) else below


def test_any_optional_key_may_be_null(tmp_path: Path) -> None:
    results, ledger = complete_study()
    text = json.dumps(thinned(results))
    for place in places(json.loads(text)):
        changed = json.loads(text)
        *parents, key = place
        owner = changed
        for parent in parents:
            owner = owner[parent]
        owner[key] = None
        run = write_run(tmp_path, changed, ledger[:3])
        if place[0] in MINIMAL_KEYS and place[:2] not in OPTIONAL_IN_STUDY:
            with pytest.raises(ReportError, match=place[0]):
                read_run_folder(run)
        else:
            visible = text_of(report_html(read_run_folder(run)))
            assert not re.search(r"\bnan\b|\bNone\b", visible), place


OPTIONAL_IN_STUDY = (("study", "input_shape_dhw"), ("study", "synthetic"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.json: not found. The study has no results yet"),
        ("{", "not readable as JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"format_version": 2}', "format_version is 2, this release reads 1"),
        (
            '{"format_version": 1, "study": {"name": "x"}, "complete": true, "sites": []}',
            "study.seed: Field required",
        ),
    ],
)
def test_a_run_without_results_is_refused_with_the_reason(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ReportError, match=re.escape(message)):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    files: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        run = write_run(tmp_path / name, *complete_study(), PANELS)
        write_report(run)
        write_report(run)
        files.append({str(f.relative_to(run)): f.read_bytes() for f in run.rglob("*") if f.is_file()})
    assert files[0] == files[1]
    assert not any(name.endswith(".tmp") for name in files[0])


def test_tables_can_be_read_back(tmp_path: Path) -> None:
    results, ledger = incomplete_study()
    write_report(write_run(tmp_path, results, ledger))
    read = {
        path.stem: list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        for path in (tmp_path / "tables").glob("*.csv")
    }
    assert sorted(read) == ["curves", "participation", "per_site", "table1", "table2", "table3"]
    assert [float(row["auc"]) for row in read["table2"]] == [row["auc"] for row in results["table2"]]
    assert [float(row["auc_ci_high"]) for row in read["table2"]] == [
        r["auc_ci"][1] for r in results["table2"]
    ]
    assert [row["group"] for row in read["table3"]] == [row["group"] for row in results["table3"]]
    assert [row["auc"] for row in read["per_site"] if row["site"] == "hospital-4"] == ["", "", "", ""]
    assert [float(r["validation_auc"]) for r in read["curves"]] == [
        r["validation_auc"] for r in results["curves"]
    ]
    assert [int(row["n_cap"]) for row in read["per_site"]] == [row["n"]["CAP"] for row in results["per_site"]]
    assert [int(row["patients"]) for row in read["table1"]] == [row["patients"] for row in results["table1"]]
    assert [row["code"] or None for row in read["participation"]] == [line["code"] for line in ledger]


def test_a_rebuilt_report_leaves_no_stale_table_or_figure(tmp_path: Path) -> None:
    results, ledger = complete_study()
    write_report(write_run(tmp_path, results, ledger))
    del results["table3"], results["roc"]
    write_report(write_run(tmp_path, results, ledger))
    assert not (tmp_path / "tables" / "table3.csv").exists()
    assert not (tmp_path / "figures" / "roc.svg").exists()
    assert (tmp_path / "figures" / "curves.svg").exists()


def test_figures_are_svg_files_that_stand_alone(tmp_path: Path) -> None:
    write_report(write_run(tmp_path, *complete_study()))
    for name, n_panels in (("roc", 2), ("curves", 3), ("ratio_histogram", 2)):
        root = ElementTree.parse(tmp_path / "figures" / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall("{http://www.w3.org/2000/svg}svg")) == n_panels


def test_a_model_has_one_colour_on_the_whole_page(complete_page: str) -> None:
    colours = re.findall(r'style="background:(#\w+)"></i>Attention RN34 \+ DS</th>', complete_page)
    assert len(colours) > 10
    assert set(colours) == {"#009e73"}
    assert 'stroke="#009e73"' in section(complete_page, "roc")


def test_the_chosen_round_is_marked_on_the_curves(complete_page: str) -> None:
    curves = section(complete_page, "curves")
    for chosen in complete_study()[0]["model_selection"].values():
        assert f"chosen: round {chosen['round']}, {chosen['validation_auc']:.3f}" in curves


def test_rounds_that_were_left_out_of_the_selection_are_told_and_on_whom_it_was_made(
    tmp_path: Path, complete_page: str
) -> None:
    chosen = {"round": 5, "validation_auc": 0.9, "compared_sites": ["hospital-1", "hospital-2"]}
    chosen["compared_rounds"] = list(range(3, N_ROUNDS + 1))
    page = a_study_where(tmp_path, model_selection=dict.fromkeys(BRANCHES, chosen))
    told = text_of(section(page, "curves"))
    assert "Rounds 1, 2 were not compared" in told
    assert "by the validation cases of hospital-1, hospital-2." in told
    assert "were not compared" not in text_of(section(complete_page, "curves"))


def test_ratio_thresholds_stand_on_the_histogram(complete_page: str) -> None:
    ratios = section(complete_page, "ratios")
    assert ratios.count(">0.001</text>") == 2 * 2  # the threshold and the tick of the axis, on both panels
    assert ratios.count(">0.030</text>") == 2


def test_ensemble_weights_stand_beside_the_papers(complete_page: str) -> None:
    table = text_of(section(complete_page, "ensemble"))
    assert "below 0.001 or above 0.030 0.42 0.20 – 0.66 0.35" in table
    assert "0.001 to 0.030 0.71 0.48 – 0.95 0.96" in table


def test_sampling_says_whether_the_draws_agree_with_the_plan(tmp_path: Path) -> None:
    tests = [
        {"branch": "us", "chi_square": 1.5, "p_value": 0.68},
        {"branch": "ss", "chi_square": 61.2, "p_value": 3e-13},
    ]
    sampling = text_of(section(a_study_where(tmp_path, sampling_test=tests), "sampling"))
    assert "US: the cases drawn agree with the plan (chi-square 1.50, p = 0.680)." in sampling
    assert "SS: the cases drawn differ from the plan (chi-square 61.20, p < 0.001)." in sampling


def test_attention_says_how_much_the_attention_loss_taught(complete_page: str) -> None:
    attention = text_of(section(complete_page, "attention"))
    assert (
        "Dice of 0.194 with the infection; without the attention loss (RN34 + US) it reaches 0.032."
        in attention
    )
    assert "That is 6.1 times as much." in attention


def test_attention_pictures_are_part_of_the_page(complete_page: str) -> None:
    attention = section(complete_page, "attention")
    assert attention.count('src="data:image/png;base64,iVBOR') == 3
    assert 'width="960" height="160"' in attention
    assert "infection ratio 0.0174, probability of COVID-19 0.912" in text_of(attention)


def test_pictures_that_cannot_be_shown_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, *complete_study(), [PANELS[0]])
    pictures = run / "figures" / "panels"
    (pictures / "text.png").write_text("this is no picture at all")
    entries = [PANELS[0], {"file": "../../results.json"}, {"file": "text.png"}, {"file": "gone.png"}, {}]
    (pictures / "panels.json").write_text(json.dumps(entries))
    page = page_of(run)
    problems = text_of(section(page, "problems"))
    assert section(page, "attention").count("<img") == 1
    assert "panel 2 of panels.json was left out: file '../../results.json' must be a plain name" in problems
    assert "panel 3 of panels.json was left out: text.png is not a PNG picture" in problems
    assert "panel 4 of panels.json was left out: No such file or directory" in problems
    assert "panel 5 of panels.json was left out: file: Field required" in problems


def test_the_last_word_of_the_ledger_counts_and_half_a_line_is_named(tmp_path: Path) -> None:
    results, ledger = complete_study()
    early = ledger[0] | {"status": "missing", "code": "SITE-GONE"}
    write_run(tmp_path, results, [{"event": "resumed"}, early, *ledger])
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"event": "round", "rou')
    run = read_run_folder(tmp_path)
    assert len(run.ledger) == len(ledger)
    assert missed_rounds(participation(run.ledger, run.results.sites)) == ()
    assert run.problems[0].startswith(f"ledger.jsonl line {len(ledger) + 3} was left out")


def test_participation_marks_every_round_of_every_training_site(tmp_path: Path) -> None:
    part = section(page_of(write_run(tmp_path, *incomplete_study())), "participation")
    marks = {
        status: part.count(f'<td class="{status}"')
        for status in ("accepted", "rejected", "missing", "unrecorded")
    }
    assert marks == {"accepted": 7 * 12 * 3 - 9 - 1 - 3, "rejected": 1, "missing": 9, "unrecorded": 3}
    assert 'title="hospital-3, SS, round 5: missing (ROUND-DEADLINE)"' in part


def test_a_long_study_is_shown_in_blocks_of_rounds(tmp_path: Path) -> None:
    results, ledger = complete_study()
    longer = [line | {"round": line["round"] + shift} for shift in (0, 12, 24) for line in ledger]
    part = section(page_of(write_run(tmp_path, results, longer)), "participation")
    assert part.count('<table class="matrix">') == 2
    assert part.count('<td class="accepted"') == 3 * len(ledger)


def test_time_is_split_into_parts_that_add_up(complete_page: str) -> None:
    timing = text_of(section(complete_page, "time"))
    # 36 rounds of 5.9, 6.2, 6.5 s by turns, 0.7 s on top of each, 321.4 s in all
    assert "Rounds: training at the slowest site 3 min 43 s 0.69" in timing
    assert "Rounds: waiting for other sites, sending, aggregating 25.2 s 0.08" in timing
    assert "Study outside the rounds: starting, enrolling, evaluating 1 min 13 s 0.23" in timing
    assert "Total 5 min 21 s" in timing
    seconds = sum(line["seconds"] for line in complete_study()[1])
    assert f"Training added up over all sites and branches: {duration_text(seconds)}." in timing
    assert "To the sites 512,000,000 512 MB" in timing


def test_phases_around_the_study_count_towards_the_total(tmp_path: Path) -> None:
    timing = {
        "total_s": 90,
        "rounds": [{"round": 1, "branch": "us", "slowest_site_train_s": 60, "overhead_s": 10}],
        "phases": [{"name": "preparing", "seconds": 50}, {"name": "study", "seconds": 100}],
        "peak_memory_bytes": 2_100_000_000,
    }
    shown = text_of(section(a_study_where(tmp_path, timing=timing), "time"))
    assert "Preparing the scans 50.0 s 0.33 Rounds: training at the slowest site 1 min 00 s 0.40" in shown
    assert "evaluating 30.0 s 0.20 Total 2 min 30 s" in shown
    assert "Largest memory of a process: 2.1 GB." in shown


def test_a_site_that_failed_outside_the_rounds_is_named(tmp_path: Path) -> None:
    results, ledger = complete_study()
    results["complete"] = results["sites"][7]["complete"] = False
    results["sites"][1]["left_out"] = {"COHORT-LABEL": 2, "IMAGE-UNREADABLE": 1}
    results["failures"] = [{"site": HELD_OUT, "code": "OUT-OF-MEMORY", "message": "evaluate failed"}]
    page = page_of(write_run(tmp_path, results, ledger))
    assert "hospital-8 (held-out) did not deliver its evaluation: OUT-OF-MEMORY." in text_of(
        page.split("</header>")[0]
    )
    sites = text_of(section(page, "sites"))
    assert "hospital-2 left out 3 of its cases: COHORT-LABEL (2), IMAGE-UNREADABLE (1)." in sites
    assert "hospital-8: OUT-OF-MEMORY: evaluate failed" in sites


def with_masks(**sites: dict[str, str]) -> list[Json]:
    """The sites of the study with the maker of the masks of all their cases; the others say nothing."""
    rows = complete_study()[0]["sites"]
    return [row | {key: {name: 30} for key, name in sites.get(row["name"], {}).items()} for row in rows]


def test_participation_shows_who_segments_how(tmp_path: Path) -> None:
    same = {"lung_masks": "vbnet-0a1b2c3d", "infection_masks": "given"}
    sites = with_masks(**{"hospital-1": same, "hospital-2": same})
    shown = text_of(section(a_study_where(tmp_path, sites=sites), "participation"))
    assert "hospital-1 vbnet-0a1b2c3d (30) given (30) hospital-2 vbnet-0a1b2c3d (30) given (30)" in shown
    assert "different segmenters" not in shown


@pytest.mark.parametrize("key", ["lung_masks", "infection_masks"])
def test_a_study_over_several_segmenters_is_warned_about(tmp_path: Path, key: str) -> None:
    one = {"lung_masks": "given", "infection_masks": "given"}
    sites = with_masks(**{"hospital-1": one, "hospital-2": one | {key: "crude-1"}})
    shown = text_of(section(a_study_where(tmp_path, sites=sites), "participation"))
    assert "Masks of this study come from different segmenters: infection ratios" in shown


def test_sampling_is_tested_at_every_site_too(tmp_path: Path) -> None:
    by_site = [
        {"site": "hospital-1", "chi_square": 2.5, "p_value": 0.475},
        {"site": "hospital-4", "chi_square": 0.0, "p_value": None},
    ]
    sampling = text_of(section(a_study_where(tmp_path, sampling_by_site=by_site), "sampling"))
    assert "hospital-1 2.50 0.475 hospital-4 0.00 n/a one group" in sampling


def test_a_histogram_may_start_at_zero(tmp_path: Path) -> None:
    histogram = {
        "edges": [0.0, 0.0001, 0.001, 0.01, 0.1, 1.0],
        "sets": {"training": {"CAP": [4, 0, 1, 1, 0]}},
    }
    ratios = section(a_study_where(tmp_path, ratio_histogram=histogram), "ratios")
    assert re.findall(r">(0|0\.\d*1|1)</text>", ratios) == [
        *("0", "1"),  # counts
        *("0", "0.001", "0.01", "0.1", "1"),
        "0.001",  # the threshold
    ]
    assert "CAP, n = 6" in ratios


def test_the_papers_tables_are_copied_without_a_slip() -> None:
    sizes = ([1094, 1092], [2295, 501])
    for i, (n_covid, n_cap) in enumerate(sizes):
        for model in MODELS:
            check_row({m: rows[model][i] for m, rows in paper_results.TABLE2.items()}, n_covid, n_cap)
    images = paper_results.TABLE3_IMAGES
    for i, (n_covid, n_cap) in enumerate(zip(images["COVID-19"], images["CAP"], strict=True)):
        for model in MODELS:
            check_row({m: rows[model][i] for m, rows in paper_results.TABLE3.items()}, n_covid, n_cap)
    assert [sum(images["COVID-19"][:3]), sum(images["CAP"][:3])] == sizes[0]
    assert [sum(images["COVID-19"][3:]), sum(images["CAP"][3:])] == sizes[1]


def check_row(printed: dict[str, str], n_covid: int, n_cap: int) -> None:
    """Accuracy and macro F1 follow from sensitivity, specificity and the counts, but for rounding."""
    value = {metric: float(text.split(" ")[0]) for metric, text in printed.items()}
    hits, quiet = value["sensitivity"] * n_covid, value["specificity"] * n_cap
    is_mean_of_folds = "±" in printed["f1"]  # a mean over folds is not the F1 of the mean counts
    if not is_mean_of_folds:
        hits, quiet = round(hits), round(quiet)
    misses, alarms = n_covid - hits, n_cap - quiet
    assert value["accuracy"] == pytest.approx(
        (hits + quiet) / (n_covid + n_cap), abs=0.0011 if is_mean_of_folds else 0.00051
    )
    f1 = hits / (2 * hits + alarms + misses) + quiet / (2 * quiet + alarms + misses)
    assert value["f1"] == pytest.approx(f1, abs=0.006 if is_mean_of_folds else 0.00051)


def test_numbers_are_written_for_people() -> None:
    assert [duration_text(s) for s in (0.04, 59.94, 61, 3599.6, 7322)] == [
        *("0.0 s", "59.9 s", "1 min 01 s", "1 h 00 min", "2 h 02 min")
    ]
    assert [bytes_text(n) for n in (0, 999, 1000, 1_843_200, 254_000_000, 10**13)] == [
        *("0 bytes", "999 bytes", "1.0 kB", "1.8 MB", "254 MB", "10.0 TB")
    ]
    assert [rounds_text(r) for r in ((4,), (1, 2), (7, 1, 2, 3))] == [
        "round 4",
        "rounds 1–2",
        "rounds 1–3, 7",
    ]


def test_ticks_are_round_and_inside_the_axis() -> None:
    assert ticks(0, 1) == ((0.0, "0.0"), (0.5, "0.5"), (1.0, "1.0"))
    assert [label for _, label in ticks(0, 23)] == ["0", "10", "20"]
    assert [label for _, label in ticks(0, 2, smallest_step=1)] == ["0", "1", "2"]
    assert [label for _, label in ticks(0.45, 1)] == ["0.6", "0.8", "1.0"]


def test_a_whole_report_builds_in_a_second(tmp_path: Path) -> None:
    run = write_run(tmp_path, *complete_study(), PANELS)
    start = time.process_time()
    write_report(run)
    assert time.process_time() - start < 1.0


if __name__ == "__main__":
    target = Path(sys.argv[1])
    complete, all_lines = complete_study()
    write_run(target / "complete", complete, all_lines, PANELS)
    write_run(target / "incomplete", *incomplete_study())
    write_run(target / "minimal", {key: complete[key] for key in MINIMAL_KEYS})
    for run in ("complete", "incomplete", "minimal"):
        start = time.perf_counter()
        path = write_report(target / run)
        print(path, f"{time.perf_counter() - start:.3f} s")
