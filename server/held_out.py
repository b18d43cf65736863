"""The independent test (IV-D): held-out sites evaluate the chosen models, all sites explain them (Fig. 5)."""

import logging
from dataclasses import dataclass

from dsan_model.ensemble import EnsembleWeights
from dsan_model.protocol import (
    AttentionSums,
    CaseSet,
    EvaluateReply,
    EvaluateRequest,
    ExplainReply,
    ExplainRequest,
    SiteDescription,
)
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights
from server.admission import reject_attention, reject_scores
from server.enrolment import Enrolled
from server.exchange import Exchange, Failure, Outcome
from server.study import StudyConfig

PANELS_A_SITE = 3  # one for each group of Table III, as Fig. 5 has them

log = logging.getLogger("dsan.server")


@dataclass(frozen=True)
class HeldOut:
    """What the held-out sites answered, and why some did not."""

    replies: dict[str, EvaluateReply]
    failures: dict[str, Failure]


def evaluate_held_out(
    exchange: Exchange,
    study: StudyConfig,
    enrolled: Enrolled,
    models: dict[Branch, PackedWeights],
    ensemble: EnsembleWeights | None,
) -> HeldOut:
    """Every held-out site scores all its cases with each branch and, if given, with the ensemble of both."""
    request = EvaluateRequest(study.terms(), CaseSet.HELD_OUT, ensemble, models)
    held_out = HeldOut({}, {s: f for s, f in enrolled.failures.items() if s in study.sites.held_out})
    for outcome in exchange.ask(dict.fromkeys(enrolled.held_out, request), EvaluateReply):
        description = enrolled.held_out[outcome.site]
        n_cases = sum(row.images for row in description.demographics)
        answer = admitted_scores(outcome, request, description, n_cases)
        if isinstance(answer, Failure):
            held_out.failures[outcome.site] = answer
            log.warning("%s did not evaluate: %s", outcome.site, answer.code)
        else:
            held_out.replies[outcome.site] = answer
    return held_out


def admitted_scores(
    outcome: Outcome[EvaluateReply], request: EvaluateRequest, enrolled: SiteDescription, n_cases: int
) -> EvaluateReply | Failure:
    """The scores of an evaluation if they may be used, else why not."""
    if isinstance(outcome.answer, Failure):
        return outcome.answer
    rejection = reject_scores(outcome.answer, request, enrolled, n_cases)
    return outcome.answer if rejection is None else Failure(rejection.code, rejection.message)


@dataclass(frozen=True)
class Explained:
    """How the attention maps lie on the infections, and why some sites did not say."""

    attention: dict[CaseSet, list[AttentionSums]]
    failures: dict[str, Failure]


def explain(
    exchange: Exchange,
    study: StudyConfig,
    enrolled: Enrolled,
    models: dict[Branch, PackedWeights],
    ensemble: EnsembleWeights,
) -> Explained:
    """Ask training sites about their validation COVID-19 cases, held-out sites about all of theirs."""
    explained = Explained({CaseSet.VALIDATION: [], CaseSet.HELD_OUT: []}, {})
    for cases, sites in ((CaseSet.VALIDATION, enrolled.training), (CaseSet.HELD_OUT, enrolled.held_out)):
        request = ExplainRequest(study.terms(), cases, ensemble, PANELS_A_SITE, models)
        for outcome in exchange.ask(dict.fromkeys(sites, request), ExplainReply):
            answer = _admitted_attention(outcome, request, sites[outcome.site])
            if isinstance(answer, Failure):
                explained.failures[outcome.site] = answer
                log.warning("%s did not explain: %s", outcome.site, answer.code)
            else:
                explained.attention[cases].extend(answer.attention)
    return explained


def _admitted_attention(
    outcome: Outcome[ExplainReply], request: ExplainRequest, enrolled: SiteDescription
) -> ExplainReply | Failure:
    if isinstance(outcome.answer, Failure):
        return outcome.answer
    rejection = reject_attention(outcome.answer, request, enrolled)
    return outcome.answer if rejection is None else Failure(rejection.code, rejection.message)
