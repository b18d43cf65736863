"""`dsan-client segment-train`: VB-Net trained on one site's own scans, without a centre."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from client.findings import Finding, FindingError
from client.machine_audit import read_machine
from client.preparation import PreparedEntry, load_prepared, segmentation_target
from client.site import SiteConfig
from client.study_cases import RefusedError
from client.vbnet_training import VBNetTask, train_vbnet, vbnet_counts
from dsan_model.cases import patient_folds
from dsan_model.dice import STRUCTURES, DiceCounts
from dsan_model.patches import PRESETS, SegmentationPreset
from dsan_model.segmenter import Segmenter, save_segmenter
from dsan_model.training import Machine
from dsan_model.vbnet import initial_vbnet_state
from dsan_model.weights import flatten

FOLDS = 5  # the first validates, as in a study

Say = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Split:
    """The site's cases, by patient."""

    training: tuple[PreparedEntry, ...]
    validation: tuple[PreparedEntry, ...]


def train_here(site: SiteConfig, out: Path, preset: str, rounds: int | None, seed: int, say: Say) -> str:
    """Train, keep the best epoch's weights in `out`, and tell what they reach. Raises FindingError."""
    values = PRESETS[preset]
    machine = Machine(torch.device(read_machine(site).device))
    split = _split(site, values, seed)
    weights = flatten(initial_vbnet_state(values.segmentation.network, seed))
    optimiser: dict[str, Tensor] = {}
    best = -1.0
    chosen, reached = 0, DiceCounts.empty()
    for epoch in range(1, (rounds or values.rounds) + 1):
        task = VBNetTask(values.segmentation, values.training, seed, site.name, epoch, weights)
        trained = _coded(partial(train_vbnet, task, split.training, optimiser, machine))
        weights, optimiser = trained.weights, trained.optimiser
        counts = _coded(partial(vbnet_counts, values.segmentation, weights, split.validation, machine))
        say(f"epoch {epoch}: loss {trained.training.classification_loss:.3f}, {_dice_text(counts)}")
        if (counts.score or 0.0) > best:
            best, chosen, reached = counts.score or 0.0, epoch, counts
            _write(out, Segmenter(values.segmentation, weights))
    return (
        f"weights   {out} (epoch {chosen}: {_dice_text(reached)} on {len(split.validation)} cases)\n"
        f'next: lungs = "vbnet", infection = "vbnet", weights = "{out}" under [segmentation] of a site.toml'
    )


def _split(site: SiteConfig, values: SegmentationPreset, seed: int) -> Split:
    entries = load_prepared(site, segmentation_target(site))
    if site.segmentation_recipe.spacing_mm_xyz != values.segmentation.spacing_mm_xyz:
        message = (
            f"the scans are prepared at {site.segmentation_recipe.spacing_mm_xyz} mm, the preset works at "
            f"{values.segmentation.spacing_mm_xyz} mm"
        )
        fix = "Set that under [recipe] in site.toml and run `dsan-client prepare --segmentation` again."
        where = "site.toml, key recipe.segmentation_spacing_mm_xyz"
        raise FindingError(Finding("SITE-RECIPE", "error", where, message, fix))
    folds = patient_folds([entry.case for entry in entries], FOLDS, seed)
    training = tuple(entry for entry in entries if folds[entry.case.patient_id] != 0)
    validation = tuple(entry for entry in entries if folds[entry.case.patient_id] == 0)
    if not training or not validation:
        message = f"{len(entries)} cases of {len(folds)} patients are too few to train and to validate"
        raise FindingError(Finding("VBNET-FEW", "error", "cohort.csv", message, "Add cases with both masks."))
    return Split(training, validation)


def _coded(compute: Callable[[], Result]) -> Result:
    try:
        return compute()
    except RefusedError as error:
        fix = "Check the scans and masks on the page of `dsan-client prepare`; try another --seed."
        raise FindingError(Finding(error.code, "error", "training", error.message, fix)) from None


def _write(out: Path, segmenter: Segmenter) -> None:
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_segmenter(partial, segmenter)
        partial.replace(out)
    except OSError as error:
        message, fix = f"it cannot be written: {error.strerror}", "Name another file with --out."
        raise FindingError(Finding("OUTPUT-FILES", "error", str(out), message, fix)) from None


def _dice_text(counts: DiceCounts) -> str:
    found = {structure: counts.mean_dice(structure) for structure in STRUCTURES}
    return "Dice " + ", ".join(f"{s} {'n/a' if v is None else f'{v:.3f}'}" for s, v in found.items())
