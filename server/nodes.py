"""Which of Flower's nodes is which site, and whether it is connected.

A node that restarts loses the message that it was at without a word; that it was activated anew is the only
trace. A registered node keeps its number; one that joins without registration comes back with another.
"""

from dataclasses import dataclass, field

from flwr.serverapp import Grid


@dataclass
class Nodes:
    """Sites by node; `look` asks the SuperLink, everything else answers from the last look."""

    grid: Grid
    by_site: dict[str, int] = field(default_factory=dict)
    _activation: dict[int, str] = field(default_factory=dict)  # of connected nodes: when they came
    _names: dict[int, str] = field(default_factory=dict)  # of registered nodes

    def look(self) -> None:
        """See who is connected now."""
        found = list(self.grid.get_nodes())
        self._activation = {node.node_id: node.last_activated_at for node in found}
        self._names = {node.node_id: node.name for node in found if node.name}

    def strangers(self) -> list[int]:
        """The nodes that are connected and not known to be a site."""
        return sorted(set(self._activation) - set(self.by_site.values()))

    def activation(self, node: int | None) -> str | None:
        """When a node was activated, as Flower says it; None if it is not connected."""
        return None if node is None else self._activation.get(node)

    def registered_name(self, node: int) -> str:
        """The name that the operator registered the node's key under; empty without registration."""
        return self._names.get(node, "")
