"""The 3D ResNet-34 held against MONAI's (III-A), the online attention against Eq. 1 and 2 (III-B)."""

import math
from dataclasses import replace

import pytest
import torch
from monai.networks.nets import resnet34
from torch import Tensor, nn
from torch.nn import functional as F

from dsan_model.losses import attention_loss
from dsan_model.network import (
    AttentionResNet,
    NetworkConfig,
    attention_feature_map,
    attention_map,
    initial_state,
    standardised,
)

PAPER = NetworkConfig()
DEMO = NetworkConfig(blocks=(1, 1, 1, 1), width=16, stem_kernel=3, stem_pool=False)
TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)
T_OF_ZERO, T_OF_ONE = 1 / (1 + math.exp(40)), 1 / (1 + math.exp(-60))


def monai_resnet34() -> nn.Module:
    """MONAI's network with III-A's change: stride 1 instead of 2 in the last stage."""
    network = resnet34(
        n_input_channels=1, num_classes=1, conv1_t_stride=2, bias_downsample=False, shortcut_type="B"
    )
    first = network.layer4[0]
    first.conv1.stride = first.downsample[0].stride = (1, 1, 1)
    return network


def randomise_norms(network: nn.Module) -> None:
    """Fresh batch norms are all alike: give each one weights and statistics of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.detach().abs().max()))


@pytest.fixture(scope="module")
def monai_network() -> nn.Module:
    torch.manual_seed(0)
    network = monai_resnet34()
    randomise_norms(network)
    return network


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_with_the_same_weights_the_backbone_equals_monai_in_logit_features_and_gradients(
    monai_network: nn.Module, mode: str
) -> None:
    theirs = monai_network
    theirs.zero_grad()
    with torch.device("meta"):
        ours = AttentionResNet(PAPER)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({name: value.clone() for name, value in theirs.state_dict().items()}, assign=True)
    seen: list[Tensor] = []
    theirs.layer4.register_forward_hook(lambda module, inputs, features: seen.append(features))
    torch.manual_seed(1)
    volume_B1DHW = torch.rand(1, 1, 32, 64, 64)
    ours.train(mode == "train")
    theirs.train(mode == "train")

    features_BCdhw = ours.features(volume_B1DHW)
    logit_B = ours.fc(features_BCdhw.mean(dim=(2, 3, 4)))[:, 0]
    their_logit_B = theirs(volume_B1DHW)[:, 0]

    assert features_BCdhw.shape == (1, 512, 2, 4, 4)
    assert_close(features_BCdhw, seen[0])
    assert_close(logit_B, their_logit_B)
    logit_B.sum().backward()
    their_logit_B.sum().backward()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert our.grad is not None
        assert_close(our.grad, their.grad)
    for our, their in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert_close(our, their)


def test_the_forward_pass_gives_the_logit_of_the_pooled_features_and_their_attention_feature_map() -> None:
    torch.manual_seed(0)
    network = AttentionResNet(DEMO).eval()
    volume_B1DHW = torch.rand(2, 1, 24, 48, 48)
    output = network(volume_B1DHW)
    features_BCdhw = network.features(volume_B1DHW)
    assert torch.equal(output.logit_B, network.fc(features_BCdhw.mean(dim=(2, 3, 4)))[:, 0])
    assert torch.equal(output.cam_Bdhw, attention_feature_map(features_BCdhw, network.fc.weight))


def test_the_papers_network_has_63_470_145_parameters() -> None:
    with torch.device("meta"):
        network = AttentionResNet(PAPER)
    assert sum(parameter.numel() for parameter in network.parameters()) == 63_470_145


def test_a_volume_of_the_papers_size_gives_512_features_of_9_x_16_x_16() -> None:
    with torch.device("meta"):
        features_BCdhw = AttentionResNet(PAPER).features(torch.empty(1, 1, 138, 256, 256))
    assert features_BCdhw.shape == (1, 512, 9, 16, 16)


def test_the_demo_network_keeps_a_feature_map_of_3_x_6_x_6_of_its_small_volume() -> None:
    with torch.device("meta"):
        features_BCdhw = AttentionResNet(DEMO).features(torch.empty(1, 1, 24, 48, 48))
    assert features_BCdhw.shape == (1, 128, 3, 6, 6)


def test_standardised_input_has_normal_lung_at_zero_and_stays_zero_outside_the_lungs() -> None:
    hu = torch.tensor([-850.0, -670.0, -1030.0, 150.0])
    volume_B1DHW = torch.cat([(hu + 1350) / 1500, torch.zeros(1)]).view(1, 1, 1, 1, 5)
    expected = [0.0, 1.0, -1.0, 1000 / 180, 0.0]
    assert standardised(volume_B1DHW).flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_a_network_standardises_its_input_only_if_its_configuration_says_so() -> None:
    plain = AttentionResNet(TINY).eval()
    standardising = AttentionResNet(replace(TINY, standardise_input=True)).eval()
    standardising.load_state_dict(plain.state_dict())
    volume_B1DHW = torch.rand(1, 1, 16, 16, 16) * (torch.rand(1, 1, 16, 16, 16) > 0.5)
    features_BCdhw = standardising.features(volume_B1DHW)
    assert torch.equal(features_BCdhw, plain.features(standardised(volume_B1DHW)))
    assert not torch.equal(features_BCdhw, plain.features(volume_B1DHW))


# ---- Eq. 1 ----


def test_the_attention_feature_map_is_the_rectified_sum_of_features_times_fc_weights() -> None:
    features_BCdhw = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).view(1, 2, 1, 1, 2)
    fc_weight_1C = torch.tensor([[2.0, -1.0]])
    cam_Bdhw = attention_feature_map(features_BCdhw, fc_weight_1C)
    assert cam_Bdhw.tolist() == [[[[0.0, 5.0]]]]  # 2 - 3 is cut to 0; 4 + 1


def test_the_bias_of_the_fc_layer_moves_the_logit_and_not_the_attention() -> None:
    torch.manual_seed(0)
    network = AttentionResNet(TINY).eval()
    volume_B1DHW = torch.rand(1, 1, 16, 16, 16)
    before = network(volume_B1DHW)
    network.fc.bias.data += 100
    after = network(volume_B1DHW)
    assert (after.logit_B - before.logit_B).item() == pytest.approx(100, abs=1e-3)
    assert torch.equal(after.cam_Bdhw, before.cam_Bdhw)


def test_the_attention_loss_trains_the_features_and_never_the_fc_layer() -> None:
    torch.manual_seed(1)
    network = AttentionResNet(TINY)
    output = network(torch.rand(2, 1, 16, 16, 16))
    assert output.cam_Bdhw.max() > 0
    attention_loss(output.cam_Bdhw, torch.rand(2, 16, 16, 16) > 0.9).sum().backward()
    assert network.fc.weight.grad is None
    assert network.fc.bias.grad is None
    assert network.conv1.weight.grad is not None
    assert network.conv1.weight.grad.abs().max() > 0


def test_the_classification_loss_trains_the_fc_layer() -> None:
    torch.manual_seed(1)
    network = AttentionResNet(TINY)
    network(torch.rand(2, 1, 16, 16, 16)).logit_B.sum().backward()
    assert network.fc.weight.grad is not None
    assert network.fc.weight.grad.abs().max() > 0


# ---- Eq. 2 ----


def test_the_attention_map_is_the_sigmoid_of_100_times_the_normalised_map_less_0_4() -> None:
    cam_Bdhw = torch.tensor([10.0, 12.0, 14.0, 20.0]).view(1, 1, 1, 4)  # normalised 0, 0.2, 0.4, 1
    t_W = attention_map(cam_Bdhw, (1, 1, 4))[0, 0, 0]
    expected = [T_OF_ZERO, 1 / (1 + math.exp(20)), 0.5, T_OF_ONE]
    assert t_W.tolist() == pytest.approx(expected, rel=1e-4)


def test_the_map_is_upsampled_linearly_before_it_is_normalised() -> None:
    cam_Bdhw = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    t_W = attention_map(cam_Bdhw, (1, 1, 8))[0, 0, 0]
    upsampled = torch.tensor([0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0])  # the middles of the voxels
    assert t_W.tolist() == pytest.approx(torch.sigmoid(100 * (upsampled / 4 - 0.4)).tolist(), rel=1e-4)


def test_every_case_of_a_batch_is_normalised_by_itself() -> None:
    torch.manual_seed(0)
    one_1dhw = torch.rand(1, 2, 3, 3)
    both = attention_map(torch.cat([one_1dhw, 1000 * one_1dhw]), (8, 12, 12))
    torch.testing.assert_close(both[0], both[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 3.7, 1000.1])
def test_a_map_without_contrast_gives_no_attention_at_the_papers_size(value: float) -> None:
    # interpolation weights do not add up to 1 to the last bit: their rounding must not be stretched to [0, 1]
    t_BDHW = attention_map(torch.full((1, 9, 16, 16), value), (138, 256, 256))
    assert t_BDHW.max() == pytest.approx(T_OF_ZERO, rel=1e-3)


def test_a_faint_contrast_on_a_high_level_still_counts() -> None:
    cam_Bdhw = torch.tensor([1.0, 1.001]).view(1, 1, 1, 2)
    assert attention_map(cam_Bdhw, (1, 1, 2)).flatten().tolist() == pytest.approx([T_OF_ZERO, T_OF_ONE])


def test_the_attention_map_of_a_bfloat16_network_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    cam_Bdhw = torch.rand(1, 3, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        t_BDHW = attention_map(cam_Bdhw, (24, 48, 48))
    assert t_BDHW.dtype == torch.float32
    assert torch.equal(t_BDHW, attention_map(cam_Bdhw.float(), (24, 48, 48)))


def test_the_attention_map_equals_the_plain_formula() -> None:
    torch.manual_seed(0)
    cam_Bdhw = F.relu(torch.randn(3, 3, 6, 5))
    size_DHW = (17, 48, 33)
    a = F.interpolate(cam_Bdhw[:, None], size_DHW, mode="trilinear", align_corners=False)[:, 0]
    low, high = a.amin((1, 2, 3), keepdim=True), a.amax((1, 2, 3), keepdim=True)
    expected = torch.sigmoid(100 * ((a - low) / (high - low) - 0.4))
    torch.testing.assert_close(attention_map(cam_Bdhw, size_DHW), expected, rtol=0, atol=1e-6)


# ---- where every site starts ----


def test_the_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = initial_state(TINY, seed=1)
    torch.manual_seed(6)
    again, other = initial_state(TINY, seed=1), initial_state(TINY, seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_drawing_initial_weights_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial_state(TINY, seed=1)
    assert torch.equal(torch.rand(3), expected)
