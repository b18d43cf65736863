"""What a site does when the centre asks: describe, train, evaluate, count for the ensemble, explain."""

import hashlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor

from client.branch_training import BranchTask, TrainedBranch
from client.finished_work import FinishedRound, FinishedWork, KeptState
from client.panels import draw_panels
from client.policy import require_enough, withheld
from client.preparation import PreparedEntry, count_left_out
from client.site import SiteConfig
from client.site_training import train_branch
from client.study_cases import CaseSamples, RefusedError, StudyCases, study_cases, study_target
from client.vbnet_training import VBNetTask, train_vbnet, vbnet_counts
from client.volume_store import load_masks, load_volume
from dsan_daemon.bundle import release
from dsan_model.cases import RATIO_EDGES, Label, RatioGroup
from dsan_model.dice import DiceCounts
from dsan_model.ensemble import ensemble_counts, ensemble_score_counts
from dsan_model.explain import AttentionScores, attention_of, attention_scores
from dsan_model.golden_case import GoldenResult, golden_result
from dsan_model.metrics import ScoreCounts, probability_counts, score_counts
from dsan_model.network import AttentionResNet, initial_state
from dsan_model.protocol import (
    AGES,
    AttentionSums,
    BranchCounts,
    BranchTraining,
    Demographics,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    ExplainReply,
    ExplainRequest,
    FitEnsembleReply,
    FitEnsembleRequest,
    RoundReply,
    RoundRequest,
    SiteDescription,
    Statistic,
    StudyTerms,
)
from dsan_model.sampling import Branch, group_counts
from dsan_model.traffic import PackedWeights, pack_with_carry
from dsan_model.training import (
    Batch,
    Machine,
    Sample,
    batches,
    build_network,
    make_optimiser,
    predict,
    train_epoch,
)
from dsan_model.weights import FlatWeights, change

PHASES = ("idle", "describing", "validating", "training", "evaluating", "fitting", "explaining")
Report = Callable[[str, int, int, Branch | None], None]  # phase, steps done, steps, branch


@dataclass(frozen=True)
class Site:
    """A site at work: its settings, what it computes with, and where it tells how far it is."""

    config: SiteConfig
    machine: Machine
    report: Report


def describe(site: Site, request: DescribeRequest) -> SiteDescription:
    """Versions and counts; RefusedError or FindingError if the site cannot take part."""
    site.report("describing", 0, 1, None)
    cases = study_cases(site.config, request.terms)
    target = study_target(site.config, request.terms)
    require_enough(site.config.policy, "cases", len(cases.all))
    kept = withheld(site.config.policy)
    is_measured = request.measures_speed and request.terms.segmentation is None
    return SiteDescription(
        site=site.config.name,
        versions=installed_versions(),
        recipe_digest=target.recipe.digest,
        training_groups=group_counts([case.size_group for case in cases.training.cases]),
        validation_groups=group_counts([case.size_group for case in cases.validation.cases]),
        demographics=tuple(_demographics(label, cases.all.entries, kept) for label in Label),
        ratio_histogram={label: _ratio_histogram(label, cases.all, kept) for label in Label},
        left_out=count_left_out(target),
        withheld=kept,
        golden_case=_golden_result(site.machine.device),
        seconds_per_case=_seconds_per_case(site, request.terms) if is_measured else None,
        lung_masks=Counter(entry.masks.lungs for entry in cases.all.entries),
        infection_masks=Counter(entry.masks.infection for entry in cases.all.entries),
    )


def _seconds_per_case(site: Site, terms: StudyTerms) -> float:
    """Of a training step, on noise: a forward and a backward pass of two cases, as this machine does them."""
    network = build_network(terms.network, initial_state(terms.network, 0), site.machine.device)
    optimiser = make_optimiser(network, terms.training)
    generator = torch.Generator().manual_seed(0)
    volumes = [torch.rand(terms.input_shape_dhw, generator=generator) for _ in range(2)]
    noise = [Sample(volume, volume > 0.95, float(number)) for number, volume in enumerate(volumes)]
    started = time.monotonic()
    train_epoch(network, optimiser, batches(noise, np.arange(2), 2, site.machine), 0.5, site.machine)
    return (time.monotonic() - started) / 2 / site.machine.processes


def train_round(site: Site, request: RoundRequest) -> RoundReply:
    """Validate the incoming weights of each branch, then train the branch from them (IV-C).

    A branch that was finished before, from the same weights, is not trained again.
    """
    cases = study_cases(site.config, request.terms)
    if len(cases.training) == 0:
        raise RefusedError("SITE-NO-TRAINING", "no case is left for training after the validation fold")
    require_enough(site.config.policy, "training cases", len(cases.training))
    require_enough(site.config.policy, "validation cases", len(cases.validation))
    done = {
        branch: _round_of_branch(site, request, branch, incoming, cases)
        for branch, incoming in request.weights.items()
    }
    return RoundReply(
        site=site.config.name,
        round=request.round,
        training={branch: finished.training for branch, finished in done.items()},
        validation={branch: finished.validation for branch, finished in done.items()},
        updates={branch: finished.update for branch, finished in done.items()},
    )


def evaluate(site: Site, request: EvaluateRequest) -> EvaluateReply:
    """Histograms of the logits of each branch and, with ensemble weights, of the dual-sampling model."""
    started = time.monotonic()
    samples = study_cases(site.config, request.terms).of(request.cases)
    require_enough(site.config.policy, f"{request.cases} cases", len(samples))
    dual_sampling = None
    branches: dict[Branch, BranchCounts] = {}
    if Branch.VBNET in request.weights:
        vbnet = request.weights[Branch.VBNET].unpack()
        branches = {Branch.VBNET: _dice(site, request.terms, vbnet, samples, "evaluating")}
    else:
        logits = _logits(site, request.terms, request.weights, samples, "evaluating")
        branches = {branch: score_counts(values, samples.cases) for branch, values in logits.items()}
        if request.ensemble is not None:
            p_us, p_ss = expit(logits[Branch.US]), expit(logits[Branch.SS])
            dual_sampling = ensemble_score_counts(p_us, p_ss, samples.cases, request.ensemble)
    return EvaluateReply(
        site=site.config.name,
        seconds=time.monotonic() - started,
        branches=branches,
        dual_sampling=dual_sampling,
        infection_ratio=_ratio_counts(samples),
    )


def fit_ensemble(site: Site, request: FitEnsembleRequest) -> FitEnsembleReply:
    """The validation cases counted for each of the 101 weights of Eq. 5."""
    started = time.monotonic()
    samples = study_cases(site.config, request.terms).validation
    require_enough(site.config.policy, "validation cases", len(samples))
    logits = _logits(site, request.terms, request.weights, samples, "fitting")
    counts = ensemble_counts(expit(logits[Branch.US]), expit(logits[Branch.SS]), samples.cases)
    return FitEnsembleReply(site.config.name, time.monotonic() - started, counts, _ratio_counts(samples))


def explain(site: Site, request: ExplainRequest) -> ExplainReply:
    """Attention of every branch on the COVID-19 cases, as sums; pictures of a few are drawn and stay here."""
    started = time.monotonic()
    samples = study_cases(site.config, request.terms).of(request.cases)
    covid = [entry for entry in samples.entries if entry.case.label is Label.COVID]
    require_enough(site.config.policy, f"{request.cases} COVID-19 cases", len(covid))
    networks = {b: _network(site, request.terms, w) for b, w in request.weights.items()}
    sums: list[AttentionSums] = []
    for index, (branch, network) in enumerate(networks.items()):
        site.report("explaining", index, len(networks), branch)
        scores = [_attention_scores(network, entry) for entry in covid]
        sums.extend(_attention_sums(branch, covid, scores))
    draw_panels(site.config, request, networks, covid)
    if Statistic.ATTENTION in withheld(site.config.policy):
        sums = []
    return ExplainReply(site.config.name, time.monotonic() - started, tuple(sums))


def _work_digest(request: RoundRequest) -> str:
    """What a finished round belongs to: the study, and the draws that its other sites lead to."""
    probabilities = sorted(request.group_probabilities.items())
    return hashlib.sha256(f"{request.terms.digest} {probabilities}".encode()).hexdigest()


def _round_of_branch(
    site: Site, request: RoundRequest, branch: Branch, incoming: PackedWeights, cases: StudyCases
) -> FinishedRound:
    work = FinishedWork(site.config.work_folder, _work_digest(request), branch)
    finished = work.find(request.round, incoming)
    if finished is None:
        weights = incoming.unpack()
        counts = _validated(site, request, branch, weights, cases.validation)
        training, update = _train(site, request, branch, weights, cases.training, work)
        finished = FinishedRound(training, counts, update)
        work.keep(request.round, incoming, finished, request.goes_on_from)
    return finished


def _validated(
    site: Site, request: RoundRequest, branch: Branch, incoming: FlatWeights, samples: CaseSamples
) -> BranchCounts:
    if branch is Branch.VBNET:
        return _dice(site, request.terms, incoming, samples, "validating")
    weights: dict[Branch, FlatWeights] = {branch: incoming}
    return score_counts(_logits(site, request.terms, weights, samples, "validating")[branch], samples.cases)


def _train(
    site: Site,
    request: RoundRequest,
    branch: Branch,
    incoming: FlatWeights,
    samples: CaseSamples,
    work: FinishedWork,
) -> tuple[BranchTraining, PackedWeights]:
    """Train a branch; what its update loses to rounding is kept here for the next round."""
    kept = work.state_after(request.goes_on_from)
    trained = _trained(site, request, branch, samples, incoming, kept.optimiser)
    update = change(trained.weights, incoming)
    packed, left_over = pack_with_carry(update, request.terms.precision, kept.carry)
    work.keep_state(request.round, KeptState(trained.optimiser, left_over))
    return trained.training, packed


def _trained(
    site: Site,
    request: RoundRequest,
    branch: Branch,
    samples: CaseSamples,
    incoming: FlatWeights,
    optimiser: dict[str, Tensor],
) -> TrainedBranch:
    terms, name, report = request.terms, site.config.name, partial(_report, site, branch)
    if terms.segmentation is not None:
        of_site = VBNetTask(terms.segmentation, terms.training, terms.seed, name, request.round, incoming)
        return train_vbnet(of_site, samples.entries, optimiser, site.machine, report)
    task = BranchTask(terms, name, branch, request.round, request.group_probabilities, incoming)
    return train_branch(task, samples, optimiser, site.machine, report)


def _dice(
    site: Site, terms: StudyTerms, weights: FlatWeights, samples: CaseSamples, phase: str
) -> DiceCounts:
    """How a VB-Net does on whole scans."""
    segmentation = terms.segmentation
    if segmentation is None:
        raise RefusedError("SITE-TASK", "weights of VB-Net came in a study that is no segmentation")
    return vbnet_counts(
        segmentation,
        weights,
        samples.entries,
        site.machine,
        lambda done, of: site.report(phase, done, of, Branch.VBNET),
    )


def _report(site: Site, branch: Branch, done: int, steps: int) -> None:
    site.report("training", done, steps, branch)


def _network(site: Site, terms: StudyTerms, weights: PackedWeights | FlatWeights) -> AttentionResNet:
    in_full = weights.unpack() if isinstance(weights, PackedWeights) else weights
    return build_network(terms.network, in_full.state_dict(), site.machine.device)


def _logits(
    site: Site,
    terms: StudyTerms,
    weights: Mapping[Branch, PackedWeights] | Mapping[Branch, FlatWeights],
    samples: CaseSamples,
    phase: str,
) -> dict[Branch, npt.NDArray[np.float64]]:
    found = {}
    for branch, of_branch in weights.items():
        in_order = batches(samples, np.arange(len(samples)), terms.training.batch_size, site.machine)
        steps = -(-len(samples) // terms.training.batch_size)
        told = _told(in_order, lambda done: site.report(phase, done, steps, branch))  # noqa: B023  (used here)
        found[branch] = predict(_network(site, terms, of_branch), told, site.machine)
        if np.isnan(found[branch]).any():
            raise RefusedError(
                "MODEL-DIVERGED", f"{branch}: the network's output is NaN on cases of this site"
            )
    return found


def _told(in_order: Iterable[Batch], report: Callable[[int], None]) -> Iterator[Batch]:
    """The batches, each told of when it is asked for: whoever watches sees that the work goes on."""
    for done, batch in enumerate(in_order):
        report(done)
        yield batch


def _ratio_counts(samples: CaseSamples) -> ScoreCounts:
    return probability_counts([case.infection_ratio for case in samples.cases], samples.cases)


def _attention_scores(network: AttentionResNet, entry: PreparedEntry) -> AttentionScores:
    lung_DHW, infection_DHW = load_masks(entry.path)
    _, attention_DHW = attention_of(network, torch.from_numpy(load_volume(entry.path)))
    return attention_scores(attention_DHW, torch.from_numpy(infection_DHW), torch.from_numpy(lung_DHW))


def _attention_sums(
    branch: Branch, entries: list[PreparedEntry], scores: list[AttentionScores]
) -> Iterable[AttentionSums]:
    for group in RatioGroup:
        chosen = [s for e, s in zip(entries, scores, strict=True) if e.case.ratio_group is group]
        if chosen:
            yield AttentionSums(
                branch,
                group,
                cases=len(chosen),
                dice_infection=sum(s.dice_infection for s in chosen),
                mass_in_infection=sum(s.mass_in_infection for s in chosen),
                mass_in_lung=sum(s.mass_in_lung for s in chosen),
            )


def _demographics(
    label: Label, entries: tuple[PreparedEntry, ...], kept: tuple[Statistic, ...]
) -> Demographics:
    chosen = [entry for entry in entries if entry.case.label is label]
    patients = {entry.case.patient_id: entry for entry in chosen}.values()
    ages = [0] * AGES
    if Statistic.DEMOGRAPHICS in kept:
        return Demographics(label, len(chosen), len(patients), tuple(ages), 0, 0)
    for entry in patients:
        if entry.age is not None:
            ages[min(AGES - 1, int(entry.age))] += 1
    sexes = Counter(entry.sex for entry in patients)
    return Demographics(label, len(chosen), len(patients), tuple(ages), sexes["F"], sexes["M"])


def _ratio_histogram(label: Label, samples: CaseSamples, kept: tuple[Statistic, ...]) -> tuple[int, ...]:
    if Statistic.RATIO_HISTOGRAM in kept:
        return (0,) * (len(RATIO_EDGES) - 1)
    ratios = [case.infection_ratio for case in samples.cases if case.label is label]
    return tuple(np.histogram(ratios, bins=RATIO_EDGES)[0].tolist())


@cache
def _golden_result(device: torch.device) -> GoldenResult:
    return golden_result(device)  # a second; the sites of a simulation share a process


@cache
def installed_versions() -> dict[str, str]:
    """Of what decides how a site computes, as this process runs it."""
    others = {name: version(name) for name in ("flwr", "torch", "SimpleITK")}
    return {"dsan-federated": release(), **others, "python": platform.python_version()}
