"""One scan of 512 x 512 x 300 voxels from DICOM to its stored volume, against SimpleITK, MONAI and TorchIO.

    python benchmarks/prepare_scan.py              # 2 minutes on two cores
    python benchmarks/prepare_scan.py --no-others  # without MONAI and TorchIO: 20 s

Ours is all that `dsan-client prepare` does for a case with given masks: digests of the files, headers and
gate, pixels, HU, audit of both masks, resampling of the CT and of both masks, pictures for the QC page,
writing with fsync. SimpleITK only reads the series, by its own series reader, which checks nothing. MONAI
and TorchIO read the same files and resample to the paper's spacing and then to the grid, with their
own transforms (IV-B). Every candidate has a process of its own with one thread, ours the environment and
imports of `prepare`'s workers, and does the scan twice: the first in a process, and one that follows. Each is
run --times times, in turns, so that a busy machine is busy for all; medians of wall and of CPU time are told.

Expected: ours takes at most 2.5 times as long as SimpleITK reads, at most 3 times the volume in memory
(beyond what its libraries take); its resampling takes less than a tenth of MONAI's and TorchIO's. TorchIO is
no dependency of this project: `pip install torchio` for its line.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import SimpleITK as sitk

from client.worker_pool import WORKER_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "client")]

KEYS = ("ct", "lung", "infection")
SHAPE_DHW, SPACING_MM_XYZ = (300, 512, 512), (0.7, 0.7, 1.0)
PAPER_MM_XYZ, GRID_XYZ = (0.7168, 0.7168, 1.25), (256, 256, 138)
CANDIDATES = ("SimpleITK reads", "ours", "MONAI", "TorchIO")


# ---- the scan ----


def write_scan(folder: Path) -> None:
    """A chest of two ellipsoids as 300 DICOM files, and both masks as packed NIfTI."""
    from dicom_factory import encode, good_slices, store

    z, y, x = np.ogrid[: SHAPE_DHW[0], : SHAPE_DHW[1], : SHAPE_DHW[2]]
    lung = np.zeros(SHAPE_DHW, bool)
    for centre_x in (150, 362):
        lung |= ((x - centre_x) / 85) ** 2 + ((y - 256) / 120) ** 2 + ((z - 150) / 130) ** 2 < 1
    infection = lung & (((x - 130) / 40) ** 2 + ((y - 300) / 40) ** 2 + ((z - 120) / 60) ** 2 < 1)
    body = ((x - 256) / 245) ** 2 + ((y - 256) / 180) ** 2 < 1
    noise = np.random.default_rng(0).integers(-40, 40, SHAPE_DHW, dtype=np.int16)
    (folder / "series").mkdir(parents=True)
    first = good_slices(1)[0]
    first.Rows, first.Columns = SHAPE_DHW[1:]
    first.PixelSpacing, first.SliceThickness = list(SPACING_MM_XYZ[:2]), SPACING_MM_XYZ[2]
    for index in range(SHAPE_DHW[0]):
        hu = np.where(infection[index], -300, np.where(lung[index], -850, np.where(body[0], 40, -1000)))
        store(first, np.maximum(hu.astype(np.int32) + noise[index] + 1024, 0))  # as a scanner clips
        first.ImagePositionPatient = [-179.0, -179.0, index * SPACING_MM_XYZ[2]]
        first.SOPInstanceUID = first.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{index + 1}"
        (folder / "series" / f"IM{(index * 7) % 300:04d}.dcm").write_bytes(encode(first))
    for name, mask in (("lung", lung), ("infection", infection)):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(SPACING_MM_XYZ)
        image.SetOrigin((-179.0, -179.0, 0.0))
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"), useCompression=True)


# ---- the candidates, each in a process of its own ----


def simpleitk_reads(folder: Path) -> None:
    """The series, by SimpleITK's own reader, and nothing more."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "series")))
    reader.Execute()


def ours(folder: Path) -> None:
    """A case through `prepare_one`, into an empty store."""
    from client.case_preparation import Job, prepare_one
    from client.cohort import CohortCase
    from client.site import SegmentationTable
    from dsan_model.cases import Label
    from dsan_model.preprocessing import Recipe

    masks = folder / "lung.nii.gz", folder / "infection.nii.gz"
    case = CohortCase("c", "p", Label.COVID, folder / "series", *masks, None, None, None, None, 2)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        outcome = prepare_one(Job(case, Path(store), Recipe(), 5.0, {}, SegmentationTable()))
    if outcome.stored is None:
        sys.exit(str(outcome.findings))


def monai(folder: Path) -> None:
    """Load, orient, resample in two steps, pad, window, mask and write, by MONAI's dictionary transforms."""
    np.save(folder / "monai.npy", monai_resamples(monai_loads(folder))["ct"].numpy())


def monai_loads(folder: Path) -> dict[str, Any]:
    """CT and both masks as MONAI's tensors."""
    from monai.transforms import LoadImaged

    masks = {key: str(folder / f"{key}.nii.gz") for key in KEYS[1:]}
    loaded: dict[str, Any] = LoadImaged(KEYS, ensure_channel_first=True)(
        {"ct": str(folder / "series"), **masks}
    )
    return loaded


def monai_resamples(case: dict[str, Any]) -> dict[str, Any]:
    """The paper's two steps, window and mask (IV-B)."""
    from monai.transforms import (
        Compose,
        MaskIntensityd,
        Orientationd,
        Resized,
        ScaleIntensityRanged,
        Spacingd,
    )

    transforms = Compose(
        [
            Orientationd(KEYS, "LPS"),
            Spacingd(KEYS, PAPER_MM_XYZ, mode=("bilinear", "nearest", "nearest")),
            Resized(KEYS, GRID_XYZ, mode=("trilinear", "nearest", "nearest")),
            ScaleIntensityRanged("ct", -1350, 150, 0, 1, clip=True),
            MaskIntensityd("ct", mask_key="lung"),
        ]
    )
    done: dict[str, Any] = transforms(case)
    return done


def torchio(folder: Path) -> None:
    """The same by TorchIO's transforms."""
    np.save(folder / "torchio.npy", torchio_resamples(torchio_loads(folder))["ct"].numpy())


def torchio_loads(folder: Path) -> Any:
    """CT and both masks as a subject, in memory."""
    import torchio as tio

    subject = tio.Subject(
        ct=tio.ScalarImage(folder / "series"),
        lung=tio.LabelMap(folder / "lung.nii.gz"),
        infection=tio.LabelMap(folder / "infection.nii.gz"),
    )
    subject.load()
    return subject


def torchio_resamples(subject: Any) -> Any:
    """The paper's two steps, window and mask (IV-B)."""
    import torchio as tio

    transform = tio.Compose(
        [
            tio.CopyAffine("ct"),  # the masks' differ in the last digit, and one row would be lost
            tio.ToCanonical(),
            tio.Resample(PAPER_MM_XYZ),
            tio.Resize(GRID_XYZ),
            tio.RescaleIntensity((0, 1), in_min_max=(-1350, 150)),
            tio.Mask("lung"),
        ]
    )
    return transform(subject)


def we_load(folder: Path) -> tuple[sitk.Image, ...]:
    """CT and both masks through the gate."""
    from client.images import read_ct, read_mask

    ct, _ = read_ct(folder / "series", None, 5.0)
    return ct, *(read_mask(folder / f"{key}.nii.gz", ct, None, key) for key in KEYS[1:])


def we_resample(images: tuple[sitk.Image, ...]) -> object:
    """The paper's two steps, window and mask (IV-B)."""
    from dsan_model.preprocessing import Recipe, prepare_case

    return prepare_case(*images, Recipe())


DO = dict(zip(CANDIDATES, (simpleitk_reads, ours, monai, torchio), strict=True))
RESAMPLE: dict[str, tuple[Callable[[Path], Any], Callable[[Any], object]]] = {
    "ours": (we_load, we_resample),
    "MONAI": (monai_loads, monai_resamples),
    "TorchIO": (torchio_loads, torchio_resamples),
}


def timed(candidate: str, folder: Path) -> None:
    """Run a candidate twice and print its seconds and memory; its libraries are loaded before."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if candidate == "ours":
        __import__("highdicom.spatial")
        __import__("client.case_preparation")
    elif candidate in ("MONAI", "TorchIO"):
        __import__(candidate.lower())
    before_bytes = _peak_bytes()
    result = {}
    for prefix in ("first_", ""):
        started, cpu = time.perf_counter(), time.process_time()
        DO[candidate](folder)
        result[f"{prefix}wall_s"] = time.perf_counter() - started
        result[f"{prefix}cpu_s"] = time.process_time() - cpu
    result["bytes"] = _peak_bytes() - before_bytes
    if candidate in RESAMPLE:
        load, resample = RESAMPLE[candidate]
        loaded = load(folder)
        started = time.perf_counter()
        resample(loaded)
        result["resampling_s"] = time.perf_counter() - started
    print(json.dumps(result))


def _peak_bytes() -> int:
    """Of this program alone: getrusage counts the process that it was forked from too."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def main() -> None:
    """Write the scan, run every candidate in turns, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--no-others", action="store_true", help="leave MONAI and TorchIO out")
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="a scan written before (kept); else a temporary one")
    chosen = parser.parse_args()
    if chosen.candidate:
        return timed(chosen.candidate, chosen.folder)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary) / "scan"
        if not folder.exists():
            write_scan(folder)
        candidates = CANDIDATES[:2] if chosen.no_others else CANDIDATES
        results: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in candidates}
        for _ in range(chosen.times):
            for candidate, runs in results.items():
                runs.append(_in_a_process(candidate, folder))
    _print(results)
    return None


def _in_a_process(candidate: str, folder: Path) -> dict[str, float]:
    threads = {name: value for name, value in WORKER_ENVIRONMENT.items() if name.endswith("THREADS")}
    variables = WORKER_ENVIRONMENT if candidate == "ours" else threads
    command = [sys.executable, __file__, "--candidate", candidate, "--folder", str(folder)]
    done = subprocess.run(
        command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _print(results: dict[str, list[dict[str, float]]]) -> None:
    volume_bytes = int(np.prod(SHAPE_DHW)) * 2
    medians = {
        name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    columns = {"first": "first_wall_s", "following": "wall_s", "its CPU": "cpu_s"}
    print(f"{'':<18}" + "".join(f"{title:>11}{'of reading':>12}" for title in columns) + f"{'memory':>16}")
    for name, found in medians.items():
        reading = medians[CANDIDATES[0]]
        parts = [f"{found[key]:>9.2f} s{found[key] / reading[key]:>12.2f}" for key in columns.values()]
        print(f"{name:<18}" + "".join(parts) + f"{found['bytes'] / volume_bytes:>8.2f} volumes")
    alone = {
        name: median(run["resampling_s"] for run in results[name]) for name in results if name in RESAMPLE
    }
    for name, seconds in alone.items():
        print(
            f"{name}: resampling alone {seconds:.2f} s, {seconds / alone['ours']:.1f} times ours; "
            f"from DICOM to disk {medians[name]['wall_s'] / medians['ours']['wall_s']:.1f} times ours"
        )


if __name__ == "__main__":
    main()
