"""What a site does and tells, by its own [policy]: beyond it, a message is refused with a code."""

from fnmatch import fnmatchcase

from client.site import PolicyTable
from client.study_cases import RefusedError
from dsan_model.protocol import KINDS, Kind, Request, Statistic
from dsan_model.watch import whole_study

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
    names = {study, whole_study(study)}  # a part is called STUDY.fold-N or STUDY.without-SITE
    if not any(fnmatchcase(name, pattern) for name in names for pattern in policy.studies):
        raise RefusedError(
            "POLICY-STUDY",
            f"the policy of this site has no study called {study}. If it is to take part, its engineer adds "
            "the name to [policy] studies of site.toml",
        )
    if kind not in policy.kinds:
        raise RefusedError(
            "POLICY-KIND",
            f"the policy of this site lets no message {kind} be answered. If it is to, its engineer adds "
            f'"{kind}" to [policy] kinds of site.toml',
        )


def require_enough(policy: PolicyTable, what: str, n_cases: int) -> None:
    """RefusedError if an answer would be about some, but fewer cases than the site allows."""
    if 0 < n_cases < policy.min_cases:
        raise RefusedError(
            "POLICY-COHORT",
            f"the answer would be about {n_cases} {what}; this site answers for {policy.min_cases} or more. "
            "Add cases there, or its engineer lowers [policy] min_cases of site.toml",
        )


def withheld(policy: PolicyTable) -> tuple[Statistic, ...]:
    """The statistics that do not leave the site."""
    allowed = {
        Statistic.DEMOGRAPHICS: policy.demographics,
        Statistic.RATIO_HISTOGRAM: policy.ratio_histogram,
        Statistic.ATTENTION: policy.attention,
    }
    return tuple(statistic for statistic, may_leave in allowed.items() if not may_leave)
