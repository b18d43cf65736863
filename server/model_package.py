"""The model package: the chosen weights of both branches and all that a reader needs to use them."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsan_daemon.files import sync
from dsan_model.ensemble import BAND
from dsan_model.protocol import PROTOCOL_VERSION
from dsan_model.sampling import Branch
from dsan_model.weights import FlatWeights, save_weights
from server.model_card import model_card
from server.run_state import seal
from server.study import StudyConfig

FORMAT_VERSION = 1


def write_model_package(
    run_folder: Path, study: StudyConfig, models: Mapping[Branch, FlatWeights], results: dict[str, Any]
) -> Path:
    """Write model/ beside the results: model.json, one safetensors a branch, MODEL_CARD.md, SHA256SUMS."""
    with new_package(run_folder, _description(study, models, results), model_card(study, results)) as partial:
        for branch, weights in models.items():
            save_weights(partial / f"{branch}.safetensors", weights)
    return run_folder / "model"


@contextmanager
def new_package(run_folder: Path, description: dict[str, Any], card: str) -> Iterator[Path]:
    """A folder to write weights to, which then becomes model/, with its description, card and sums."""
    folder, partial = run_folder / "model", run_folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    (partial / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    (partial / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    seal(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    sync(run_folder)


def _description(
    study: StudyConfig, models: Mapping[Branch, FlatWeights], results: dict[str, Any]
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "study": {"name": study.name, "seed": study.seed, "digest": study.digest},
        "complete": results["complete"],
        "positive": "COVID-19",
        "network": study.network.model_dump(mode="json"),
        "input": study.input.model_dump(mode="json"),
        "recipe_digest": study.recipe.digest,
        "protocol": PROTOCOL_VERSION,
        "ensemble": {
            "band": list(BAND),
            "w_inside": _weight(results["ensemble"]["w_inside"]),
            "w_outside": _weight(results["ensemble"]["w_outside"]),
        },
        "branches": {
            branch.value: {
                "file": f"{branch}.safetensors",
                "digest": weights.digest,
                "round": results["model_selection"][branch.value]["round"],
            }
            for branch, weights in models.items()
        },
    }


def _weight(fitted: float | None) -> float:
    """Of Eq. 5; both branches count the same where nothing could be fitted."""
    return 0.5 if fitted is None else fitted
