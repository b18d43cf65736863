from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dsan_model.dice import Structure
from dsan_model.patches import (
    OUTSIDE,
    Patch,
    Place,
    SegmentationConfig,
    Shape,
    draw_places,
    masks,
    patch_batches,
    probabilities,
    train_patches,
)
from dsan_model.training import Machine, TrainingConfig, make_optimiser
from dsan_model.vbnet import VBNet, VBNetConfig, build_vbnet, initial_vbnet_state

CONFIG = SegmentationConfig((6.0, 6.0, 12.0), (8, 16, 16), 50, VBNetConfig(4, (1, 1)))
CPU = Machine(torch.device("cpu"))
INFECTED: Shape = (9, 20, 22)  # the one voxel of infection of the first scan; the second has none


@dataclass(frozen=True)
class TwoScans:
    """Lung is one half of each scan, brighter than the other half, and all of it counts as infected."""

    sides: Shape = (12, 24, 32)

    def __len__(self) -> int:
        return 2

    def shape(self, position: int) -> Shape:
        return self.sides

    def voxels(self, position: int, structure: Structure) -> npt.NDArray[np.int64]:
        if structure is Structure.LUNGS:
            return np.argwhere(self._lungs())
        return np.array([INFECTED] if position == 0 else [], np.int64).reshape(-1, 3)

    def patch(self, place: Place, patch_DHW: Shape) -> Patch:
        box = tuple(slice(start, start + side) for start, side in zip(place.corner, patch_DHW, strict=True))
        lungs_DHW = torch.from_numpy(self._lungs()[box])
        return Patch(lungs_DHW.float(), torch.stack((lungs_DHW, lungs_DHW)))

    def _lungs(self) -> npt.NDArray[np.bool_]:
        lungs_DHW = np.zeros(self.sides, bool)
        lungs_DHW[:, :, 16:] = True
        return lungs_DHW


def network() -> VBNet:
    return build_vbnet(CONFIG.network, initial_vbnet_state(CONFIG.network, 0), CPU.device)


def test_every_case_has_its_patches_inside_the_scan_and_half_of_them_show_the_infection() -> None:
    places = draw_places(TwoScans(), CONFIG, np.random.default_rng(0))
    assert sorted(place.case for place in places) == [0] * 50 + [1] * 50
    assert all(0 <= corner <= 4 for corner, _, _ in (place.corner for place in places))
    holds = [
        all(
            start <= v < start + side
            for start, v, side in zip(p.corner, INFECTED, CONFIG.patch_dhw, strict=True)
        )
        for p in places
        if p.case == 0
    ]
    assert 0.5 < sum(holds) / 50 < 0.95  # those around it, and some of those around lung or anywhere


def test_a_patch_of_a_scan_that_is_too_small_begins_with_the_scan() -> None:
    places = draw_places(TwoScans((5, 10, 32)), CONFIG, np.random.default_rng(0))
    assert {place.corner[:2] for place in places} == {(0, 0)}


def test_training_on_patches_lowers_the_loss() -> None:
    scans, generator, vbnet = TwoScans(), np.random.default_rng(0), network()
    optimiser = make_optimiser(vbnet, TrainingConfig(learning_rate=1e-2))
    epochs = [
        train_patches(
            vbnet,
            optimiser,
            patch_batches(scans, draw_places(scans, CONFIG, generator)[:20], CONFIG.patch_dhw, 4, CPU),
            CPU,
        )
        for _ in range(6)
    ]
    assert [(epoch.patches, epoch.steps) for epoch in epochs] == [(20, 5)] * 6
    assert epochs[-1].dice_loss < 0.7 * epochs[0].dice_loss


def test_fixed_norms_stay_as_they_are_while_all_that_is_learnt_is_trained() -> None:
    scans, vbnet = TwoScans(), network()
    before = {name: tensor.clone() for name, tensor in vbnet.state_dict().items()}
    optimiser = make_optimiser(vbnet, TrainingConfig())
    places = draw_places(scans, CONFIG, np.random.default_rng(0))[:4]
    batches = patch_batches(scans, places, CONFIG.patch_dhw, 4, CPU)
    train_patches(vbnet, optimiser, batches, CPU, are_norms_fixed=True)
    learnt = {name for name, _ in vbnet.named_parameters()}
    unchanged = {name for name, tensor in vbnet.state_dict().items() if torch.equal(tensor, before[name])}
    assert unchanged == set(before) - learnt


@pytest.mark.parametrize("sides", [(10, 20, 30), (40, 40, 33)])
def test_a_scan_goes_through_in_windows_of_the_patches_that_the_network_was_trained_on(sides: Shape) -> None:
    shapes: set[Shape] = set()
    vbnet = network()
    vbnet.register_forward_pre_hook(lambda _, inputs: shapes.add(tuple(inputs[0].shape[2:])))
    assert probabilities(vbnet, torch.full(sides, OUTSIDE), CONFIG, CPU).shape == (2, *sides)
    assert shapes == {CONFIG.patch_dhw}


def test_lungs_are_what_is_at_least_as_probable_as_not_and_infection_is_taken_earlier_but_in_lung_only() -> (
    None
):
    probability = torch.tensor([[0.5, 0.49, 0.9], [0.31, 0.9, 0.29]])[:, None, None]
    assert masks(probability)[:, 0, 0].tolist() == [[True, False, True], [True, False, False]]
