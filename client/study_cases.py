"""Which of a site's prepared cases a study trains, validates and tests on, as the network wants them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from client.preparation import (
    PreparedEntry,
    Target,
    classification_target,
    load_prepared,
    segmentation_target,
)
from client.site import SiteConfig
from client.volume_store import load_masks, load_volume
from dsan_model.cases import Case, Label, patient_folds
from dsan_model.preprocessing import Recipe
from dsan_model.protocol import CaseSet, StudyTerms
from dsan_model.segmentation_grid import SegmentationRecipe
from dsan_model.training import Sample


class RefusedError(Exception):
    """Why a site does not do what a message asks: a stable code, and a text without patients or paths."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class CaseSamples:
    """Prepared cases by position: `Samples` for the loader, and the `Case` of each."""

    entries: tuple[PreparedEntry, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """The case of each position."""
        return tuple(entry.case for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, position: int) -> Sample:
        entry = self.entries[position]
        _, infection_DHW = load_masks(entry.path)
        label = float(entry.case.label is Label.COVID)
        return Sample(torch.from_numpy(load_volume(entry.path)), torch.from_numpy(infection_DHW), label)


@dataclass(frozen=True)
class StudyCases:
    """A site's cases in a study: training and validation split by patient, or all of them for a test."""

    training: CaseSamples
    validation: CaseSamples

    @property
    def all(self) -> CaseSamples:
        """Every case: what a held-out site evaluates."""
        return CaseSamples((*self.training.entries, *self.validation.entries))

    def of(self, cases: CaseSet) -> CaseSamples:
        """The cases that a message is about."""
        return self.validation if cases is CaseSet.VALIDATION else self.all


def study_cases(site: SiteConfig, terms: StudyTerms) -> StudyCases:
    """The site's prepared cases, split for the study's fold (IV-C); RefusedError if they do not fit it."""
    target = study_target(site, terms)
    _require_recipe(target, terms)
    entries = load_prepared(site, target)
    folds = patient_folds([entry.case for entry in entries], terms.folds, terms.seed)
    ordered = sorted(entries, key=lambda entry: entry.case.case_id)
    is_validation = [folds[entry.case.patient_id] == terms.fold for entry in ordered]
    return StudyCases(
        CaseSamples(_where(ordered, is_validation, wanted=False)),
        CaseSamples(_where(ordered, is_validation, wanted=True)),
    )


def _where(
    entries: Sequence[PreparedEntry], flags: Sequence[bool], *, wanted: bool
) -> tuple[PreparedEntry, ...]:
    return tuple(entry for entry, flag in zip(entries, flags, strict=True) if flag is wanted)


def study_target(site: SiteConfig, terms: StudyTerms) -> Target:
    """What the site's cohort must have been prepared for."""
    return classification_target(site) if terms.segmentation is None else segmentation_target(site)


def _require_recipe(target: Target, terms: StudyTerms) -> None:
    recipe = target.recipe
    if recipe.digest == terms.recipe_digest:
        return
    if isinstance(recipe, SegmentationRecipe):
        raise RefusedError(
            "SITE-RECIPE",
            f"scans here are prepared at {recipe.spacing_mm_xyz} mm, the study needs another spacing: set "
            "segmentation_spacing_mm_xyz under [recipe] in site.toml and prepare again with --segmentation",
        )
    candidates = [Recipe(terms.input_shape_dhw, antialias) for antialias in (False, True)]
    wanted = next((other for other in candidates if other.digest == terms.recipe_digest), None)
    if wanted is None:
        raise RefusedError(
            "SITE-RECIPE",
            "the study's preparation is of another version than this release's: install the release that the "
            "operator names, and prepare again",
        )
    raise RefusedError(
        "SITE-RECIPE",
        f"volumes here are prepared with {_settings(recipe)}, the study needs {_settings(wanted)}: "
        "write that under [recipe] in site.toml and prepare again",
    )


def _settings(recipe: Recipe) -> str:
    return f"shape_dhw = {list(recipe.shape_DHW)}, antialias = {str(recipe.antialias).lower()}"
