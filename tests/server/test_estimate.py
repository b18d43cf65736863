"""What a study will take, by hand: bytes of its network, and seconds of its slowest site."""

from dataclasses import replace

import pytest
from restarting_grid import description

from dsan_model.cases import SizeGroup
from dsan_model.network import AttentionResNet
from dsan_model.vbnet import VBNet
from server.estimate import estimate, estimate_text, network_layout
from server.study import StudyConfig

NAMES = ("east", "north", "west")
SITES = {name: description(name) for name in NAMES}


def study(**changes: object) -> StudyConfig:
    sites = {"training": ("east", "north"), "held_out": ("west",)}
    return StudyConfig.model_validate({"name": "s", "rounds": 4, "sites": sites, **changes})


def test_the_traffic_is_that_of_every_message_with_weights() -> None:
    found = estimate(study(), SITES)
    weights = found.bytes_a_round  # of US and SS together
    assert 250e6 < weights < 260e6  # 2 branches, 63.5 million values of 2 bytes
    rounds, last_validation, ensemble, test, attention = 4 * 2, 2, 2, 1, 3
    assert found.bytes_to_sites == (rounds + last_validation + ensemble + test + attention) * weights
    assert found.bytes_from_sites == rounds * weights
    assert (found.training_sites, found.held_out_sites, found.parts) == (2, 1, 1)


def test_a_segmentation_study_is_counted_by_its_own_network_and_has_no_ensemble() -> None:
    found = estimate(study(task="segmentation"), SITES)
    n_values = sum(tensor.numel() for tensor in VBNet(study().segmentation.config.network).parameters())
    assert found.bytes_a_round == pytest.approx(2 * n_values, rel=0.01)
    assert found.bytes_to_sites == (4 * 2 + 2 + 1) * found.bytes_a_round


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_layout_is_that_of_the_network_that_travels(task: str) -> None:
    wanted = study(task=task)
    network = (
        VBNet(wanted.segmentation.config.network)
        if task == "segmentation"
        else AttentionResNet(wanted.network_config)
    )
    assert set(network_layout(wanted).names) == set(network.state_dict())


def test_the_time_is_that_of_the_slowest_site_and_not_known_before_all_have_measured() -> None:
    measured = {name: replace(site, seconds_per_case=1.0) for name, site in SITES.items()}
    measured["north"] = replace(measured["north"], seconds_per_case=2.0)
    cases = sum(SITES["north"].training_groups[group] for group in SizeGroup)
    validated = sum(SITES["north"].validation_groups.get(group, 0) for group in SizeGroup)
    found = estimate(study(), measured)
    assert found.seconds_a_round == pytest.approx((cases + validated / 3) * 2.0 * 2)
    assert found.seconds == pytest.approx(4 * found.seconds_a_round)
    assert " in all, beside the way of the bytes" in estimate_text(found)
    assert "time: not known" in estimate_text(estimate(study(), SITES))
