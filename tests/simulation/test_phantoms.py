from dataclasses import replace
from functools import cache
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from dsan_model.cases import Label, RatioGroup, SizeGroup, infection_ratio, ratio_group, size_group
from simulation.phantom_lesions import MIN_LESION_VOXELS
from simulation.phantoms import (
    Phantom,
    PhantomPlan,
    draw_infection_ratio,
    infection_ratio_at,
    phantom,
    right_lung_mark,
)
from simulation.scanners import SCANNERS, Scanner

SMALL_DHW = (24, 64, 64)
PLAN = PhantomPlan(Label.COVID, 0.05, SCANNERS[0], SMALL_DHW, anatomy_seed=1, lesion_seed=2)
ORIENTATIONS = ["".join(code) for axes in permutations(("LR", "PA", "SI")) for code in product(*axes)]


def lps(image: sitk.Image) -> NDArray[np.float64]:
    """(z, y, x): from the feet up, from front to back, from right to left."""
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")).astype(np.float64)


def in_hu(scan: Phantom, where: sitk.Image) -> NDArray[np.float64]:
    return lps(scan.ct)[lps(where) > 0]


def lung_litres(scan: Phantom) -> float:
    return float(lps(scan.lung).sum() * np.prod(scan.lung.GetSpacing()) / 1e6)


@cache
def patients(label: Label) -> tuple[Phantom, ...]:
    """Fifteen patients with the same infection ratio."""
    return tuple(phantom(replace(PLAN, label=label, anatomy_seed=s, lesion_seed=s)) for s in range(15))


def table_3(label: Label, n: int = 2000) -> list[float]:
    return [infection_ratio_at(label, (i + 0.5) / n) for i in range(n)]


@pytest.mark.parametrize("label", list(Label))
@pytest.mark.parametrize("ratio", [0.002, 0.03, 0.2])
def test_the_masks_have_the_planned_infection_ratio_to_half_a_voxel(label: Label, ratio: float) -> None:
    scan = phantom(replace(PLAN, label=label, infection_ratio=ratio))
    lung, infection = lps(scan.lung) > 0, lps(scan.infection) > 0
    assert abs(infection.sum() - ratio * lung.sum()) <= 0.5
    assert not (infection & ~lung).any()
    assert scan.infection_ratio == infection_ratio(infection, lung)


def test_the_smallest_lesion_still_has_a_few_voxels() -> None:
    scan = phantom(replace(PLAN, label=Label.CAP, infection_ratio=0.0001))
    assert lps(scan.infection).sum() == MIN_LESION_VOXELS


@pytest.mark.parametrize("ratio", [0.0, -0.1, 0.6])
def test_a_ratio_that_no_lung_survives_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"infection_ratio {ratio}"):
        phantom(replace(PLAN, infection_ratio=ratio))


@pytest.mark.parametrize(
    ("label", "images"),
    [(Label.COVID, (151, 318, 625)), (Label.CAP, (838, 183, 71))],
)
def test_infection_ratios_have_the_frequencies_of_table_3(label: Label, images: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    groups = [ratio_group(draw_infection_ratio(label, rng)) for _ in range(4000)]
    found = np.array([groups.count(group) for group in RatioGroup]) / len(groups)
    np.testing.assert_allclose(found, np.array(images) / sum(images), atol=0.025)  # 3 standard errors


def test_the_weights_of_size_balanced_sampling_are_about_one_and_a_half() -> None:
    groups = [size_group(label, ratio) for label in Label for ratio in table_3(label)]
    n = {group: groups.count(group) for group in SizeGroup}
    assert n[SizeGroup.LARGE_COVID] / n[SizeGroup.SMALL_COVID] == pytest.approx(625 / 469, abs=0.01)
    assert n[SizeGroup.SMALL_CAP] / n[SizeGroup.LARGE_CAP] == pytest.approx(1.5, abs=0.01)


def test_the_infection_ratio_alone_tells_the_classes_apart_but_not_well() -> None:
    ratios = {label: table_3(label) for label in Label}
    is_covid = [label is Label.COVID for label in Label for _ in ratios[label]]
    auc = roc_auc_score(is_covid, ratios[Label.COVID] + ratios[Label.CAP])
    assert 0.82 < auc < 0.88


def test_a_phantom_is_a_function_of_its_plan() -> None:
    first, again, other = phantom(PLAN), phantom(PLAN), phantom(replace(PLAN, lesion_seed=3))
    assert np.array_equal(lps(first.ct), lps(again.ct))
    assert np.array_equal(lps(first.infection), lps(again.infection))
    assert not np.array_equal(lps(first.infection), lps(other.infection))


def test_scans_of_a_patient_share_the_anatomy_and_patients_differ() -> None:
    litres = [lung_litres(phantom(replace(PLAN, lesion_seed=seed))) for seed in range(3)]
    others = [lung_litres(phantom(replace(PLAN, anatomy_seed=seed))) for seed in range(8)]
    assert max(litres) / min(litres) < 1.01
    assert max(others) / min(others) > 1.1
    assert min(others) > 2.8
    assert max(others) < 5.2


def test_a_patient_has_the_same_lungs_and_lesion_on_every_grid() -> None:
    coarse, fine = phantom(PLAN), phantom(replace(PLAN, shape_DHW=(48, 128, 128)))
    assert lung_litres(fine) == pytest.approx(lung_litres(coarse), rel=0.02)
    blocks_DHW = lps(fine.infection).reshape(24, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5)) > 0.5
    lesion_DHW = lps(coarse.infection) > 0
    dice = 2 * (blocks_DHW & lesion_DHW).sum() / (blocks_DHW.sum() + lesion_DHW.sum())
    assert dice > 0.85


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda scanner: f"{scanner.name} {scanner.orientation}")
def test_the_grid_fills_the_field_of_view_in_the_orientation_of_the_scanner(scanner: Scanner) -> None:
    scan = phantom(replace(PLAN, scanner=scanner))
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(scan.ct.GetDirection())
    assert code == scanner.orientation
    for image in (scan.ct, scan.lung, scan.infection):
        extent_mm = np.multiply(image.GetSize(), image.GetSpacing())
        np.testing.assert_allclose(extent_mm, scanner.field_of_view_mm_xyz, atol=0.01)
        assert image.GetOrigin() == scan.ct.GetOrigin()
        assert image.GetDirection() == scan.ct.GetDirection()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_mark_lies_in_the_right_lung_in_every_orientation(orientation: str) -> None:
    scan = right_lung_mark(replace(SCANNERS[0], orientation=orientation), (16, 32, 32))
    mark_xyz = np.argwhere(sitk.GetArrayFromImage(scan.infection) > 0)[:, ::-1]
    lung_xyz = np.argwhere(sitk.GetArrayFromImage(scan.lung) > 0)[:, ::-1]
    x_mm = [scan.ct.TransformIndexToPhysicalPoint(index.tolist())[0] for index in mark_xyz]
    lung_x_mm = [scan.ct.TransformIndexToPhysicalPoint(index.tolist())[0] for index in lung_xyz]
    assert max(x_mm) < np.median(lung_x_mm)  # LPS: x grows to the left
    assert in_hu(scan, scan.infection).mean() > -200


def test_the_scanner_adds_its_noise_and_its_offset() -> None:
    noisy = replace(SCANNERS[0], noise_hu=30.0, smoothing_mm=3.0, offset_hu=7.0)
    quiet = replace(noisy, noise_hu=0.0, offset_hu=0.0)
    with_noise, without = (phantom(replace(PLAN, scanner=scanner)) for scanner in (noisy, quiet))
    added_hu = in_hu(with_noise, with_noise.lung) - in_hu(without, without.lung)
    assert added_hu.std() == pytest.approx(30, rel=0.05)
    assert added_hu.mean() == pytest.approx(7, abs=2)


def test_the_chest_has_the_densities_of_a_chest() -> None:
    scan = right_lung_mark(SCANNERS[0], SMALL_DHW)
    ct, lung, mark = lps(scan.ct), lps(scan.lung) > 0, lps(scan.infection) > 0
    assert -880 < ct[lung & ~mark].mean() < -780
    assert np.quantile(ct[lung & ~mark], 0.98) > -600  # vessels
    trunk = ct[12][ct[12] > -500]
    assert 0.2 < (trunk > 0).mean() < 0.9  # muscle, blood, bone; the rest is fat and borders
    assert (trunk > 200).mean() > 0.02
    assert ct[12, :2].max() < -800  # air in front of the patient


def test_covid_is_ground_glass_and_cap_is_consolidation_mostly() -> None:
    covid, cap = ([in_hu(scan, scan.infection).mean() for scan in patients(label)] for label in Label)
    assert -700 < np.median(covid) < -350
    assert -250 < np.median(cap) < 60
    assert np.mean(np.array(covid) < -300) >= 0.7
    assert np.mean(np.array(cap) > -300) >= 0.7


def test_covid_is_in_both_lungs_more_often_than_cap() -> None:
    def is_bilateral(scan: Phantom) -> bool:
        of_column = lps(scan.infection).sum(axis=(0, 1))
        return bool(of_column[:30].sum() > 5 and of_column[34:].sum() > 5)

    covid, cap = ([is_bilateral(scan) for scan in patients(label)] for label in Label)
    assert sum(covid) >= 9
    assert sum(cap) <= 5


def test_covid_lies_nearer_to_the_pleura_and_lower_than_cap() -> None:
    def mean_depth_and_height(label: Label) -> NDArray[np.float64]:
        means = []
        for scan in patients(label):
            lung, infection = lps(scan.lung) > 0, lps(scan.infection) > 0
            depth = sitk.SignedMaurerDistanceMap(sitk.DICOMOrient(scan.lung, "LPS"), insideIsPositive=True)
            height = np.argwhere(infection)[:, 0].mean() - np.argwhere(lung)[:, 0].mean()
            means.append((sitk.GetArrayFromImage(depth)[infection].mean(), height))
        return np.mean(means, axis=0)

    (covid_depth, covid_height), (cap_depth, cap_height) = map(mean_depth_and_height, Label)
    assert covid_depth < 0.9 * cap_depth
    assert covid_height < cap_height
