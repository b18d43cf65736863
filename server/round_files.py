"""What study.toml and rounds/*/ of a run say, read to be looked at: quickly, unverified, whatever is missing.

`server.study` and `server.run_state` read the same files to compute with; they load torch, which takes
seconds, and accept nothing that is incomplete.
"""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dsan_model.dice import DiceCounts
from dsan_model.metrics import ScoreCounts, auc
from dsan_model.sampling import Branch

ValidationCounts = dict[tuple[str, str], ScoreCounts | DiceCounts]  # site, branch


@dataclass(frozen=True)
class StudyOutline:
    """What status needs of a study.toml; the defaults are those of `StudyConfig`."""

    name: str
    rounds: int = 20
    training: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    deadline_h: float = 12.0


@dataclass(frozen=True)
class RoundOutline:
    """A finished round: its seconds and bytes, and each site's classification loss by branch."""

    round: int
    seconds: float
    bytes_to_sites: int
    bytes_from_sites: int
    losses: dict[tuple[str, str], float] = field(default_factory=dict)  # site, branch
    cases: dict[tuple[str, str], int] = field(default_factory=dict)


def read_outline(run_folder: Path) -> StudyOutline:
    """The outline of a run's study. ValueError in words if the file does not read."""
    path = run_folder / "study.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        sites, participation = found.get("sites", {}), found.get("participation", {})
        return StudyOutline(
            name=str(found["name"]),
            rounds=int(found.get("rounds", StudyOutline.rounds)),
            training=tuple(map(str, sites.get("training", ()))),
            held_out=tuple(map(str, sites.get("held_out", ()))),
            deadline_h=float(participation.get("deadline_h", StudyOutline.deadline_h)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def read_rounds(run_folder: Path) -> list[RoundOutline]:
    """Every finished round whose state.json reads, in order."""
    found = []
    for path in sorted((run_folder / "rounds").glob("[0-9]*/state.json")):
        try:
            found.append(_outline(json.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def read_validation(run_folder: Path, newest_first: bool = False) -> Iterator[tuple[int, ValidationCounts]]:
    """Round and counts of every finished round: how the weights that went into it did at each site."""
    paths = (run_folder / "rounds").glob("[0-9]*/validation.safetensors")
    for path in sorted(paths, reverse=newest_first):
        try:
            counts = load_file(path)
            yield (
                int(path.parent.name),
                dict(_counts(key, values) for key, values in counts.items() if "/" in key),
            )
        except (OSError, ValueError, SafetensorError):
            continue


def validation_score(counts: ValidationCounts, branch: str, site: str | None = None) -> float | None:
    """AUC of a branch, of VB-Net the mean Dice, at one site or (None) pooled; None if it is not defined."""
    chosen = [of for (at, name), of in counts.items() if name == branch and site in (None, at)]
    if branch == Branch.VBNET:
        return sum((of for of in chosen if isinstance(of, DiceCounts)), DiceCounts.empty()).score
    scores = sum((of for of in chosen if isinstance(of, ScoreCounts)), ScoreCounts.empty())
    found = auc(scores.histogram())
    return None if found is None else found[0]


def _outline(state: dict[str, Any]) -> RoundOutline:
    training = {
        (site, branch): entry
        for site, by_branch in state["training"].items()
        for branch, entry in by_branch.items()
    }
    return RoundOutline(
        round=int(state["round"]),
        seconds=float(state["seconds"]),
        bytes_to_sites=int(state["bytes_to_sites"]),
        bytes_from_sites=int(state["bytes_from_sites"]),
        losses={key: float(entry["classification_loss"]) for key, entry in training.items()},
        cases={key: int(entry["cases"]) for key, entry in training.items()},
    )


def _counts(key: str, values: npt.NDArray[np.int64]) -> tuple[tuple[str, str], ScoreCounts | DiceCounts]:
    site, _, branch = key.rpartition("/")
    return (site, branch), DiceCounts(values) if branch == Branch.VBNET else ScoreCounts(values)
