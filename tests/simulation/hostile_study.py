"""The study in which one site answers with garbage, and the code that each kind of it gets."""

from server.study import StudyConfig, preset_study

HOSTILE = "hospital-2"
CODES = {  # of what is not refused as REPLY-PROTOCOL, when it is read
    "NaN in the update": "UPDATE-NOT-FINITE",
    "infinite values": "UPDATE-NOT-FINITE",
    "an update 4096 times as large": "UPDATE-TOO-LARGE",
    "values that overflow": "UPDATE-NOT-FINITE",
    "counters below 0": "UPDATE-COUNTERS",
    "another site's name": "REPLY-SITE",
    "a name with a path": "REPLY-SITE",
    "another round": "REPLY-ROUND",
    "the reply of the round before": "REPLY-ROUND",
    "a branch missing": "REPLY-BRANCHES",
    "more cases than enrolled": "REPLY-CASES",
    "cases below 0": "REPLY-CASES",
    "no cases": "REPLY-CASES",
    "draws that do not add up": "REPLY-CASES",
    "no steps": "REPLY-STEPS",
    "endless training": "REPLY-STEPS",
    "an absurd loss": "REPLY-LOSS",
    "more cases validated": "REPLY-VALIDATION",
    "the classes exchanged": "REPLY-VALIDATION",
    "a message of 64 MB": "REPLY-TOO-LARGE",
    "an exception": "SITE-CRASHED",
}


def hostile_study(names: list[str], rounds: int) -> StudyConfig:
    """The first two train, and one of them suffices."""
    table = preset_study("tiny", "hostile", 5).model_dump()
    table |= {"rounds": rounds, "participation": {"quorum": 1}}
    table |= {"sites": {"training": tuple(names[:2]), "held_out": tuple(names[2:])}}
    return StudyConfig.model_validate(table)
