"""A site that trains with two processes: the same loss curve as with one, in a whole study."""

from pathlib import Path

import pytest
from small_study import Simulate, copied, results_of

ROUNDS = 2


def curves(hospitals: Path, folder: Path, simulate: Simulate, processes: int) -> list[tuple[float, float]]:
    """Both losses of every round and branch; hospital-1 trains with so many processes."""
    at_sites = copied(hospitals, folder / "hospitals")
    config = at_sites / "hospital-1" / "site.toml"
    text = config.read_text()
    config.write_text(f"{text}\n[machine]\nprocesses = {processes}\n")
    options = ("--preset", "tiny", "--rounds", str(ROUNDS), "--workers", "1", "--seed", "5")
    assert simulate("run", "--hospitals", at_sites, "--out", folder / "run", *options) == 0
    rows = results_of(folder / "run")["curves"]
    return [(row["classification_loss"], row["attention_loss"]) for row in rows]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_processes_of_a_site_have_the_loss_curve_of_one(
    hospitals: Path, finished: Path, tmp_path: Path, simulate: Simulate
) -> None:
    one = curves(hospitals, tmp_path / "one", simulate, 1)
    two = curves(hospitals, tmp_path / "two", simulate, 2)
    assert len(one) == len(two) == 2 * ROUNDS
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-4)
    assert one[0] != one[-2]  # it learns
