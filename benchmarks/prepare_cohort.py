"""How busy `dsan-client prepare` keeps the cores over a cohort of scans of 512 x 512 x 300 from DICOM.

    python benchmarks/prepare_cohort.py              # 48 scans: a minute on two cores
    python benchmarks/prepare_cohort.py --cases 12

The scans differ in one slice and share the files of the others, so that little disk is needed; each has both
masks. Told are the wall time of the whole command with its start, the processor time of all its processes,
and the share of the cores that was used. Expected: at least 90 %.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "client"), str(Path(__file__).parent)]

import pydicom  # noqa: E402  (importable only from here on)
from cohort_factory import line  # noqa: E402
from prepare_scan import write_scan  # noqa: E402

from client.cohort import COLUMNS  # noqa: E402


def main() -> None:
    """Write the cohort, prepare it by the command, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=48)
    n_cases = parser.parse_args().cases
    n_cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        site = _write_cohort(Path(temporary), n_cases)
        command = [
            sys.executable,
            "-c",
            "from client.cli import main; main()",
            "prepare",
            "--config",
            str(site),
        ]
        started = time.perf_counter()
        running = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        used_s: dict[int, float] = {}
        while running.poll() is None:
            used_s |= _used_s(running.pid)
            time.sleep(0.1)
        wall_s, cpu_s = time.perf_counter() - started, sum(used_s.values())
    if running.returncode:
        sys.exit(running.communicate()[0])
    print(
        f"{n_cases} scans in {wall_s:.1f} s, {wall_s / n_cases:.2f} s a scan; "
        f"{cpu_s:.1f} s of processor time: {cpu_s / wall_s / n_cores:.0%} of {n_cores} cores"
    )


def _write_cohort(folder: Path, n_cases: int) -> Path:
    """A hospital's folder; returns its site.toml."""
    scan = folder / "scan"
    write_scan(scan)
    lines = []
    for number in range(n_cases):
        name = f"c{number:03d}"
        shutil.copytree(scan / "series", folder / name, copy_function=os.link)
        _change_one_slice(folder / name, number)
        masks = {f"{kind}_mask": f"{name}_{kind}.nii.gz" for kind in ("lung", "infection")}
        for kind in ("lung", "infection"):
            shutil.copy(scan / f"{kind}.nii.gz", folder / masks[f"{kind}_mask"])
        lines.append(line(name, "CAP" if number % 2 else "COVID-19", image=name, **masks))
    (folder / "cohort.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    (folder / "site.toml").write_text('name = "busy"\n')
    return folder / "site.toml"


def _change_one_slice(folder: Path, number: int) -> None:
    path = folder / "IM0000.dcm"
    data = pydicom.dcmread(path)
    pixels = data.pixel_array.copy()
    pixels[0, 0] += number
    data.PixelData = pixels.tobytes()
    path.unlink()
    data.save_as(path)


def _used_s(session: int) -> dict[int, float]:
    """Processor time so far of every process of a session, by its number."""
    used = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                used[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


if __name__ == "__main__":
    main()
