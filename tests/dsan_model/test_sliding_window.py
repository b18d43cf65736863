import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dsan_model.sliding_window import AT_A_TIME, sliding_window

PATCH = (8, 8, 8)


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 13, 21), (17, 9, 8), (30, 8, 12)])
def test_what_looks_at_single_voxels_gives_the_same_in_windows(shape: tuple[int, int, int]) -> None:
    scan = volume(*shape)
    found = sliding_window(lambda x: torch.cat((2 * x + 1, x.square()), dim=1), scan, PATCH, outside=0.0)
    torch.testing.assert_close(found, torch.stack((2 * scan + 1, scan.square())))


def test_a_receptive_field_that_fits_the_overlap_gives_the_whole_volume_but_for_the_blended_seams() -> None:
    kernel = volume(1, 1, 3, 3, 3, seed=1)

    def network(x: Tensor) -> Tensor:
        return F.conv3d(x, kernel, padding=1)

    scan = volume(8, 8, 26)
    whole = network(scan[None, None])[0]
    found = sliding_window(network, scan, (8, 8, 14), outside=0.0, overlap=0.9)
    # each voxel's mean is of windows that know all it depends on, but for those whose border it is
    inner = slice(7, 19)
    error = (found - whole)[..., inner].abs().max() / whole.abs().max()
    assert error < 0.02


def test_windows_that_see_a_voxel_from_their_middle_count_more_than_those_at_their_border() -> None:
    def from_border(x: Tensor) -> Tensor:
        marked = torch.zeros_like(x)
        marked[..., 0] = marked[..., -1] = 1.0
        return marked

    found = sliding_window(from_border, volume(8, 8, 24), PATCH, outside=0.0, overlap=0.5)
    assert found[0, 4, 4, 1:-1].max() < 0.05  # the border of one window is the middle of another
    torch.testing.assert_close(found[0, :, :, 0], torch.ones(8, 8))  # no other window sees these


def test_volume_smaller_than_a_window_is_padded_with_what_lies_outside() -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    scan = volume(3, 8, 9)
    torch.testing.assert_close(sliding_window(network, scan, PATCH, outside=-1.0)[0], scan)
    assert all(x.shape[1:] == (1, *PATCH) and len(x) <= AT_A_TIME for x in seen)
    assert (seen[0][0, 0, 3:] == -1.0).all()


def test_an_odd_number_of_windows_leaves_one_for_the_last_time() -> None:
    sizes = []

    def network(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    scan = volume(8, 8, 22)
    torch.testing.assert_close(sliding_window(network, scan, PATCH, outside=-1.0)[0], scan)
    assert sizes == [AT_A_TIME, 1]
