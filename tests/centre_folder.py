"""A centre's folder with a study in its third round, written by the same functions as a real one."""

import json
import time
from pathlib import Path

import numpy as np
import torch

from dsan_model.cases import SizeGroup
from dsan_model.metrics import LOGIT_EDGES, SCORE_COUNTS_SHAPE, ScoreCounts
from dsan_model.protocol import BranchTraining
from dsan_model.sampling import Branch
from dsan_model.weights import flatten
from server.ledger import LedgerEntry, append_event, append_round
from server.run_state import RoundRecord, RunState, save_round
from server.study import read_study
from server.watch_file import SiteReport, WatchedSite, write_watch

SITES = ("east", "north", "south")
STUDY = """name = "eight"
rounds = 5

[sites]
training = ["east", "north", "south"]
held_out = ["west"]

[participation]
quorum = 2
"""


def write_centre(folder: Path) -> Path:
    """Two rounds are done (south missed the second), the third is in work; returns the run folder."""
    run = folder / "runs" / "eight"
    run.mkdir(parents=True)
    (run / "study.toml").write_text(STUDY)
    (folder / "state").mkdir()
    (folder / "sites").mkdir()
    for site in (*SITES, "west", "spare"):
        (folder / "sites" / f"{site}.json").write_text(json.dumps({"name": site, "revoked_at": None}))
    append_event(run, "started", "eight")
    for number in (1, 2):
        append_round(run, [entry for site in SITES for entry in _entries(number, site)])
    _save_rounds(run)
    write_watched(folder)
    return run


def write_watched(folder: Path, **changes: WatchedSite) -> None:
    """watch.json: east works, north has answered, south is gone, west and spare never connected."""
    now = time.time()
    working = SiteReport("eight", 3, "ss", "training", 30, 120, 95.0, 10**11, sent_unix_s=now)
    answered = SiteReport(phase="idle", sent_unix_s=now)
    gone = SiteReport("eight", 2, "us", "validating", last_error="SITE-GPU-MEMORY")
    watched = {
        "east": WatchedSite(working, now - 2, True, now - 300, worked_study="eight", worked_round=3),
        "north": WatchedSite(answered, now - 1, True, now - 300, worked_study="eight", worked_round=3),
        "south": WatchedSite(gone, now - 80, False, now - 50, reason="its connection broke"),
    }
    write_watch(folder / "state", {**watched, **changes})


def _entries(number: int, site: str) -> list[LedgerEntry]:
    if (number, site) == (2, "south"):
        reason = {"code": "SITE-GPU-MEMORY", "message": "the GPU's memory does not suffice"}
        return [LedgerEntry(number, site, branch, "missing", **reason) for branch in ("us", "ss")]
    return [
        LedgerEntry(
            number,
            site,
            branch,
            "accepted",
            cases=40,
            steps=2,
            seconds=6.0,
            bytes=1000,
            digest="0" * 64,
            relative_update=0.01 * number,
        )
        for branch in ("us", "ss")
    ]


def _training(number: int) -> BranchTraining:
    return BranchTraining(40, 2, 6.0, 1e-3, 0.7 - 0.1 * number, 0.2, dict.fromkeys(SizeGroup, 10))


def _scores(number: int) -> ScoreCounts:
    """Ten cases of each class whose scores overlap less with every round."""
    counts = np.zeros(SCORE_COUNTS_SHAPE, np.int64)
    for label, shift in ((0, 0.3 * number), (1, -0.3 * number)):
        for at in np.searchsorted(LOGIT_EDGES, np.linspace(-1, 1, 10) + shift):
            counts[label, 0, at] += 1
    return ScoreCounts(counts)


def _save_rounds(run: Path) -> None:
    digest = read_study(run / "study.toml").digest
    weights = dict.fromkeys((Branch.US, Branch.SS), flatten({"weight": torch.zeros(3)}))
    state = RunState(0, weights)
    for number in (1, 2):
        sites = [site for site in SITES if (number, site) != (2, "south")]
        training = {site: dict.fromkeys(weights, _training(number)) for site in sites}
        validation = {site: dict.fromkeys(weights, _scores(number)) for site in sites}
        state = state.after_round(RoundRecord(number, digest, training, 14.0, 3000, 2000), validation)
        save_round(run, state)
