"""What `transport.py` compares with: Flower's own FedAvg of a state dict, and bare Flower moving our bytes.

Nobody trains: a site changes every value a little, so that no two messages hold the same bytes (Flower
stores equal ones once). A line of JSON a round goes to the file `out` of the run's configuration, and one if
the run failed.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from dsan_model.network import NetworkConfig, initial_state
from dsan_model.sampling import Branch
from dsan_model.traffic import Precision, packed_layout_bytes
from dsan_model.weights import flatten

BRANCHES = (Branch.US, Branch.SS)

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the sites, then run the rounds of one arm."""
    config = context.run_config
    while len(list(grid.get_node_ids())) < int(config["sites"]):
        time.sleep(0.5)
    arm = {"fedavg": fedavg, "bare": bare}[str(config["arm"])]
    out = Path(str(config["out"]))
    try:
        arm(grid, NetworkConfig(width=int(config["width"])), int(config["rounds"]), Log(out))
    except Exception as error:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"failed": repr(error)}) + "\n")
        raise


class Log:
    """A line for each round: when it ended, what it moved, and the memory of this process above the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bare_bytes = peak_bytes()
        self.round_began()

    def round_began(self) -> None:
        """Remember when a round begins."""
        self.began = time.monotonic()

    def tell(self, **values: float) -> None:
        """Write the line of a round that has ended."""
        line = {"seconds": time.monotonic() - self.began, "memory_bytes": peak_bytes() - self.bare_bytes}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | values) + "\n")


class TimedFedAvg(FedAvg):
    """FedAvg, with a line for each round: its part of training, and all of it with the evaluation."""

    log: Log
    bytes_moved = 0
    training_s = 0.0

    def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
        """The round begins."""
        self.log.round_began()
        self.bytes_moved = 0
        return self._counted(super().configure_train(server_round, arrays, config, grid))

    def configure_evaluate(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
        """The part of training is over."""
        self.training_s = time.monotonic() - self.log.began
        return self._counted(super().configure_evaluate(server_round, arrays, config, grid))

    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        """Count what came."""
        return super().aggregate_train(server_round, self._counted(replies))

    def aggregate_evaluate(self, server_round, replies):  # type: ignore[no-untyped-def]
        """The round has ended."""
        found = super().aggregate_evaluate(server_round, replies)
        self.log.tell(without_evaluation_s=self.training_s, bytes=self.bytes_moved)
        return found

    def _counted(self, messages):  # type: ignore[no-untyped-def]
        listed = list(messages)
        self.bytes_moved += sum(_size(message.content) for message in listed if message.has_content())
        return listed


def fedavg(grid: Grid, network: NetworkConfig, rounds: int, log: Log) -> None:
    """Flower's strategy as it is, over a state dict of both branches in float32."""
    state = {
        f"{branch}.{name}": values
        for branch in BRANCHES
        for name, values in initial_state(network, 0).items()
    }
    strategy = TimedFedAvg()
    strategy.log = log
    strategy.start(grid, ArrayRecord(state), num_rounds=rounds)


def bare(grid: Grid, network: NetworkConfig, rounds: int, log: Log) -> None:
    """The bytes of two branches in half precision to every site and back, by `send_and_receive`; no more."""
    layout = flatten(initial_state(network, 0)).layout
    n_bytes = packed_layout_bytes(layout, Precision.FLOAT16)
    payload = {
        b.value: np.frombuffer(np.random.default_rng(i).bytes(n_bytes), np.uint8).copy()
        for i, b in enumerate(BRANCHES)
    }
    for _ in range(rounds):
        log.round_began()
        for values in payload.values():
            values += 1
        record = _packed(payload)
        messages = [Message(record, node, "train.bare") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        moved = sum(_size(reply.content) for reply in replies)  # raises for a reply that is an error
        log.tell(bytes=moved + _size(record) * len(replies))


@client.train("bare")
def send_back(message: Message, context: Context) -> Message:
    """The same bytes with another value added to each."""
    arrays = message.content["arrays"]
    added = np.uint8(1 + os.getpid() % 255)
    changed = {name: np.frombuffer(array.data, np.uint8) + added for name, array in arrays.items()}
    return Message(_packed(changed), reply_to=message)


@client.train()
def change(message: Message, context: Context) -> Message:
    """A state dict out of the message, changed a little, and back."""
    state = message.content["arrays"].to_torch_state_dict()
    noise = 1e-6 * (1 + os.getpid() % 1000)
    changed = {
        name: values + noise if values.is_floating_point() else values for name, values in state.items()
    }
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(changed), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The state dict is read, and nothing computed with it."""
    message.content["arrays"].to_torch_state_dict()
    metrics = MetricRecord({"loss": 0.5, "num-examples": 1})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def peak_bytes() -> int:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _packed(values: dict[str, np.ndarray]) -> RecordDict:
    arrays = {
        name: Array(dtype="uint8", shape=of.shape, stype="flat", data=of.tobytes())
        for name, of in values.items()
    }
    return RecordDict({"arrays": ArrayRecord(arrays), "head": ConfigRecord({"json": "{}"})})


def _size(content: RecordDict) -> int:
    return sum(len(array.data) for array in content.get("arrays", {}).values())
