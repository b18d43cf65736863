"""Validation AUC with updates in half precision and in full, over three seeds, on small synthetic hospitals.

Command: python benchmarks/precision.py [--rounds 8] [--cases 40] [--sites 4]
Takes about ten minutes on two cores. Expected: precisions differ less than seeds do, and the traffic is half.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from server.results import Row, read_results
from server.run_folder import write_study
from server.study import StudyConfig, preset_study
from simulation.command import HospitalOptions, hospitals_command
from simulation.engines import Engine, run_study_on
from simulation.federated_study import find_hospitals, prepare_hospitals

SEEDS = (0, 1, 2)
BRANCHES = ("us", "ss")


def study_of(names: list[str], seed: int, rounds: int, precision: str) -> StudyConfig:
    """The demo's study over these hospitals, the last of them held out."""
    table = preset_study("demo", f"precision-{precision}", seed).model_dump()
    table |= {"rounds": rounds, "traffic": {"precision": precision}}
    table |= {"sites": {"training": tuple(names[:-1]), "held_out": tuple(names[-1:])}}
    return StudyConfig.model_validate(table)


def run(folder: Path, seed: int, rounds: int, precision: str) -> Row:
    """Train over the hospitals of the folder; what results.json says."""
    hospitals = find_hospitals(folder / "hospitals")
    study = study_of(list(hospitals.sites), seed, rounds, precision)
    run_folder = folder / precision
    write_study(run_folder, study)
    prepare_hospitals(hospitals, study, os.cpu_count() or 1)
    run_study_on(Engine.INPROCESS, run_folder, tuple(hospitals.sites.values()), os.cpu_count() or 1)
    results = read_results(run_folder)
    assert results is not None
    return results


def main() -> None:
    """Print the AUC of each seed, branch and precision, and the spread of seeds beside that of precisions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--sites", type=int, default=4)
    options = parser.parse_args()
    found: dict[tuple[int, str], Row] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shape = (40, 96, 96)
            written = HospitalOptions(
                folder / "hospitals", options.sites, options.cases, shape, "nifti", "mixed", "demo", seed, 2
            )
            assert hospitals_command(written) == 0
            for precision in ("float32", "float16"):
                found[seed, precision] = results = run(folder, seed, options.rounds, precision)
                aucs = [f"{b} {results['model_selection'][b]['validation_auc']:.4f}" for b in BRANCHES]
                traffic = results["traffic"]["bytes_from_sites"] / 1e6
                sys.stdout.write(
                    f"seed {seed}, {precision}: {', '.join(aucs)}; {traffic:.1f} MB from the sites\n"
                )
                sys.stdout.flush()
    for branch in BRANCHES:
        auc = {key: r["model_selection"][branch]["validation_auc"] for key, r in found.items()}
        differences = [auc[seed, "float16"] - auc[seed, "float32"] for seed in SEEDS]
        spread = statistics.stdev(auc[seed, "float32"] for seed in SEEDS)
        text = ", ".join(f"{difference:+.4f}" for difference in differences)
        sys.stdout.write(f"{branch}: float16 minus float32 {text}; deviation over seeds {spread:.4f}\n")


if __name__ == "__main__":
    main()
