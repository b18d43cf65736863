from dataclasses import replace
from pathlib import Path

import pytest

from client.dicom_identity import ScanFacts
from client.findings import Finding
from client.series_choice import Kernel, SeriesAudit, choose_series, kernel_kind

REFUSED = Finding("DICOM-NOT-AXIAL", "error", "the series", "coronal", "Use the axial one.")
WARNED = replace(REFUSED, code="DICOM-OBLIQUE", severity="warning")


def series(
    number: int,
    *findings: Finding,
    kernel: str | None = None,
    is_original: bool = True,
    thickness_mm: float = 1.0,
    length_mm: float = 300.0,
    n_slices: int = 300,
    body_part: str | None = None,
) -> SeriesAudit:
    facts = ScanFacts(None, None, None, None, kernel, body_part)
    found, size = (n_slices, findings), (thickness_mm, length_mm)
    return SeriesAudit(number, (Path("x"),), "folder", ("x",), *found, is_original, *size, facts)


def test_what_the_gate_refuses_is_not_chosen_and_warnings_do_not_matter() -> None:
    choice = choose_series([series(1, REFUSED, thickness_mm=0.6), series(2, WARNED)])
    assert choice.chosen is not None
    assert choice.chosen.number == 2
    assert choice.reasons[1] == "refused by the gate: DICOM-NOT-AXIAL"
    assert choice.reasons[2] == "chosen: axial, original, 300 slices of 1 mm over 300 mm, unknown kernel"


def test_a_study_of_refused_series_has_no_case() -> None:
    choice = choose_series([series(1, REFUSED), series(2, REFUSED)])
    assert choice.chosen is None
    assert set(choice.reasons) == {1, 2}


THICK, LUNG_KERNEL, SOFT_KERNEL = {"thickness_mm": 5.0}, {"kernel": "B70f"}, {"kernel": "B30f"}
RULES = {  # loser, winner, reason
    "an original, though thicker": ({"is_original": False}, THICK, "derived"),
    "a complete one, though thicker": ({"length_mm": 269}, THICK, "only 269 mm long"),
    "the chest, though another is longer": (
        {"length_mm": 431, "body_part": "ABDOMEN"},
        {"length_mm": 288, "body_part": "CHEST"},
        "body part ABDOMEN",
    ),
    "one that says nothing before another part": ({"body_part": "HEAD"}, THICK, "body part HEAD"),
    "a whole chest that is thinner than what is longer": (
        {"length_mm": 600, "thickness_mm": 1.25},
        {"length_mm": 288},
        "as good as series 2",
    ),
    "one of the paper's thickness, though soft": (THICK | LUNG_KERNEL, SOFT_KERNEL, "slices of 5 mm"),
    "a thinner one of two thick ones": (THICK | LUNG_KERNEL, {"thickness_mm": 2.0}, "slices of 5 mm"),
    "a lung kernel, though thicker": (SOFT_KERNEL, {"thickness_mm": 1.5} | LUNG_KERNEL, "soft kernel"),
    "an unknown kernel before a soft one": (SOFT_KERNEL, {"kernel": "XYZ"}, "soft kernel"),
    "the thinnest of equals": ({"thickness_mm": 1.25}, {}, "as good as series 2"),
    "the one with more slices of equals": ({"n_slices": 200}, {}, "as good as series 2"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rules_choose(name: str) -> None:
    worse, better, reason = RULES[name]
    loser, winner = series(1, **worse), series(2, **better)
    for order in ([loser, winner], [winner, loser]):
        choice = choose_series(order)
        assert choice.chosen == winner
        assert choice.reasons[loser.number].startswith(reason)


def test_a_series_nine_tenths_as_long_is_complete() -> None:
    choice = choose_series([series(1, length_mm=270, kernel="LUNG"), series(2, length_mm=300)])
    assert choice.chosen is not None
    assert choice.chosen.number == 1


def test_of_equals_the_first_is_chosen_in_every_order() -> None:
    for order in ([series(1), series(2)], [series(2), series(1)]):
        choice = choose_series(order)
        assert choice.chosen is not None
        assert choice.chosen.number == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            (name, Kernel.LUNG)
            for name in ("B60f", "B70s", "Br59d", "Bl57d", "I70f", "LUNG", "BONEPLUS", "EDGE")
        ),
        *((name, Kernel.LUNG) for name in ("L", "YC", "FC51", "FC86", "B_SHARP_C", "lung")),
        *((name, Kernel.SOFT) for name in ("B30f", "B40f", "D40s", "Br40d", "I31f", "STANDARD", "SOFT", "B")),
        *((name, Kernel.SOFT) for name in ("FC08", "FC17", "B_SOFT_B", "B_SMOOTH_A")),
        *((name, Kernel.UNKNOWN) for name in (None, "", "XYZ", "17")),
    ],
)
def test_kernels_are_known_by_the_manufacturers_names(name: str | None, kind: Kernel) -> None:
    assert kernel_kind(name) is kind
