"""The attention loss (Eq. 3) held against plain autograd, and the total loss (Eq. 4) by hand."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dsan_model import losses
from dsan_model.losses import attention_loss, total_loss
from dsan_model.network import NetworkOutput

Shape = tuple[int, int, int]
SHAPES: list[tuple[Shape, Shape]] = [
    ((3, 6, 6), (24, 48, 48)),
    ((2, 4, 4), (16, 32, 32)),
    ((5, 4, 4), (35, 32, 32)),
    ((3, 5, 7), (25, 37, 51)),
]
DEGENERATE: list[tuple[Shape, Shape]] = [
    ((2, 2, 2), (2, 2, 2)),
    ((1, 1, 4), (5, 6, 31)),
    ((1, 1, 1), (4, 4, 4)),
    ((4, 6, 6), (2, 3, 3)),
]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def reference(cam_Bdhw: Tensor, infection_BDHW: Tensor, *, through_extremes: bool = True) -> Tensor:
    """Eq. 2 and 3 as they are written, for autograd to differentiate: the whole of T in memory."""
    a = F.interpolate(cam_Bdhw[:, None], infection_BDHW.shape[1:], mode="trilinear")[:, 0]
    low, high = a.amin((1, 2, 3), keepdim=True), a.amax((1, 2, 3), keepdim=True)
    if not through_extremes:
        low, high = low.detach(), high.detach()
    flat = high - low <= 1e-5 * high
    normalised = torch.where(flat, torch.zeros_like(a), (a - low) / (high - low).masked_fill(flat, 1.0))
    t = torch.sigmoid(100 * (normalised - 0.4))
    m = infection_BDHW.to(t.dtype)
    return ((t - m) ** 2).sum((1, 2, 3)) / (t.sum((1, 2, 3)) + m.sum((1, 2, 3)))


def value_and_gradient(loss, cam_Bdhw: Tensor, infection_BDHW: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Loss of each case and its gradient; each case counts differently: none can stand for another."""
    cam = cam_Bdhw.clone().requires_grad_()
    loss_B = loss(cam, infection_BDHW)
    (loss_B / torch.arange(1, len(cam) + 1)).sum().backward()
    assert cam.grad is not None
    return loss_B.detach(), cam.grad


def assert_equals_plain_autograd(cam_Bdhw: Tensor, infection_BDHW: Tensor) -> None:
    """Plain autograd runs in float64: in float32 its rounding breaks ties and its gradient errs by 0.01."""
    ours = value_and_gradient(attention_loss, cam_Bdhw, infection_BDHW)
    theirs = value_and_gradient(reference, cam_Bdhw.double(), infection_BDHW)
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == cam_Bdhw.dtype
        torch.testing.assert_close(our.double(), their, rtol=0, atol=TOLERANCE[cam_Bdhw.dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("small", "large"), SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient_equal_plain_autograd(
    small: Shape, large: Shape, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rectified = torch.randn(4, *small, dtype=dtype, generator=generator).relu()
    positive = 0.5 + torch.rand(2, *small, dtype=dtype, generator=generator)
    infection_BDHW = torch.rand(6, *large, generator=generator) > 0.8
    assert_equals_plain_autograd(torch.cat([rectified, positive]), infection_BDHW)


@pytest.mark.parametrize(("small", "large"), DEGENERATE, ids=str)
def test_single_cells_single_slices_and_maps_finer_than_the_input_are_no_exception(
    small: Shape, large: Shape
) -> None:
    generator = torch.Generator().manual_seed(10)
    cam_Bdhw = 3 * torch.rand(3, *small, dtype=torch.float64, generator=generator)
    assert_equals_plain_autograd(cam_Bdhw, torch.rand(3, *large, generator=generator) > 0.5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mask", ["empty", "full", "random"])
@pytest.mark.parametrize("cam", ["zero", "flat", "random", "one cell"])
def test_value_and_gradient_equal_plain_autograd_at_the_extremes(
    cam: str, mask: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    one_cell = torch.zeros(2, 3, 6, 6, dtype=dtype)
    one_cell[:, 1, 2, 3] = 5.0
    cams = {
        "zero": torch.zeros(2, 3, 6, 6, dtype=dtype),
        "flat": torch.full((2, 3, 6, 6), 3.7, dtype=dtype),
        "random": torch.rand(2, 3, 6, 6, dtype=dtype, generator=generator),
        "one cell": one_cell,
    }
    masks = {
        "empty": torch.zeros(2, 24, 48, 48, dtype=torch.bool),
        "full": torch.ones(2, 24, 48, 48, dtype=torch.bool),
        "random": torch.rand(2, 24, 48, 48, generator=generator) > 0.5,
    }
    assert_equals_plain_autograd(cams[cam], masks[mask])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_cells_that_share_the_maximum_or_the_minimum_share_its_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    # eighths, up-sampled by 2 and by 4: every product is exact, so that both forms see the same ties
    cam_Bdhw = torch.randint(1, 7, (2, 2, 4, 4), generator=generator).to(dtype) / 8
    cam_Bdhw[:, 0, 0, 0] = cam_Bdhw[:, 1, 3, 3] = 1.0
    cam_Bdhw[:, 0, 3, 0] = cam_Bdhw[:, 1, 0, 0] = 0.0
    infection_BDHW = torch.rand(2, 4, 16, 16, generator=generator) > 0.7
    assert_equals_plain_autograd(cam_Bdhw, infection_BDHW)
    _, gradient = value_and_gradient(attention_loss, cam_Bdhw, infection_BDHW)
    assert (gradient[:, 0, 0, 0] != 0).all()
    assert (gradient[:, 1, 3, 3] != 0).all()


@pytest.mark.parametrize("cam", [0.0, 0.1, 3.7])
@pytest.mark.parametrize("has_infection", [True, False])
def test_a_map_without_contrast_has_a_finite_loss_and_no_gradient(cam: float, has_infection: bool) -> None:
    infection_BDHW = torch.zeros(1, 69, 128, 128, dtype=torch.bool)
    infection_BDHW[:, 10:20, 30:50, 30:50] = has_infection
    loss_B, gradient = value_and_gradient(attention_loss, torch.full((1, 9, 16, 16), cam), infection_BDHW)
    assert float(loss_B) == pytest.approx(1.0 if has_infection else 0.0, abs=1e-6)
    assert not gradient.any()


def test_the_gradient_flows_through_the_minimum_and_the_maximum() -> None:
    generator = torch.Generator().manual_seed(5)
    cam_Bdhw = torch.rand(1, 3, 6, 6, dtype=torch.float64, generator=generator)
    infection_BDHW = torch.rand(1, 24, 48, 48, generator=generator) > 0.8
    _, full = value_and_gradient(attention_loss, cam_Bdhw, infection_BDHW)
    _, detached = value_and_gradient(
        lambda cam, mask: reference(cam, mask, through_extremes=False), cam_Bdhw, infection_BDHW
    )
    assert (full - detached).abs().max() > 0.1 * full.abs().max()
    # scale and offset of a map do not change its normalised form: only the full gradient knows that
    assert abs(full.sum()) < 1e-10
    assert abs((full * cam_Bdhw).sum()) < 1e-10
    assert abs(detached.sum()) > 1e-3


def test_the_gradient_passes_the_check_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(6)
    cam_Bdhw = torch.rand(2, 2, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    infection_BDHW = torch.rand(2, 4, 5, 6, generator=generator) > 0.5
    assert torch.autograd.gradcheck(lambda cam: attention_loss(cam, infection_BDHW), cam_Bdhw)


@pytest.mark.parametrize("slab_voxels", [1, 3 * 48 * 48 + 5, 1 << 30])
def test_the_size_of_the_slabs_does_not_change_the_result(
    slab_voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(7)
    cam_Bdhw = torch.randn(3, 3, 6, 6, dtype=torch.float64, generator=generator).relu()
    infection_BDHW = torch.rand(3, 24, 48, 48, generator=generator) > 0.8
    expected = value_and_gradient(attention_loss, cam_Bdhw, infection_BDHW)
    monkeypatch.setattr(losses, "SLAB_VOXELS", slab_voxels)
    found = value_and_gradient(attention_loss, cam_Bdhw, infection_BDHW)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_the_attention_loss_is_zero_where_the_map_equals_the_mask() -> None:
    infection_BDHW = torch.zeros(1, 6, 6, 6, dtype=torch.bool)
    infection_BDHW[:, 2:4, 1:5, 3:] = True
    assert float(attention_loss(infection_BDHW.float(), infection_BDHW)) < 1e-6


def test_the_attention_loss_is_the_squared_error_over_the_sum_of_both_areas() -> None:
    cam_Bdhw = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4).repeat(3, 1, 1, 1)
    masks = [[False, True, True, False], [False, False, True, True], [True, True, True, True]]
    infection_BDHW = torch.tensor(masks).view(3, 1, 1, 4)
    loss_B = attention_loss(cam_Bdhw, infection_BDHW)
    assert loss_B.tolist() == pytest.approx([2 / 4, 4 / 4, 2 / 6], abs=1e-6)


def test_autocast_does_not_reach_into_the_attention_loss() -> None:
    generator = torch.Generator().manual_seed(8)
    cam_Bdhw = torch.rand(2, 3, 6, 6, generator=generator)
    infection_BDHW = torch.rand(2, 24, 48, 48, generator=generator) > 0.8
    expected = attention_loss(cam_Bdhw, infection_BDHW)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_loss(cam_Bdhw, infection_BDHW)
    assert torch.equal(found, expected)


# ---- Eq. 4 ----


def a_batch(labels: list[float]) -> tuple[NetworkOutput, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    n = len(labels)
    output = NetworkOutput(
        torch.randn(n, generator=generator).requires_grad_(),
        torch.rand(n, 2, 3, 3, generator=generator).requires_grad_(),
    )
    return output, torch.tensor(labels), torch.rand(n, 8, 12, 12, generator=generator) > 0.7


def test_the_total_loss_is_classification_plus_lambda_times_the_mean_attention_loss_of_covid_cases() -> None:
    output, label_B, infection_BDHW = a_batch([1.0, 0.0, 1.0, 0.0])
    found = total_loss(output, label_B, infection_BDHW, attention_weight=0.5)
    p = torch.sigmoid(output.logit_B)
    classification = -(label_B * p.log() + (1 - label_B) * (1 - p).log()).mean()
    of_covid = reference(output.cam_Bdhw[[0, 2]], infection_BDHW[[0, 2]]).mean()
    assert found.classification.item() == pytest.approx(classification.item(), rel=1e-5)
    assert found.attention is not None
    assert found.attention.item() == pytest.approx(of_covid.item(), rel=1e-5)
    assert found.total.item() == pytest.approx((classification + 0.5 * of_covid).item(), rel=1e-5)


@pytest.mark.parametrize("attention_weight", [0.25, 0.5, 2.0])
def test_lambda_scales_the_attention_term_and_nothing_else(attention_weight: float) -> None:
    batch = a_batch([1.0, 0.0])
    found = total_loss(*batch, attention_weight)
    assert found.attention is not None
    difference = (found.total - found.classification).item()
    assert difference == pytest.approx(attention_weight * found.attention.item(), rel=1e-5)


def test_a_batch_of_cap_alone_has_no_attention_term() -> None:
    output, label_B, infection_BDHW = a_batch([0.0, 0.0])
    found = total_loss(output, label_B, infection_BDHW, attention_weight=0.5)
    assert found.attention is None
    assert torch.equal(found.total, found.classification)
    found.total.backward()
    assert output.cam_Bdhw.grad is None


def test_cap_cases_get_no_gradient_from_the_attention_term() -> None:
    output, label_B, infection_BDHW = a_batch([0.0, 1.0])
    total_loss(output, label_B, infection_BDHW, attention_weight=0.5).total.backward()
    gradient = output.cam_Bdhw.grad
    assert gradient is not None
    assert not gradient[0].any()
    assert gradient[1].any()


def test_without_lambda_there_is_no_attention_term_as_in_rn34() -> None:
    found = total_loss(*a_batch([1.0, 0.0]), attention_weight=0.0)
    assert found.attention is None
    assert torch.equal(found.total, found.classification)
