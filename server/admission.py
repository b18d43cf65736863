"""What is checked of a site's reply before it may touch the mean: a rejected reply changes nothing."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dsan_model.cases import RATIO_EDGES, Label, SizeGroup
from dsan_model.metrics import LARGEST_COUNT, ScoreCounts
from dsan_model.protocol import (
    AGES,
    BranchCounts,
    CaseSet,
    EvaluateReply,
    EvaluateRequest,
    ExplainReply,
    ExplainRequest,
    FitEnsembleReply,
    RoundReply,
    RoundRequest,
    SiteDescription,
    Statistic,
)
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights
from server.exchange import CODE
from server.study import SITE_NAME

MASK_NAME = r"[a-z][a-z0-9.+-]{0,47}"  # what made a mask, with its version: "classical-1"
LARGEST_FLOAT32 = 3.4028234e38
LARGEST_LOSS = 1e6
LONGEST_S = 1e8  # three years
MOST_TEXTS, LONGEST_TEXT = 100, 200


@dataclass(frozen=True)
class Rejection:
    """Why a reply was not taken; the code is stable, the message has the values."""

    code: str
    message: str


def reject_round(
    reply: RoundReply,
    request: RoundRequest,
    enrolled: SiteDescription,
    largest_relative_update: float,
) -> Rejection | None:
    """The first reason not to aggregate a round's reply, or None.

    `enrolled` is how the site described itself at the start of the study: it must still be the same site
    with the same cases.
    """
    return (
        _reject_identity(reply, request, enrolled)
        or _reject_counts(reply, request, enrolled)
        or _reject_weights(reply, request, largest_relative_update)
    )


def reject_scores(
    reply: EvaluateReply, request: EvaluateRequest, enrolled: SiteDescription, n_cases: int
) -> Rejection | None:
    """The first reason not to use an evaluation's scores, or None; `n_cases` is how many it must count."""
    if set(reply.branches) != set(request.weights):
        found, expected = (", ".join(sorted(names)) or "none" for names in (reply.branches, request.weights))
        return Rejection("REPLY-BRANCHES", f"scores of {found}; expected {expected}")
    counted = {branch.value: scores.n_cases for branch, scores in reply.branches.items()}
    if request.ensemble is not None:
        counted["dual sampling"] = 0 if reply.dual_sampling is None else reply.dual_sampling.n_cases
    counted["infection ratio"] = reply.infection_ratio.n_cases
    return _reject_other(reply.site, enrolled, counted, n_cases)


def reject_ensemble_counts(reply: FitEnsembleReply, enrolled: SiteDescription) -> Rejection | None:
    """The first reason not to add a site's counts to the search for the ensemble weights, or None."""
    counted = {"ensemble": reply.counts.n_cases, "infection ratio": reply.infection_ratio.n_cases}
    return _reject_other(reply.site, enrolled, counted, sum(enrolled.validation_groups.values()))


def reject_attention(
    reply: ExplainReply, request: ExplainRequest, enrolled: SiteDescription
) -> Rejection | None:
    """The first reason not to use a site's attention scores, or None: each branch must count every case.

    A site whose policy withholds them sends none.
    """
    if reply.site != enrolled.site:
        return Rejection("REPLY-SITE", f"{reply.site} answered for {enrolled.site}")
    if Statistic.ATTENTION in enrolled.withheld and not reply.attention:
        return None
    n_covid = _covid_cases(request.cases, enrolled)
    keys = [(item.branch, item.group) for item in reply.attention]
    if len(set(keys)) < len(keys):
        return Rejection("REPLY-ATTENTION", "a branch has a ratio group twice")
    for item in reply.attention:
        sums = (item.dice_infection, item.mass_in_infection, item.mass_in_lung)
        if item.cases < 1 or not all(0 <= value <= item.cases * (1 + 1e-6) for value in sums):
            return Rejection("REPLY-ATTENTION", f"{item.branch} {item.group}: a mean is not from 0 to 1")
    for branch in request.weights:
        counted = sum(item.cases for item in reply.attention if item.branch is branch)
        if counted != n_covid:
            return Rejection("REPLY-CASES", f"{branch}: {counted} COVID-19 cases, enrolled {n_covid}")
    return None


def _covid_cases(cases: CaseSet, enrolled: SiteDescription) -> int:
    if cases is CaseSet.HELD_OUT:
        return sum(row.images for row in enrolled.demographics if row.label is Label.COVID)
    groups = enrolled.validation_groups
    return groups[SizeGroup.SMALL_COVID] + groups[SizeGroup.LARGE_COVID]


def _reject_other(
    site: str, enrolled: SiteDescription, counted: dict[str, int], n_cases: int
) -> Rejection | None:
    if site != enrolled.site:
        return Rejection("REPLY-SITE", f"{site} answered for {enrolled.site}")
    for what, n in counted.items():
        if n != n_cases:
            return Rejection("REPLY-CASES", f"{what}: {n} cases counted, enrolled {n_cases}")
    return None


def reject_description(description: SiteDescription) -> Rejection | None:
    """The first reason not to enrol a site that describes itself like this, or None."""
    if not re.fullmatch(SITE_NAME, description.site):
        return Rejection("SITE-NAME", "a site's name is 1 to 32 letters, digits and hyphens")
    for groups in (description.training_groups, description.validation_groups):
        if set(groups) != set(SizeGroup) or not _are_counts(groups.values()):
            return Rejection("SITE-COUNTS", "not a count of each size group")
    if set(description.ratio_histogram) != set(Label) or any(
        len(bins) != len(RATIO_EDGES) - 1 for bins in description.ratio_histogram.values()
    ):
        return Rejection("SITE-COUNTS", "the histogram of infection ratios has other classes or bins")
    if [row.label for row in description.demographics] != list(Label) or any(
        len(row.ages) != AGES for row in description.demographics
    ):
        return Rejection("SITE-COUNTS", f"demographics are not {AGES} ages of each class")
    return _reject_mask_counts(description) or _reject_absurd(description)


def _reject_mask_counts(description: SiteDescription) -> Rejection | None:
    """The names are shown in the report, so they are names of methods and no other text."""
    n_cases = sum((*description.training_groups.values(), *description.validation_groups.values()))
    for counts in (description.lung_masks, description.infection_masks):
        if not all(re.fullmatch(MASK_NAME, name) and n > 0 for name, n in counts.items()):
            return Rejection("SITE-COUNTS", "the makers of masks are not short names with their cases")
        if sum(counts.values()) != n_cases:
            return Rejection("SITE-COUNTS", f"masks of {sum(counts.values())} cases of {n_cases}")
    return None


def _reject_absurd(description: SiteDescription) -> Rejection | None:
    """Counts that contradict each other, and texts that are none: a report could not be made of them."""
    for row in description.demographics:
        counts = (row.images, row.patients, row.female, row.male, *row.ages)
        n_patients = max(sum(row.ages), row.female + row.male)
        if not _are_counts(counts) or not n_patients <= row.patients <= row.images:
            return Rejection("SITE-COUNTS", f"demographics of {row.label} contradict each other")
    groups = (*description.training_groups.values(), *description.validation_groups.values())
    n_images = sum(row.images for row in description.demographics)
    if sum(groups) != n_images:
        return Rejection("SITE-COUNTS", f"{sum(groups)} cases in size groups, {n_images} in demographics")
    bins = [n for of_label in description.ratio_histogram.values() for n in of_label]
    if not _are_counts(bins) or sum(bins) > n_images:
        return Rejection("SITE-COUNTS", "the histogram of infection ratios has more cases than there are")
    if not _are_counts(description.left_out.values()) or not all(
        re.fullmatch(CODE, code) for code in description.left_out
    ):
        return Rejection("SITE-COUNTS", "what is left out is not counted by code")
    texts = [text for item in description.versions.items() for text in item]
    if len(texts) > MOST_TEXTS or any(not text.isprintable() or len(text) > LONGEST_TEXT for text in texts):
        return Rejection("SITE-COUNTS", "the versions are no list of versions")
    return None


def _are_counts(values: Iterable[int]) -> bool:
    return all(0 <= value <= LARGEST_COUNT for value in values)


def relative_update(update: PackedWeights, incoming: PackedWeights) -> float:
    """Norm of a site's update over the norm of the weights that it started from."""
    return update.norm / max(incoming.norm, 1e-12)


def _reject_identity(reply: RoundReply, request: RoundRequest, enrolled: SiteDescription) -> Rejection | None:
    if reply.site != enrolled.site:
        return Rejection("REPLY-SITE", f"{reply.site} answered for {enrolled.site}")
    if reply.round != request.round:
        return Rejection("REPLY-ROUND", f"the reply is of round {reply.round}, expected {request.round}")
    for name, found in (
        ("updates", reply.updates),
        ("training", reply.training),
        ("validation", reply.validation),
    ):
        if set(found) != set(request.weights):
            branches, expected = (", ".join(sorted(names)) or "none" for names in (found, request.weights))
            return Rejection("REPLY-BRANCHES", f"{name} of {branches}; expected {expected}")
    return None


def _reject_counts(reply: RoundReply, request: RoundRequest, enrolled: SiteDescription) -> Rejection | None:
    n_training = sum(enrolled.training_groups.values()) * request.terms.training.local_epochs
    for branch, training in reply.training.items():
        drawn = sum(training.drawn.values())
        if not training.cases == drawn == n_training or n_training < 1:
            return Rejection(
                "REPLY-CASES", f"{branch}: {training.cases} cases, {drawn} drawn, enrolled {n_training}"
            )
        if set(training.drawn) != set(SizeGroup) or min(training.drawn.values()) < 0:
            groups = ", ".join(f"{group}: {n}" for group, n in training.drawn.items())
            return Rejection("REPLY-CASES", f"{branch}: not a count of each size group: {groups}")
        if not 1 <= training.steps <= training.cases or not 0 <= training.seconds <= LONGEST_S:
            return Rejection("REPLY-STEPS", f"{branch}: {training.steps} steps in {training.seconds} s")
        losses = (training.classification_loss, training.attention_loss or 0.0, training.learning_rate)
        if not all(0 <= value <= LARGEST_LOSS for value in losses):
            return Rejection(
                "REPLY-LOSS", f"{branch}: losses or rate not from 0 to {LARGEST_LOSS:g}: {losses}"
            )
        rejection = _reject_validation(branch, reply.validation[branch], enrolled)
        if rejection is not None:
            return rejection
    return None


def _reject_validation(branch: Branch, counts: BranchCounts, enrolled: SiteDescription) -> Rejection | None:
    """The counts must be of as many cases as enrolled, and, of scores, of as many of each class."""
    n_validation = sum(enrolled.validation_groups.values())
    if counts.n_cases != n_validation:
        return Rejection(
            "REPLY-VALIDATION", f"{branch}: {counts.n_cases} cases validated, enrolled {n_validation}"
        )
    if isinstance(counts, ScoreCounts):
        found = counts.histogram().sum(axis=1).tolist()
        groups = enrolled.validation_groups
        n_covid = groups[SizeGroup.SMALL_COVID] + groups[SizeGroup.LARGE_COVID]
        if found != [n_covid, n_validation - n_covid]:
            return Rejection(
                "REPLY-VALIDATION",
                f"{branch}: {found[0]} COVID-19 and {found[1]} CAP cases validated, "
                f"enrolled {n_covid} and {n_validation - n_covid}",
            )
    return None


def _reject_weights(
    reply: RoundReply, request: RoundRequest, largest_relative_update: float
) -> Rejection | None:
    for branch, update in reply.updates.items():
        rejection = _reject_branch(branch, update, request, largest_relative_update)
        if rejection is not None:
            return rejection
    return None


def _reject_branch(
    branch: Branch, update: PackedWeights, request: RoundRequest, largest_relative_update: float
) -> Rejection | None:
    incoming = request.weights[branch]
    if update.layout != incoming.layout:
        return Rejection("UPDATE-LAYOUT", f"{branch}: other tensors than the study's network")
    if update.precision is not request.terms.precision:
        expected = request.terms.precision
        return Rejection(
            "UPDATE-PRECISION", f"{branch}: sent as {update.precision}, the study has {expected}"
        )
    is_suspect = not update.norm <= LARGEST_FLOAT32  # cheaper to ask than to count
    if is_suspect and (n := update.count_not_finite()):
        return Rejection("UPDATE-NOT-FINITE", f"{branch}: {n} values are NaN or infinite")
    if (update.integers < 0).any():
        return Rejection("UPDATE-COUNTERS", f"{branch}: a counter is below 0")
    size = relative_update(update, incoming)
    if not size <= largest_relative_update:
        return Rejection(
            "UPDATE-TOO-LARGE",
            f"{branch}: the update is {size:.3g} times the weights, at most {largest_relative_update:g}",
        )
    return None
