"""`dsan-client segment-train`: VB-Net trained on one site's own scans, without a centre."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError

from client.branch_training import TrainedBranch
from client.findings import Finding, FindingError
from client.machine_audit import read_machine
from client.preparation import PreparedEntry, load_prepared, segmentation_target
from client.segment_train_state import Standing, keep_standing, load_standing
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
    """Train, keep the best epoch's weights in `out`, and tell what they reach. Raises FindingError.

    The same training that was ended before goes on after the last epoch that it finished.
    """
    values = PRESETS[preset]
    machine = Machine(torch.device(read_machine(site).device))
    split = _split(site, values, seed)
    folder = site.work_folder / "segment-train" / _digest(site, values, split, seed)
    standing = load_standing(folder) or _beginning(values, seed)
    epochs = rounds or values.rounds
    if standing.epochs:
        say(f"{standing.epochs} epochs of this training were done before")
        _write(out, Segmenter(values.segmentation, standing.best_weights))
    for epoch in range(standing.epochs + 1, epochs + 1):
        task = VBNetTask(values.segmentation, values.training, seed, site.name, epoch, standing.weights)
        trained = _coded(partial(train_vbnet, task, split.training, standing.optimiser, machine))
        counts = _coded(
            partial(vbnet_counts, values.segmentation, trained.weights, split.validation, machine)
        )
        say(f"epoch {epoch}: loss {trained.training.classification_loss:.3f}, {_dice_text(counts)}")
        standing = _after(standing, trained, counts)
        if standing.best_epoch == epoch:
            _write(out, Segmenter(values.segmentation, standing.best_weights))
        _saved(partial(keep_standing, folder, standing), folder)
    return (
        f"weights   {out} (epoch {standing.best_epoch}: {_dice_text(standing.best_counts)} on "
        f"{len(split.validation)} cases)\n"
        f'next: lungs = "vbnet", infection = "vbnet", weights = "{out}" under [segmentation] of a site.toml'
    )


def _beginning(values: SegmentationPreset, seed: int) -> Standing:
    weights = flatten(initial_vbnet_state(values.segmentation.network, seed))
    return Standing(0, weights, {}, 0, weights, DiceCounts.empty())


def _after(standing: Standing, trained: TrainedBranch, counts: DiceCounts) -> Standing:
    """One epoch further; the epoch is the best if it validates better than those before."""
    epochs = standing.epochs + 1
    further = replace(standing, epochs=epochs, weights=trained.weights, optimiser=trained.optimiser)
    if standing.best_epoch and (counts.score or 0.0) <= (standing.best_counts.score or 0.0):
        return further
    return replace(further, best_epoch=epochs, best_weights=trained.weights, best_counts=counts)


def _digest(site: SiteConfig, values: SegmentationPreset, split: Split, seed: int) -> str:
    """Of all that decides how a training goes on; how many epochs it takes may be changed."""
    volumes = [[entry.path.name for entry in part] for part in (split.training, split.validation)]
    decisive = [site.name, seed, asdict(values.segmentation), asdict(values.training), volumes]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


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
    def save() -> None:
        unfinished = out.with_name(f".{out.name}.partial")
        out.parent.mkdir(parents=True, exist_ok=True)
        save_segmenter(unfinished, segmenter)
        unfinished.replace(out)

    _saved(save, out)


def _saved(save: Callable[[], None], where: Path) -> None:
    try:
        save()
    except (OSError, SafetensorError) as error:
        message = f"it cannot be written: {getattr(error, 'strerror', None) or error}"
        fix = "Free space, or name another file with --out; the same command goes on from here."
        raise FindingError(Finding("OUTPUT-FILES", "error", str(where), message, fix)) from None


def _dice_text(counts: DiceCounts) -> str:
    found = {structure: counts.mean_dice(structure) for structure in STRUCTURES}
    return "Dice " + ", ".join(f"{s} {'n/a' if v is None else f'{v:.3f}'}" for s, v in found.items())
