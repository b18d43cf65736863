"""scores.safetensors: the histograms behind a study's tables, so that the parts of a study can be pooled."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from dsan_daemon.files import sync
from dsan_model.metrics import ScoreCounts
from dsan_model.protocol import CaseSet
from server.results import Scores

SCORES = "scores.safetensors"


def write_scores(run_folder: Path, scores: Scores) -> None:
    """Write the counts by set, model and site, whole or not at all."""
    tensors = {
        f"{case_set.value}/{model}/{site}": counts.counts_LGB
        for case_set, by_model in scores.items()
        for model, by_site in by_model.items()
        for site, counts in by_site.items()
    }
    partial = run_folder / f"{SCORES}.partial"
    save_file(tensors or {"none": np.zeros(0)}, partial)
    sync(partial)
    partial.rename(run_folder / SCORES)


def read_scores(run_folder: Path) -> Scores:
    """What `write_scores` wrote, in the same order of models."""
    scores: Scores = {}
    for name, values in sorted(load_file(run_folder / SCORES).items()):
        if name != "none":
            case_set, model, site = name.split("/")
            by_model = scores.setdefault(CaseSet(case_set), {})
            by_model.setdefault(model, {})[site] = ScoreCounts(values)
    return scores
