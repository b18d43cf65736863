"""The typed doorway: every message comes back as it went, and nothing else gets in."""

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from dsan_model.cases import RATIO_EDGES, Case, Label, RatioGroup, SizeGroup
from dsan_model.ensemble import EnsembleCounts, EnsembleWeights, ensemble_counts
from dsan_model.golden_case import GoldenResult
from dsan_model.metrics import ScoreCounts, score_counts
from dsan_model.network import AttentionResNet, NetworkConfig, initial_state
from dsan_model.protocol import (
    KINDS,
    AttentionSums,
    BranchTraining,
    CaseSet,
    Demographics,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    ExplainReply,
    ExplainRequest,
    FitEnsembleReply,
    FitEnsembleRequest,
    ProtocolError,
    Refusal,
    Reply,
    Request,
    RoundReply,
    RoundRequest,
    SiteDescription,
    StudyTerms,
    decode,
    encode,
    size_bytes,
)
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.training import TrainingConfig
from dsan_model.weights import flatten

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
CASES = [
    Case("c1", "p1", Label.COVID, 0.2),
    Case("c2", "p2", Label.COVID, 0.01),
    Case("c3", "p3", Label.CAP, 0.0005),
]
TERMS = StudyTerms(
    name="demo",
    digest="ab" * 32,
    seed=7,
    input_shape_dhw=(16, 32, 32),
    recipe_digest="cd" * 32,
    network=TINY,
    training=TrainingConfig(),
    folds=5,
    fold=1,
    branches=(Branch.US, Branch.SS),
)
WEIGHTS = {
    branch: pack(flatten(initial_state(TINY, seed)), precision)
    for seed, (branch, precision) in enumerate(
        {Branch.US: Precision.FLOAT32, Branch.SS: Precision.FLOAT16}.items()
    )
}
SCORES = {
    Branch.US: score_counts([2.5, -1.0, 0.25], CASES),
    Branch.SS: score_counts([0.5, 1.0, -3.0], CASES),
}
RATIO_SCORES = score_counts([0.2, 0.01, 0.0005], CASES)
TRAINING = BranchTraining(
    cases=20,
    steps=1,
    seconds=1.5,
    learning_rate=2e-4,
    classification_loss=0.69,
    attention_loss=None,
    drawn=dict(zip(SizeGroup, (5, 5, 10, 0), strict=True)),
)
DESCRIPTION = SiteDescription(
    site="north",
    versions={"torch": "2.13.0"},
    recipe_digest="cd" * 32,
    training_groups=dict(zip(SizeGroup, (5, 5, 10, 0), strict=True)),
    validation_groups=dict(zip(SizeGroup, (1, 1, 1, 0), strict=True)),
    demographics=tuple(Demographics(label, 3, 2, (0,) * 120 + (1,), 1, 0) for label in Label),
    ratio_histogram={label: (0,) * (len(RATIO_EDGES) - 2) + (3,) for label in Label},
    left_out={"MASK-GEOMETRY": 2},
    withheld=(),
    golden_case=GoldenResult("cpu", {"logit": 0.58, "gradient_norm": None}),
    lung_masks={"given": 4, "classical-1": 2},
    infection_masks={"crude-1": 6},
)
ENSEMBLE = EnsembleWeights(0.96, 0.35)
MESSAGES: list[Request | Reply] = [
    DescribeRequest(TERMS),
    DESCRIPTION,
    RoundRequest(TERMS, 3, 2, dict(zip(SizeGroup, (0.4, 0.2, 0.2, 0.2), strict=True)), WEIGHTS),
    RoundReply(
        "north",
        3,
        {Branch.US: TRAINING, Branch.SS: replace(TRAINING, attention_loss=0.5)},
        SCORES,
        WEIGHTS,
    ),
    EvaluateRequest(TERMS, CaseSet.HELD_OUT, ENSEMBLE, WEIGHTS),
    EvaluateRequest(TERMS, CaseSet.VALIDATION, None, WEIGHTS),
    EvaluateReply("north", 0.5, SCORES, SCORES[Branch.US], RATIO_SCORES),
    EvaluateReply("north", 0.5, SCORES, None, RATIO_SCORES),
    FitEnsembleRequest(TERMS, WEIGHTS),
    FitEnsembleReply("north", 0.5, ensemble_counts([0.9, 0.2, 0.1], [0.8, 0.6, 0.3], CASES), RATIO_SCORES),
    ExplainRequest(TERMS, CaseSet.HELD_OUT, ENSEMBLE, 3, WEIGHTS),
    ExplainReply("north", 0.5, (AttentionSums(Branch.SS, RatioGroup.MIDDLE, 2, 0.5, 0.25, 1.5),)),
    Refusal("north", "SITE-RECIPE", "prepare again"),
]
A_ROUND = MESSAGES[2]


def assert_same(found: Any, expected: Any) -> None:
    """Equal in every field, types included; weights by value."""
    assert type(found) is type(expected)
    if isinstance(expected, PackedWeights):
        assert found.layout == expected.layout
        assert (found.precision, found.exponents) == (expected.precision, expected.exponents)
        assert found.digest == expected.digest
        assert torch.equal(found.unpack().floats, expected.unpack().floats)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert type(next(k for k in found if k == key)) is type(key)
            assert_same(found[key], value)
    elif is_dataclass(expected) and not isinstance(expected, ScoreCounts | EnsembleCounts):
        for item in fields(expected):
            assert_same(getattr(found, item.name), getattr(expected, item.name))
    else:
        assert found == expected


def over_protobuf(record: RecordDict) -> RecordDict:
    message = recorddict_to_proto(record)
    return recorddict_from_proto(type(message).FromString(message.SerializeToString()))


def over_inflatable_objects(record: RecordDict) -> RecordDict:
    contents = {key: item.deflate() for key, item in get_all_nested_objects(record).items()}
    found = inflate_object_from_contents(record.object_id, contents)
    assert isinstance(found, RecordDict)
    return found


def changed(message: Request | Reply, change: Callable[[dict[str, Any]], None]) -> RecordDict:
    """The message with something done to its head."""
    record = encode(message)
    head = json.loads(str(record["head"]["json"]))
    change(head)
    return RecordDict({"head": ConfigRecord({"json": json.dumps(head)}), "arrays": record["arrays"]})


def with_head(text: str) -> RecordDict:
    return RecordDict({"head": ConfigRecord({"json": text}), "arrays": ArrayRecord()})


# ---- there and back ----


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize(
    "wire",
    [lambda record: record, over_protobuf, over_inflatable_objects],
    ids=["as is", "protobuf", "objects"],
)
def test_every_message_comes_back_as_it_went(
    message: Request | Reply, wire: Callable[[RecordDict], RecordDict]
) -> None:
    assert_same(decode(wire(encode(message)), type(message)), message)


def test_every_message_type_is_among_the_ones_tested() -> None:
    assert {type(message) for message in MESSAGES} == {
        *KINDS,
        RoundReply,
        SiteDescription,
        EvaluateReply,
        FitEnsembleReply,
        ExplainReply,
        Refusal,
    }


@pytest.mark.parametrize("expected", [SiteDescription, RoundReply, EvaluateReply, FitEnsembleReply])
def test_a_refusal_may_come_in_the_place_of_any_reply(expected: type[Any]) -> None:
    refusal = Refusal("north", "SITE-RECIPE", "prepare again")
    assert decode(encode(refusal), expected) == refusal


def test_another_message_than_the_expected_one_is_refused() -> None:
    with pytest.raises(ProtocolError, match="expected a RoundReply, found a 'EvaluateReply'"):
        decode(encode(MESSAGES[6]), RoundReply)


def test_unpacked_weights_share_no_memory_with_the_message() -> None:
    record = encode(A_ROUND)
    first = decode(record, RoundRequest)
    assert isinstance(first, RoundRequest)
    weights = first.weights[Branch.US].unpack()
    weights.floats.zero_()
    weights.integers.fill_(9)
    assert_same(decode(record, RoundRequest), A_ROUND)


def test_decoded_weights_are_views_of_the_message_and_cannot_be_written() -> None:
    record = encode(A_ROUND)
    found = decode(record, RoundRequest)
    assert isinstance(found, RoundRequest)
    floats = found.weights[Branch.US].floats
    data = record.array_records["arrays"]["weights/us/floats"].data
    assert np.shares_memory(floats, np.frombuffer(data, np.float32))
    assert not floats.flags.writeable


def test_float_weights_travel_bit_for_bit() -> None:
    values = torch.tensor([0.1, -0.0, 1e-45, 3.4e38, float("inf"), float("nan")])
    weights = {Branch.US: pack(flatten({"a": values, "b": values[None]}), Precision.FLOAT32)}
    found = decode(over_protobuf(encode(FitEnsembleRequest(TERMS, weights))), FitEnsembleRequest)
    assert isinstance(found, FitEnsembleRequest)
    for name in ("a", "b"):
        value = found.weights[Branch.US].unpack().state_dict()[name].view(-1)
        assert torch.equal(value.view(torch.int32), values.view(torch.int32))


# ---- the wire ----


@pytest.mark.parametrize(("precision", "size"), [(Precision.FLOAT16, 127.0e6), (Precision.FLOAT32, 254.0e6)])
def test_the_papers_network_travels_in_two_arrays_of_at_most_127_mb_in_half_precision(
    precision: Precision, size: float
) -> None:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AttentionResNet(NetworkConfig()).state_dict().items()}
    state = {
        name: torch.zeros(shape, dtype=torch.int64 if name.endswith("tracked") else torch.float32)
        for name, shape in shapes.items()
    }
    record = encode(FitEnsembleRequest(TERMS, {Branch.US: pack(flatten(state), precision)}))
    assert len(record.array_records["arrays"]) == 2  # floats, counters
    assert size_bytes(record) <= size
    assert size_bytes(record) == pytest.approx(size, rel=0.001)


def test_the_size_of_a_message_is_that_of_its_arrays_and_its_head() -> None:
    assert size_bytes(encode(Refusal("a", "B", "c"))) < 200
    values = sum(weights.size_bytes for weights in WEIGHTS.values())
    assert values < size_bytes(encode(A_ROUND)) < values + 20_000


# ---- bad heads ----

BAD_HEADS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no protocol": (lambda head: head.pop("protocol"), "speaks protocol None"),
    "older protocol": (lambda head: head.update(protocol=1), "speaks protocol 1, this installation speaks 2"),
    "no message": (lambda head: head.pop("message"), "found a None"),
    "unknown message": (lambda head: head.update(message="Reboot"), "found a 'Reboot'"),
    "no fields": (lambda head: head.pop("fields"), "fields"),
    "fields is a list": (lambda head: head.update(fields=[]), "not a RoundRequest"),
    "key at the top": (lambda head: head.update(extra=1), r"unknown keys \['extra'\]"),
    "missing field": (lambda head: head["fields"].pop("round"), "round: Field required"),
    "unknown field": (lambda head: head["fields"].update(mu=0.1), "mu: Unexpected"),
    "nested unknown field": (
        lambda head: head["fields"]["terms"]["training"].update(momentum=0.9),
        "terms.training.momentum: Unexpected",
    ),
    "nested missing field": (
        lambda head: head["fields"]["terms"]["network"].pop("width"),
        "a field is left out",
    ),
    "text for a number": (lambda head: head["fields"].update(round="3"), "round: .*valid integer"),
    "float for a number": (lambda head: head["fields"].update(round=3.5), "round: .*valid integer"),
    "true for a number": (lambda head: head["fields"].update(round=True), "round: .*valid integer"),
    "null for a number": (lambda head: head["fields"].update(round=None), "round: .*valid integer"),
    "number for a text": (lambda head: head["fields"]["terms"].update(name=3), "terms.name: .*valid string"),
    "unknown branch": (
        lambda head: head["fields"]["terms"].update(branches=["us", "them"]),
        "terms.branches.1",
    ),
    "unknown group": (
        lambda head: head["fields"]["group_probabilities"].update({"medium CAP": 0.1}),
        "group_probabilities.medium CAP",
    ),
    "NaN": (
        lambda head: head["fields"]["group_probabilities"].update({"small CAP": float("nan")}),
        "finite number",
    ),
    "nested NaN": (
        lambda head: head["fields"]["terms"]["training"].update(learning_rate=float("nan")),
        "terms.training.learning_rate: .*finite number",
    ),
    "infinity": (
        lambda head: head["fields"]["terms"]["training"].update(weight_decay=float("inf")),
        "finite number",
    ),
    "shape of two": (
        lambda head: head["fields"]["terms"].update(input_shape_dhw=[16, 32]),
        "terms.input_shape_dhw.2",
    ),
    "no weights": (lambda head: head.pop("weights"), "weights"),
    "weights are null": (lambda head: head.update(weights=None), "not a RoundRequest"),
    "weights are text": (lambda head: head.update(weights="all"), "not a RoundRequest"),
    "branches are a list": (lambda head: head["weights"].update(branches=[1]), "not a RoundRequest"),
    "weights of an unknown branch": (
        lambda head: head["weights"]["branches"].update(them=head["weights"]["branches"]["us"]),
        "'them' is not a valid Branch",
    ),
    "one branch is null": (lambda head: head["weights"]["branches"].update(us=None), "not a RoundRequest"),
    "counts for weights": (
        lambda head: head["weights"]["branches"].update(us={"shape": [2, 3, 258]}),
        "not a RoundRequest",
    ),
    "no digest": (lambda head: head["weights"]["branches"]["us"].pop("digest"), "digest"),
    "wrong digest": (
        lambda head: head["weights"]["branches"]["us"].update(digest="00" * 32),
        "do not have the digest",
    ),
    "other precision": (
        lambda head: head["weights"]["branches"]["us"].update(precision="float16"),
        "expected flat float16, found flat float32",
    ),
    "unknown precision": (
        lambda head: head["weights"]["branches"]["us"].update(precision="int8"),
        "'int8' is not a valid Precision",
    ),
    "endless exponent": (
        lambda head: head["weights"]["branches"]["ss"]["exponents"].__setitem__(0, 10**9),
        "1000000000 is no exponent",
    ),
    "exponent of text": (
        lambda head: head["weights"]["branches"]["ss"]["exponents"].__setitem__(0, "3"),
        "'3' is no exponent",
    ),
    "an exponent too few": (
        lambda head: head["weights"]["branches"]["ss"]["exponents"].pop(),
        "the layout has .* exponents, found",
    ),
    "no layouts": (lambda head: head.pop("layouts"), "layouts"),
    "layout that is not there": (
        lambda head: head["weights"]["branches"]["us"].update(layout=1),
        "IndexError",
    ),
    "size below 0": (
        lambda head: head["layouts"][0][2].__setitem__(0, [-2, -3]),
        "a size below 0",
    ),
    "layout without shapes": (
        lambda head: head["layouts"][0].pop(),
        "not a RoundRequest",
    ),
    "layout of other length": (
        lambda head: head["layouts"][0][0].pop(),
        "not a RoundRequest",
    ),
    "renamed tensor": (
        lambda head: head["layouts"][0][0].__setitem__(0, "fc.evil"),
        "do not have the digest",
    ),
    "other shape": (
        lambda head: head["layouts"][0][2].__setitem__(0, [3]),
        "the layout has .* floats, found",
    ),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_bad_head_is_a_protocol_error_that_says_what_is_wrong(name: str) -> None:
    change, reason = BAD_HEADS[name]
    with pytest.raises(ProtocolError, match=reason):
        decode(changed(A_ROUND, change), RoundRequest)


@pytest.mark.parametrize("protocol", [1, 2, 3])
def test_a_refusal_is_read_in_every_protocol(protocol: int) -> None:
    refusal = Refusal("north", "REQUEST-PROTOCOL", "the message speaks protocol 2, ...")
    record = changed(refusal, lambda head: head.update(protocol=protocol))
    assert decode(record, RoundReply) == refusal


@pytest.mark.parametrize("field", ["branches", "infection_ratio"])
def test_counts_that_must_be_there_may_not_be_null(field: str) -> None:
    with pytest.raises(ProtocolError, match="not a EvaluateReply"):
        decode(changed(MESSAGES[6], lambda head: head.update({field: None})), EvaluateReply)


def test_counts_of_another_kind_are_refused() -> None:
    record = encode(MESSAGES[9])
    arrays = {**record["arrays"], "counts": record["arrays"]["infection_ratio"]}
    with pytest.raises(ProtocolError, match="not a FitEnsembleReply"):
        decode(RecordDict({"head": record["head"], "arrays": ArrayRecord(arrays)}), FitEnsembleReply)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"head"', "[" * 100_000, "1" * 5000, '{"protocol": 1, "protocol": 2}'],
    ids=["empty", "torn", "list", "null", "number", "text", "deep", "long number", "twice"],
)
def test_a_head_that_is_no_object_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode(with_head(text), DescribeRequest)


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"head": ConfigRecord()}),
        RecordDict({"head": ConfigRecord({"json": 3})}),
        RecordDict({"head": ConfigRecord({"json": b"\xff"})}),
        RecordDict({"head": ArrayRecord()}),
        RecordDict({"head": encode(MESSAGES[0])["head"]}),
        RecordDict({"head": encode(MESSAGES[0])["head"], "arrays": ConfigRecord()}),
    ],
    ids=["empty", "no JSON", "number", "bytes", "head of arrays", "no arrays", "arrays of configuration"],
)
def test_a_record_without_a_head_or_without_arrays_is_a_protocol_error(record: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        decode(record, DescribeRequest)


# ---- bad arrays ----


def flat(values: np.ndarray[Any, Any], **other: Any) -> Array:
    form = {"dtype": str(values.dtype), "shape": values.shape, "stype": "flat", "data": values.tobytes()}
    return Array(**{**form, **other})


FLOATS = WEIGHTS[Branch.US].floats
BAD_ARRAYS: dict[str, Array | None] = {
    "missing": None,
    "truncated": flat(FLOATS[:-1]),
    "torn": flat(FLOATS, data=FLOATS.tobytes()[:-1]),
    "longer": flat(np.append(FLOATS, np.float32(0))),
    "changed": flat(FLOATS + np.float32(1e-7)),
    "float64": flat(FLOATS.astype(np.float64)),
    "integers": flat(FLOATS.view(np.int32)),
    "object": flat(FLOATS, dtype="object"),
    "pickled": flat(FLOATS, stype="numpy.ndarray"),
    "empty": flat(FLOATS[:0]),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_bad_array_is_a_protocol_error(name: str) -> None:
    record = encode(A_ROUND)
    arrays = dict(record.array_records["arrays"])
    assert "weights/us/floats" in arrays
    del arrays["weights/us/floats"]
    bad = BAD_ARRAYS[name]
    if bad is not None:
        arrays["weights/us/floats"] = bad
    with pytest.raises(ProtocolError, match="not a RoundRequest"):
        decode(RecordDict({"head": record["head"], "arrays": ArrayRecord(arrays)}), RoundRequest)


@pytest.mark.parametrize(
    "counts",
    [
        np.full((2, 3, 258), -1),
        np.zeros((2, 3, 257), np.int64),
        np.full((2, 3, 258), 10**7),
        np.zeros((2, 3, 258)),
    ],
    ids=["negative", "shape", "absurd", "float"],
)
def test_bad_counts_are_a_protocol_error(counts: np.ndarray[Any, Any]) -> None:
    record = encode(MESSAGES[6])
    arrays = {**record["arrays"], "infection_ratio": flat(counts)}
    with pytest.raises(ProtocolError, match="not a EvaluateReply"):
        decode(RecordDict({"head": record["head"], "arrays": ArrayRecord(arrays)}), EvaluateReply)


# ---- anything at all ----

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON object."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


A_HEAD = json.loads(str(encode(MESSAGES[3])["head"]["json"]))
PLACES = places(A_HEAD)[1:]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(PLACES), JSON | st.just("delete"))
def test_any_value_in_any_place_of_the_head_is_read_or_is_a_protocol_error(
    path: tuple[Any, ...], value: Any
) -> None:
    def change(head: dict[str, Any]) -> None:
        at: Any = head
        for key in path[:-1]:
            at = at[key]
        if value == "delete":
            del at[path[-1]]
        else:
            at[path[-1]] = value

    try:
        found = decode(changed(MESSAGES[3], change), RoundReply)
    except ProtocolError:
        return
    assert isinstance(found, RoundReply | Refusal)
    assert isinstance(found, Refusal) or all(isinstance(w, PackedWeights) for w in found.updates.values())


@settings(deadline=None, max_examples=100)
@given(JSON.map(json.dumps) | st.text(max_size=50))
def test_any_text_for_a_head_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode(with_head(text), RoundReply)


def test_a_number_that_json_cannot_hold_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        encode(EvaluateReply("north", float("nan"), {}, None, RATIO_SCORES))
