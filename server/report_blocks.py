"""What a page of the report is made of, and how it writes numbers. The template turns blocks into HTML."""

from dataclasses import dataclass, field
from typing import Literal

from server.report_input import ClassCounts, Panel, Score

NOT_AVAILABLE = "n/a"
SET_TITLE = {"validation": "Validation", "held-out": "Held-out", "training": "Training"}
METRICS = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1-score",
}
GROUP_TITLE = {"<0.005": "<\u00a00.005", "0.005-0.030": "0.005–0.030", ">0.030": ">\u00a00.030", "all": "all"}


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `note` stands small beside the text."""

    text: str
    note: str = ""
    is_best: bool = False
    is_undefined: bool = False


@dataclass(frozen=True)
class Head:
    """A heading of columns or of rows; `swatch` is the colour of a model. A site may be named at length."""

    text: str
    columns: int = 1
    rows: int = 1
    note: str = ""
    swatch: str = ""
    is_site: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table; a rule stands above the first line of a group."""

    heads: tuple[Head, ...]
    cells: tuple[Cell, ...]
    starts_group: bool = False


@dataclass(frozen=True)
class Table:
    """A table with one or two lines of column headings; a dense one is wide.

    Looks: `counts` stand right-aligned; `paired` scores have the paper's value small beside them; the
    `headline` has notes beneath its figures; `words` are text.
    """

    header: tuple[tuple[Head, ...], ...]
    rows: tuple[Row, ...]
    look: Literal["counts", "paired", "headline", "words"] = "counts"
    is_dense: bool = False
    kind: Literal["table"] = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """Panels drawn side by side, each an SVG element; the only markup that is not escaped."""

    panels: tuple[str, ...]
    caption: str
    kind: Literal["figure"] = field(default="figure", init=False)


@dataclass(frozen=True)
class Note:
    """A sentence on the page."""

    text: str
    level: Literal["plain", "good", "warning", "small"] = "plain"
    kind: Literal["note"] = field(default="note", init=False)


@dataclass(frozen=True)
class Gallery:
    """Attention pictures."""

    panels: tuple[Panel, ...]
    kind: Literal["gallery"] = field(default="gallery", init=False)


@dataclass(frozen=True)
class Mark:
    """One site in one round of one branch; `explanation` is read by a pointer and by a screen reader."""

    status: str
    sign: str
    explanation: str


@dataclass(frozen=True)
class MatrixRow:
    """One branch of one site over the rounds; the name of the site stands in its first row."""

    site: str
    n_branches: int  # 0: the site's name stands above
    branch: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Matrix:
    """Sites x rounds."""

    rounds: tuple[int, ...]
    rows: tuple[MatrixRow, ...]
    kind: Literal["matrix"] = field(default="matrix", init=False)


Block = Table | Figure | Note | Gallery | Matrix


@dataclass(frozen=True)
class Section:
    """One part of the page; `left_out` says why it has no blocks."""

    anchor: str
    title: str
    blocks: tuple[Block, ...] = ()
    left_out: str = ""


def score_text(value: Score) -> str:
    """AUC, accuracy and their like with three decimals."""
    return NOT_AVAILABLE if value is None else f"{value:.3f}"


def ratio_text(value: Score) -> str:
    """An infection ratio: a decimal more, since the groups start at 0.001."""
    return NOT_AVAILABLE if value is None else f"{value:.4f}"


def p_text(value: float) -> str:
    """A p-value; below a thousandth the digits say nothing."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def why_undefined(metric: str, n: ClassCounts) -> str:
    """The short reason why a metric has no value on so many cases of each class."""
    if n.total == 0:
        return "no case"
    if n.covid == 0 and metric in ("auc", "sensitivity", "f1"):
        return "no COVID-19 case"
    if n.cap == 0 and metric in ("auc", "specificity", "f1"):
        return "no CAP case"
    return "not given"


def undefined(reason: str) -> Cell:
    """A figure that is not defined, with the reason."""
    return Cell(NOT_AVAILABLE, note=reason, is_undefined=True)


def count_text(n: int) -> str:
    """A count with thousands set apart."""
    return f"{n:,}"


def classes_text(n: ClassCounts) -> str:
    """How many cases of each class."""
    return f"{count_text(n.covid)} COVID-19, {count_text(n.cap)} CAP"


def duration_text(seconds: float) -> str:
    """A time span that a person reads at a glance."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(size_bytes: int) -> str:
    """A size in decimal units."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def rounds_text(rounds: tuple[int, ...]) -> str:
    """Round numbers with runs joined: "round 4", "rounds 1–3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(rounds):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    joined = ", ".join("–".join(str(number) for number in run) for run in runs)
    return f"round{'s' if len(rounds) > 1 else ''} {joined}"
