"""One scan of 512 x 512 x 300 voxels from DICOM to its stored volume, against SimpleITK, MONAI and TorchIO.

    python benchmarks/prepare_scan.py              # 2 minutes on two cores
    python benchmarks/prepare_scan.py --no-others  # without MONAI and TorchIO: 20 s

Ours is all that `dsan-client prepare` does for a case with given masks: digests of the files, headers and
gate, pixels, HU, audit of both masks, resampling of the CT and of both masks, pictures for the QC page,
writing with fsync. SimpleITK only reads the series, by its own series reader, which checks nothing. MONAI
and TorchIO read the same files and resample to the paper's spacing and then to the grid, with their
own transforms (IV-B). Every candidate has a process of its own with one thread, and each is run --times
times, in turns, so that a busy machine is busy for all; medians of wall and of CPU time are told.

Expected: ours takes at most 2.5 times as long as SimpleITK reads, at most 3 times the volume in memory
(beyond what its libraries take), and a tenth of MONAI's and TorchIO's time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "client")]

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
        store(first, hu.astype(np.int32) + noise[index] + 1024)
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
    """Load, orient, resample in two steps, pad, window and write, by MONAI's dictionary transforms."""
    from monai.transforms import (
        Compose,
        LoadImaged,
        MaskIntensityd,
        Orientationd,
        Resized,
        ScaleIntensityRanged,
        Spacingd,
    )

    keys, modes = ("ct", "lung", "infection"), ("bilinear", "nearest", "nearest")
    transforms = Compose(
        [
            LoadImaged(keys, ensure_channel_first=True),
            Orientationd(keys, "LPS"),
            Spacingd(keys, PAPER_MM_XYZ, mode=modes),
            Resized(keys, GRID_XYZ, mode=("trilinear", "nearest", "nearest")),
            ScaleIntensityRanged("ct", -1350, 150, 0, 1, clip=True),
            MaskIntensityd("ct", mask_key="lung"),
        ]
    )
    paths = {
        "ct": folder / "series",
        "lung": folder / "lung.nii.gz",
        "infection": folder / "infection.nii.gz",
    }
    case = transforms({key: str(path) for key, path in paths.items()})
    np.save(folder / "monai.npy", case["ct"].numpy())


def torchio(folder: Path) -> None:
    """The same by TorchIO's transforms."""
    import torchio as tio

    subject = tio.Subject(
        ct=tio.ScalarImage(folder / "series"),
        lung=tio.LabelMap(folder / "lung.nii.gz"),
        infection=tio.LabelMap(folder / "infection.nii.gz"),
    )
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
    np.save(folder / "torchio.npy", transform(subject)["ct"].numpy())


DO = dict(zip(CANDIDATES, (simpleitk_reads, ours, monai, torchio), strict=True))


def timed(candidate: str, folder: Path) -> None:
    """Run a candidate and print its seconds and memory; its libraries are loaded before the clock starts."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if candidate == "ours":
        import client.case_preparation  # noqa: F401
    elif candidate in ("MONAI", "TorchIO"):
        __import__(candidate.lower())
    before_bytes = _peak_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    DO[candidate](folder)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "bytes": _peak_bytes() - before_bytes}))


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
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--candidate", candidate, "--folder", str(folder)]
    done = subprocess.run(
        command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _print(results: dict[str, list[dict[str, float]]]) -> None:
    volume_bytes = int(np.prod(SHAPE_DHW)) * 2
    wall, cpu, memory = (
        {name: median(run[key] for run in runs) for name, runs in results.items()}
        for key in ("wall_s", "cpu_s", "bytes")
    )
    reading_s, reading_cpu_s = wall[CANDIDATES[0]], cpu[CANDIDATES[0]]
    print(f"{'':<18}{'wall':>9}{'of reading':>12}{'CPU':>9}{'of reading':>12}{'memory':>20}")
    for name in results:
        print(
            f"{name:<18}{wall[name]:>7.2f} s{wall[name] / reading_s:>12.2f}{cpu[name]:>7.2f} s"
            f"{cpu[name] / reading_cpu_s:>12.2f}{memory[name] / volume_bytes:>12.2f} volumes"
        )
    for other in CANDIDATES[2:]:
        if other in results:
            print(f"{other} takes {wall[other] / wall['ours']:.1f} times as long as ours")


if __name__ == "__main__":
    main()
