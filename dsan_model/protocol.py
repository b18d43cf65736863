"""The messages between the centre and a site, as frozen dataclasses: the typed doorway to Flower's records.

A message is a JSON head, checked field by field when it is read, and named arrays beside it. Nothing else in
the project touches Flower's records. What does not fit is a ProtocolError, never a half-read message.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dsan_model.cases import Label, RatioGroup, SizeGroup
from dsan_model.dice import DiceCounts
from dsan_model.ensemble import EnsembleCounts, EnsembleWeights
from dsan_model.golden_case import GoldenResult
from dsan_model.metrics import ScoreCounts
from dsan_model.network import NetworkConfig
from dsan_model.patches import SegmentationConfig
from dsan_model.sampling import Branch
from dsan_model.traffic import LARGEST_EXPONENT, PackedWeights, Precision
from dsan_model.training import TrainingConfig
from dsan_model.weights import Layout

PROTOCOL_VERSION = 2  # 1: weights in full precision, trained weights instead of updates
AGES = 121  # years 0 to 120 of the histograms of Table I


class Kind(StrEnum):
    """What a message asks of a site; the values are Flower's message types."""

    DESCRIBE = "query.describe"
    ROUND = "train.round"
    EVALUATE = "evaluate.models"
    FIT_ENSEMBLE = "evaluate.fit_ensemble"
    EXPLAIN = "evaluate.explain"


class CaseSet(StrEnum):
    """Which cases of a site a message is about."""

    VALIDATION = "validation"  # those of the study's fold, which the site does not train on
    HELD_OUT = "held-out"  # all of a site that does not train


BranchCounts = ScoreCounts | DiceCounts  # how a branch did: VB-Net has Dice, the others have scores


class Statistic(StrEnum):
    """What a site's policy may keep of what it tells beside counts and scores."""

    DEMOGRAPHICS = "demographics"  # ages and sexes of Table I
    RATIO_HISTOGRAM = "ratio_histogram"  # Fig. 1
    ATTENTION = "attention"  # how well the maps lie on the infection


class ProtocolError(Exception):
    """A record that is not the message it should be."""


@dataclass(frozen=True)
class StudyTerms:
    """What every message says of the study, so that a site needs to remember nothing between two."""

    name: str
    digest: str  # of the study's configuration: finished work is kept under it
    seed: int
    input_shape_dhw: tuple[int, int, int]
    recipe_digest: str  # of the preprocessing that the prepared volumes must come from
    network: NetworkConfig
    training: TrainingConfig
    folds: int
    fold: int
    branches: tuple[Branch, ...]
    precision: Precision = Precision.FLOAT32  # of the updates that sites send back
    segmentation: SegmentationConfig | None = None  # of a segmentation study, which trains VB-Net alone


@dataclass(frozen=True)
class Demographics:
    """One row of Table I of a site; ages and sexes are of patients, None where cohort.csv has none."""

    label: Label
    images: int
    patients: int
    ages: tuple[int, ...]  # histogram of the ages in whole years, 0 to 120
    female: int
    male: int


@dataclass(frozen=True)
class DescribeRequest:
    """Who are you, and what would you bring to this study?"""

    terms: StudyTerms
    measures_speed: bool = False  # whether to time a training step, for an estimate


@dataclass(frozen=True)
class SiteDescription:
    """A site's answer: versions and counts, nothing of a single case."""

    site: str
    versions: dict[str, str]
    recipe_digest: str
    training_groups: dict[SizeGroup, int]
    validation_groups: dict[SizeGroup, int]
    demographics: tuple[Demographics, ...]
    ratio_histogram: dict[Label, tuple[int, ...]]  # cases by bin of RATIO_EDGES, Fig. 1
    left_out: dict[str, int]  # cases that could not be prepared, by the code of the finding
    withheld: tuple[Statistic, ...]  # by the site's policy: they are zero or empty
    golden_case: GoldenResult  # what the site's machine computes
    lung_masks: dict[str, int]  # cases by what made their lung mask: "given", "classical-1"
    infection_masks: dict[str, int]  # likewise; ratios of different segmenters do not compare
    seconds_per_case: float | None = None  # of a training step, if it was asked for


@dataclass(frozen=True)
class RoundRequest:
    """Validate the incoming weights of every branch, then train each branch from them."""

    terms: StudyTerms
    round: int  # from 1
    goes_on_from: int  # the last round in which the site's reply was taken; 0: none
    group_probabilities: dict[SizeGroup, float]  # of size-balanced sampling, over all training sites
    weights: dict[Branch, PackedWeights]


@dataclass(frozen=True)
class BranchTraining:
    """What the training of one branch in one round came to."""

    cases: int  # drawn; VB-Net draws each case once an epoch, and its patches from it
    steps: int
    seconds: float
    learning_rate: float
    classification_loss: float  # of VB-Net: the Dice loss
    attention_loss: float | None
    drawn: dict[SizeGroup, int]


@dataclass(frozen=True)
class RoundReply:
    """How training changed the weights, and how the incoming ones did on the site's validation cases."""

    site: str
    round: int
    training: dict[Branch, BranchTraining]
    validation: dict[Branch, BranchCounts]
    updates: dict[Branch, PackedWeights]  # trained minus incoming floats; the counters as they are now


@dataclass(frozen=True)
class EvaluateRequest:
    """Score cases with each branch and, if ensemble weights are given, with the dual-sampling model."""

    terms: StudyTerms
    cases: CaseSet
    ensemble: EnsembleWeights | None
    weights: dict[Branch, PackedWeights]


@dataclass(frozen=True)
class EvaluateReply:
    """Histograms of the scores, never scores; `infection_ratio` is what the ratio alone would score."""

    site: str
    seconds: float
    branches: dict[Branch, BranchCounts]
    dual_sampling: ScoreCounts | None
    infection_ratio: ScoreCounts


@dataclass(frozen=True)
class FitEnsembleRequest:
    """Count the validation cases for each of the 101 weights of Eq. 5."""

    terms: StudyTerms
    weights: dict[Branch, PackedWeights]


@dataclass(frozen=True)
class FitEnsembleReply:
    """A site's share of the search for the ensemble weights."""

    site: str
    seconds: float
    counts: EnsembleCounts
    infection_ratio: ScoreCounts


@dataclass(frozen=True)
class ExplainRequest:
    """Compare the attention maps of COVID-19 cases with their infection masks; pictures stay at the site."""

    terms: StudyTerms
    cases: CaseSet
    ensemble: EnsembleWeights
    panels: int  # pictures to draw, spread over the groups of Table III
    weights: dict[Branch, PackedWeights]


@dataclass(frozen=True)
class AttentionSums:
    """Sums over the COVID-19 cases of one ratio group: divided by `cases` they are means."""

    branch: Branch
    group: RatioGroup
    cases: int
    dice_infection: float
    mass_in_infection: float
    mass_in_lung: float


@dataclass(frozen=True)
class ExplainReply:
    """How well the attention maps of each branch lie on the infection."""

    site: str
    seconds: float
    attention: tuple[AttentionSums, ...]


@dataclass(frozen=True)
class Refusal:
    """A coded error instead of an answer; `message` names no patient, case or path."""

    site: str  # empty if the site's own configuration cannot be read
    code: str
    message: str


Request = DescribeRequest | RoundRequest | EvaluateRequest | FitEnsembleRequest | ExplainRequest
Reply = SiteDescription | RoundReply | EvaluateReply | FitEnsembleReply | ExplainReply | Refusal
Message = TypeVar("Message", bound=Request | Reply)

KINDS: dict[type, Kind] = {
    DescribeRequest: Kind.DESCRIBE,
    RoundRequest: Kind.ROUND,
    EvaluateRequest: Kind.EVALUATE,
    FitEnsembleRequest: Kind.FIT_ENSEMBLE,
    ExplainRequest: Kind.EXPLAIN,
}


def encode(message: Request | Reply) -> RecordDict:
    """The message as Flower's records: one JSON head, and the arrays beside it."""
    kind = type(message)
    arrays: dict[str, Array] = {}
    layouts: list[Layout] = []
    head: dict[str, object] = {"message": kind.__name__, "protocol": PROTOCOL_VERSION}
    for name in _bulk_fields(kind):
        head[name] = _write_bulk(getattr(message, name), name, arrays, layouts)
    head["layouts"] = [[layout.names, layout.is_float, layout.shapes] for layout in layouts]
    adapter, head_type = _head_type(kind)  # type: ignore[arg-type] # mypy asks whether instances are hashable
    values = {item.name: getattr(message, item.name) for item in fields(head_type)}
    head["fields"] = adapter.dump_python(head_type(**values), mode="json")
    return RecordDict(
        {
            "head": ConfigRecord({"json": json.dumps(head, allow_nan=False)}),
            "arrays": ArrayRecord(arrays),
        }
    )


def decode(record: RecordDict, expected: type[Message]) -> Message | Refusal:
    """The expected message, or the refusal that came in its place. ProtocolError on anything else.

    A refusal has the same form in every version: it is how sides of two versions tell each other why.
    """
    head = _read_head(record)
    if head.get("message") == Refusal.__name__:
        return _read(record, head, Refusal)
    if head.get("protocol") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the message speaks protocol {head.get('protocol')!r}, this installation speaks "
            f"{PROTOCOL_VERSION}: install the same release of dsan-federated at the centre and at every site"
        )
    if head.get("message") != expected.__name__:
        raise ProtocolError(f"expected a {expected.__name__}, found a {head.get('message')!r}")
    return _read(record, head, expected)


def size_bytes(record: RecordDict) -> int:
    """Bytes that a message puts on the wire, but for a few of framing."""
    arrays = sum(len(array.data) for array in _arrays(record).values())
    return arrays + len(str(_head_of(record)))


def branch_counts(branch: Branch, counts: npt.NDArray[np.int64]) -> BranchCounts:
    """The counts that a branch has, from their array. ValueError if the array is not that."""
    return DiceCounts(counts) if branch is Branch.VBNET else ScoreCounts(counts)


def added_scores(counts: Iterable[BranchCounts]) -> ScoreCounts:
    """The scores among the counts of several sites, added."""
    return sum((of_site for of_site in counts if isinstance(of_site, ScoreCounts)), ScoreCounts.empty())


def added_dice(counts: Iterable[BranchCounts]) -> DiceCounts:
    """The Dice among the counts of several sites, added."""
    return sum((of_site for of_site in counts if isinstance(of_site, DiceCounts)), DiceCounts.empty())


def counts_array(counts: BranchCounts) -> npt.NDArray[np.int64]:
    """The array that `branch_counts` takes."""
    return counts.counts_SGQ if isinstance(counts, DiceCounts) else counts.counts_LGB


def content_digest(record: RecordDict) -> str:
    """SHA-256 of all that a message says: its head, then its arrays by name."""
    digest = hashlib.sha256(str(_head_of(record)).encode())
    for name, array in sorted(_arrays(record).items()):
        digest.update(name.encode())
        digest.update(array.data)
    return digest.hexdigest()


def refusal_code(record: RecordDict) -> str | None:
    """The code of a refusal; None of any other message of ours."""
    head = _read_head(record)
    return str(head["fields"]["code"]) if head.get("message") == Refusal.__name__ else None


def asked_by(record: RecordDict) -> tuple[str, int | None]:
    """Study and round that a request is of, as far as it says so; it need not be a good one."""
    try:
        fields_ = _read_head(record)["fields"]
        study, round_number = fields_["terms"]["name"], fields_.get("round")
    except (ProtocolError, KeyError, TypeError, AttributeError):
        return "", None
    return str(study)[:64], round_number if isinstance(round_number, int) else None


_BULK = {"weights", "updates", "validation", "branches", "dual_sampling", "infection_ratio", "counts"}


def _bulk_fields(kind: type) -> dict[str, Any]:
    """Name and declared type of the fields that travel as arrays."""
    types = get_type_hints(kind)
    return {item.name: types[item.name] for item in fields(kind) if item.name in _BULK}


@cache
def _head_type(kind: type) -> tuple[TypeAdapter[Any], type]:
    """The dataclass of the fields that travel as JSON, and its strict reader."""
    types = get_type_hints(kind)
    bulk = _bulk_fields(kind)
    head = make_dataclass(
        kind.__name__, [(i.name, types[i.name]) for i in fields(kind) if i.name not in bulk], frozen=True
    )
    head.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return TypeAdapter(head), head


def _arrays(record: RecordDict) -> ArrayRecord:
    """The arrays. Not by `record.array_records`: Flower 1.41 makes a cycle of it that keeps a reply alive."""
    part = record["arrays"]
    if not isinstance(part, ArrayRecord):
        raise ProtocolError("the part called arrays holds none")
    return part


def _head_of(record: RecordDict) -> object:
    part = record["head"]
    if not isinstance(part, ConfigRecord):
        raise ProtocolError("the part called head is none")
    return part["json"]


def _read_head(record: RecordDict) -> dict[str, Any]:
    unknown = sorted(set(record) - {"head", "arrays"})
    if unknown:
        raise ProtocolError(f"the record has {len(unknown)} parts that no message has")
    try:
        head = json.loads(str(_head_of(record)))
    except (KeyError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the record has no readable head: {error}") from error
    if not isinstance(head, dict):
        raise ProtocolError("the head is not an object")
    return head


def _read(record: RecordDict, head: dict[str, Any], kind: type[Message]) -> Message:
    adapter, _ = _head_type(kind)  # type: ignore[arg-type] # mypy asks whether instances are hashable
    bulk_types = _bulk_fields(kind)
    unknown = sorted(set(head) - {"message", "protocol", "fields", "layouts", *bulk_types})
    if unknown:
        raise ProtocolError(f"not a {kind.__name__}: unknown keys {unknown}")
    try:
        value = adapter.validate_json(json.dumps(head["fields"]), strict=True)
        if adapter.dump_python(value, mode="json") != head["fields"]:
            raise ValueError("a field is left out: the default that stands in may not be the sender's")
        arrays = _arrays(record)
        layouts = [_read_layout(form) for form in head["layouts"]]
        bulk = {name: _read_bulk(head[name], name, of, arrays, layouts) for name, of in bulk_types.items()}
        message: Message = kind(**vars(value), **bulk)
        return message
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"not a {kind.__name__}: {where}: {first['msg']}") from error
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ProtocolError(f"not a {kind.__name__}: {type(error).__name__}: {error}") from error


_Bulk = PackedWeights | BranchCounts | EnsembleCounts


def _write_bulk(
    value: _Bulk | dict[Branch, Any] | None, name: str, arrays: dict[str, Array], layouts: list[Layout]
) -> object:
    """Put the arrays of a field into `arrays`; what is returned says in the head how to read them."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {"branches": {b: _write_bulk(v, f"{name}/{b}", arrays, layouts) for b, v in value.items()}}
    if isinstance(value, PackedWeights):
        return _write_weights(value, name, arrays, layouts)
    counts = value.counts_WSLB if isinstance(value, EnsembleCounts) else counts_array(value)
    arrays[name] = _array(np.ascontiguousarray(counts, np.int64))
    return {"shape": list(counts.shape)}


def _write_weights(
    weights: PackedWeights, name: str, arrays: dict[str, Array], layouts: list[Layout]
) -> object:
    arrays[f"{name}/floats"] = _array(weights.floats)
    arrays[f"{name}/integers"] = _array(weights.integers)
    if weights.layout not in layouts:
        layouts.append(weights.layout)
    return {
        "layout": layouts.index(weights.layout),
        "precision": weights.precision,
        "exponents": weights.exponents,
        "digest": weights.digest,
    }


def _read_bulk(
    form: Any, name: str, kind: Any, arrays: Mapping[str, Array], layouts: Sequence[Layout]
) -> Any:
    """What `_write_bulk` wrote, as the type that the message declares and as no other."""
    if get_origin(kind) is dict:
        _, each = get_args(kind)
        by_branch = [(Branch(b), f) for b, f in form["branches"].items()]
        if each == BranchCounts:
            return {b: branch_counts(b, _counts(f, f"{name}/{b}", arrays)) for b, f in by_branch}
        return {b: _read_bulk(f, f"{name}/{b}", each, arrays, layouts) for b, f in by_branch}
    if kind == ScoreCounts | None:
        return None if form is None else _read_bulk(form, name, ScoreCounts, arrays, layouts)
    if kind is PackedWeights:
        return _read_weights(form, name, arrays, layouts)
    return kind(_counts(form, name, arrays))


def _counts(form: Any, name: str, arrays: Mapping[str, Array]) -> npt.NDArray[np.int64]:
    return _values(arrays[name], np.int64).reshape(form["shape"])


def _read_layout(form: Any) -> Layout:
    names, is_float, shapes = form
    layout = Layout(
        tuple(map(str, names)), tuple(map(bool, is_float)), tuple(tuple(map(int, s)) for s in shapes)
    )
    if any(size < 0 for shape in layout.shapes for size in shape):
        raise ValueError("a tensor has a size below 0")
    return layout


def _read_weights(
    form: Any, name: str, arrays: Mapping[str, Array], layouts: Sequence[Layout]
) -> PackedWeights:
    """The weights as views of the message's bytes: at full size a copy would be 127 MB a branch."""
    layout, precision = layouts[form["layout"]], Precision(form["precision"])
    exponents = tuple(form["exponents"])
    for exponent in exponents:
        if type(exponent) is not int or abs(exponent) > LARGEST_EXPONENT:
            raise ValueError(f"{name}: {exponent!r} is no exponent up to {LARGEST_EXPONENT}")
    floats = _values(arrays[f"{name}/floats"], np.dtype(precision.value).type)
    integers = _values(arrays[f"{name}/integers"], np.int64)
    for kind, found, expected in (
        ("floats", floats.size, layout.numel(is_float=True)),
        ("integers", integers.size, layout.numel(is_float=False)),
        ("exponents", len(exponents), sum(layout.is_float)),
    ):
        if found != expected:
            raise ValueError(f"{name}: the layout has {expected} {kind}, found {found}")
    weights = PackedWeights(layout, precision, exponents, floats, integers)
    if weights.digest != form["digest"]:
        raise ValueError(f"{name}: the values do not have the digest that the message gives")
    return weights


def _array(values: npt.NDArray[Any]) -> Array:
    return Array(dtype=str(values.dtype), shape=values.shape, stype="flat", data=values.tobytes())


def _values(array: Array, dtype: type[np.generic]) -> npt.NDArray[Any]:
    if array.dtype != np.dtype(dtype).name or array.stype != "flat":
        raise ValueError(f"expected flat {np.dtype(dtype).name}, found {array.stype} {array.dtype}")
    return np.frombuffer(array.data, dtype)
