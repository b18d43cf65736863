"""Whether the SuperNode talks with the centre and, while it does not, why: looked into every few seconds."""

import threading
import time
from dataclasses import replace
from pathlib import Path

from client.connection import Contact, not_admitted, reach
from client.daemon_status import ConnectionStatus
from client.node_state import NodeState, read_node_state
from client.site_watch import SiteWatchClient

LOOK_EVERY_S = 5.0
FIX_NODE = "After a restart it takes a minute; if it lasts, look at state/logs/supernode.log."
HELP_LINE = "For more information"  # a link of Flower's, which says nothing of the matter
RECENT_S = 45.0  # an idle SuperNode asks for messages every 3 s; one whose answer is uploaded says more


class ConnectionWatch:
    """Looks at the SuperNode's contact; without a recent one, tries the way to the centre by itself."""

    def __init__(self, address: str, ca_certificate: Path | None, node_state: Path) -> None:
        self._address = address
        self._ca_certificate = ca_certificate
        self._node_state = node_state
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, name="connection-watch", daemon=True)
        self._contact = Contact("CONNECT-STARTING", "the SuperNode has just been started", "")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    @property
    def is_reachable(self) -> bool:
        """Whether the centre answered when it was tried last."""
        return self._contact.code is None

    def status(self, watch: SiteWatchClient | None) -> ConnectionStatus:
        """What is known now."""
        node = read_node_state(self._node_state)
        last = node.contact if node is not None else None
        is_connected = self._is_connected()
        contact = self._contact
        if contact.code is None:
            contact = _why_only_the_node(node, contact)
        return ConnectionStatus(
            is_connected=is_connected,
            last_contact=last,
            code=None if is_connected else contact.code,
            reason="" if is_connected else contact.reason,
            fix="" if is_connected else contact.fix,
            clock_ahead_s=contact.clock_ahead_s,
            watched_since=watch.connected_since if watch is not None else None,
            not_watched=watch.reason if watch is not None else "there is no SiteWatch on loopback",
        )

    def _is_connected(self) -> bool:
        node = read_node_state(self._node_state)
        if node is None or node.contact is None or node.http_status is not None:
            return False
        return time.time() - node.contact < RECENT_S

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            if not self._is_connected():
                self._contact = reach(self._address, self._ca_certificate)
            else:
                self._contact = Contact(None, clock_ahead_s=self._contact.clock_ahead_s)


def _why_only_the_node(node: NodeState | None, reached: Contact) -> Contact:
    """The centre can be reached, and the SuperNode does not talk with it: refused, or not ready."""
    if node is not None and node.http_status is not None and 400 <= node.http_status < 500:
        return not_admitted(node.http_status, reached.clock_ahead_s)
    trouble = node.trouble.splitlines() if node is not None else []
    said = " ".join(line.strip() for line in trouble if line.strip() and not line.startswith(HELP_LINE))
    reason = f"the centre can be reached; the SuperNode is not connected and says: {said or 'nothing yet'}"
    return replace(reached, code="CONNECT-NODE", reason=reason, fix=FIX_NODE)
