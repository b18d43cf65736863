"""What keeps a reply out of the mean: each reason has its code, its case, and a good reply beside it."""

from dataclasses import replace

import pytest
import torch
from restarting_grid import description

from dsan_model.cases import RATIO_EDGES, Case, Label, RatioGroup, SizeGroup
from dsan_model.ensemble import EnsembleWeights
from dsan_model.golden_case import GoldenResult
from dsan_model.metrics import ScoreCounts, score_counts
from dsan_model.network import NetworkConfig
from dsan_model.protocol import (
    AGES,
    AttentionSums,
    BranchTraining,
    CaseSet,
    Demographics,
    ExplainReply,
    ExplainRequest,
    RoundReply,
    RoundRequest,
    SiteDescription,
    Statistic,
    StudyTerms,
)
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.training import TrainingConfig
from dsan_model.weights import flatten
from server.admission import (
    Rejection,
    reject_attention,
    reject_description,
    reject_round,
    relative_update,
)

US, SS = Branch.US, Branch.SS
LARGEST_UPDATE = 10.0


def weights_of(*values: float, counter: int = 3) -> PackedWeights:
    return pack(flatten({"w": torch.tensor(values), "n": torch.tensor(counter)}), Precision.FLOAT32)


def validated(n_cases: int) -> ScoreCounts:
    labels = [Label.COVID, Label.CAP] * n_cases
    return score_counts([0.0] * n_cases, [Case("c", "p", label, 0.0) for label in labels[:n_cases]])


INCOMING = weights_of(3.0, 4.0)  # of norm 5
ENROLLED = SiteDescription(
    site="north",
    versions={},
    recipe_digest="",
    training_groups=dict(zip(SizeGroup, (5, 5, 10, 0), strict=True)),
    validation_groups=dict(zip(SizeGroup, (1, 1, 2, 0), strict=True)),
    demographics=(),
    ratio_histogram={},
    left_out={},
    withheld=(),
    golden_case=GoldenResult("cpu", {}),
    lung_masks={},
    infection_masks={},
)
REQUEST = RoundRequest(
    terms=StudyTerms(
        name="study",
        digest="",
        seed=0,
        input_shape_dhw=(16, 32, 32),
        recipe_digest="",
        network=NetworkConfig(),
        training=TrainingConfig(),
        folds=5,
        fold=0,
        branches=(US, SS),
    ),
    round=4,
    goes_on_from=1,
    group_probabilities={},
    weights={US: INCOMING, SS: INCOMING},
)
TRAINING = BranchTraining(
    cases=20,
    steps=1,
    seconds=2.0,
    learning_rate=2e-4,
    classification_loss=0.5,
    attention_loss=0.4,
    drawn=dict(zip(SizeGroup, (9, 3, 8, 0), strict=True)),
)
GOOD = RoundReply(
    site="north",
    round=4,
    training={US: TRAINING, SS: TRAINING},
    validation={US: validated(4), SS: validated(4)},
    updates={US: weights_of(0.5, 0.0, counter=4), SS: weights_of(0.0, 0.5, counter=4)},
)


def verdict(reply: RoundReply) -> Rejection | None:
    return reject_round(reply, REQUEST, ENROLLED, LARGEST_UPDATE)


def trained(**changes: object) -> RoundReply:
    """The good reply with something else about the training of SS."""
    return replace(GOOD, training={US: TRAINING, SS: replace(TRAINING, **changes)})  # type: ignore[arg-type]


def updated(update: PackedWeights) -> RoundReply:
    """The good reply with another update of SS."""
    return replace(GOOD, updates={US: GOOD.updates[US], SS: update})


def drawn(*counts: int) -> dict[SizeGroup, int]:
    return dict(zip(SizeGroup, counts, strict=True))


def test_a_good_reply_passes() -> None:
    assert verdict(GOOD) is None


REJECTED: dict[str, tuple[RoundReply, str, str]] = {
    "other site": (replace(GOOD, site="south"), "REPLY-SITE", "south answered for north"),
    "other round": (replace(GOOD, round=3), "REPLY-ROUND", "round 3, expected 4"),
    "branch without update": (
        replace(GOOD, updates={US: INCOMING}),
        "REPLY-BRANCHES",
        "updates of us; expected ss, us",
    ),
    "branch without training": (replace(GOOD, training={SS: TRAINING}), "REPLY-BRANCHES", "training of"),
    "branch without validation": (
        replace(GOOD, validation={}),
        "REPLY-BRANCHES",
        "validation of none; expected ss, us",
    ),
    "branch of another study": (
        replace(GOOD, updates={**GOOD.updates, Branch.BASELINE: INCOMING}),
        "REPLY-BRANCHES",
        "baseline",
    ),
    "more cases": (trained(cases=21), "REPLY-CASES", "ss: 21 cases, 20 drawn, enrolled 20"),
    "fewer cases": (trained(cases=19, drawn=drawn(8, 3, 8, 0)), "REPLY-CASES", "19 cases, 19 drawn"),
    "no cases": (trained(cases=0, drawn=drawn(0, 0, 0, 0)), "REPLY-CASES", "0 cases"),
    "drawn do not add up": (trained(drawn=drawn(9, 3, 9, 0)), "REPLY-CASES", "20 cases, 21 drawn"),
    "drawn below zero": (trained(drawn=drawn(9, 3, 9, -1)), "REPLY-CASES", "large CAP: -1"),
    "a group is not told": (
        trained(drawn={SizeGroup.SMALL_COVID: 20}),
        "REPLY-CASES",
        "not a count of each size group: small COVID-19: 20",
    ),
    "no group is told": (trained(cases=0, drawn={}), "REPLY-CASES", "0 drawn"),
    "no step": (trained(steps=0), "REPLY-STEPS", "ss: 0 steps in 2.0 s"),
    "negative time": (trained(seconds=-1.0), "REPLY-STEPS", "-1.0 s"),
    "fewer validated": (
        replace(GOOD, validation={US: validated(4), SS: validated(3)}),
        "REPLY-VALIDATION",
        "ss: 3 cases validated, enrolled 4",
    ),
    "other classes validated": (
        replace(
            GOOD,
            validation={US: validated(4), SS: score_counts([0.0] * 4, [Case("c", "p", Label.CAP, 0.0)] * 4)},
        ),
        "REPLY-VALIDATION",
        "ss: 0 COVID-19 and 4 CAP cases validated, enrolled 2 and 2",
    ),
    "more steps than cases": (trained(steps=21), "REPLY-STEPS", "21 steps"),
    "endless": (trained(seconds=1e300), "REPLY-STEPS", "1e+300 s"),
    "absurd loss": (trained(classification_loss=1e308), "REPLY-LOSS", "1e+308"),
    "absurd attention loss": (trained(attention_loss=-1.0), "REPLY-LOSS", "-1.0"),
    "absurd rate": (trained(learning_rate=1e300), "REPLY-LOSS", "1e+300"),
    "other tensors": (
        updated(pack(flatten({"v": torch.ones(2), "n": torch.tensor(3)}), Precision.FLOAT32)),
        "UPDATE-LAYOUT",
        "ss",
    ),
    "other shape": (updated(weights_of(1.0, 2.0, 3.0)), "UPDATE-LAYOUT", "ss"),
    "other precision": (
        updated(replace(GOOD.updates[SS], precision=Precision.FLOAT16)),
        "UPDATE-PRECISION",
        "ss: sent as float16, the study has float32",
    ),
    "NaN": (updated(weights_of(float("nan"), 4.0)), "UPDATE-NOT-FINITE", "ss: 1 values"),
    "infinite": (updated(weights_of(float("inf"), -float("inf"))), "UPDATE-NOT-FINITE", "ss: 2 values"),
    "counter below zero": (updated(weights_of(3.0, 4.0, counter=-1)), "UPDATE-COUNTERS", "ss"),
    "too large": (updated(weights_of(0.0, 50.1)), "UPDATE-TOO-LARGE", "ss: the update is 10 times"),
    "overflowing": (updated(weights_of(3e38, 3e38)), "UPDATE-TOO-LARGE", "inf times"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_bad_reply_is_rejected_with_its_code_and_values(name: str) -> None:
    reply, code, reason = REJECTED[name]
    found = verdict(reply)
    assert found is not None
    assert found.code == code
    assert reason in found.message


def test_a_site_that_enrolled_without_training_cases_cannot_bring_weights() -> None:
    nobody = replace(ENROLLED, training_groups=dict.fromkeys(SizeGroup, 0))
    nothing = replace(TRAINING, cases=0, drawn=dict.fromkeys(SizeGroup, 0))
    reply = replace(GOOD, training={US: nothing, SS: nothing})
    found = reject_round(reply, REQUEST, nobody, LARGEST_UPDATE)
    assert found is not None
    assert found.code == "REPLY-CASES"


def test_every_local_epoch_counts_the_cases_again() -> None:
    terms = replace(REQUEST.terms, training=replace(REQUEST.terms.training, local_epochs=2))
    request = replace(REQUEST, terms=terms)
    twice = replace(TRAINING, cases=40, steps=2, drawn=drawn(18, 6, 16, 0))
    assert reject_round(replace(GOOD, training={US: twice, SS: twice}), request, ENROLLED, 10.0) is None
    found = reject_round(GOOD, request, ENROLLED, LARGEST_UPDATE)
    assert found is not None
    assert found.code == "REPLY-CASES"


def test_the_largest_update_is_still_taken_and_a_little_more_is_not() -> None:
    assert verdict(updated(weights_of(0.0, 50.0))) is None  # 50 / 5
    assert verdict(updated(weights_of(0.0, 50.01))) is not None


def test_the_relative_update_is_the_norm_of_the_update_over_that_of_the_incoming_weights() -> None:
    assert relative_update(weights_of(0.0, 1.0), INCOMING) == pytest.approx(0.2)
    assert relative_update(weights_of(0.0, 0.0), INCOMING) == 0.0


def a_description(**changes: object) -> SiteDescription:
    """A site of 24 cases that may be enrolled."""
    fields = {
        "demographics": tuple(Demographics(label, 12, 12, (0,) * AGES, 0, 0) for label in Label),
        "ratio_histogram": {label: (0,) * (len(RATIO_EDGES) - 1) for label in Label},
        "lung_masks": {"given": 4, "vbnet-0a1b2c3d": 20},
        "infection_masks": {"crude-1": 24},
    }
    return replace(ENROLLED, **(fields | changes))


def test_a_site_that_describes_itself_well_is_enrolled() -> None:
    assert reject_description(a_description()) is None


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({}, "masks of 0 cases of 24"),
        ({"given": 23}, "masks of 23 cases of 24"),
        ({"given": 24, "crude-1": 0}, "short names"),
        ({"given": 25, "crude-1": -1}, "short names"),
        ({"DOE^JANE": 24}, "short names"),
        ({"<script>": 24}, "short names"),
        ({"a" * 49: 24}, "short names"),
    ],
)
@pytest.mark.parametrize("key", ["lung_masks", "infection_masks"])
def test_makers_of_masks_are_short_names_that_count_every_case(
    key: str, counts: dict[str, int], says: str
) -> None:
    found = reject_description(a_description(**{key: counts}))
    assert found is not None
    assert found.code == "SITE-COUNTS"
    assert says in found.message


def attention(branch: Branch, group: RatioGroup, cases: int, **changes: float) -> AttentionSums:
    sums = {"dice_infection": 0.5 * cases, "mass_in_infection": 0.2 * cases, "mass_in_lung": 1.0 * cases}
    return AttentionSums(branch, group, cases, **(sums | changes))


LOW, HIGH = RatioGroup.LOW, RatioGroup.HIGH
SUMS = tuple(attention(branch, group, 1) for branch in (US, SS) for group in (LOW, HIGH))
EXPLAIN = ExplainRequest(
    REQUEST.terms, CaseSet.VALIDATION, EnsembleWeights(0.5, 0.5), 4, {US: INCOMING, SS: INCOMING}
)


def explained(*sums: AttentionSums, site: str = "north") -> ExplainReply:
    return ExplainReply(site, 1.0, sums)


def test_good_attention_scores_pass() -> None:
    assert reject_attention(explained(*SUMS), EXPLAIN, ENROLLED) is None


def test_only_a_site_that_withholds_its_attention_scores_may_send_none() -> None:
    withholding = replace(ENROLLED, withheld=(Statistic.ATTENTION,))
    assert reject_attention(explained(), EXPLAIN, withholding) is None
    assert reject_attention(explained(), EXPLAIN, ENROLLED) is not None
    assert reject_attention(explained(*SUMS[:1]), EXPLAIN, withholding) is not None


BAD_ATTENTION: dict[str, tuple[ExplainReply, str, str]] = {
    "other site": (explained(*SUMS, site="south"), "REPLY-SITE", "south answered for north"),
    "a group twice": (explained(*SUMS, SUMS[0]), "REPLY-ATTENTION", "twice"),
    "a branch missing": (explained(*SUMS[:2]), "REPLY-CASES", "ss: 0 COVID-19 cases, enrolled 2"),
    "too few cases": (explained(*SUMS[:3]), "REPLY-CASES", "ss: 1 COVID-19 cases, enrolled 2"),
    "no cases in a group": (
        explained(*SUMS[:3], attention(SS, HIGH, 0)),
        "REPLY-ATTENTION",
        "ss >0.030: a mean is not from 0 to 1",
    ),
    "mean above 1": (
        explained(*SUMS[:3], attention(SS, HIGH, 1, mass_in_lung=1.1)),
        "REPLY-ATTENTION",
        "not from 0 to 1",
    ),
    "NaN": (
        explained(*SUMS[:3], attention(SS, HIGH, 1, dice_infection=float("nan"))),
        "REPLY-ATTENTION",
        "not from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", BAD_ATTENTION)
def test_bad_attention_scores_are_rejected_with_code_and_values(name: str) -> None:
    reply, code, reason = BAD_ATTENTION[name]
    found = reject_attention(reply, EXPLAIN, ENROLLED)
    assert found is not None
    assert found.code == code
    assert reason in found.message


def test_a_held_out_site_explains_all_its_covid_cases() -> None:
    rows = tuple(Demographics(label, 2, 2, (0,), 0, 0) for label in (Label.COVID, Label.CAP))
    held_out = replace(ENROLLED, demographics=rows, validation_groups=dict.fromkeys(SizeGroup, 0))
    request = replace(EXPLAIN, cases=CaseSet.HELD_OUT)
    assert reject_attention(explained(*SUMS), request, held_out) is None
    found = reject_attention(explained(*SUMS), EXPLAIN, held_out)
    assert found is not None
    assert found.code == "REPLY-CASES"


# ---- descriptions ----


def described(**changes: object) -> SiteDescription:
    return replace(description("north"), **changes)  # type: ignore[arg-type]


def row(**changes: object) -> tuple[Demographics, ...]:
    covid, cap = description("north").demographics
    return (replace(covid, **changes), cap)  # type: ignore[arg-type]


BAD_DESCRIPTIONS: dict[str, tuple[SiteDescription, str]] = {
    "a name with a path": (described(site="../north"), "SITE-NAME"),
    "a group missing": (described(training_groups={SizeGroup.SMALL_CAP: 1}), "SITE-COUNTS"),
    "a group below 0": (
        described(training_groups=dict(zip(SizeGroup, (5, 5, 10, -1), strict=True))),
        "SITE-COUNTS",
    ),
    "absurdly many cases": (
        described(training_groups=dict(zip(SizeGroup, (10**30, 5, 10, 0), strict=True))),
        "SITE-COUNTS",
    ),
    "ages that would fill the memory": (described(demographics=row(ages=(10**12,) * 121)), "SITE-COUNTS"),
    "more patients than images": (described(demographics=row(patients=13)), "SITE-COUNTS"),
    "more women than patients": (described(demographics=row(female=13)), "SITE-COUNTS"),
    "other images than groups": (described(demographics=row(images=13)), "SITE-COUNTS"),
    "bins of another number": (described(ratio_histogram=dict.fromkeys(Label, (1,))), "SITE-COUNTS"),
    "left out without a code": (described(left_out={"<script>": 1}), "SITE-COUNTS"),
    "a version of a megabyte": (described(versions={"torch": "9" * 10**6}), "SITE-COUNTS"),
    "a version with a line break": (described(versions={"torch": "2\n"}), "SITE-COUNTS"),
}


def test_a_good_description_passes() -> None:
    assert reject_description(described()) is None


@pytest.mark.parametrize("name", BAD_DESCRIPTIONS)
def test_a_description_that_contradicts_itself_is_rejected(name: str) -> None:
    bad, code = BAD_DESCRIPTIONS[name]
    found = reject_description(bad)
    assert found is not None
    assert found.code == code
