"""The centre's rounds at full size: replies of 63.5 M floats for two branches, 2 to 32 sites, in process.

Command: python benchmarks/aggregation.py
Takes about five minutes, 3 GB of memory and 9 GB of disk. The rounds are the centre's own (server/rounds.py):
every reply is checked, spooled, averaged and saved; only that the sites compute nothing, and that no network
is between. Expected: memory above the bare process at most 3 times the weights of one branch in float32, the
same for 2 and 32 sites; the mean in at most twice the time of torch._foreach_add_ over the same bytes;
Flower's FedAvg beside both, which keeps every reply.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from dsan_model.cases import RATIO_EDGES, Label, SizeGroup
from dsan_model.golden_case import GOLDEN, GoldenResult
from dsan_model.metrics import ScoreCounts
from dsan_model.network import NetworkConfig, initial_state
from dsan_model.protocol import BranchTraining, Demographics, RoundReply, SiteDescription, encode
from dsan_model.sampling import Branch
from dsan_model.traffic import Precision, pack
from dsan_model.weights import FlatWeights, flatten
from server.aggregation import RunningMean
from server.enrolment import Enrolled
from server.exchange import Exchange
from server.rounds import train
from server.study import StudyConfig
from server.superlink import GIVES_MEMORY_BACK
from simulation.engines import InProcessGrid

BRANCHES = (Branch.US, Branch.SS)
CASES = 200
ROUNDS = 2
SITES = (2, 8, 32)
REPEATS = 5
GROUPS = dict(zip(SizeGroup, (50, 50, 100, 0), strict=True))


class AnsweringGrid(InProcessGrid):
    """Sites that answer a round at once; a reply is made of bytes on disk when it is pulled."""

    def __init__(self, sites: tuple[str, ...], reply: Path) -> None:
        super().__init__(
            ClientApp(), tuple(Path(site) / "site.toml" for site in sites), ThreadPoolExecutor(1)
        )
        self.sites = sites
        self.reply = reply
        self.asked: dict[str, int] = {}
        self.round = 0

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All of them."""
        return [NodeInfo(node_id=number + 1, last_activated_at="now") for number in range(len(self.sites))]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Remember who was asked; what was said is forgotten."""
        self.round += 1
        identifiers = [uuid.uuid4().hex for _ in messages]
        nodes = [message.metadata.dst_node_id for message in messages]
        self.asked |= dict(zip(identifiers, nodes, strict=True))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies of these sites."""
        return [self._reply(key) for key in message_ids]

    def _reply(self, key: str) -> Message:
        node = self.asked.pop(key)
        asked = Message(RecordDict({"head": ConfigRecord()}), node, "train.round")
        asked.metadata.__dict__["_message_id"] = key
        head, forms = json.loads((self.reply / "head.json").read_text())
        head = json.loads(head)
        head["fields"] |= {"site": self.sites[node - 1], "round": self.round}
        arrays = {
            name: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=(self.reply / file).read_bytes())
            for file, (name, dtype, shape, stype) in forms.items()
        }
        record = {"head": ConfigRecord({"json": json.dumps(head)}), "arrays": ArrayRecord(arrays)}
        return Message(RecordDict(record), reply_to=asked)


def write_reply(folder: Path, precision: Precision) -> None:
    """What a site sends, as files: an update of the size of the weights."""
    training = BranchTraining(CASES, 10, 1.0, 2e-4, 0.5, 0.4, GROUPS)
    updates = {branch: pack(weights_of(1 + number), precision) for number, branch in enumerate(BRANCHES)}
    scores = dict.fromkeys(BRANCHES, ScoreCounts.empty())
    record = encode(RoundReply("north", 1, dict.fromkeys(BRANCHES, training), scores, updates))
    forms = {}
    for number, (name, array) in enumerate(record["arrays"].items()):
        forms[str(number)] = [name, array.dtype, list(array.shape), array.stype]
        (folder / str(number)).write_bytes(array.data)
    (folder / "head.json").write_text(json.dumps([record["head"]["json"], forms]))


def description(site: str) -> SiteDescription:
    """A site of 200 training cases and none to validate."""
    return SiteDescription(
        site=site,
        versions={},
        recipe_digest="",
        training_groups=GROUPS,
        validation_groups=dict.fromkeys(SizeGroup, 0),
        demographics=tuple(Demographics(label, 100, 100, (), 0, 0) for label in Label),
        ratio_histogram={label: (0,) * (len(RATIO_EDGES) - 1) for label in Label},
        left_out={},
        withheld=(),
        golden_case=GoldenResult("cpu", dict(vars(GOLDEN))),
        lung_masks={},
        infection_masks={},
    )


def weights_of(seed: int) -> FlatWeights:
    """The paper's network, untrained."""
    return flatten(initial_state(NetworkConfig(), seed))


def stream(n_sites: int, precision: Precision) -> dict[str, float]:
    """Memory and seconds of a round of the centre; two rounds, as the second reads what the first saved."""
    sites = tuple(f"site-{number:02}" for number in range(n_sites))
    study = StudyConfig.model_validate(
        {"name": "aggregation", "rounds": ROUNDS, "sites": {"training": sites}}
        | {"traffic": {"precision": precision.value}}
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        measure("reply", str(folder), precision.value)
        _reset_peak()
        base = _resident_bytes()
        exchange = Exchange(AnsweringGrid(sites, folder), 3600.0, folder)
        exchange.nodes.by_site = {site: number + 1 for number, site in enumerate(sites)}
        enrolled = Enrolled({site: description(site) for site in sites}, groups=GROUPS)
        started = time.perf_counter()
        state = train(exchange, study, enrolled, folder)
        seconds = time.perf_counter() - started
        assert len(state.history[-1].training) == n_sites
        return {"peak_bytes": _peak_bytes() - base, "seconds": seconds / ROUNDS}


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
    command = [sys.executable, __file__, *arguments]
    environment = os.environ | GIVES_MEMORY_BACK  # as the study's process has it
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(what: str, n_sites: int, found: dict[str, float], weight_bytes: float) -> None:
    """One line: memory above the bare process, and time of a reply."""
    peak = found["peak_bytes"]
    sys.stdout.write(
        f"{what}, {n_sites:2} sites: {peak / 2**20:5.0f} MiB ({peak / weight_bytes:.2f} of a branch), "
        f"{found['seconds'] / n_sites:.2f} s a reply\n"
    )


def main() -> None:
    """Print memory and time of every size, and the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["stream", "flower", "times", "reply"])
    parser.add_argument("of", nargs="?", default="2", help="sites; of a reply the folder")
    parser.add_argument("precision", nargs="?", default="float16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    precision = Precision(options.precision)
    if options.what == "reply":
        write_reply(Path(options.of), precision)
        sys.stdout.write("{}\n")
        return
    if options.what:
        found = {
            "stream": lambda: stream(int(options.of), precision),
            "flower": lambda: flower(int(options.of)),
            "times": times,
        }[options.what]()
        sys.stdout.write(json.dumps(found) + "\n")
        return
    one = weights_of(0).size_bytes
    sys.stdout.write(f"weights of a branch: {one / 2**20:.0f} MiB\n")
    for precision in Precision:
        for n_sites in SITES if precision is Precision.FLOAT16 else SITES[:1]:
            found = measure("stream", str(n_sites), precision.value)
            tell(f"ours, {precision}, both branches", n_sites, found, one)
    for n_sites in SITES[:2]:
        tell("Flower's FedAvg, one branch", n_sites, measure("flower", str(n_sites)), one)
    found = measure("times")
    for name in ("float32", "float16"):
        ratio = found[name] / found["foreach_add"]
        sys.stdout.write(f"mean of {name}: {found[name]:.3f} s, {ratio:.2f} of torch._foreach_add_\n")
    sys.stdout.write(
        f"digest {found['digest']:.3f} s, norm and check {found['norm']:.3f} s, of half precision\n"
    )


if __name__ == "__main__":
    main()
