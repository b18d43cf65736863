"""A Grid in this process whose nodes can leave, come back and lose what they were at, as Flower's do."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from dsan_model.cases import RATIO_EDGES, Label, SizeGroup
from dsan_model.golden_case import GOLDEN, GoldenResult
from dsan_model.protocol import AGES, Demographics, SiteDescription
from simulation.engines import InProcessGrid


class RestartingGrid(InProcessGrid):
    """Nodes are connected at the start; `leave` and `come_back` may be called from a ClientApp's thread.

    Like Flower 1.41: who pulls a message of a node that is away gets an error, and its reply is dropped.
    """

    def __init__(self, app: ClientApp, site_configs: tuple[Path, ...], pool: ThreadPoolExecutor) -> None:
        super().__init__(app, site_configs, pool)
        self.activations: dict[int, str] = dict.fromkeys(super().get_node_ids(), "first")
        self.names: dict[int, str] = {}
        self.pushed: list[tuple[int, str]] = []  # node and message
        self.swallows: set[int] = set()  # nodes whose next message is lost on its way
        self._node_of: dict[str, int] = {}
        self._lost: set[str] = set()

    def leave(self, node: int) -> None:
        """The node dies: what it was at and what waited for it are lost with it."""
        self.activations.pop(node)
        self._lost |= {key for key, of in self._node_of.items() if of == node}

    def come_back(self, node: int, activation: str = "again") -> None:
        """The node is activated anew."""
        self.activations[node] = activation

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Who is connected, since when, and under which registered name."""
        return [
            NodeInfo(node_id=node, last_activated_at=since, name=self.names.get(node, ""))
            for node, since in sorted(self.activations.items())
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As in any Grid; a node that never joined gets an empty identifier."""
        identifiers = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.swallows:
                self.swallows.remove(node)
                identifiers.append(f"lost-{node}")
                self._lost.add(identifiers[-1])
                continue
            (identifier,) = super().push_messages([message])
            if identifier:
                self._node_of[identifier] = node
                self.pushed.append((node, identifier))
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there; an error for a node that is away; nothing for what was lost."""
        found: list[Message] = []
        for key in message_ids:
            if key in self._node_of and self._node_of[key] not in self.activations:
                del self._node_of[key]
                self._lost.add(key)
                found.append(_unavailable(key))
            elif key not in self._lost:
                found.extend(super().pull_messages([key]))
        return found


def _unavailable(key: str) -> Message:
    asked = Message(RecordDict({"head": ConfigRecord()}), 1, "query.describe")
    asked.metadata.__dict__["_message_id"] = key
    return Message(Error(ErrorCode.NODE_UNAVAILABLE, "away"), reply_to=asked)


def description(site: str) -> SiteDescription:
    """A site of twenty training cases that computes what this installation does."""
    training = dict(zip(SizeGroup, (5, 5, 10, 0), strict=True))
    validation = dict(zip(SizeGroup, (1, 1, 2, 0), strict=True))
    n_images = {Label.COVID: 12, Label.CAP: 12}
    bins = (0,) * (len(RATIO_EDGES) - 2)
    return SiteDescription(
        site=site,
        versions={name: version(name) for name in ("dsan-federated", "flwr")},
        recipe_digest="cd" * 32,
        training_groups=training,
        validation_groups=validation,
        demographics=tuple(Demographics(label, n, n, (0,) * AGES, 0, 0) for label, n in n_images.items()),
        ratio_histogram={label: (*bins, n) for label, n in n_images.items()},
        left_out={},
        lung_masks={"given": 24},
        infection_masks={"given": 24},
        withheld=(),
        golden_case=GoldenResult("cpu", dict(asdict(GOLDEN))),
    )
