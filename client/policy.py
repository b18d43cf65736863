"""What a site does and tells, by its own [policy]: beyond it, a message is refused with a code."""

from fnmatch import fnmatchcase

from client.site import PolicyTable
from client.study_cases import RefusedError
from dsan_model.protocol import KINDS, Kind, Request, Statistic

KIND_NAMES = {
    Kind.DESCRIBE: "describe",
    Kind.ROUND: "round",
    Kind.EVALUATE: "evaluate",
    Kind.FIT_ENSEMBLE: "fit_ensemble",
    Kind.EXPLAIN: "explain",
}


def kind_name(message_type: str) -> str:
    """The name of a kind of message in site.toml and in records, by Flower's type; "other" if it is none."""
    return KIND_NAMES[Kind(message_type)] if message_type in list(Kind) else "other"


def require_allowed(policy: PolicyTable, request: Request) -> None:
    """RefusedError unless the site takes part in this study and answers this kind of message."""
    study, kind = request.terms.name, KIND_NAMES[KINDS[type(request)]]
    if not any(fnmatchcase(study, pattern) for pattern in policy.studies):
        raise RefusedError("POLICY-STUDY", f"the policy of this site has no study called {study}")
    if kind not in policy.kinds:
        raise RefusedError("POLICY-KIND", f"the policy of this site lets no message {kind} be answered")


def require_enough(policy: PolicyTable, what: str, n_cases: int) -> None:
    """RefusedError if an answer would be about some, but fewer cases than the site allows."""
    if 0 < n_cases < policy.min_cases:
        raise RefusedError(
            "POLICY-COHORT",
            f"the answer would be about {n_cases} {what}; this site answers for {policy.min_cases} or more",
        )


def withheld(policy: PolicyTable) -> tuple[Statistic, ...]:
    """The statistics that do not leave the site."""
    allowed = {
        Statistic.DEMOGRAPHICS: policy.demographics,
        Statistic.RATIO_HISTOGRAM: policy.ratio_histogram,
        Statistic.ATTENTION: policy.attention,
    }
    return tuple(statistic for statistic, may_leave in allowed.items() if not may_leave)
