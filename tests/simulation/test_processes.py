"""A site that trains with two processes: the same loss curve as with one, in a whole study."""

from pathlib import Path

import numpy as np
import pytest
from small_study import copied, results_of

from client.app import app
from server.run_folder import write_study
from server.study import StudyConfig, preset_study
from simulation.engines import run_in_process
from simulation.federated_study import find_hospitals, prepare_hospitals

ROUNDS = 2


def curves(hospitals: Path, folder: Path, processes: int) -> list[tuple[float, float]]:
    """Both losses of every round and branch in float32; hospital-1 trains with so many processes."""
    at_sites = copied(hospitals, folder / "hospitals")
    config = at_sites / "hospital-1" / "site.toml"
    config.write_text(f"{config.read_text()}\n[machine]\nprocesses = {processes}\n")
    found = find_hospitals(at_sites)
    *training, held_out = found.names
    table = preset_study("tiny", "processes", 5).model_dump()
    table |= {"rounds": ROUNDS, "sites": {"training": tuple(training), "held_out": (held_out,)}}
    table |= {"traffic": {"precision": "float32"}}  # half precision makes of 1e-6 steps of 1e-4 in a weight
    study = StudyConfig.model_validate(table)
    write_study(folder / "run", study)
    prepare_hospitals(found, study, 1)
    run_in_process(folder / "run", tuple(found.sites.values()), 1, app)
    rows = results_of(folder / "run")["curves"]
    return [(row["classification_loss"], row["attention_loss"]) for row in rows]


def test_two_processes_of_a_site_have_the_loss_curve_of_one(hospitals: Path, tmp_path: Path) -> None:
    one = curves(hospitals, tmp_path / "one", 1)
    two = curves(hospitals, tmp_path / "two", 2)
    assert len(one) == len(two) == 2 * ROUNDS
    print(f"largest difference {abs(np.subtract(one, two)).max():.1e}")
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-4)
    assert one != two  # sums in another order: two processes did train
    assert one[0] != one[-2]  # it learns
