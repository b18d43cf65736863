from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from client.findings import FindingError
from client.masks import names_without_files
from client.site import SegmentationTable, read_site
from client.vbnet_masks import segment_by_vbnet, vbnet_name
from dsan_model.patches import PRESETS
from dsan_model.segmenter import Segmenter, save_segmenter
from dsan_model.vbnet import initial_vbnet_state
from dsan_model.weights import flatten

CONFIG = PRESETS["tiny"].segmentation


def weights_file(folder: Path, lungs: float, infection: float) -> Path:
    """A network that gives every voxel these logits."""
    state = initial_vbnet_state(CONFIG.network, 0)
    state["leave.weight"].zero_()
    state["leave.bias"].copy_(torch.tensor([lungs, infection]))
    path = folder / "vbnet.safetensors"
    save_segmenter(path, Segmenter(CONFIG, flatten(state)))
    return path


def scan() -> sitk.Image:
    ct = sitk.GetImageFromArray(np.full((20, 40, 40), -800, np.int16))
    ct.SetSpacing((5.0, 5.0, 8.0))
    return ct


def test_masks_lie_on_the_grid_of_the_scan_and_bear_the_name_of_the_weights(tmp_path: Path) -> None:
    path = weights_file(tmp_path, lungs=9.0, infection=-9.0)
    lung, infection = segment_by_vbnet(scan(), path)
    assert lung.mask.GetSize() == infection.mask.GetSize() == scan().GetSize()
    assert sitk.GetArrayViewFromImage(lung.mask).all()
    assert not sitk.GetArrayViewFromImage(infection.mask).any()
    assert lung.source == infection.source == vbnet_name(path)
    assert lung.source.startswith("vbnet-3-")


def test_a_scan_without_lungs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FindingError, match="SEG-NO-LUNGS"):
        segment_by_vbnet(scan(), weights_file(tmp_path, lungs=-9.0, infection=9.0), "c1")


def test_site_names_its_weights_relative_to_site_toml(tmp_path: Path) -> None:
    path = weights_file(tmp_path, lungs=9.0, infection=-9.0)
    settings = (
        'name = "one"\n[segmentation]\nlungs = "vbnet"\ninfection = "crude"\nweights = "vbnet.safetensors"\n'
    )
    (tmp_path / "site.toml").write_text(settings)
    names = names_without_files(read_site(tmp_path / "site.toml").segmentation)
    assert (names.lungs, names.infection) == (vbnet_name(path), "crude-2")


def test_damaged_and_missing_weights_have_their_codes(tmp_path: Path) -> None:
    path = weights_file(tmp_path, lungs=9.0, infection=-9.0)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FindingError, match="VBNET-DAMAGED"):
        names_without_files(SegmentationTable(lungs="vbnet", weights=str(path)))
    with pytest.raises(FindingError, match="VBNET-MISSING"):
        names_without_files(SegmentationTable(lungs="vbnet", weights=str(tmp_path / "none")))
