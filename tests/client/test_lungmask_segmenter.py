"""Lungs by the package lungmask, where it is installed, with small random weights of the right network."""

from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from image_factory import hu_array, image

from client.findings import FindingError
from client.lungmask_segmenter import check_weights, lungmask_name, segment_with_lungmask
from client.masks import names_without_files
from client.site import SegmentationTable


def test_without_the_package_or_its_weights_the_method_is_refused(tmp_path: Path) -> None:
    chosen = SegmentationTable(lungs="lungmask", lungmask_weights=str(tmp_path / "none.pth"))
    with pytest.raises(FindingError, match=r"SEG-(EXTRA|WEIGHTS)"):
        names_without_files(chosen)


def test_weights_are_named_from_the_root_on() -> None:
    with pytest.raises(ValueError, match="lungmask_weights"):
        SegmentationTable(lungs="lungmask", lungmask_weights="weights.pth")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random ones that call every voxel right lung."""
    resunet = pytest.importorskip("lungmask.resunet")
    torch.manual_seed(0)
    network = resunet.UNet(
        n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False
    )
    state = network.state_dict()
    state[list(state)[-1]] = torch.tensor([-50.0, 50.0, -50.0])  # the bias of the last layer
    torch.save(state, tmp_path / "unet.pth")
    return tmp_path / "unet.pth"


def test_the_mask_lies_on_the_scan_and_names_version_and_weights(weights: Path) -> None:
    found = segment_with_lungmask(image(hu_array())[:, :, :3], weights)
    assert found.source == lungmask_name(weights)
    assert found.source.startswith("lungmask-0.2")
    assert found.mask.GetPixelID() == sitk.sitkUInt8
    assert found.mask.GetSize() == (24, 20, 3)
    assert found.mask.GetOrigin() == pytest.approx((-36.5, -22.0, 110.25))
    assert sitk.GetArrayViewFromImage(found.mask).any()


def test_weights_of_something_else_are_refused(weights: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(FindingError, match="SEG-WEIGHTS"):
        segment_with_lungmask(image(hu_array()), tmp_path / "other.pth")
    with pytest.raises(FindingError, match="SEG-WEIGHTS"):
        check_weights(tmp_path / "other.pth")
    check_weights(weights)
