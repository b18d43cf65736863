"""The model package of a segmentation study: VB-Net's chosen weights and all that a reader needs of them."""

from pathlib import Path

from dsan_model.dice import STRUCTURES
from dsan_model.protocol import PROTOCOL_VERSION
from dsan_model.sampling import Branch
from dsan_model.segmenter import Segmenter, save_segmenter
from dsan_model.weights import FlatWeights
from server.model_card import figure
from server.model_package import FORMAT_VERSION, new_package
from server.results import Row
from server.segmentation_results import ALL
from server.study import StudyConfig

WEIGHTS = f"{Branch.VBNET}.safetensors"  # complete by itself: a hospital may take this file alone


def write_segmentation_package(
    run_folder: Path, study: StudyConfig, weights: FlatWeights, results: Row
) -> Path:
    """Write model/ beside the results: model.json, vbnet.safetensors, MODEL_CARD.md, SHA256SUMS."""
    segmenter = Segmenter(study.segmentation.config, weights)
    with new_package(run_folder, _description(study, segmenter, results), _card(study, results)) as partial:
        save_segmenter(partial / WEIGHTS, segmenter)
    return run_folder / "model"


def _description(study: StudyConfig, segmenter: Segmenter, results: Row) -> Row:
    return {
        "format_version": FORMAT_VERSION,
        "task": study.task,
        "study": {"name": study.name, "seed": study.seed, "digest": study.digest},
        "complete": results["complete"],
        "segmentation": study.segmentation.model_dump(mode="json"),
        "recipe_digest": study.segmentation_recipe.digest,
        "protocol": PROTOCOL_VERSION,
        "branches": {
            Branch.VBNET.value: {
                "file": WEIGHTS,
                "digest": segmenter.weights.digest,
                "round": results["model_selection"][Branch.VBNET.value]["round"],
            }
        },
    }


def _card(study: StudyConfig, results: Row) -> str:
    rows = [
        f"| {row['set']} | {row['structure']} | {row['cases']} | {figure(row['dice'])} | "
        f"{figure(row['pooled_dice'])} |"
        for row in results["dice"]
        if row["site"] == ALL and row["group"] == ALL
    ]
    spacing_mm = " x ".join(f"{mm:g}" for mm in study.segmentation.spacing_mm_xyz)
    return f"""# Model card: {study.name}

VB-Net (Shan et al., arXiv 2003.04655): {" and ".join(STRUCTURES)} in a chest CT. **For research only; not a
medical device.**

- Study `{study.name}`, preset `{study.preset}`, seed {study.seed}; {
        "complete" if results["complete"] else "INCOMPLETE: a required site missed a round"
    }.
- Trained at {sum(s["role"] == "training" for s in results["sites"])} sites by federated averaging; tested at
{sum(s["role"] == "held-out" for s in results["sites"])} held-out site(s).
- Works at {spacing_mm} mm (x, y, z); masks are brought back to the grid of the scan.

| set | structure | cases | mean Dice | Dice of all voxels |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Dice is counted on the grid that the network works on, over cases whose mask is not empty.
"""
