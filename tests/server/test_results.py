"""What the end of an incomplete study says."""

from pathlib import Path

from server.ledger import LedgerEntry, append_round
from server.results import what_is_missing


def row(name: str, role: str, completed: int, required: int, *, complete: bool) -> dict[str, object]:
    return {
        "name": name,
        "role": role,
        "rounds_completed": completed,
        "rounds_required": required,
        "complete": complete,
    }


def test_who_is_missing_is_named_with_rounds_and_codes(tmp_path: Path) -> None:
    append_round(tmp_path, [LedgerEntry(n, "south", "us", "missing", code="SITE-LATE") for n in (1, 2)])
    append_round(tmp_path, [LedgerEntry(2, "south", "us", "accepted")])  # the round was repeated
    results = {
        "sites": [
            row("north", "training", 3, 3, complete=True),
            row("south", "training", 2, 3, complete=False),
            row("west", "held-out", 0, 0, complete=False),
        ],
        "failures": [{"site": "west", "code": "SITE-ABSENT", "message": "not connected within 120 s"}],
    }
    assert what_is_missing(tmp_path, results) == (
        "south: missed 1 of 3 rounds (SITE-LATE). west: SITE-ABSENT: not connected within 120 s"
    )
