"""Three small hospitals over real chest CT, to see the whole path on real anatomy; no claim of accuracy.

hospital-1 has the COVID-19 case P002 (DICOM), hospital-2 the CAP case cap002 (NIfTI), both without masks: the
hospital segments them itself, lungs classically and infection crudely. Every other case, all of hospital-3's
too, is the one normal scan with a lesion painted into it, so that its infection mask is known exactly. Its
"patients" differ in size, noise and disease, but are one anatomy: a network may well tell painted from real.
The scans are copied: write to a folder outside of any repository, and do not pass it on.
"""
# Suffixes: _DHW an array over (z, y, x) in LPS; _n a list of the voxels of both lungs.

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates

from client.cohort import COLUMNS
from client.images import read_ct
from client.segmentation import segment_lungs
from client.volume_store import write_atomically
from dsan_model.cases import Label
from dsan_model.preprocessing import Recipe
from simulation.phantom_anatomy import LOBES
from simulation.phantoms import infection_ratio_at

COVID_SCAN = "covid-ct-md/P002_dicom"
CAP_SCAN = "covid-ct-md/cap002_256.nii.gz"
NORMAL_SCAN = "covid-ct-md/normal002_256.nii.gz"
HOSPITALS = 3

AIR_HU = -980.0
NOISE_PITCH_VOXELS = 4

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RealCase:
    """A line of cohort.csv; a scan that comes as it is has no masks, an implant has an infection ratio."""

    case_id: str
    label: Label
    scan: Path | None  # None: the normal scan with a lesion
    infection_ratio: float | None

    @property
    def image(self) -> str:
        """Where the hospital keeps it: a folder with a DICOM series, or a NIfTI file."""
        suffix = ".nii" if self.scan is None else "".join(self.scan.suffixes)
        return f"images/{self.case_id}{suffix}"

    @property
    def masks(self) -> tuple[str, str]:
        """Lung and infection; empty cells where there are none."""
        if self.scan is not None:
            return "", ""
        return f"masks/{self.case_id}-lung.nii.gz", f"masks/{self.case_id}-infection.nii.gz"


@dataclass(frozen=True)
class NormalLungs:
    """A scan without disease, in LPS, and the voxels of its lungs as lists."""

    ct: sitk.Image
    lung: sitk.Image
    voxel: tuple[npt.NDArray[np.intp], ...]  # plane, row, column
    position_mm_zyx: tuple[Floats, Floats, Floats]  # from the middle of both lungs
    depth_mm_n: Floats  # below the chest wall, nearly
    lobe_n: npt.NDArray[np.intp]  # index into LOBES; the fissures are straight planes
    parenchyma_hu: float

    def __len__(self) -> int:
        return len(self.depth_mm_n)


def write_real_hospitals(
    ct_folder: Path,
    out: Path,
    cases_per_hospital: int,
    recipe: Recipe,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Write hospital-1 to hospital-3 below `out`; the paths of their site.toml.

    `ct_folder` holds the scans under the paths above. Half of each hospital's cases are COVID-19, half CAP.
    Raises FileNotFoundError for a scan that is not there, FileExistsError for a hospital that is, and
    FindingError for a scan that cannot be used.
    """
    _check_folders(ct_folder, out)
    normal = read_normal_lungs(ct_folder / NORMAL_SCAN)
    cohorts = [tuple(draw_cases(ct_folder, h, cases_per_hospital, seed)) for h in range(HOSPITALS)]
    total, done = sum(map(len, cohorts)), 0
    sites = []
    for h, cases in enumerate(cohorts):
        folder = out / f"hospital-{h + 1}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        for number, case in enumerate(cases):
            _write_case(case, folder, normal, np.random.default_rng((seed, h, number)))
            done += 1
            if progress is not None:
                progress(done, total)
        write_atomically(folder / "cohort.csv", _cohort_csv(cases).encode())
        write_atomically(folder / "site.toml", _site_toml(folder.name, recipe).encode())
        sites.append(folder / "site.toml")
    return tuple(sites)


def draw_cases(ct_folder: Path, hospital: int, n_cases: int, seed: int) -> Iterator[RealCase]:
    """The cases of a hospital (0 to 2), one patient each; ratios of the implants follow Table III."""
    rng = np.random.default_rng((seed, hospital))
    real = {0: (Label.COVID, COVID_SCAN), 1: (Label.CAP, CAP_SCAN)}.get(hospital)
    if real is not None:
        yield RealCase(f"h{hospital + 1}-real", real[0], (ct_folder / real[1]).resolve(), None)
    for label, n_of_class in ((Label.COVID, (n_cases + 1) // 2), (Label.CAP, n_cases // 2)):
        n = n_of_class - (real is not None and real[0] is label)
        for i, quantile in enumerate((rng.permutation(n) + rng.uniform(size=n)) / max(n, 1), start=1):
            name = "covid" if label is Label.COVID else "cap"
            yield RealCase(
                f"h{hospital + 1}-{name}-{i:02d}", label, None, infection_ratio_at(label, quantile)
            )


def read_normal_lungs(scan: Path) -> NormalLungs:
    """The normal scan with its lungs, segmented classically. Raises FindingError if it cannot be used."""
    ct = sitk.DICOMOrient(read_ct(scan, None)[0], "LPS")
    lung = segment_lungs(ct).mask
    hu_DHW, voxel = sitk.GetArrayViewFromImage(ct), np.nonzero(sitk.GetArrayViewFromImage(lung))
    position_mm_n3 = np.stack(voxel, axis=1) * np.array(ct.GetSpacing()[::-1])
    low_mm, high_mm = position_mm_n3.min(axis=0), position_mm_n3.max(axis=0)
    z, y, x = (position_mm_n3 - (low_mm + high_mm) / 2).astype(np.float32).T
    height, back = (z - z.min()) / np.ptp(z), (y - y.min()) / np.ptp(y)
    is_lower = height < 0.1 + 0.6 * back
    right = np.where(is_lower, 2, np.where(height < 0.5, 1, 0))
    lobe_n = np.where(x < 0, right, np.where(is_lower, 4, 3))
    parenchyma_hu = float(np.median(hu_DHW[voxel]))
    return NormalLungs(ct, lung, voxel, (z, y, x), _wall_depth_mm(voxel[0], y, x), lobe_n, parenchyma_hu)


def implant(
    normal: NormalLungs, label: Label, infection_ratio: float, rng: np.random.Generator
) -> tuple[sitk.Image, sitk.Image]:
    """The scan with a lesion (int16, HU) and its mask (uint8), which takes this share of the lungs' voxels.

    COVID-19 is peripheral ground glass in several places, CAP the consolidation of one lobe with open
    airways, as in simulation.phantom_lesions. Vessels stay where ground glass is thinner than they are.
    """
    wanted = max(1, round(infection_ratio * len(normal)))
    score_n = _score(normal, label, wanted, rng)
    rank = np.argpartition(score_n, len(normal) - wanted)[len(normal) - wanted :]
    rank = rank[np.argsort(score_n[rank], kind="stable")]  # from the rim to the core
    hu_DHW = sitk.GetArrayFromImage(normal.ct).astype(np.float32)
    taken = tuple(index[rank] for index in normal.voxel)
    hu_DHW[taken] = _diseased_hu(hu_DHW[taken], normal, label, rank, rng)
    hu_DHW += rng.normal(0, rng.uniform(4, 12), hu_DHW.shape).astype(np.float32)
    infection_DHW = np.zeros(hu_DHW.shape, np.uint8)
    infection_DHW[taken] = 1
    ct_DHW = np.clip(np.rint(hu_DHW), -1024, 3071).astype(np.int16)
    return _like(ct_DHW, normal.ct), _like(infection_DHW, normal.ct)


# ---- lesions ----


def _wall_depth_mm(plane_n: npt.NDArray[np.intp], y_n: Floats, x_n: Floats) -> Floats:
    """Depth below the ellipse around both lungs in each plane: the chest wall, not the mediastinum."""
    depth_mm_n = np.zeros(len(plane_n), np.float32)
    first = np.flatnonzero(np.diff(plane_n, prepend=-1))  # the voxels are sorted by plane
    for voxels in np.split(np.arange(len(plane_n)), first[1:]):
        y, x = y_n[voxels], x_n[voxels]
        half_y, half_x = max(float(np.ptp(y)) / 2, 1.0), max(float(np.ptp(x)) / 2, 1.0)
        radius = np.hypot((y - (y.min() + y.max()) / 2) / half_y, (x - (x.min() + x.max()) / 2) / half_x)
        depth_mm_n[voxels] = np.maximum(1 - radius, 0) * np.sqrt(half_y * half_x)
    return depth_mm_n


def _score(normal: NormalLungs, label: Label, wanted: int, rng: np.random.Generator) -> Floats:
    """How early each voxel of the lungs falls ill; smooth, in mm, higher is earlier."""
    is_covid = label is Label.COVID
    z, y, x = normal.position_mm_zyx
    pleural = rng.uniform(0.5, 1.0) if is_covid else rng.uniform(0.0, 0.4)
    lobe = rng.choice(len(LOBES), p=(0.18, 0.12, 0.30, 0.15, 0.25))
    is_allowed = np.ones(len(normal), bool) if is_covid else normal.lobe_n == lobe
    weight = np.exp(-pleural * normal.depth_mm_n / 9 + 0.6 * (0.018 * y - 0.009 * z)) * is_allowed
    volume_mm3 = wanted * float(np.prod(normal.ct.GetSpacing()))
    n_foci = int(rng.integers(2, 9)) if is_covid else 1
    radius_mm = np.float32((0.24 * volume_mm3 / n_foci) ** (1 / 3))
    distance = np.full(len(normal), np.inf, np.float32)
    for focus in rng.choice(len(normal), n_foci, p=weight / weight.sum()):
        size = np.float32(rng.lognormal(0, 0.35))
        away = np.sqrt((z - z[focus]) ** 2 + (y - y[focus]) ** 2 + (x - x[focus]) ** 2)
        np.minimum(distance, away / size, out=distance)
    noise_n = _smooth_noise(normal, float(np.clip(0.4 * radius_mm, 4, 12)), rng)
    roughness = 0.5 if is_covid else 0.35  # of its border, in radii
    score = roughness * radius_mm * noise_n - distance - np.float32(0.7 * pleural) * normal.depth_mm_n
    return cast(Floats, score - np.where(is_allowed, np.float32(0), np.float32(1000)))


def _smooth_noise(normal: NormalLungs, sigma_mm: float, rng: np.random.Generator) -> Floats:
    """Noise of unit variance at the lungs' voxels, smooth over `sigma_mm`."""
    pitch_mm = np.array(normal.ct.GetSpacing()[::-1]) * NOISE_PITCH_VOXELS
    knots_DHW = rng.normal(size=[n // NOISE_PITCH_VOXELS + 2 for n in normal.ct.GetSize()[::-1]])
    knots_DHW = gaussian_filter(knots_DHW, sigma_mm / pitch_mm)
    places = np.stack(normal.voxel).astype(np.float32) / NOISE_PITCH_VOXELS
    noise_n = map_coordinates(knots_DHW / knots_DHW.std(), places, order=1)
    return cast(Floats, noise_n.astype(np.float32))


def _diseased_hu(
    hu_n: Floats, normal: NormalLungs, label: Label, rank: npt.NDArray[np.intp], rng: np.random.Generator
) -> Floats:
    """The lesion's voxels, from its rim to its core: what is thinner than the lesion is lifted towards it."""
    is_covid = label is Label.COVID
    target_hu = rng.uniform(-640, -420) if is_covid else rng.uniform(-120, 40)
    from_rim = np.linspace(0, 1, len(rank), dtype=np.float32)
    at_rim = 0.3 if is_covid else 0.85
    strength = at_rim + (1 - at_rim) * np.minimum(2.5 * from_rim, 1)
    texture_hu = (50 if is_covid else 15) * _smooth_noise(normal, 5.0, rng)[rank]
    lesion_hu = target_hu + texture_hu
    lift_hu = lesion_hu - normal.parenchyma_hu
    thinness = np.clip((lesion_hu - hu_n) / lift_hu, 0, 1)
    diseased_hu = hu_n + strength * np.sqrt(thinness) * lift_hu  # the root keeps half of the tissue's texture
    if is_covid:
        return cast(Floats, diseased_hu)
    air = _bronchogram_share(normal, rank, rng)
    return cast(Floats, diseased_hu + air * (np.float32(AIR_HU) - diseased_hu))


def _bronchogram_share(normal: NormalLungs, rank: npt.NDArray[np.intp], rng: np.random.Generator) -> Floats:
    """How much of each of the lesion's voxels is an airway: straight tubes from the hilum."""
    points_n3 = np.stack([axis[rank] for axis in normal.position_mm_zyx], axis=1)
    centre = points_n3.mean(axis=0)
    hilum = np.array([0.0, 0.0, np.sign(centre[2]) * 30.0])
    volume_ml = len(rank) * float(np.prod(normal.ct.GetSpacing())) / 1000
    nearest_mm = np.full(len(rank), np.inf)
    for end in points_n3[rng.integers(0, len(rank), min(2 + int(volume_ml / 10), 14))]:
        line = end - hilum
        along = np.clip((points_n3 - hilum) @ line / (line @ line), 0, 1)
        np.minimum(
            nearest_mm, np.linalg.norm(points_n3 - hilum - along[:, None] * line, axis=1), out=nearest_mm
        )
    return cast(Floats, np.clip(1.6 - nearest_mm / 1.5, 0, 1).astype(np.float32))


# ---- files ----


def _check_folders(ct_folder: Path, out: Path) -> None:
    for scan in (COVID_SCAN, CAP_SCAN, NORMAL_SCAN):
        if not (ct_folder / scan).exists():
            raise FileNotFoundError(
                f"{ct_folder}: expected {scan} in it; name the folder that holds covid-ct-md"
            )
    taken = [path for path in out.glob("hospital-*") if path.is_dir()]
    if taken:
        raise FileExistsError(f"{taken[0]}: is there already; name another folder or remove it")


def _write_case(case: RealCase, folder: Path, normal: NormalLungs, rng: np.random.Generator) -> None:
    if case.scan is not None:
        _copy(case.scan, folder / case.image)
        return
    assert case.infection_ratio is not None
    ct, infection = implant(normal, case.label, case.infection_ratio, rng)
    size = rng.uniform(0.94, 1.06)  # of this patient against the one who was scanned
    for image, path in zip((ct, normal.lung, infection), (case.image, *case.masks), strict=True):
        scaled = sitk.Image(image)
        scaled.SetSpacing([round(size * spacing_mm, 4) for spacing_mm in image.GetSpacing()])
        sitk.WriteImage(scaled, str(folder / path))


def _copy(scan: Path, place: Path) -> None:
    """A file, or the files of a folder; not their permissions, which may forbid to delete them again."""
    if scan.is_file():
        shutil.copyfile(scan, place)
        return
    place.mkdir()
    for file in sorted(scan.iterdir()):
        shutil.copyfile(file, place / file.name)


def _cohort_csv(cases: tuple[RealCase, ...]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for case in cases:
        lung_mask, infection_mask = case.masks
        cells = {
            "case_id": case.case_id,
            "patient_id": case.case_id,
            "label": case.label,
            "image": case.image,
        }
        writer.writerow(cells | {"lung_mask": lung_mask, "infection_mask": infection_mask})
    return text.getvalue()


def _site_toml(name: str, recipe: Recipe) -> str:
    return (
        f'name = "{name}"\n\n[recipe]\nshape_dhw = {list(recipe.shape_DHW)}\n'
        f"antialias = {str(recipe.antialias).lower()}\n\n"
        '[segmentation]  # of cases whose mask cells are empty\nlungs = "classical"\ninfection = "crude"\n'
    )


def _like(array_DHW: npt.NDArray[np.int16 | np.uint8], grid: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array_DHW)
    image.CopyInformation(grid)
    return image
