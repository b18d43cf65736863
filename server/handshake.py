"""Does a site compute what the centre expects? Its release, Flower and golden case, before round 1."""

from importlib.metadata import version

from dsan_model.golden_case import golden_differences
from dsan_model.protocol import SiteDescription
from server.admission import Rejection

SAME_RELEASE = ("dsan-federated", "flwr")


def reject_installation(description: SiteDescription) -> Rejection | None:
    """The first difference between a site's installation and this one, with the values of both; or None."""
    for package in SAME_RELEASE:
        there, here = description.versions.get(package), version(package)
        if there != here:
            return Rejection(
                "SITE-VERSION",
                f"{description.site} has {package} {there or '(none)'}, the centre has {here}: "
                "install the same release at both",
            )
    differences = golden_differences(description.golden_case)
    if not differences:
        return None
    name, values = differences[0]
    others = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
    return Rejection(
        "SITE-GOLDEN",
        f"golden case at {description.site} on {description.golden_case.device}: {name}: {values} by the "
        f"centre's dsan-federated {version(SAME_RELEASE[0])}{others}; see `dsan-client check` at the site",
    )
