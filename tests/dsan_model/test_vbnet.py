import pytest
import torch
from torch import nn

from dsan_model.patches import PRESETS
from dsan_model.vbnet import VBNet, VBNetConfig, build_vbnet, dice_loss, initial_vbnet_state

SMALL = VBNetConfig(width=4, convolutions=(1, 2), plain_scales=1)


def network(config: VBNetConfig = SMALL, seed: int = 0) -> VBNet:
    return build_vbnet(config, initial_vbnet_state(config, seed), torch.device("cpu"))


def test_output_has_a_logit_for_lungs_and_one_for_infection_in_every_voxel() -> None:
    assert network()(torch.randn(2, 1, 8, 12, 16)).shape == (2, 2, 8, 12, 16)


@pytest.mark.parametrize("preset", PRESETS)
def test_patch_of_every_preset_has_sides_that_the_network_can_halve(preset: str) -> None:
    config = PRESETS[preset].segmentation
    assert all(side % config.network.stride == 0 for side in config.patch_dhw)


def test_published_size_has_four_scales_and_its_parameters() -> None:
    with torch.device("meta"):
        full = VBNet(VBNetConfig())
    assert [down.shrink[0].out_channels for down in full.down] == [32, 64, 128, 256]
    assert [up.grow[0].in_channels for up in full.up] == [64, 128, 256, 256]
    assert sum(p.numel() for p in full.parameters()) == 1_958_450


def test_bottleneck_computes_its_3x3x3_convolution_on_a_quarter_of_the_channels() -> None:
    with torch.device("meta"):
        full = VBNet(VBNetConfig())
    kernels = [
        (m.in_channels, m.out_channels, m.kernel_size[0])
        for m in full.down[3].residual.modules()
        if isinstance(m, nn.Conv3d)
    ]
    assert kernels == [(256, 64, 1), (64, 64, 3), (64, 256, 1)] * 3


def test_finest_scale_has_plain_convolutions_and_bottlenecks_save_most_parameters() -> None:
    with torch.device("meta"):
        vbnet, vnet = VBNet(VBNetConfig()), VBNet(VBNetConfig(plain_scales=4))
    finest = [m for m in vbnet.down[0].residual.modules() if isinstance(m, nn.Conv3d)]
    assert [m.kernel_size for m in finest] == [(3, 3, 3)]
    sizes = [sum(p.numel() for p in n.parameters()) for n in (vbnet, vnet)]
    assert sizes[0] < 0.15 * sizes[1]


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    first, again, other = (network(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["enter.0.weight"], other["enter.0.weight"])


def test_gradient_reaches_every_parameter() -> None:
    small = network()
    dice_loss(small(torch.randn(2, 1, 8, 8, 8)), torch.rand(2, 2, 8, 8, 8) > 0.5).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())


def test_dice_loss_is_what_a_person_computes_by_hand() -> None:
    # one case; lungs: probabilities 1/2 in 2 voxels, of which one is lung: 1 - (2 * 0.5 + 1) / (0.5 + 1 + 1)
    # infection: found exactly, 1 voxel: 1 - (2 + 1) / (1 + 1 + 1)
    logit = torch.full((1, 2, 1, 1, 2), -100.0)
    logit[0, 0] = 0.0
    logit[0, 1, 0, 0, 0] = 100.0
    mask = torch.zeros(1, 2, 1, 1, 2, dtype=torch.bool)
    mask[0, :, 0, 0, 0] = True
    lungs, infection = 1 - 2 / 2.5, 0.0
    torch.testing.assert_close(dice_loss(logit, mask), torch.tensor((lungs + infection) / 2))


def test_dice_loss_weighs_a_case_with_a_small_mask_as_one_with_a_large_mask() -> None:
    mask = torch.zeros(2, 2, 4, 4, 4, dtype=torch.bool)
    mask[0] = True
    mask[1, :, 0, 0, 0] = True
    found_large, found_small = (torch.full((2, 2, 4, 4, 4), -100.0) for _ in range(2))
    found_large[0] = 100.0
    found_small[1, :, 0, 0, 0] = 100.0
    torch.testing.assert_close(dice_loss(found_large, mask), dice_loss(found_small, mask), atol=0.3, rtol=0)
    assert 0.2 < dice_loss(found_small, mask) < 0.8


def test_dice_loss_of_an_empty_mask_is_0_if_nothing_is_found_and_has_a_gradient_if_something_is() -> None:
    mask = torch.zeros(1, 2, 2, 2, 2, dtype=torch.bool)
    assert dice_loss(torch.full((1, 2, 2, 2, 2), -100.0), mask) == 0.0
    logit = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    loss = dice_loss(logit, mask)
    loss.backward()
    assert loss > 0.5
    assert (logit.grad > 0).all()  # less probability, less loss
