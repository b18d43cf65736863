"""`dsan-client diagnose` of one scan at the paper's size on a CPU: the seconds of each step, both precisions.

    python benchmarks/diagnose_scan.py             # 3 minutes on two cores
    python benchmarks/diagnose_scan.py --times 1 --precisions float32

The scan is that of prepare_scan.py, 300 DICOM slices of 512 x 512; its lungs and infection are segmented by
the built-in method. Each branch has 63.5 M parameters drawn at random, batch normalisation that has seen the
scan, so that no activation vanishes, and a logit of 1. Each run is a process of its own; medians are told.

Expected: `networks`, both branches, below the paper's 4.6 s of a TITAN RTX (IV-C) on two idle cores that have
instructions for bfloat16, where `auto` takes it; P(COVID-19) within 0.01 of that in float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "client"), str(Path(__file__).parent)]

from cohort_factory import write_package  # noqa: E402  (importable only from here on)
from prepare_scan import write_scan  # noqa: E402

from client.images import read_ct, read_mask  # noqa: E402
from dsan_model.network import NetworkConfig, initial_state  # noqa: E402
from dsan_model.preprocessing import Recipe, prepare_case  # noqa: E402
from dsan_model.sampling import Branch  # noqa: E402
from dsan_model.training import build_network  # noqa: E402

STEPS = ("import", "load", "read", "masks", "prepare", "networks", "attention", "panel")
LOGIT = 1.0


def main() -> None:
    """Write scan and package, diagnose again and again, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "auto"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scan(folder / "scan")
        package = _package(folder)
        results = {
            precision: [_diagnosed(folder, package, precision) for _ in range(chosen.times)]
            for precision in chosen.precisions
        }
    _print(results)


def _package(folder: Path) -> Path:
    recipe, config, scan = Recipe(), NetworkConfig(), folder / "scan"
    ct, _ = read_ct(scan / "series", None, 5.0)
    lung, infection = (read_mask(scan / f"{name}.nii.gz", ct, None, name) for name in ("lung", "infection"))
    volume_DHW = torch.from_numpy(prepare_case(ct, lung, infection, recipe).volume_DHW)
    states = {branch: _state(config, seed, volume_DHW) for seed, branch in enumerate((Branch.US, Branch.SS))}
    size = {"shape_dhw": recipe.shape_DHW, "antialias": recipe.antialias}
    return write_package(
        folder / "model", tuple(states), config, states, input=size, recipe_digest=recipe.digest
    )


def _state(config: NetworkConfig, seed: int, volume_DHW: Tensor) -> dict[str, Tensor]:
    network = build_network(config, initial_state(config, seed), torch.device("cpu"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0  # what the scan itself has
    with torch.no_grad():
        logit = network.train()(volume_DHW[None, None]).logit_B[0]
        network.fc.bias += LOGIT - logit
    return network.state_dict()


def _diagnosed(folder: Path, package: Path, precision: str) -> dict[str, Any]:
    """result.json of one run of the command."""
    scan, out = folder / "scan" / "series", folder / "out"
    code = "from client.cli import main; main()"
    options = ["--model", package, "--out", out, "--precision", precision, "--device", "cpu"]
    command = [sys.executable, "-c", code, "diagnose", scan, *options]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def _print(results: dict[str, list[dict[str, Any]]]) -> None:
    print(f"{'':<10}" + "".join(f"{step:>11}" for step in STEPS) + f"{'P(COVID-19)':>13}")
    for precision, runs in results.items():
        seconds = [median(run["seconds"][step] for run in runs) for step in STEPS]
        print(
            f"{precision:<10}" + "".join(f"{s:>9.2f} s" for s in seconds) + f"{runs[0]['probability']:>13.4f}"
        )


if __name__ == "__main__":
    main()
