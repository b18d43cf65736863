"""Streaming aggregation at full size: replies of 63.5 M floats for two branches, 2 to 32 sites, in process.

Command: python benchmarks/aggregation.py
Takes about four minutes and 5 GB. Expected: memory above the bare process at most 3 times the weights of both
branches, the same for 2 and 32 sites; the mean in at most twice the time of torch._foreach_add_ over the same
bytes; Flower's FedAvg beside both, which keeps every reply.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from dsan_model.cases import SizeGroup
from dsan_model.metrics import ScoreCounts
from dsan_model.network import NetworkConfig, initial_state
from dsan_model.protocol import BranchTraining, RoundReply, decode, encode
from dsan_model.sampling import Branch
from dsan_model.traffic import PackedWeights, Precision, pack
from dsan_model.weights import FlatWeights, flatten
from server.aggregation import RunningMean, moved

BRANCHES = (Branch.US, Branch.SS)
CASES = 200
SITES = (2, 8, 32)
REPEATS = 5


def a_reply(update: PackedWeights) -> RecordDict:
    """What a site sends: the same update for both branches, so that this script needs little memory."""
    training = BranchTraining(
        CASES, 10, 1.0, 2e-4, 0.5, 0.4, dict(zip(SizeGroup, (50, 50, 100, 0), strict=True))
    )
    return encode(
        RoundReply(
            "north",
            1,
            dict.fromkeys(BRANCHES, training),
            dict.fromkeys(BRANCHES, ScoreCounts.empty()),
            dict.fromkeys(BRANCHES, update),
        )
    )


def weights_of(seed: int) -> FlatWeights:
    """The paper's network, untrained."""
    return flatten(initial_state(NetworkConfig(), seed))


def stream(n_sites: int, precision: Precision) -> dict[str, float]:
    """One round as the centre does it: decode, check, add, drop; then move the weights."""
    state = {branch: weights_of(0) for branch in BRANCHES}
    template = a_reply(pack(weights_of(1), precision))
    arrays = template.array_records["arrays"]
    kept = {name: (a.dtype, a.shape, a.stype, a.data) for name, a in arrays.items()}
    head = template.config_records["head"]
    own_bytes = sum(len(a[3]) for a in kept.values())  # of this script: not part of the centre
    del template, arrays
    gc.collect()
    base = _resident_bytes() - own_bytes - sum(w.size_bytes for w in state.values())
    _reset_peak()
    means = {branch: RunningMean() for branch in BRANCHES}
    started = time.perf_counter()
    for _ in range(n_sites):
        fresh = {
            n: Array(dtype=d, shape=s, stype=t, data=bytes(memoryview(b)[:]))
            for n, (d, s, t, b) in kept.items()
        }
        reply = decode(RecordDict({"head": head, "arrays": ArrayRecord(fresh)}), RoundReply)
        assert isinstance(reply, RoundReply)
        for branch, update in reply.updates.items():
            assert np.isfinite(update.norm)
            means[branch].add(update, CASES)
        del fresh, reply, update
    for branch in BRANCHES:
        state[branch] = moved(state[branch], means.pop(branch).result())
    seconds = time.perf_counter() - started
    return {"peak_bytes": _peak_bytes() - own_bytes - base, "seconds": seconds}


def flower(n_sites: int) -> dict[str, float]:
    """Flower's FedAvg of the same: a state dict in float32, one record a branch, all replies at once."""
    state = weights_of(0).state_dict()
    base = _resident_bytes()
    _reset_peak()
    replies = [
        RecordDict({"arrays": ArrayRecord({**state}), "metrics": MetricRecord({"num-examples": CASES})})
        for _ in range(n_sites)
    ]
    started = time.perf_counter()
    aggregate_arrayrecords(replies, "num-examples")
    return {"peak_bytes": _peak_bytes() - base, "seconds": time.perf_counter() - started}


def times() -> dict[str, float]:
    """Seconds to add one update of one branch: torch._foreach_add_, ours in both precisions; medians."""
    weights = weights_of(1)
    sums = [torch.zeros_like(weights.floats)]
    full, half = (pack(weights, precision) for precision in (Precision.FLOAT32, Precision.FLOAT16))
    means = {"float32": RunningMean(), "float16": RunningMean()}
    for mean, update in ((means["float32"], full), (means["float16"], half)):
        mean.add(update, CASES)
    actions: dict[str, Callable[[], object]] = {
        "foreach_add": lambda: torch._foreach_add_(sums, [weights.floats], alpha=0.5),
        "float32": lambda: means["float32"].add(full, CASES),
        "float16": lambda: means["float16"].add(half, CASES),
        "digest": lambda: replace(half).digest,
        "norm": lambda: replace(half).norm,
    }
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(REPEATS):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measure(*arguments: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(what: str, n_sites: int, found: dict[str, float], weight_bytes: float) -> None:
    """One line: memory above the bare process, and time of a reply."""
    peak = found["peak_bytes"]
    sys.stdout.write(
        f"{what}, {n_sites:2} sites: {peak / 2**20:5.0f} MiB ({peak / weight_bytes:.2f} of the weights), "
        f"{found['seconds'] / n_sites:.2f} s a reply\n"
    )


def main() -> None:
    """Print memory and time of every size, and the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["stream", "flower", "times"])
    parser.add_argument("sites", nargs="?", type=int, default=2)
    parser.add_argument("precision", nargs="?", default="float16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what:
        found = {
            "stream": lambda: stream(options.sites, Precision(options.precision)),
            "flower": lambda: flower(options.sites),
            "times": times,
        }[options.what]()
        sys.stdout.write(json.dumps(found) + "\n")
        return
    both = 2 * weights_of(0).size_bytes
    sys.stdout.write(f"weights of both branches: {both / 2**20:.0f} MiB\n")
    for precision in Precision:
        for n_sites in SITES if precision is Precision.FLOAT16 else SITES[:1]:
            found = measure("stream", str(n_sites), precision.value)
            tell(f"ours, {precision}, both branches", n_sites, found, both)
    for n_sites in SITES[:2]:
        tell("Flower's FedAvg, one branch", n_sites, measure("flower", str(n_sites)), both / 2)
    found = measure("times")
    for name in ("float32", "float16"):
        ratio = found[name] / found["foreach_add"]
        sys.stdout.write(f"mean of {name}: {found[name]:.3f} s, {ratio:.2f} of torch._foreach_add_\n")
    sys.stdout.write(
        f"digest {found['digest']:.3f} s, norm and check {found['norm']:.3f} s, of half precision\n"
    )


if __name__ == "__main__":
    main()
