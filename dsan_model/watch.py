"""What a site may tell the centre while it works: a closed set of fields, each of a known form.

Both ends use it: the site, so that nothing else leaves, and the centre, which trusts no site to have done so.
"""

import math
import re

from dsan_model.sampling import Branch
from dsan_model.watch_pb2 import Order, SiteStatus

PHASES = (
    "starting",
    "idle",
    "describing",
    "validating",
    "training",
    "evaluating",
    "fitting",
    "explaining",
    "sending",
    "drained",
    "stopping",
)
BRANCHES = tuple(branch.value for branch in Branch)
PART_SUFFIX = r"\.(fold-[0-9]+|without-[A-Za-z0-9-]+)$"
STUDY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
SITE_NAME = r"[A-Za-z0-9][A-Za-z0-9-]{0,31}"
CODE = r"[A-Z]{3,}(?:-[A-Z0-9]+)+"
LONGEST_CODE = 48
RELEASE = r"[0-9]{1,4}(?:\.[0-9]{1,4}){1,3}[A-Za-z0-9.+]{0,24}"
LARGEST_ROUND = 100_000
LARGEST_STEPS = 1_000_000_000
LONGEST_ETA_S = 60 * 86400.0
LARGEST_DISK_BYTES = 1 << 60
LATEST_UNIX_S = 4102444800.0  # the year 2100

SITE_HEADER, PROXY_HEADER = "x-dsan-site", "x-dsan-proxy"  # metadata that the centre's proxy sets


def clean_status(status: SiteStatus) -> SiteStatus:
    """The same status without every field that is not of its form; what is dropped reads as not said."""
    steps = status.steps if status.steps <= LARGEST_STEPS else 0
    return SiteStatus(
        study=_formed(status.study, STUDY_NAME),
        round=status.round if status.round <= LARGEST_ROUND else 0,
        branch=status.branch if status.branch in BRANCHES else "",
        phase=status.phase if status.phase in PHASES else "",
        done=min(status.done, steps),
        steps=steps,
        eta_s=_within(status.eta_s, LONGEST_ETA_S),
        disk_free_bytes=status.disk_free_bytes if status.disk_free_bytes <= LARGEST_DISK_BYTES else 0,
        last_error=_formed(status.last_error, CODE) if len(status.last_error) <= LONGEST_CODE else "",
        release=_formed(status.release, RELEASE),
        sent_unix_s=_within(status.sent_unix_s, LATEST_UNIX_S),
        phase_since_unix_s=_within(status.phase_since_unix_s, LATEST_UNIX_S),
    )


def is_about(order: Order, study: str) -> bool:
    """Whether an order concerns the work on a study; "": work whose study is not known yet, or no more.

    A part of a study (a fold, a site left out) is called STUDY.fold-N or STUDY.without-SITE.
    """
    return "" in (order.study, study) or order.study in (study, whole_study(study))


def whole_study(study: str) -> str:
    """The study to which a part belongs; one that is not a part is its own."""
    return re.sub(PART_SUFFIX, "", study)


def _formed(text: str, form: str) -> str:
    return text if re.fullmatch(form, text) else ""


def _within(value: float, largest: float) -> float:
    return value if math.isfinite(value) and 0 <= value <= largest else 0.0
