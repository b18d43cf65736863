"""How an attention map lies on a case, Grad-CAM of the baseline, and the pictures of both (Fig. 5)."""

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from dsan_model.explain import Panel, attention_of, attention_scores, draw_panel, grad_cam
from dsan_model.network import AttentionResNet, NetworkConfig, attention_map

TINY = NetworkConfig(blocks=(1, 1, 1, 1), width=2, stem_kernel=3, stem_pool=False)


def row(*values: float) -> Tensor:
    """A volume of one row of voxels."""
    return torch.tensor(values).view(1, 1, -1)


def mask(*values: int) -> Tensor:
    return row(*values).bool()


@pytest.fixture
def network() -> AttentionResNet:
    torch.manual_seed(1)
    return AttentionResNet(TINY)


# ---- scores ----


def test_dice_and_masses_of_an_attention_map_by_hand() -> None:
    found = attention_scores(row(1.0, 0.5, 0.5, 0.0), mask(1, 1, 0, 0), mask(1, 1, 1, 0))
    assert found.dice_infection == pytest.approx(2 * 1.5 / (2.0 + 2))
    assert found.mass_in_infection == pytest.approx(1.5 / 2)
    assert found.mass_in_lung == pytest.approx(1.0)


def test_a_map_that_equals_the_infection_has_a_dice_of_one() -> None:
    found = attention_scores(row(1, 1, 0, 0), mask(1, 1, 0, 0), mask(1, 1, 1, 0))
    assert (found.dice_infection, found.mass_in_infection, found.mass_in_lung) == (1.0, 1.0, 1.0)


def test_a_map_beside_the_infection_scores_zero_and_one_outside_the_lung_has_no_mass_in_it() -> None:
    found = attention_scores(row(0, 0, 0, 1), mask(1, 1, 0, 0), mask(1, 1, 1, 0))
    assert (found.dice_infection, found.mass_in_infection, found.mass_in_lung) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("infection", [mask(1, 0), mask(0, 0)])
def test_a_map_of_zeros_scores_zero(infection: Tensor) -> None:
    found = attention_scores(row(0, 0), infection, mask(1, 1))
    assert (found.dice_infection, found.mass_in_infection, found.mass_in_lung) == (0.0, 0.0, 0.0)


def test_attention_on_a_case_without_infection_scores_zero() -> None:
    found = attention_scores(row(1, 1), mask(0, 0), mask(1, 0))
    assert (found.dice_infection, found.mass_in_infection) == (0.0, 0.0)
    assert found.mass_in_lung == 0.5


# ---- maps ----


def test_the_attention_of_a_volume_is_its_logit_and_t_of_its_map_in_evaluation_mode(
    network: AttentionResNet,
) -> None:
    volume_DHW = torch.rand(16, 20, 24).half()
    logit, attention_DHW = attention_of(network, volume_DHW)
    with torch.no_grad():
        output = network.eval()(volume_DHW.float()[None, None])
    assert logit == pytest.approx(output.logit_B.item())
    assert torch.equal(attention_DHW, attention_map(output.cam_Bdhw, (16, 20, 24))[0])


def test_grad_cam_is_the_attention_feature_map_over_the_number_of_cells(network: AttentionResNet) -> None:
    volume_DHW = torch.rand(16, 20, 24)
    heat_dhw = grad_cam(network, volume_DHW)
    with torch.no_grad():
        cam_dhw = network.eval()(volume_DHW[None, None]).cam_Bdhw[0]
    assert cam_dhw.max() > 0
    assert heat_dhw.shape == cam_dhw.shape == (2, 3, 3)
    torch.testing.assert_close(heat_dhw, cam_dhw / cam_dhw.numel(), rtol=1e-4, atol=1e-8)


def test_explaining_does_not_change_the_weights(network: AttentionResNet) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attention_of(network, torch.rand(16, 16, 16))
    grad_cam(network, torch.rand(16, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# ---- panels ----

Pixels = npt.NDArray[np.float32]


def a_panel() -> Panel:
    """A white block at the patient's right, in front, near the head; it is the infection."""
    shape_DHW = (20, 24, 28)
    block = (slice(15, 19), slice(2, 6), slice(3, 8))
    ct_DHW = np.full(shape_DHW, 0.3, np.float32)
    lung_DHW, infection_DHW = np.zeros(shape_DHW, bool), np.zeros(shape_DHW, bool)
    lung_DHW[1:, 1:-1, 1:-1] = True
    infection_DHW[block] = True
    ct_DHW[block] = 1.0
    maps = {"Attention RN34 + US": infection_DHW.astype(np.float32)}
    return Panel(ct_DHW, lung_DHW, infection_DHW, maps, (1.4, 1.4, 2.5), "a caption")


def picture(panel: Panel, path: Path) -> Pixels:
    draw_panel(panel, path)
    return np.asarray(matplotlib.image.imread(path))[..., :3]


def input_cut(pixels: Pixels, *, is_axial: bool) -> npt.NDArray[np.bool_]:
    """Where the white block is in one of the two pictures of the first column, cropped to that picture."""
    column = pixels[:, : pixels.shape[1] // 3]
    is_ct = np.abs(column - 0.3).max(axis=2) < 0.02
    rows = np.flatnonzero(is_ct.sum(axis=1) > 50)  # the edges of letters are as grey, but narrow
    axial, coronal = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    rows = axial if is_axial else coronal
    columns = np.flatnonzero(is_ct[rows].any(axis=0))
    return np.asarray(column[rows][:, columns].min(axis=2) > 0.95)


def centre(is_white: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Middle of the block, down and to the right, as shares of the picture."""
    down, right = np.argwhere(is_white).mean(axis=0) / is_white.shape
    return float(down), float(right)


def test_a_panel_shows_the_patients_right_on_the_left_the_front_at_the_top_and_the_feet_below(
    tmp_path: Path,
) -> None:
    pixels = picture(a_panel(), tmp_path / "panel.png")
    assert centre(input_cut(pixels, is_axial=True)) == pytest.approx((4 / 24, 5.5 / 28), abs=0.04)
    assert centre(input_cut(pixels, is_axial=False)) == pytest.approx((1 - 17 / 20, 5.5 / 28), abs=0.04)


def test_a_panel_marks_the_patients_right_in_both_planes(tmp_path: Path) -> None:
    pixels = picture(a_panel(), tmp_path / "panel.png")
    column = pixels[:, : pixels.shape[1] // 3]
    is_yellow = (column[..., :2].min(axis=2) > 0.7) & (column[..., 2] < 0.45)
    rows, columns = np.nonzero(is_yellow)
    assert np.ptp(rows) > pixels.shape[0] // 3  # above, and again below
    assert columns.max() < column.shape[1] // 3


def test_the_mark_of_the_patients_right_can_be_read_on_white_in_both_planes(tmp_path: Path) -> None:
    white = replace(a_panel(), ct_DHW=np.ones_like(a_panel().ct_DHW))
    pixels = picture(white, tmp_path / "panel.png")
    column = pixels[:, : pixels.shape[1] // 3]
    is_yellow = (column[..., :2].min(axis=2) > 0.7) & (column[..., 2] < 0.45)
    rows = np.flatnonzero(is_yellow.any(axis=1))
    for letter in np.split(rows, np.flatnonzero(np.diff(rows) > 20) + 1):
        columns = np.flatnonzero(is_yellow[letter].any(axis=0))
        around = column[letter[0] - 2 : letter[-1] + 3, columns[0] - 2 : columns[-1] + 3]
        frame = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
        assert frame.max() < 0.2


def test_a_panel_shows_millimetres_not_voxels(tmp_path: Path) -> None:
    pixels = picture(a_panel(), tmp_path / "panel.png")
    height, width = input_cut(pixels, is_axial=False).shape
    assert height / width == pytest.approx(20 * 2.5 / (28 * 1.4), rel=0.05)


def test_the_same_panel_is_drawn_to_the_same_bytes(tmp_path: Path) -> None:
    draw_panel(a_panel(), tmp_path / "1.png")
    draw_panel(a_panel(), tmp_path / "2.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert b"Software" not in (tmp_path / "1.png").read_bytes()


def test_a_case_without_infection_is_cut_through_its_lungs(tmp_path: Path) -> None:
    panel = a_panel()
    lung_DHW, nothing_DHW = np.zeros_like(panel.lung_DHW), np.zeros_like(panel.infection_DHW)
    lung_DHW[16, 3:6, 4:7] = True
    healthy = replace(panel, lung_DHW=lung_DHW, infection_DHW=nothing_DHW)
    assert input_cut(picture(healthy, tmp_path / "1.png"), is_axial=True).any()
    elsewhere = replace(healthy, lung_DHW=lung_DHW[::-1, ::-1])
    assert not input_cut(picture(elsewhere, tmp_path / "2.png"), is_axial=True).any()


def test_a_panel_has_a_column_for_each_map(tmp_path: Path) -> None:
    panel = a_panel()
    both = replace(panel, attention={**panel.attention, "Attention RN34 + SS": panel.ct_DHW})
    one, two = picture(panel, tmp_path / "1.png"), picture(both, tmp_path / "2.png")
    assert two.shape[1] / one.shape[1] == pytest.approx(4 / 3, rel=0.02)
