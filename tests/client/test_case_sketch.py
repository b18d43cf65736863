import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from client.case_sketch import (
    HISTOGRAM_EDGES_HU,
    WIDTH_PX,
    View,
    read_sketch,
    sketch_case,
    sketch_path,
    write_sketch,
)

SHAPE_DHW = (10, 40, 40)


def images(direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)) -> list[sitk.Image]:
    """Two lungs of -850 HU, an infection of -300 HU in the patient's right one, on the upper slices."""
    lung, infection = np.zeros(SHAPE_DHW, np.uint8), np.zeros(SHAPE_DHW, np.uint8)
    lung[1:9, 10:30, 4:16] = lung[1:9, 10:30, 24:36] = 1
    infection[7:9, 20:26, 6:12] = 1
    hu = np.where(infection == 1, -300, np.where(lung == 1, -850, 40)).astype(np.int16)
    built = [sitk.GetImageFromArray(array) for array in (hu, lung, infection)]
    for image in built:
        image.SetSpacing((5.0, 5.0, 20.0))
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction)
    return [sitk.DICOMOrient(image, orientation) for image in built]


def grey(view: View) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(view.jpeg))))


def box(path: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a path."""
    numbers = [float(number) for number in re.findall(r"-?[0-9.]+", path)]
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


DIRECTIONS = {
    "LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "LPI": (1, 0, 0, 0, 1, 0, 0, 0, -1),
    "axes permuted": (0, 0, 1, 1, 0, 0, 0, 1, 0),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_both_views_stand_the_radiologists_way_however_the_scan_is_stored(name: str) -> None:
    sketch = sketch_case(*images(DIRECTIONS[name]))
    left, top, right, bottom = box(sketch.axial.infection_path)
    px = WIDTH_PX / 40
    assert (left, right) == pytest.approx((6 * px, 12 * px), abs=1.5)  # the patient's right on the left
    assert (top, bottom) == pytest.approx((20 * px, 26 * px), abs=1.5)  # the front at the top
    left, top, right, bottom = box(sketch.coronal.infection_path)
    assert (left, right) == pytest.approx((6 * px, 12 * px), abs=1.5)
    assert bottom < sketch.coronal.height_px / 2  # the head at the top
    assert (sketch.axial.height_px, sketch.coronal.height_px) == (WIDTH_PX, WIDTH_PX)  # 200 mm a side


def test_the_picture_shows_the_scan_in_the_papers_window() -> None:
    picture_HW = grey(sketch_case(*images()).axial)
    px = WIDTH_PX / 40
    assert picture_HW[int(23 * px), int(9 * px)] == pytest.approx(255 * 1050 / 1500, abs=6)  # infection
    assert picture_HW[int(15 * px), int(30 * px)] == pytest.approx(255 * 500 / 1500, abs=6)  # lung
    assert picture_HW[2, 2] == pytest.approx(255 * 1390 / 1500, abs=6)  # chest wall


def test_without_infection_the_planes_go_through_the_lungs() -> None:
    ct, lung, infection = images()
    sketch = sketch_case(ct, lung, infection * 0)
    assert sketch.axial.infection_path == sketch.coronal.infection_path == ""
    assert sketch.axial.lung_path.count("M") == 2


def test_the_histogram_is_of_the_lungs_alone() -> None:
    shares = dict(zip(HISTOGRAM_EDGES_HU[:-1], sketch_case(*images()).histogram, strict=True))
    n_lung, n_infection = 8 * 20 * 24, 2 * 6 * 6
    assert shares[-300] == pytest.approx(n_infection / n_lung, abs=1e-5)
    assert shares[-850] == pytest.approx(1 - n_infection / n_lung, abs=1e-5)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_a_sketch_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    sketch, volume = sketch_case(*images()), tmp_path / "store" / "a.safetensors"
    write_sketch(volume, sketch)
    assert read_sketch(volume) == sketch


def test_a_sketch_that_is_missing_or_damaged_is_none(tmp_path: Path) -> None:
    volume = tmp_path / "a.safetensors"
    assert read_sketch(volume) is None
    for text in ("", "[]", '{"axial": 1}', '{"size_xyz": [1]}'):
        sketch_path(volume).write_text(text)
        assert read_sketch(volume) is None
