"""What the report reads from a run folder: results.json, ledger.jsonl and the attention panels.

Every key but `format_version`, `study`, `complete` and `sites` may be missing. A key that does not read as
it should is set aside with the reason: a study that took days gets its report, and the page says what it
lacks.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from dsan_model.cases import Label
from dsan_model.sampling import Branch
from server.ledger import LEDGER, LedgerEntry

FORMAT_VERSION = 1
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Score = float | None  # None: not defined, as the AUC of a site with one class
Interval = tuple[float, float] | None
EvaluatedSet = Literal["validation", "held-out"]
CohortSet = Literal["training", "held-out"]
_LEDGER_ENTRY = TypeAdapter(LedgerEntry)


class ReportError(Exception):
    """The run folder cannot be reported on; the text says what, where, why and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Study(_Part):
    """What was run; `synthetic` says whether every scan was made by program (None: not said)."""

    name: str
    seed: int
    preset: str
    input_shape_dhw: tuple[int, int, int] | None = None
    positive: str = "COVID-19"
    task: Literal["classification", "segmentation"] = "classification"
    spacing_mm_xyz: tuple[float, float, float] | None = None  # of a segmentation
    patch_dhw: tuple[int, int, int] | None = None
    synthetic: bool | None = None


class ClassCounts(_Part):
    """Number of cases of each class."""

    covid: int = Field(alias="COVID-19")
    cap: int = Field(alias="CAP")

    @property
    def total(self) -> int:
        """Cases of both classes."""
        return self.covid + self.cap


class Site(_Part):
    """One hospital and its share in the study."""

    name: str
    role: Literal["training", "held-out"]
    cases: ClassCounts
    rounds_completed: int
    rounds_required: int
    complete: bool | None = None  # whether it delivered all that was asked of it; None: not said
    left_out: dict[str, int] = {}  # cases that could not be prepared, by the code of the finding
    lung_masks: dict[str, int] = {}  # cases by what made their lung mask
    infection_masks: dict[str, int] = {}


class SiteFailure(_Part):
    """The coded error of a site outside the rounds: at enrolment, ensemble fit or evaluation."""

    site: str
    code: str
    message: str = ""


class SelectedRound(_Part):
    """The round whose weights a branch kept (IV-C)."""

    round: int
    validation_auc: Score = None
    compared_rounds: tuple[int, ...] = ()
    compared_sites: tuple[str, ...] = ()


class Controls(_Part):
    """What a trivial score reaches: the infection ratio itself, taken as the probability."""

    auc_infection_ratio: dict[EvaluatedSet, Score]


class Ensemble(_Part):
    """Eq. 5: weight of the US branch inside and outside the band of infection ratios."""

    band: tuple[float, float]
    w_inside: Score
    w_outside: Score
    objective: str | float | None = None
    w_inside_ci: Interval = None
    w_outside_ci: Interval = None


class ModelScores(_Part):
    """One model on one set of cases: a column of Table II."""

    set: EvaluatedSet
    model: str
    n: ClassCounts
    auc: Score = None
    auc_ci: Interval = None
    auc_error_bound: Score = None
    accuracy: Score = None
    sensitivity: Score = None
    specificity: Score = None
    f1: Score = None

    @property
    def score_of(self) -> Mapping[str, Score]:
        """The five metrics of the paper by name."""
        return {
            "auc": self.auc,
            "accuracy": self.accuracy,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "f1": self.f1,
        }


class GroupScores(ModelScores):
    """One model on the cases of one group of infection ratios: a column of Table III."""

    group: str


class SiteScores(ModelScores):
    """One model on the cases of one site."""

    site: str


class AttentionScores(_Part):
    """How well an attention map lies on the infection; `group` is a group of Table III or "all"."""

    set: EvaluatedSet
    model: str
    group: str
    cases: int | None = None
    dice_infection: Score = None
    mass_in_infection: Score = None
    mass_in_lung: Score = None


class RoundTime(_Part):
    """Seconds of one round of one branch."""

    round: int
    branch: Branch
    slowest_site_train_s: float
    overhead_s: float


class PhaseTime(_Part):
    """Seconds of one phase of a simulation; the phase called "study" holds the rounds."""

    name: str
    seconds: float


class Timing(_Part):
    """What took the time; `total_s` is that of the study itself, without the phases around it."""

    total_s: float
    rounds: tuple[RoundTime, ...] = ()
    phases: tuple[PhaseTime, ...] = ()
    peak_memory_bytes: int | None = None


class Traffic(_Part):
    """Bytes of weights and counts between the centre and all sites."""

    bytes_to_sites: int
    bytes_from_sites: int


class Shrunk(_Part):
    """One thing that the study does otherwise than the paper."""

    what: str
    paper: str | float
    here: str | float


class CohortRow(_Part):
    """One class of one set: a column entry of Table I; female and male count patients."""

    set: CohortSet
    label: str
    images: int
    patients: int
    age_median: float | None = None
    age_range: tuple[float, float] | None = None
    female: int | None = None
    male: int | None = None


class CurvePoint(_Part):
    """One round of one branch: mean losses of training and the AUC on the validation cases after it."""

    round: int
    branch: Branch
    classification_loss: Score = None
    attention_loss: Score = None
    validation_auc: Score = None
    validation_auc_error_bound: Score = None
    learning_rate: Score = None


class DiceRow(_Part):
    """VB-Net on one structure of one set: all sites together by ratio group, or one site."""

    set: EvaluatedSet
    site: str
    structure: Literal["lungs", "infection"]
    group: str
    cases: int
    dice: Score = None
    pooled_dice: Score = None


class SegmentationPoint(_Part):
    """One round of VB-Net: mean loss of training, and the mean Dice on the validation cases after it."""

    round: int
    dice_loss: Score = None
    validation_dice_lungs: Score = None
    validation_dice_infection: Score = None
    learning_rate: Score = None


class RocCurve(_Part):
    """One curve of Fig. 4."""

    set: EvaluatedSet
    model: str
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    auc: Score = None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.fpr) != len(self.tpr):
            raise ValueError(f"fpr has {len(self.fpr)} points, tpr has {len(self.tpr)}")
        return self


class RatioHistogram(_Part):
    """Fig. 1: cases per bin of the infection ratio, by set and class; `edges` are ratios, 0 to 1."""

    edges: tuple[float, ...]
    sets: dict[CohortSet, dict[Label, tuple[int, ...]]]

    @model_validator(mode="after")
    def _bins_fit_edges(self) -> Self:
        if len(self.edges) < 3 or self.edges[0] < 0 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must be three or more rising ratios, found {self.edges}")
        for set_name, classes in self.sets.items():
            for label, counts in classes.items():
                if len(counts) != len(self.edges) - 1:
                    expected = len(self.edges) - 1
                    raise ValueError(f"{set_name} {label} has {len(counts)} bins, the edges make {expected}")
        return self


class GroupDraws(_Part):
    """How often a size group should be drawn (W / sum W, III-C) and how often it was."""

    branch: Branch
    group: str
    expected: float
    drawn: int
    federation_probability: Score = None  # W / sum W; `expected` counts that some sites lack a group


class SamplingTest(_Part):
    """Chi-square test of the drawn group frequencies of one branch against the plan."""

    branch: Branch
    chi_square: Score = None
    p_value: Score = None


class SiteSamplingTest(_Part):
    """The same test of size-balanced sampling at one site."""

    site: str
    chi_square: Score = None
    p_value: Score = None


class Moments(_Part):
    """A metric over the parts of a study; None where it is not defined in one of them."""

    mean: Score = None
    std: Score = None


class PlanPart(_Part):
    """One fold, or one site that is left out."""

    name: str
    complete: bool


class PlanMeans(_Part):
    """One model on one set, over the parts."""

    set: EvaluatedSet
    model: str
    auc: Moments
    accuracy: Moments
    sensitivity: Moments
    specificity: Moments
    f1: Moments

    def moments(self, metric: str) -> Moments:
        """Mean and deviation of a metric by name."""
        found: Moments = getattr(self, metric)
        return found


class PlanTest(_Part):
    """A paired t-test between two models over the parts."""

    set: EvaluatedSet
    metric: Literal["auc", "accuracy", "sensitivity", "specificity", "f1"]
    model_a: str
    model_b: str
    t: Score = None
    p_value: Score = None


class Plan(_Part):
    """A study of several parts; `pooled` is the set whose cases one part each has scored."""

    kind: str
    pooled: EvaluatedSet
    parts: tuple[PlanPart, ...]
    table2_means: tuple[PlanMeans, ...] = ()
    t_tests: tuple[PlanTest, ...] = ()


class Results(_Part):
    """results.json; an empty collection or None stands for a missing key."""

    study: Study
    complete: bool
    sites: tuple[Site, ...]
    model_selection: dict[Branch, SelectedRound] = {}
    controls: Controls | None = None
    ensemble: Ensemble | None = None
    table2: tuple[ModelScores, ...] = ()
    table3: tuple[GroupScores, ...] = ()
    per_site: tuple[SiteScores, ...] = ()
    attention: tuple[AttentionScores, ...] = ()
    timing: Timing | None = None
    traffic: Traffic | None = None
    shrunk: tuple[Shrunk, ...] | None = None  # differences from the paper; an empty list says: none
    table1: tuple[CohortRow, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
    dice: tuple[DiceRow, ...] = ()
    segmentation_curves: tuple[SegmentationPoint, ...] = ()
    roc: tuple[RocCurve, ...] = ()
    ratio_histogram: RatioHistogram | None = None
    sampling: tuple[GroupDraws, ...] = ()
    sampling_test: tuple[SamplingTest, ...] = ()
    sampling_by_site: tuple[SiteSamplingTest, ...] = ()
    failures: tuple[SiteFailure, ...] = ()
    plan: Plan | None = None


class PanelEntry(_Part):
    """One line of figures/panels/panels.json."""

    file: str
    site: str = ""
    set: str = ""
    case: str = ""
    label: str = ""
    infection_ratio: Score = None
    probability: Score = None
    caption: str = ""


@dataclass(frozen=True)
class Panel:
    """One attention picture (Fig. 5) and what it shows."""

    entry: PanelEntry
    png: bytes
    width_px: int
    height_px: int


@dataclass(frozen=True)
class RunFolder:
    """All that the report is made from, and what could not be read of it."""

    results: Results
    unreadable: Mapping[str, str]  # key of results.json -> reason
    ledger: tuple[LedgerEntry, ...]  # the last word on each (site, branch, round), in the ledger's order
    panels: tuple[Panel, ...]
    problems: tuple[str, ...]  # of ledger.jsonl and figures/panels, one sentence each


def read_run_folder(run_folder: Path) -> RunFolder:
    """Read what the report needs. Raises ReportError where there are no results to report."""
    results, unreadable = _read_results(run_folder / "results.json")
    ledger, ledger_problems = _read_ledger(run_folder / LEDGER)
    panels, panel_problems = _read_panels(run_folder / "figures" / "panels")
    return RunFolder(results, unreadable, ledger, panels, ledger_problems + panel_problems)


def _read_results(path: Path) -> tuple[Results, Mapping[str, str]]:
    raw = _read_json_object(path)
    if raw.get("format_version") != FORMAT_VERSION:
        raise ReportError(
            f"{path}: format_version is {raw.get('format_version')}, this release reads {FORMAT_VERSION}. "
            "Build the report with the release that ran the study"
        )
    try:
        return Results.model_validate(raw), {}
    except ValidationError as error:
        unreadable = _reason_by_key(error)
    fatal = [key for key in ("study", "complete", "sites") if key in unreadable]
    if fatal:
        reasons = "; ".join(unreadable[key] for key in fatal)
        raise ReportError(f"{path}: {reasons}. Without it there is nothing to report; resume the study")
    return Results.model_validate({k: v for k, v in raw.items() if k not in unreadable}), unreadable


def _read_json_object(path: Path) -> dict[str, object]:
    try:
        # JSON has no NaN; should a writer let one through, it is an undefined figure, not a number.
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError:
        raise ReportError(
            f"{path}: not found. The study has no results yet: let it end, or resume it"
        ) from None
    except ValueError as error:
        raise ReportError(
            f"{path}: not readable as JSON: {error}. Resume the study to write it anew"
        ) from error
    if not isinstance(raw, dict):
        raise ReportError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def _reason_by_key(error: ValidationError) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        key, *inner = problem["loc"]
        where = ".".join(str(step) for step in (key, *inner))
        reasons.setdefault(str(key), f"{where}: {problem['msg']}")
    return reasons


def _read_ledger(path: Path) -> tuple[tuple[LedgerEntry, ...], tuple[str, ...]]:
    """The last line about a (site, branch, round) counts: a resumed round is written again."""
    if not path.exists():
        return (), ()
    latest: dict[tuple[str, str, int], LedgerEntry] = {}
    problems = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            if _is_round(line):
                entry = _LEDGER_ENTRY.validate_json(line)
                latest[entry.site, Branch(entry.branch), entry.round] = entry
        except (
            ValueError
        ) as error:  # a killed run may leave half a line; pydantic's error is a ValueError too
            problems.append(f"{path.name} line {number} was left out: {_first_line(error)}.")
    return tuple(latest.values()), tuple(problems)


def _is_round(line: bytes) -> bool:
    """Whether a line is about a round; the ledger may hold other events and empty lines."""
    if not line.strip():
        return False
    event = json.loads(line)
    return not isinstance(event, dict) or event.get("event") == "round"


def _first_line(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(_reason_by_key(error).values())
    return str(error).splitlines()[0]


def _read_panels(folder: Path) -> tuple[tuple[Panel, ...], tuple[str, ...]]:
    manifest = folder / "panels.json"
    if not manifest.exists():
        return (), ()
    try:
        raw_entries = json.loads(manifest.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except ValueError as error:
        return (), (f"figures/panels/panels.json is not readable as JSON: {error}.",)
    panels, problems = [], []
    for number, raw in enumerate(raw_entries if isinstance(raw_entries, list) else [raw_entries], start=1):
        try:
            panels.append(_read_panel(folder, PanelEntry.model_validate(raw)))
        except (ValueError, OSError) as error:
            reason = _first_line(error) if isinstance(error, ValueError) else f"{error.strerror}"
            problems.append(f"Attention panel {number} of panels.json was left out: {reason}.")
    return tuple(panels), tuple(problems)


def _read_panel(folder: Path, entry: PanelEntry) -> Panel:
    if Path(entry.file).name != entry.file:
        raise ValueError(f"file {entry.file!r} must be a plain name inside figures/panels")
    png = (folder / entry.file).read_bytes()
    if not png.startswith(PNG_SIGNATURE) or len(png) < 24:
        raise ValueError(f"{entry.file} is not a PNG picture")
    width_px, height_px = struct.unpack(">II", png[16:24])
    return Panel(entry, png, width_px, height_px)
