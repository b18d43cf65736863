"""What a site does not do or tell by its policy, as the centre sees it, and the record of what left."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cohort_factory
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from study_terms import STUDY_TERMS

from client import egress
from client.app import app, refusing
from client.drained import write_drained
from client.egress import read_egress, sum_egress
from client.preparation import prepare_cohort
from client.site import SiteConfig
from dsan_model.network import initial_state
from dsan_model.protocol import (
    KINDS,
    CaseSet,
    DescribeRequest,
    EnsembleWeights,
    EvaluateReply,
    EvaluateRequest,
    ExplainReply,
    ExplainRequest,
    Kind,
    Refusal,
    Reply,
    Request,
    SiteDescription,
    Statistic,
    StudyTerms,
    content_digest,
    decode,
    encode,
    size_bytes,
)
from dsan_model.sampling import Branch
from dsan_model.traffic import Precision, pack
from dsan_model.weights import flatten


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared cases: c0 and c1 CAP, c2 COVID-19."""
    site: SiteConfig = cohort_factory.write_hospital(tmp_path_factory.mktemp("policy") / "site")
    prepare_cohort(site, 1)
    return site.home


@pytest.fixture
def terms(cohort_factory: ModuleType) -> StudyTerms:
    return replace(
        STUDY_TERMS,
        name="spring",
        input_shape_dhw=cohort_factory.RECIPE.shape_DHW,
        recipe_digest=cohort_factory.RECIPE.digest,
        network=cohort_factory.NETWORK,
        folds=2,
        branches=(Branch.US,),
    )


def ask(hospital: Path, policy: str, request: Request) -> tuple[Reply, RecordDict]:
    """The site's answer under a policy, and the records that would leave."""
    text = (hospital / "site.toml").read_text().partition("[policy]")[0]
    (hospital / "site.toml").write_text(f"{text}[policy]\n{policy}\n")
    TaskIdentity.task_id = TaskIdentity.run_id = 1
    TaskIdentity.node_id = 0
    message = Message(encode(request), 1, KINDS[type(request)].value)
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(1, 1, {"site-config": str(hospital / "site.toml")}, RecordDict(), {})
    reply = app(message, context)
    expected = {
        DescribeRequest: SiteDescription,
        EvaluateRequest: EvaluateReply,
        ExplainRequest: ExplainReply,
    }[type(request)]
    return decode(reply.content, expected), reply.content


def code(hospital: Path, policy: str, request: Request) -> str | None:
    answer, _ = ask(hospital, policy, request)
    return answer.code if isinstance(answer, Refusal) else None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", None),
        ('studies = ["spring"]', None),
        ('studies = ["autumn", "spr*"]', None),
        ('studies = ["autumn"]', "POLICY-STUDY"),
        ('studies = ["SPRING"]', "POLICY-STUDY"),
        ("studies = []", "POLICY-STUDY"),
        ('kinds = ["describe"]', None),
        ('kinds = ["round", "evaluate"]', "POLICY-KIND"),
        ("min_cases = 3", None),
        ("min_cases = 4", "POLICY-COHORT"),
        ("min_cases = 0", "SITE-VALUE"),
    ],
)
def test_a_site_describes_itself_only_as_its_policy_allows(
    hospital: Path, terms: StudyTerms, policy: str, expected: str | None
) -> None:
    assert code(hospital, policy, DescribeRequest(terms)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("spring.fold-2", None), ("spring.without-east", None), ("spring.x", "POLICY-STUDY")],
)
def test_a_study_that_is_allowed_may_have_parts(
    hospital: Path, terms: StudyTerms, name: str, expected: str | None
) -> None:
    part = replace(terms, name=name)
    assert code(hospital, 'studies = ["spring"]', DescribeRequest(part)) == expected


def test_a_refusal_by_policy_says_what_would_change_it(hospital: Path, terms: StudyTerms) -> None:
    answer, _ = ask(hospital, 'studies = ["autumn"]', DescribeRequest(terms))
    assert isinstance(answer, Refusal)
    assert answer.message.endswith("its engineer adds the name to [policy] studies of site.toml")


def test_a_study_that_the_centre_drained_is_refused_until_it_says_so_and_others_go_on(
    hospital: Path, terms: StudyTerms
) -> None:
    part = replace(terms, name="spring.fold-2")
    write_drained(hospital / "state", {"spring": 1.0})
    try:
        assert code(hospital, "", DescribeRequest(terms)) == "SITE-DRAINED"
        assert code(hospital, "", DescribeRequest(part)) == "SITE-DRAINED"
        assert code(hospital, "", DescribeRequest(replace(terms, name="autumn"))) is None
    finally:
        write_drained(hospital / "state", {})
    assert code(hospital, "", DescribeRequest(terms)) is None


def test_statistics_that_may_not_leave_are_zero_and_named(hospital: Path, terms: StudyTerms) -> None:
    told, _ = ask(hospital, "", DescribeRequest(terms))
    policy = "demographics = false\nratio_histogram = false\nattention = false"
    kept, _ = ask(hospital, policy, DescribeRequest(terms))
    assert isinstance(told, SiteDescription)
    assert isinstance(kept, SiteDescription)
    assert told.withheld == ()
    assert kept.withheld == tuple(Statistic)
    assert sum(sum(bins) for bins in told.ratio_histogram.values()) == 3
    assert sum(sum(bins) for bins in kept.ratio_histogram.values()) == 0
    for row in kept.demographics:
        assert (sum(row.ages), row.female, row.male) == (0, 0, 0)
    assert [row.images for row in kept.demographics] == [row.images for row in told.demographics]
    assert (
        replace(kept, **{n: getattr(told, n) for n in ("withheld", "demographics", "ratio_histogram")})
        == told
    )


def test_attention_sums_leave_only_if_they_may(hospital: Path, terms: StudyTerms) -> None:
    weights = {Branch.US: pack(flatten(initial_state(terms.network, 0)), Precision.FLOAT32)}
    request = ExplainRequest(terms, CaseSet.HELD_OUT, EnsembleWeights(0.5, 0.5), 0, weights)
    told, _ = ask(hospital, "", request)
    kept, _ = ask(hospital, "attention = false", request)
    assert isinstance(told, ExplainReply)
    assert isinstance(kept, ExplainReply)
    assert sum(item.cases for item in told.attention) == 1
    assert kept.attention == ()


def test_a_cohort_that_is_too_small_is_not_scored(hospital: Path, terms: StudyTerms) -> None:
    weights = {Branch.US: pack(flatten(initial_state(terms.network, 0)), Precision.FLOAT32)}
    request = EvaluateRequest(terms, CaseSet.HELD_OUT, None, weights)
    assert code(hospital, "min_cases = 3", request) is None
    assert code(hospital, "min_cases = 4", request) == "POLICY-COHORT"


# ---- the record ----


def test_every_message_that_leaves_is_recorded_with_its_digest(hospital: Path, terms: StudyTerms) -> None:
    _, sent = ask(hospital, "", DescribeRequest(terms))
    *_, line = read_egress(hospital / "state")
    assert (line.kind, line.study, line.round, line.code) == ("describe", "spring", None, None)
    assert (line.bytes, line.sha256) == (size_bytes(sent), content_digest(sent))
    _, refused = ask(hospital, "studies = []", DescribeRequest(terms))
    *_, line = read_egress(hospital / "state")
    assert (line.code, line.sha256) == ("POLICY-STUDY", content_digest(refused))


def test_a_message_that_cannot_be_recorded_does_not_leave(
    hospital: Path, terms: StudyTerms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state_folder: Path, line: egress.EgressLine) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.app.record_egress", full)
    assert code(hospital, "", DescribeRequest(terms)) == "EGRESS-RECORD"


def test_a_refused_bundle_is_recorded_too(hospital: Path, terms: StudyTerms) -> None:
    message = Message(encode(DescribeRequest(terms)), 1, Kind.DESCRIBE.value)
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(1, 1, {"site-config": str(hospital / "site.toml")}, RecordDict(), {})
    reply = refusing("CODE-BUNDLE", "another digest")(message, context)
    answer = decode(reply.content, SiteDescription)
    assert isinstance(answer, Refusal)
    assert (answer.site, answer.code) == ("a", "CODE-BUNDLE")
    *_, line = read_egress(hospital / "state")
    assert line.code == "CODE-BUNDLE"


def lines(folder: Path, n: int, code: str | None = None) -> None:
    for number in range(n):
        egress.record_egress(folder, egress.EgressLine(number, "round", "spring", number, 100, "ab", code))


def test_sums_count_messages_bytes_and_refusals(tmp_path: Path) -> None:
    assert sum_egress(tmp_path).messages == 0
    lines(tmp_path, 3)
    lines(tmp_path, 2, "POLICY-KIND")
    sums = sum_egress(tmp_path)
    assert (sums.messages, sums.bytes) == (5, 500)
    assert sums.messages_by_kind == {"round": 5}
    assert sums.refusals_by_code == {"POLICY-KIND": 2}
    assert [line.round for line in sums.recent_refusals] == [0, 1]


def test_a_record_that_grows_is_rotated_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "LARGEST_BYTES", 1000)
    lines(tmp_path, 100)
    assert len(list(tmp_path.glob("egress.jsonl.*"))) >= 9
    assert [line.round for line in read_egress(tmp_path)] == list(range(100))
    assert all(path.stat().st_size < 1200 for path in tmp_path.glob("egress.jsonl*"))


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    lines(tmp_path, 2)
    with (tmp_path / "egress.jsonl").open("a") as file:
        file.write('{"time": 1, "ki\n')
    lines(tmp_path, 1)
    assert len(list(read_egress(tmp_path))) == 3
    assert json.loads((tmp_path / "egress.jsonl").read_text().splitlines()[0])["kind"] == "round"
