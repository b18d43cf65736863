"""A site of another release, or that computes something else, is told apart before the first round."""

from dataclasses import asdict, replace
from importlib.metadata import version

import pytest

from dsan_model.golden_case import GOLDEN, GoldenResult
from dsan_model.protocol import SiteDescription
from server.handshake import reject_installation

NUMBERS: dict[str, float | None] = dict(asdict(GOLDEN))
SITE = SiteDescription(
    site="north",
    versions={name: version(name) for name in ("dsan-federated", "flwr")},
    recipe_digest="",
    training_groups={},
    validation_groups={},
    demographics=(),
    ratio_histogram={},
    left_out={},
    lung_masks={},
    infection_masks={},
    withheld=(),
    golden_case=GoldenResult("cpu", NUMBERS),
)


def test_a_site_of_this_release_that_computes_the_same_is_taken() -> None:
    assert reject_installation(SITE) is None


@pytest.mark.parametrize("package", ["dsan-federated", "flwr"])
def test_another_release_is_named_on_both_sides(package: str) -> None:
    rejection = reject_installation(replace(SITE, versions=SITE.versions | {package: "0.0.9"}))
    assert rejection is not None
    assert rejection.code == "SITE-VERSION"
    assert "north" in rejection.message
    assert "0.0.9" in rejection.message
    assert version(package) in rejection.message


@pytest.mark.parametrize("value", [GOLDEN.logit + 0.1, None])
def test_another_golden_case_is_named_with_both_values(value: float | None) -> None:
    numbers = NUMBERS | {"logit": value}
    rejection = reject_installation(replace(SITE, golden_case=GoldenResult("cuda", numbers)))
    assert rejection is not None
    assert rejection.code == "SITE-GOLDEN"
    for part in ("north", "cuda", "logit", f"{GOLDEN.logit:.8g}", "no finite" if value is None else "0.68"):
        assert part in rejection.message


def test_a_number_that_is_left_out_is_a_difference() -> None:
    numbers = {name: value for name, value in NUMBERS.items() if name != "volume_mean"}
    rejection = reject_installation(replace(SITE, golden_case=GoldenResult("cpu", numbers)))
    assert rejection is not None
    assert rejection.code == "SITE-GOLDEN"
