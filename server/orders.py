"""Orders of the centre to sites, as files: given by `dsan-server stop` and `drain`, delivered by SiteWatch.

A site may be away. An order waits for it until it is taken, withdrawn, or too old to mean anything.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

OrderName = Literal["stop", "drain", "undrain"]
EVERY_SITE = "*"
LONGEST_WAIT_S = 12 * 3600.0  # the work that it is about has ended by then: a message lives no longer


@dataclass(frozen=True)
class SiteOrder:
    """What a site is to do about a study ("": about every one); taken_by: the sites that have been told."""

    site: str
    order: OrderName
    study: str
    given_unix_s: float | None = None  # None: when its file was written
    taken_by: tuple[str, ...] = ()

    def waits_for(self, site: str) -> bool:
        """Whether the order is still to be delivered to this site."""
        return self.site in (site, EVERY_SITE) and site not in self.taken_by


def give_order(state_folder: Path, site: str, order: OrderName, study: str) -> Path:
    """Leave an order for a site, or for all (`*`)."""
    path = _folder(state_folder) / f"{uuid4().hex}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, SiteOrder(site, order, study, time.time()))
    return path


def withdraw_orders(state_folder: Path, study: str) -> None:
    """Take back the stops of a study that are still to be delivered; a study that goes on again needs it."""
    for path, order in waiting_orders(state_folder).items():
        if (order.order, order.study) == ("stop", study):
            path.unlink(missing_ok=True)


def waiting_orders(state_folder: Path) -> dict[Path, SiteOrder]:
    """Every order that is not too old, oldest first; what is too old, or no order, is removed."""
    found: dict[Path, SiteOrder] = {}
    for path in _folder(state_folder).glob("*.json"):
        try:
            order = _ORDER.validate_json(path.read_bytes())
            given = path.stat().st_mtime if order.given_unix_s is None else order.given_unix_s
        except FileNotFoundError:
            continue
        except ValidationError:
            path.unlink(missing_ok=True)
            continue
        if time.time() - given > LONGEST_WAIT_S:
            path.unlink(missing_ok=True)
        else:
            found[path] = replace(order, given_unix_s=given)
    return dict(sorted(found.items(), key=lambda item: (item[1].given_unix_s or 0.0, item[0])))


def mark_taken(path: Path, site: str) -> None:
    """Note that a site was told; an order to one site is done with that."""
    try:
        order = _ORDER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return  # withdrawn meanwhile
    if order.site == site:
        path.unlink(missing_ok=True)
    elif site not in order.taken_by:
        _write(path, replace(order, taken_by=(*order.taken_by, site)))


_ORDER = TypeAdapter(SiteOrder)


def _folder(state_folder: Path) -> Path:
    return state_folder / "orders"


def _write(path: Path, order: SiteOrder) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(order)))
    partial.replace(path)
