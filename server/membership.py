"""The SuperLink's list of nodes is made to agree with sites/: enrolled sites are in it, no others are."""

import logging

from server.centre import Centre
from server.sites import EnrolledSite, sites_locked, write_site
from server.superlink import SuperLink, pem_of

log = logging.getLogger("dsan.server")


def reconcile_nodes(centre: Centre, superlink: SuperLink) -> None:
    """Register and unregister nodes until key and name of each are those of an enrolled site.

    Raises SuperLinkError if the SuperLink does not answer; what was done until then stays done.
    """
    with sites_locked(centre) as sites:
        wanted = {(pem_of(site.public_key), site.name) for site in sites.values() if not site.is_revoked}
        registered: dict[str, int] = {}
        for node in superlink.nodes():
            if (node.public_key, node.name) in wanted:
                registered[node.name] = node.node_id
            else:
                superlink.unregister(node.node_id)
                log.warning("node %d (%s) is unregistered: no enrolled site has it", node.node_id, node.name)
        for site in sites.values():
            _reconcile(centre, superlink, site, registered.get(site.name))


def _reconcile(centre: Centre, superlink: SuperLink, site: EnrolledSite, node_id: int | None) -> None:
    if not site.is_revoked and node_id is None:
        node_id = superlink.register(site.name, site.public_key)
        log.info("%s is registered as node %d", site.name, node_id)
    if site.node_id != node_id:
        write_site(centre, site.model_copy(update={"node_id": node_id}))
