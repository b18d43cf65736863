"""The table of bad input, as `python benchmarks/bad_input.py` prints it."""

import importlib.util
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "bad_input.py"


def test_no_kind_of_bad_input_passes_in_silence_and_every_neighbour_is_processed(tmp_path: Path) -> None:
    """The whole path: `prepare` for cases, and for all else the command that reads it."""
    specification = importlib.util.spec_from_file_location("bad_input", TABLE)
    assert specification is not None
    assert specification.loader is not None
    table = importlib.util.module_from_spec(specification)
    sys.modules["bad_input"] = table
    specification.loader.exec_module(table)
    verdicts = table.all_verdicts(tmp_path)
    assert table.table_text(verdict for verdict in verdicts if not verdict.is_right).count("\n") == 0
    assert len({(verdict.group, verdict.name) for verdict in verdicts}) == len(verdicts) >= 350
