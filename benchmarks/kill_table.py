"""The kill matrix as a table: what each cell says, and which cells there cannot be."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CENTRE_PROGRAMS = ("nginx", "superlink", "superexec", "serverapp", "daemon", "power")
SITE_PROGRAMS = ("daemon", "supernode", "superexec", "fork-server", "clientapp", "power", "frozen")
TARGETS = (
    *(f"centre-{program}" for program in CENTRE_PROGRAMS),
    *(f"site-{program}" for program in SITE_PROGRAMS),
)
LONGEST_FIRST = sorted(TARGETS, key=lambda t: t not in ("site-power", "site-supernode", "site-frozen"))
PHASES = ("idle", "unpulled", "training", "pushing", "aggregating", "writing", "evaluating", "fitting")
NO_SUCH_CELL = {
    ("centre-serverapp", "idle"): "there is one for each run, and none runs",
    ("site-clientapp", "idle"): "there is one for each message, and none is in work",
    ("site-clientapp", "unpulled"): "it begins after the message was pulled",
    ("site-clientapp", "aggregating"): "it ended with its answer, before the centre took it",
    ("site-clientapp", "writing"): "it ended with its answer, before the centre took it",
}
NAMED_S = 90.0
RESULTS = "kills.jsonl"


@dataclass(frozen=True)
class Cell:
    """One kill and what came of it."""

    target: str
    phase: str
    time: str
    reached: bool
    back_s: float | None  # None: the study was not at work again in time
    named_s: float | None  # None: the centre did not name the site
    repeated: int  # rounds that were in the ledger and were done again
    complete: bool
    equal: bool
    trained_again: int

    @property
    def is_good(self) -> bool:
        """Whether all is as it should be."""
        must_be_named = self.target in ("site-power", "site-frozen")
        is_named = not must_be_named or (self.named_s is not None and self.named_s <= NAMED_S)
        is_whole = self.complete and self.equal and self.trained_again == 0
        return self.reached and self.back_s is not None and self.repeated <= 1 and is_whole and is_named


def read_cells(folder: Path) -> dict[tuple[str, str], Cell]:
    """The newest of each cell."""
    found: dict[tuple[str, str], Cell] = {}
    with suppress(FileNotFoundError):
        for line in (folder / RESULTS).read_text().splitlines():
            cell = Cell(**json.loads(line))
            found[cell.target, cell.phase] = cell
    return found


def table_text(cells: dict[tuple[str, str], Cell], targets: Sequence[str], phases: Sequence[str]) -> str:
    """The matrix, what its figures are, and why some cells cannot be."""
    reasons = list(dict.fromkeys(NO_SUCH_CELL.values()))
    lines = [_line("", phases)]
    for target in targets:
        texts = []
        for key in ((target, phase) for phase in phases):
            if key in NO_SUCH_CELL:
                texts.append(f"none ({reasons.index(NO_SUCH_CELL[key]) + 1})")
            else:
                texts.append(_text(cells[key]) if key in cells else "not run")
        lines.append(_line(target, texts))
    good = sum(cell.is_good for cell in cells.values())
    return "\n".join(
        [
            *lines,
            "",
            "seconds until at work again / rounds of the ledger repeated / seconds until the centre named it",
            *(f"none ({number}): {reason}" for number, reason in enumerate(reasons, 1)),
            f"{good} of {len(cells)} cells that were run are good: study complete, weights equal bit",
            "for bit, at most one round repeated, nothing finished trained again, a dead site named within "
            f"{NAMED_S:.0f} s",
        ]
    )


def in_seconds(value: float | None) -> str:
    """Whole seconds; a hyphen for what did not happen."""
    return "-" if value is None else f"{value:.0f} s"


def _line(head: str, texts: Sequence[str]) -> str:
    return f"{head:<17}" + "".join(f"{text:<20}" for text in texts).rstrip()


def _text(cell: Cell) -> str:
    if not cell.reached:
        return "NOT REACHED"
    named = f" / {in_seconds(cell.named_s)}" if cell.target.startswith("site-") else ""
    text = f"{in_seconds(cell.back_s)} / {cell.repeated}{named}"
    problems = {"INCOMPLETE": not cell.complete, "DIFFERS": not cell.equal, "AGAIN": cell.trained_again > 0}
    words = [word for word, is_there in problems.items() if is_there]
    return " ".join([text, *words] if cell.is_good or words else [text, "BAD"])
