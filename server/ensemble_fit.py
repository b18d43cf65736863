"""The ensemble layer (III-E, Eq. 5): both weights, searched on validation counts of all sites."""

import logging
from dataclasses import dataclass

from dsan_model.ensemble import (
    EnsembleCounts,
    EnsembleFit,
    EnsembleIntervals,
    EnsembleWeights,
    fit_ensemble,
    site_bootstrap,
)
from dsan_model.metrics import ScoreCounts
from dsan_model.protocol import FitEnsembleReply, FitEnsembleRequest
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights
from server.admission import reject_ensemble_counts
from server.enrolment import Enrolled
from server.exchange import Exchange, Failure, Outcome
from server.study import StudyConfig

log = logging.getLogger("dsan.server")


@dataclass(frozen=True)
class FittedEnsemble:
    """The weights, how sure they are, and what every site counted."""

    fit: EnsembleFit
    intervals: EnsembleIntervals | None
    counts: dict[str, EnsembleCounts]  # by site
    infection_ratio: dict[str, ScoreCounts]  # by site: the ratio alone as a score
    failures: dict[str, Failure]

    @property
    def weights(self) -> EnsembleWeights:
        """w inside and outside the band."""
        return self.fit.weights


def fit(
    exchange: Exchange, study: StudyConfig, enrolled: Enrolled, models: dict[Branch, PackedWeights]
) -> FittedEnsemble:
    """Ask every training site for its counts, add them and search: exactly the central search."""
    both = {branch: models[branch] for branch in (Branch.US, Branch.SS)}
    request = FitEnsembleRequest(study.terms(), both)
    counts: dict[str, EnsembleCounts] = {}
    ratio: dict[str, ScoreCounts] = {}
    failures: dict[str, Failure] = {}
    for outcome in exchange.ask(dict.fromkeys(enrolled.training, request), FitEnsembleReply):
        answer = _admitted(outcome, enrolled)
        if isinstance(answer, Failure):
            failures[outcome.site] = answer
            log.warning("%s is not in the ensemble fit: %s", outcome.site, answer.code)
        else:
            counts[outcome.site] = answer.counts
            ratio[outcome.site] = answer.infection_ratio
    found = fit_ensemble(sum(counts.values(), EnsembleCounts.empty()))
    log.info("ensemble: w inside the band %.2f, outside %.2f", found.w_inside, found.w_outside)
    return FittedEnsemble(found, site_bootstrap(list(counts.values()), study.seed), counts, ratio, failures)


def _admitted(outcome: Outcome[FitEnsembleReply], enrolled: Enrolled) -> FitEnsembleReply | Failure:
    if isinstance(outcome.answer, Failure):
        return outcome.answer
    rejection = reject_ensemble_counts(outcome.answer, enrolled.training[outcome.site])
    return outcome.answer if rejection is None else Failure(rejection.code, rejection.message)
