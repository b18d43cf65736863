"""Synthetic hospitals on disk as a hospital has them: images, masks, cohort.csv, site.toml (IV-A, Table I).

Everything is a function of the plans, the grid and the seed: the same call writes the same bytes, and a call
that was killed is finished by calling again.
"""

import csv
import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.cohort import COLUMNS
from client.slice_thickness import MAX_SLICE_THICKNESS_MM
from client.volume_store import write_atomically
from client.worker_pool import WorkerDied, parallel_map
from dsan_model.cases import Label
from dsan_model.preprocessing import Recipe
from dsan_model.segmentation_grid import SegmentationRecipe
from simulation.phantoms import PhantomPlan, infection_ratio_at, phantom
from simulation.scanners import SCANNERS, Scanner

FileFormat = Literal["nifti", "dicom"]
Recipes = tuple[Recipe, SegmentationRecipe]

RESCALE_INTERCEPT_HU = -1024
PLAN_MARKER = ".plan"  # in the folder of every hospital that was written by program
FIRST_SCAN, HELD_OUT_FIRST_SCAN = date(2020, 1, 20), date(2020, 3, 1)  # IV-A splits by date


class HospitalsError(Exception):
    """The hospitals could not be written; the text says where, why and what to do."""


@dataclass(frozen=True)
class HospitalPlan:
    """One hospital: how many scans of each class, by which scanner, written as what."""

    name: str
    n_covid: int
    n_cap: int
    scanner: Scanner
    file_format: FileFormat
    held_out: bool

    @property
    def cases(self) -> int:
        """Scans of both classes."""
        return self.n_covid + self.n_cap


@dataclass(frozen=True)
class Demographics:
    """A row of Table I."""

    images_per_patient: float
    age_median: float
    age_range: tuple[int, int]
    female: float  # share of the patients


TABLE_1 = {
    (Label.COVID, False): Demographics(1094 / 960, 50, (14, 89), 479 / 960),
    (Label.CAP, False): Demographics(1092 / 628, 57, (12, 94), 322 / 628),
    (Label.COVID, True): Demographics(2295 / 1605, 50, (8, 95), 800 / 1605),
    (Label.CAP, True): Demographics(501 / 452, 42, (15, 98), 255 / 452),
}  # by class and held out or not


@dataclass(frozen=True)
class SyntheticCase:
    """One scan to be written, with its line in cohort.csv; paths are relative to the hospital's folder."""

    hospital: Path
    case_id: str
    patient_id: str
    age: int
    sex: str
    acquired_on: date
    plan: PhantomPlan
    file_format: FileFormat

    @property
    def image(self) -> str:
        """A folder with a DICOM series, or a NIfTI file: packing its noise would take eight times as long."""
        return f"images/{self.case_id}" + (".nii" if self.file_format == "nifti" else "")

    @property
    def lung_mask(self) -> str:
        """Masks are NIfTI at every hospital."""
        return f"masks/{self.case_id}-lung.nii.gz"

    @property
    def infection_mask(self) -> str:
        """See `lung_mask`."""
        return f"masks/{self.case_id}-infection.nii.gz"


def plan_hospitals(
    n_sites: int,
    cases_per_site: int,
    seed: int,
    held_out_mix: str = "mixed",
    file_format: str | None = None,
) -> tuple[HospitalPlan, ...]:
    """Hospitals of different sizes, class mixes and scanners, `cases_per_site` scans on average.

    The last one is held out: of both classes, or CAP only as the paper's unseen site. The others train: they
    have as many scans of COVID-19 as of CAP together, and where there are two or more, one has COVID-19 only.
    `file_format` None means DICOM at the smallest of them, one for each four hospitals, and NIfTI elsewhere.
    ValueError for fewer than two sites or four cases a site.
    """
    if n_sites < 2 or cases_per_site < 4:
        raise ValueError(
            f"{n_sites} sites of {cases_per_site} cases: expected at least 2 sites (one held out) of 4 cases"
        )
    if held_out_mix not in ("mixed", "cap-only") or file_format not in (None, "nifti", "dicom"):
        raise ValueError(
            f"held_out_mix {held_out_mix!r}, file_format {file_format!r}: expected mixed or cap-only, and "
            "nifti, dicom or None"
        )
    rng = np.random.default_rng(_seed(seed, "hospitals"))
    sizes = _site_sizes(n_sites - 1, cases_per_site, rng)
    covid = _covid_counts(sizes, rng)
    largest_dicom = sorted(sizes)[max(1, n_sites // 4) - 1]
    formats = [file_format or ("dicom" if size <= largest_dicom else "nifti") for size in sizes]
    sizes.append(cases_per_site)
    formats.append(file_format or "nifti")
    covid.append(0 if held_out_mix == "cap-only" else cases_per_site // 2)
    return tuple(
        HospitalPlan(
            name=f"hospital-{i + 1}",
            n_covid=covid[i],
            n_cap=sizes[i] - covid[i],
            scanner=SCANNERS[-1] if i == n_sites - 1 else SCANNERS[i % (len(SCANNERS) - 1)],
            file_format="dicom" if formats[i] == "dicom" else "nifti",
            held_out=i == n_sites - 1,
        )
        for i in range(n_sites)
    )


def write_hospitals(
    out: Path,
    plans: Sequence[HospitalPlan],
    shape_DHW: tuple[int, int, int],
    seed: int,
    recipe: Recipe,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    segmentation: SegmentationRecipe | None = None,
) -> tuple[Path, ...]:
    """Write each hospital to a folder of its name in `out`; the paths of their site.toml.

    `shape_DHW` is the grid of the scans before orientation; `recipe` and `segmentation` (that of IV-B) are
    what site.toml asks for. `progress` is called with the scans written and their total. What a killed call
    has written is kept. A folder that was written from another plan, grid, seed or recipe is not
    touched: FileExistsError.
    HospitalsError if a process that writes dies.
    """
    recipes = (recipe, segmentation or SegmentationRecipe())
    cohorts = {out / plan.name: tuple(draw_cases(out / plan.name, plan, shape_DHW, seed)) for plan in plans}
    for folder, cases in cohorts.items():
        _claim(folder, cases, recipes)
    waiting = [case for cases in cohorts.values() for case in cases if not _is_written(case)]
    total = sum(map(len, cohorts.values()))
    done = total - len(waiting)
    for case, result in parallel_map(write_case, waiting, workers):
        if isinstance(result, WorkerDied):
            raise HospitalsError(
                f"{case.hospital}: the process that wrote case {case.case_id} died (out of memory?): "
                "give the same command again with fewer --workers; what is written is kept"
            )
        done += 1
        if progress is not None:
            progress(done, total)
    return tuple(_finish(folder, cases, recipes) for folder, cases in cohorts.items())


def write_case(case: SyntheticCase) -> None:
    """Make one phantom and write its scan and masks; a file or folder is there whole or not at all."""
    scan = phantom(case.plan)
    _write_nifti(scan.lung, case.hospital / case.lung_mask)
    _write_nifti(scan.infection, case.hospital / case.infection_mask)
    if case.file_format == "nifti":
        _write_nifti(scan.ct, case.hospital / case.image)
    else:
        _write_dicom(scan.ct, case)


def draw_cases(
    folder: Path, plan: HospitalPlan, shape_DHW: tuple[int, int, int], seed: int
) -> Iterator[SyntheticCase]:
    """The cases of a hospital in the order of cohort.csv, both classes mixed; nothing is written.

    Patients, their scans and demographics follow Table I, infection ratios Table III at every hospital.
    """
    rng = np.random.default_rng(_seed(seed, plan.name))
    scans: list[_Scan] = []
    ratios: dict[Label, Iterator[float]] = {}
    for label, n in ((Label.COVID, plan.n_covid), (Label.CAP, plan.n_cap)):
        scans += _draw_scans(n, label, plan, _seed(seed, plan.name, label), rng)
        ratios[label] = iter(_draw_ratios(n, label, rng))
    number = plan.name.rpartition("-")[2]
    for line, i in enumerate(rng.permutation(len(scans)), start=1):
        scan, case_id = scans[i], f"h{number}-{line:04d}"
        disease = PhantomPlan(
            label=scan.label,
            infection_ratio=next(ratios[scan.label]),
            scanner=plan.scanner,
            shape_DHW=shape_DHW,
            anatomy_seed=_seed(seed, plan.name, scan.patient_id),
            lesion_seed=_seed(seed, plan.name, case_id),
        )
        yield SyntheticCase(
            hospital=folder,
            case_id=case_id,
            patient_id=scan.patient_id,
            age=scan.age,
            sex=scan.sex,
            acquired_on=scan.acquired_on,
            plan=disease,
            file_format=plan.file_format,
        )


# ---- plans -----------------------------------------------------------------------------------------------


def _site_sizes(n: int, mean: int, rng: np.random.Generator) -> list[int]:
    """Sizes from 0.6 to 1.4 of the mean, which they keep, in random order."""
    sizes = np.rint(mean * np.linspace(0.6, 1.4, n) if n > 1 else np.array([mean])).astype(int)
    return [int(size) for size in rng.permutation(sizes)]


def _covid_counts(sizes: list[int], rng: np.random.Generator) -> list[int]:
    """Scans of COVID-19 of each training site: about half of all, of one smaller site all of its scans."""
    shares = rng.permutation(np.linspace(0.3, 0.7, len(sizes)))
    counts = np.rint(shares * sizes).astype(int)
    is_open = np.ones(len(sizes), bool)
    if len(sizes) > 1:
        one_class = int(np.argsort(sizes, kind="stable")[(len(sizes) - 1) // 3])
        counts[one_class], is_open[one_class] = sizes[one_class], False
    low, high = np.maximum(1, np.rint(0.2 * np.array(sizes))), np.rint(0.8 * np.array(sizes))
    for _ in range(sum(sizes)):  # one scan after the other, at the site that has most room
        excess = int(counts.sum()) - sum(sizes) // 2
        room = np.where(is_open, counts - low if excess > 0 else high - counts, 0)
        if excess == 0 or room.max() < 1:
            break
        counts[int(room.argmax())] -= np.sign(excess)
    return [int(count) for count in counts]


def _seed(*parts: object) -> int:
    """A seed of its own for everything that has a name."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8])


# ---- cohorts ---------------------------------------------------------------------------------------------


class _Scan(NamedTuple):
    """One scan of a patient, before it has a number and a disease to show."""

    label: Label
    patient_id: str
    age: int
    sex: str
    acquired_on: date


def _draw_scans(
    n: int, label: Label, plan: HospitalPlan, seed: int, rng: np.random.Generator
) -> Iterator[_Scan]:
    """Scans of one class: every patient has one, the others are follow-ups of random patients (Table I)."""
    table = TABLE_1[label, plan.held_out]
    n_patients = min(n, max(1, round(n / table.images_per_patient)))
    is_female = rng.permutation(n_patients) < table.female * n_patients - 0.5
    ages = np.clip(np.rint(rng.normal(table.age_median, 15, n_patients)), *table.age_range).astype(int)
    first_scan = HELD_OUT_FIRST_SCAN if plan.held_out else FIRST_SCAN
    days = rng.integers(0, 40, n_patients)
    patients = [*range(n_patients), *(rng.integers(0, n_patients, n - n_patients) if n_patients else ())]
    for patient in patients:
        pseudonym = f"P{_seed(seed, patient):016X}"[:9]
        sex, acquired_on = "F" if is_female[patient] else "M", first_scan + timedelta(int(days[patient]))
        yield _Scan(label, pseudonym, int(ages[patient]), sex, acquired_on)
        days[patient] += rng.integers(3, 15)


def _draw_ratios(n: int, label: Label, rng: np.random.Generator) -> list[float]:
    """Infection ratios with one draw in each n-th of the distribution, so that small sites follow it too."""
    quantiles = (rng.permutation(n) + rng.uniform(size=n)) / max(n, 1)
    return [infection_ratio_at(label, quantile) for quantile in quantiles]


# ---- a hospital's folder ---------------------------------------------------------------------------------


def _claim(folder: Path, cases: Sequence[SyntheticCase], recipes: Recipes) -> None:
    """Make the folder, or take up the work of a call with the same arguments; FileExistsError otherwise."""
    marker = folder / PLAN_MARKER
    content = repr([replace(case, hospital=Path()) for case in cases])
    content += "".join(recipe.digest for recipe in recipes)
    digest = hashlib.sha256(content.encode()).hexdigest()
    is_taken = folder.exists() and any(path.name[0] != "." for path in folder.iterdir())
    if (is_taken or marker.is_file()) and not (marker.is_file() and marker.read_text() == digest):
        raise FileExistsError(
            f"{folder}: holds files that were not written by this call's plan, grid, seed and recipe; "
            "name another folder or remove this one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, digest.encode())
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)


def _is_written(case: SyntheticCase) -> bool:
    return all((case.hospital / path).exists() for path in (case.image, case.lung_mask, case.infection_mask))


def _finish(folder: Path, cases: Sequence[SyntheticCase], recipes: Recipes) -> Path:
    """Write site.toml, then cohort.csv: who finds it, finds the whole hospital."""
    site, manifest = folder / "site.toml", folder / "cohort.csv"
    if not manifest.exists():
        thickness_mm = max((case.plan.slice_thickness_mm for case in cases), default=0.0)
        write_atomically(site, _site_toml(folder.name, recipes, thickness_mm).encode())
        write_atomically(manifest, _cohort_csv(cases).encode())
    return site


def _site_toml(name: str, recipes: Recipes, thickness_mm: float) -> str:
    recipe, segmentation = recipes
    lines = [
        f'name = "{name}"',
        'cohort = "cohort.csv"',
        'store = "store"',
        "",
        "[recipe]",
        f"shape_dhw = {list(recipe.shape_DHW)}",
        f"antialias = {str(recipe.antialias).lower()}",
        f"segmentation_spacing_mm_xyz = {list(segmentation.spacing_mm_xyz)}",
    ]
    if thickness_mm > MAX_SLICE_THICKNESS_MM:
        lines += ["", "[audit]", f"max_slice_thickness_mm = {np.ceil(10 * thickness_mm) / 10:.1f}"]
    return "\n".join(lines) + "\n"


def _cohort_csv(cases: Sequence[SyntheticCase]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in cases:
        writer.writerow(
            (
                *(case.case_id, case.patient_id, case.plan.label, case.image),
                *(case.lung_mask, case.infection_mask, case.age, case.sex),
                *(case.acquired_on.isoformat(), case.plan.scanner.name),
            )
        )
    return text.getvalue()


def _write_nifti(image: sitk.Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    sitk.WriteImage(image, str(temporary))
    temporary.replace(path)


# ---- DICOM -----------------------------------------------------------------------------------------------


def _write_dicom(ct: sitk.Image, case: SyntheticCase) -> None:
    """A series of CT images in a folder; file names are not in the order of the slices, as in life."""
    folder = case.hospital / case.image
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    stored_DHW = sitk.GetArrayViewFromImage(ct) - np.int16(RESCALE_INTERCEPT_HU)
    series = _series(ct, case)
    file_numbers = np.random.default_rng(case.plan.lesion_seed).permutation(len(stored_DHW))
    for k, pixels_HW in enumerate(stored_DHW):
        origin_mm = ct.TransformIndexToPhysicalPoint((0, 0, k))
        _set_slice(series, k, origin_mm, pixels_HW)
        series.save_as(temporary / f"IM{file_numbers[k] + 1:04d}.dcm", enforce_file_format=True)
    temporary.replace(folder)


def _series(ct: sitk.Image, case: SyntheticCase) -> Dataset:
    """All that the slices of a series have in common."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.StudyInstanceUID = _uid("study", case)
    dataset.SeriesInstanceUID = _uid("series", case)
    dataset.FrameOfReferenceUID = _uid("frame", case)
    dataset.SeriesNumber = dataset.AcquisitionNumber = 1
    _set_subject(dataset, case)
    _set_grid(dataset, ct)
    return dataset


def _set_subject(dataset: Dataset, case: SyntheticCase) -> None:
    """Who was scanned, when, by what."""
    acquired = case.acquired_on.strftime("%Y%m%d")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = acquired
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.PatientName = dataset.PatientID = case.patient_id
    dataset.PatientSex, dataset.PatientAge, dataset.PatientBirthDate = case.sex, f"{case.age:03d}Y", ""
    dataset.AccessionNumber = dataset.StudyID = dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.BodyPartExamined, dataset.PatientPosition = "CT", "CHEST", "HFS"
    dataset.Manufacturer = case.plan.scanner.manufacturer
    dataset.ManufacturerModelName = case.plan.scanner.name
    dataset.KVP, dataset.GantryDetectorTilt = 120, 0


def _set_grid(dataset: Dataset, ct: sitk.Image) -> None:
    """Where the pixels lie and what their values mean."""
    spacing_mm_xyz = ct.GetSpacing()
    axes_33 = np.reshape(ct.GetDirection(), (3, 3)) + 0.0  # no -0
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SliceThickness = _decimal(spacing_mm_xyz[2])
    dataset.PixelSpacing = [_decimal(spacing_mm_xyz[1]), _decimal(spacing_mm_xyz[0])]
    dataset.ImageOrientationPatient = [_decimal(x) for x in (*axes_33[:, 0], *axes_33[:, 1])]
    dataset.PositionReferenceIndicator = ""
    dataset.Rows, dataset.Columns = ct.GetHeight(), ct.GetWidth()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1  # signed: what lies outside the scanner's circle goes below the intercept
    dataset.RescaleIntercept, dataset.RescaleSlope = RESCALE_INTERCEPT_HU, 1
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = -600, 1500


def _set_slice(
    series: Dataset, k: int, origin_mm_xyz: tuple[float, float, float], pixels_HW: npt.NDArray[np.int16]
) -> None:
    """Turn the data set of a series into its slice k, in place."""
    uid = generate_uid(entropy_srcs=[series.SeriesInstanceUID, str(k)])
    series.file_meta.MediaStorageSOPInstanceUID = series.SOPInstanceUID = uid
    series.InstanceNumber = k + 1
    series.ImagePositionPatient = [_decimal(x) for x in origin_mm_xyz]
    series.PixelData = pixels_HW.astype("<i2").tobytes()


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _uid(what: str, case: SyntheticCase) -> str:
    return generate_uid(entropy_srcs=[what, case.case_id, str(case.plan.lesion_seed)])
