"""Every kind of bad input through the client's own commands: a table, and exit code 1 on any mistake.

    python benchmarks/bad_input.py              # 40 s on two cores
    python benchmarks/bad_input.py --mistaken   # only the kinds that do not come out as they should

Scans and masks go through `dsan-client prepare`, each followed in the cohort by a good case, its neighbour;
lists, settings, labels and model packages through the command that reads them. For every kind: the code that
is expected and the one that came, whether it passed in silence, whether anything ended in a traceback, and
whether its neighbour was processed. Expected: no kind silent, no traceback, every code right, every neighbour
there. The kinds are those of the tests (tests/client/*_factory.py), and the real ones of ../shared/ct/bad
where that folder is.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "client")]

import numpy as np  # noqa: E402  (importable only from here on, as all below)
import SimpleITK as sitk  # noqa: E402
from cohort_factory import line, write_case, write_package, write_site  # noqa: E402
from dicom_factory import BAD_SERIES, chest_hu, good_slices, write_series  # noqa: E402
from image_factory import (  # noqa: E402
    BAD_MASKS,
    BAD_SCANS,
    LFS_POINTER,
    SHAPE_DHW,
    Array,
    BadImage,
    Chest,
    chest,
    hu_array,
    image,
    infection_array,
    lung_array,
    written,
)
from package_factory import BAD_PACKAGES  # noqa: E402
from shared_bad import BAD, FILES, FOLDERS, SMALL, SMALL_FILES  # noqa: E402
from table_factory import (  # noqa: E402
    BAD_LABEL_TABLES,
    BAD_LINES,
    BAD_SETTINGS,
    BAD_SHAPES,
    BAD_TABLES,
    BAD_TWINS,
    GOOD,
    HEADER,
)
from typer.testing import CliRunner  # noqa: E402

from client.cli import app  # noqa: E402
from dsan_model.cases import Label  # noqa: E402
from simulation.phantoms import PhantomPlan, phantom  # noqa: E402
from simulation.scanners import SCANNERS  # noqa: E402

FAILED = ("PREPARE-FAILED", "PREPARE-CRASHED", "DIAGNOSE-FAILED", "CHECK-CRASHED", "IMPORT-CRASHED")
WHOLE_COMMAND = None  # as neighbours: there is nothing else that could go on
IN_A_COHORT = {  # what the list of cases refuses before the gate sees it
    "no such folder": "COHORT-MISSING",
    "a file instead of a folder": "IMAGE-FORMAT",
}


@dataclass(frozen=True)
class Kind:
    """A case that is bad; `write` fills a folder of its own and returns the cells of its line."""

    group: str
    name: str
    code: str
    write: Callable[[Path], dict[str, str]]
    severity: str = "error"


@dataclass(frozen=True)
class Verdict:
    """What became of a kind."""

    group: str
    name: str
    expected: str
    found: str
    is_silent: bool
    has_traceback: bool
    neighbours: bool | None

    @property
    def is_right(self) -> bool:
        """Whether it came out as it should."""
        is_clean = not (self.is_silent or self.has_traceback or self.neighbours is False)
        return is_clean and self.found == self.expected


# ---- the kinds of cases ----


def series_kinds() -> Iterator[Kind]:
    """DICOM series, with masks that fit the sound one."""
    for bad in BAD_SERIES:
        code = IN_A_COHORT.get(bad.name, bad.code)
        yield Kind("DICOM", bad.name, code, lambda folder, bad=bad: _series(folder, bad.write))


def _series(folder: Path, write: Callable[[Path], object]) -> dict[str, str]:
    write(folder / "series")
    masks = {"lung_mask": chest_hu() < -600, "infection_mask": np.zeros(chest_hu().shape, bool)}
    for name, mask_DHW in masks.items():
        made = sitk.GetImageFromArray(mask_DHW.astype(np.uint8))
        made.SetSpacing((10.0, 10.0, 1.25))
        made.SetOrigin((-155.0, -155.0, -200.0))
        sitk.WriteImage(made, str(folder / f"{name}.nii"))
    return {"image": "series", **{name: f"{name}.nii" for name in masks}}


def scan_kinds() -> Iterator[Kind]:
    """Scans as files, with masks that fit them wherever they can be read."""
    for bad in BAD_SCANS:
        yield Kind("file", bad.name, bad.code, lambda folder, bad=bad: _scan(folder, bad), bad.severity)


def _scan(folder: Path, bad: BadImage) -> dict[str, str]:
    path = bad.write(folder)
    grid = sitk.ReadImage(str(path)) if bad.severity == "warning" else image(hu_array())
    for name, array in (("lung", lung_array()), ("infection", infection_array())):
        mask = sitk.GetImageFromArray(array)
        mask.CopyInformation(grid)
        sitk.WriteImage(mask, str(folder / f"{name}.nrrd"))
    return {
        "image": str(path.relative_to(folder)),
        "lung_mask": "lung.nrrd",
        "infection_mask": "infection.nrrd",
    }


def mask_kinds() -> Iterator[Kind]:
    """Masks that are bad by themselves, and masks that are not those of their scan."""
    for bad in BAD_MASKS:
        yield Kind("mask", bad.name, bad.code, lambda folder, bad=bad: _mask(folder, bad))
    for name, code, content in (
        ("an empty file", "IMAGE-EMPTY-FILE", b""),
        ("a Git LFS pointer", "IMAGE-LFS-POINTER", LFS_POINTER),
        ("a text", "IMAGE-DAMAGED", b"hello" * 100),
    ):
        yield Kind("mask", name, code, lambda folder, content=content: _mask_bytes(folder, content))
    nothing = np.zeros(SHAPE_DHW, np.uint8)
    yield _sound("no lung marked", "IMAGE-LUNG-EMPTY", lung=nothing)
    yield _sound("one voxel of lung", "IMAGE-LUNG-TINY", lung=_one_voxel())
    yield _sound("no infection in COVID-19", "IMAGE-INFECTION-EMPTY", "warning", infection=nothing)
    yield _sound(
        "infection outside the lungs", "IMAGE-INFECTION-OUTSIDE", "warning", infection=1 - lung_array()
    )
    yield Kind("mask", "no mask and no method", "IMAGE-NO-MASK", _without_mask)
    yield Kind("mask", "one scan under two names", "IMAGE-COPY", _copy, "warning")
    sound = chest()
    yield _of_chest("the lungs mirrored", "IMAGE-LUNG-MIRRORED", lung=sound.lung[:, :, ::-1])
    body = sound.lung | (sound.hu > -200)
    yield _of_chest("tissue for the lungs", "IMAGE-LUNG-MISFIT", lung=body - sound.lung)
    yield _of_chest("the body for the lungs", "IMAGE-LUNG-TOO-LARGE", lung=body)
    yield _of_chest("everything for the lungs", "IMAGE-LUNG-TOO-LARGE", lung=np.ones_like(body))
    for name, kept in (("the lower half", slice(20)), ("every other slice", slice(None, None, 2))):
        lung = np.zeros_like(sound.lung)
        lung[kept] = sound.lung[kept]
        yield _of_chest(f"{name} of the lungs", "IMAGE-LUNG-PART", "warning", lung=lung)
    yield _of_chest("the lungs for the infection", "IMAGE-INFECTION-IS-LUNG", infection=sound.lung)
    both = sound.lung + sound.infection
    yield _of_chest("both masks in one file", "IMAGE-INFECTION-IS-LUNG", lung=both, infection=both)
    yield _of_chest("both columns swapped", "IMAGE-LUNG-MISFIT", lung=sound.infection, infection=sound.lung)
    yield _of_chest(
        "another patient's lungs", "IMAGE-LUNG-MISFIT", "warning", lung=np.roll(sound.lung, (9, 5), (0, 1))
    )
    yield _of_chest(
        "the infection mirrored", "IMAGE-INFECTION-MISFIT", "warning", infection=sound.infection[:, :, ::-1]
    )
    yield _of_chest(
        "another patient's infection",
        "IMAGE-INFECTION-MISFIT",
        "warning",
        infection=np.roll(sound.infection, -14, 1) & sound.lung,
    )
    right = np.where(np.arange(sound.lung.shape[2]) < 24, sound.lung, 0).astype(np.uint8)
    yield _of_chest("one lung marked", "SEG-ONE-LUNG", "warning", lung=right)
    yield Kind("mask", "cut off at the top", "SEG-LUNGS-CUT", lambda f: _cut(f, slice(0, 28)), "warning")
    yield Kind("mask", "cut off at the bottom", "SEG-LUNGS-CUT", lambda f: _cut(f, slice(12, 40)), "warning")


def slice_kinds() -> Iterator[Kind]:
    """Scans whose headers are right and whose pixels are not."""
    shuffled = np.random.default_rng(0).permutation(len(chest().hu))
    for name, code, change in (
        ("one slice is blank", "SCAN-ODD-SLICE", lambda hu: _blank(hu, slice(20, 21))),
        ("half of a slice is blank", "SCAN-ODD-SLICE", lambda hu: _blank(hu, slice(20, 21), slice(20, None))),
        ("some slices are blank", "SCAN-JUMP", lambda hu: _blank(hu, slice(18, 24))),
        ("half of some slices is blank", "SCAN-JUMP", lambda hu: _blank(hu, slice(18, 24), slice(20, None))),
        ("pixels in another order than positions", "SCAN-ORDER", lambda hu: hu[shuffled]),
    ):
        yield Kind("slices", name, code, lambda folder, change=change: _changed(folder, change))


def _blank(hu_DHW: Array, slices: slice, rows: slice = slice(None)) -> Array:
    hu_DHW[slices, rows] = -1024
    return hu_DHW


def _changed(folder: Path, change: Callable[[Array], Array]) -> dict[str, str]:
    sound = chest()
    Chest(own(change(sound.hu), folder), sound.lung, sound.infection).written(folder, "scan")
    return _cells("scan")


def _mask(folder: Path, bad: BadImage) -> dict[str, str]:
    path = bad.write(folder)
    return {**_write_scan(folder), "lung_mask": path.name}


def _mask_bytes(folder: Path, content: bytes) -> dict[str, str]:
    (folder / "bad.nii.gz").write_bytes(content)
    return {**_write_scan(folder), "infection_mask": "bad.nii.gz"}


def _write_scan(folder: Path, lung: Array | None = None, infection: Array | None = None) -> dict[str, str]:
    masks = (
        lung_array() if lung is None else lung,
        infection_array() if infection is None else infection,
    )
    hu = own(hu_array(), folder)
    for name, array in zip(("scan", "scan_lung", "scan_infection"), (hu, *masks), strict=True):
        written(folder, image(array), f"{name}.nii.gz")
    return _cells("scan")


def _cells(name: str) -> dict[str, str]:
    return {
        "label": "COVID-19",
        "image": f"{name}.nii.gz",
        "lung_mask": f"{name}_lung.nii.gz",
        "infection_mask": f"{name}_infection.nii.gz",
    }


def _sound(name: str, code: str, severity: str = "error", **masks: Array) -> Kind:
    return Kind("mask", name, code, lambda folder: _write_scan(folder, **masks), severity)


def _of_chest(name: str, code: str, severity: str = "error", **masks: Array) -> Kind:
    sound = chest()
    fields = {"hu": sound.hu, "lung": sound.lung, "infection": sound.infection, **masks}

    def write(folder: Path) -> dict[str, str]:
        own(fields["hu"], folder)
        Chest(**fields).written(folder, "scan")
        return _cells("scan")

    return Kind("mask", name, code, write, severity)


def own(hu_DHW: Array, folder: Path) -> Array:
    """The scan with one voxel changed for the folder: one scan of several patients is refused."""
    hu_DHW.flat[0] = zlib.crc32(folder.name.encode()) % 1000
    return hu_DHW


def _cut(folder: Path, slices: slice) -> dict[str, str]:
    sound = chest()
    Chest(own(sound.hu[slices], folder), sound.lung[slices], sound.infection[slices]).written(folder, "scan")
    return _cells("scan")


def _one_voxel() -> Array:
    lung = np.zeros(SHAPE_DHW, np.uint8)
    lung[8, 8, 7] = 1
    return lung


def _without_mask(folder: Path) -> dict[str, str]:
    return {**_write_scan(folder), "lung_mask": ""}


def _copy(folder: Path) -> dict[str, str]:
    """The neighbour of the case before, of the same patient, once more."""
    good = f"good{int(folder.name.removeprefix('bad')) - 1}"
    write_case(folder, good)
    return {**_cells(good), "label": "CAP", "patient_id": f"p-{good}"}


def anatomy_kinds() -> Iterator[Kind]:
    """Scans without given masks, for a site that segments them itself."""
    scan = phantom(PhantomPlan(Label.COVID, 0.1, SCANNERS[0], (64, 96, 96), 3, 4))
    hu_DHW, lung_DHW = sitk.GetArrayFromImage(scan.ct), sitk.GetArrayFromImage(scan.lung) > 0
    is_left_W = np.arange(hu_DHW.shape[2]) >= hu_DHW.shape[2] // 2
    rows = np.flatnonzero(lung_DHW.any(axis=(1, 2)))
    middle = int(rows.mean())
    for name, code, severity, changed_DHW in (
        ("no lungs", "SEG-NO-LUNGS", "error", np.where(lung_DHW, 40, hu_DHW)),
        ("one lung", "SEG-ONE-LUNG", "warning", np.where(lung_DHW & is_left_W, 40, hu_DHW)),
        ("lungs cut off at the top", "SEG-LUNGS-CUT", "warning", hu_DHW[: middle + 4]),
        ("lungs cut off at the bottom", "SEG-LUNGS-CUT", "warning", hu_DHW[middle - 4 :]),
        ("an estimated infection", "SEG-CRUDE-INFECTION", "warning", hu_DHW),
    ):
        yield Kind(
            "anatomy",
            name,
            code,
            lambda folder, array=changed_DHW: _bare(folder, array, scan.ct.GetSpacing()),
            severity,
        )


def _bare(folder: Path, hu_DHW: Array, spacing_mm_xyz: tuple[float, ...]) -> dict[str, str]:
    made = sitk.GetImageFromArray(hu_DHW.astype(np.int16))
    made.SetSpacing(spacing_mm_xyz)
    sitk.WriteImage(made, str(folder / "scan.nii"))
    return {"image": "scan.nii", "lung_mask": "", "infection_mask": ""}


def shared_kinds() -> Iterator[Kind]:
    """The real bad input, where it is; a copy of each, as a cohort may not reach outside its folder."""
    if not BAD.is_dir():
        return
    for name, code in FOLDERS.items():
        yield Kind("shared", name, code, lambda folder, name=name: _shared(folder, BAD / name, name))
    for name, code in SMALL_FILES.items():
        yield Kind("shared", name, code, lambda folder, name=name: _shared(folder, SMALL / name, "case"))
    for name, code in FILES.items():
        yield Kind("shared", name, code, lambda folder, name=name: _shared_file(folder, BAD / name))


def _shared(folder: Path, source: Path, name: str) -> dict[str, str]:
    if source.is_dir():
        shutil.copytree(source, folder / name)
    else:
        (folder / name).mkdir()
        shutil.copy(source, folder / name)
    return {"image": name, "lung_mask": "", "infection_mask": ""}


def _shared_file(folder: Path, source: Path) -> dict[str, str]:
    shutil.copytree(source.parent, folder / "files")
    return {"image": f"files/{source.name}", "lung_mask": "", "infection_mask": ""}


# ---- cases through `prepare` ----


def prepared(folder: Path, kinds: Iterable[Kind], settings: str) -> list[Verdict]:
    """The cohort of these kinds, each followed by a good case, through `dsan-client prepare`."""
    listed, lines = list(kinds), []
    for number, kind in enumerate(listed):
        bad, good = f"bad{number}", f"good{number}"
        (folder / bad).mkdir(parents=True)
        cells = {
            key: f"{bad}/{value}" if value and key not in ("label", "patient_id") else value
            for key, value in kind.write(folder / bad).items()
        }
        write_case(folder, good)
        lines += [line(bad, **cells), line(good)]
    write_site(folder, *lines, settings=settings)
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", "prepare", "--json", "--config", str(folder / "site.toml")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    try:
        table = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"prepare ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    has_traceback = "Traceback" in done.stdout + done.stderr
    return [_case_verdict(number, kind, table, has_traceback) for number, kind in enumerate(listed)]


def _case_verdict(number: int, kind: Kind, table: dict[str, Any], has_traceback: bool) -> Verdict:
    bad, good = f"bad{number}", f"good{number}"
    kept = {case["case_id"] for case in table["cases"]}
    of_case = [finding for finding in table["findings"] if finding["case_id"] == bad]
    errors = [finding["code"] for finding in of_case if finding["severity"] == "error"]
    warnings = [finding["code"] for finding in of_case if finding["severity"] == "warning"]
    expected = (
        errors if kind.severity == "error" else [] if errors else sorted(warnings, key=kind.code.__ne__)
    )
    found = expected[0] if expected else f"({errors[0]})" if errors else "none"
    return Verdict(
        kind.group,
        kind.name,
        kind.code,
        found,
        is_silent=not of_case or (kind.severity == "error") is (bad in kept),
        has_traceback=has_traceback or any(code in FAILED for code in errors),
        neighbours=good in kept,
    )


# ---- lists, settings, labels and packages through the command that reads them ----


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    codes: list[str]
    exit_code: int
    has_traceback: bool
    output: str


def run(*arguments: object) -> Ran:
    """A command of dsan-client in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    has_traceback = "Traceback" in result.output or not isinstance(result.exception, SystemExit | None)
    codes = re.findall(r"^(?:error|warning) +([A-Z0-9-]+)", result.output, re.MULTILINE)
    codes += re.findall(r'"code": "([A-Z0-9-]+)"', result.output)
    return Ran(codes, result.exit_code, has_traceback, result.stdout)


def _verdict(group: str, name: str, expected: str, ran: Ran, neighbours: bool | None) -> Verdict:
    found = expected if expected in ran.codes else ran.codes[0] if ran.codes else "none"
    has_traceback = ran.has_traceback or any(code in FAILED for code in ran.codes)
    return Verdict(
        group, name, expected, found, not ran.codes or not ran.exit_code, has_traceback, neighbours
    )


def listed(folder: Path) -> Iterator[Verdict]:
    """cohort.csv, line by line and as a whole."""
    site = _table_site(folder / "site")
    for bad in BAD_TABLES:
        (site / "cohort.csv").write_bytes(bad.content)
        yield _verdict("cohort.csv", bad.name, bad.code, _prepare(site), WHOLE_COMMAND)
    (site / "cohort.csv").unlink()
    yield _verdict("cohort.csv", "no file", "COHORT-FILE", _prepare(site), WHOLE_COMMAND)
    for bad_line in (*BAD_LINES, *BAD_SHAPES, *BAD_TWINS):
        (site / "cohort.csv").write_text(f"{HEADER}\n{bad_line.line}\n{_good_line()}\n", encoding="utf-8")
        ran = _prepare(site)
        neighbours = [case["case_id"] for case in json.loads(ran.output)["cases"]] == ["good"]
        yield _verdict("cohort.csv", bad_line.name, bad_line.code, ran, neighbours)


def _table_site(site: Path) -> Path:
    (site / "ct").mkdir(parents=True)
    (site / "dicom").mkdir()
    write_site(site)
    write_case(site / "ct", "good")
    for name in ("a", "b", "a_lung", "a_infection", "b_lung"):
        (site / "ct" / f"{name}.nii.gz").write_bytes(b"x")
    (site.parent / "outside.nii.gz").write_bytes(b"x")
    (site / "out.nii.gz").symlink_to(site.parent / "outside.nii.gz")
    (site / "loop").symlink_to(site / "loop")
    return site


def _good_line() -> str:
    return GOOD.replace("nii.gz,,", "nii.gz,ct/good_lung.nii.gz,ct/good_infection.nii.gz", 1)


def _prepare(site: Path) -> Ran:
    return run("prepare", "--json", "--workers", 1, "--config", site / "site.toml")


def configured(folder: Path) -> Iterator[Verdict]:
    """site.toml."""
    folder.mkdir()
    path = folder / "site.toml"
    yield _verdict("site.toml", "no file", "SITE-FILE", run("prepare", "--config", path), WHOLE_COMMAND)
    for bad in BAD_SETTINGS:
        path.write_text(bad.text, encoding="utf-8")
        yield _verdict("site.toml", bad.name, bad.code, run("prepare", "--config", path), WHOLE_COMMAND)
    for name, code, content in (
        ("no TOML", "SITE-SYNTAX", b'name = "a"\nstore = store\n'),
        ("Latin-1", "SITE-ENCODING", 'name = "Universit\xe4t"'.encode("latin-1")),
    ):
        path.write_bytes(content)
        yield _verdict("site.toml", name, code, run("prepare", "--config", path), WHOLE_COMMAND)


def labelled(folder: Path) -> Iterator[Verdict]:
    """labels.csv, and what else `import` begins with."""
    export, out, labels = folder / "export", folder / "out", folder / "labels.csv"
    write_series(export, good_slices())
    command = ("import", export, "--labels", labels, "--out", out, "--workers", 1)
    yield _verdict("import", "no labels", "IMPORT-LABELS", run(*command), WHOLE_COMMAND)
    for name, code, text in BAD_LABEL_TABLES:
        labels.write_text(text)
        yield _verdict("import", name, code, run(*command), WHOLE_COMMAND)
    for name, code, text in (
        ("a bad label in one line", "IMPORT-LABEL-LINE", "covid19,X\n"),
        ("two labels for one study", "IMPORT-LABEL-CONFLICT", "COVID-19,CANARY-ID\n"),
        ("a label for nobody", "IMPORT-NO-CASE", ""),
    ):
        whose = "CANARY-ID" if text else "NOBODY"
        labels.write_text(f"label,patient_id\nCAP,{whose}\n{text}")
        yield _verdict("import", name, code, run(*command), WHOLE_COMMAND)
    labels.write_text("label,patient_id\nCAP,CANARY-ID\n")
    missing = ("import", folder / "nowhere", "--labels", labels, "--out", out)
    yield _verdict("import", "no export", "IMPORT-ROOT", run(*missing), WHOLE_COMMAND)
    (out / "pseudonym.key").chmod(0o644)
    yield _verdict("import", "a key that others may read", "IMPORT-KEY", run(*command), WHOLE_COMMAND)
    (out / "pseudonym.key").chmod(0o600)
    (out / "pseudonym.key").write_text("x")
    yield _verdict("import", "a key that is none", "IMPORT-KEY", run(*command), WHOLE_COMMAND)


def packaged(folder: Path) -> Iterator[Verdict]:
    """Model packages, and scans for one that is good."""
    write_case(folder, "good")
    scan, masks = folder / "good.nii.gz", ("--lung-mask", folder / "good_lung.nii.gz")
    given = (*masks, "--infection-mask", folder / "good_infection.nii.gz", "--device", "cpu")
    for number, bad in enumerate(BAD_PACKAGES):
        package = bad.write(folder / f"model{number}")
        ran = run("diagnose", scan, *given, "--model", package, "--out", folder / "out")
        yield _verdict("model", bad.name, bad.code, ran, WHOLE_COMMAND)
    good = write_package(folder / "model")
    fine = run("diagnose", scan, *given, "--model", good, "--out", folder / "out", "--json")
    if fine.exit_code:
        sys.exit(f"the good package does not work: {fine.output}")
    yield from _diagnosed(folder, good)


def _diagnosed(folder: Path, package: Path) -> Iterator[Verdict]:
    """A bad scan between two good ones, in one call of `diagnose`."""
    scan = phantom(PhantomPlan(Label.COVID, 0.1, SCANNERS[0], (64, 72, 72), 3, 4)).ct
    for name in ("first", "last"):
        sitk.WriteImage(scan, str(folder / f"{name}.nii"))
    (folder / "empty.nii").write_bytes(b"")
    for name, code in (("nowhere.nii", "IMAGE-MISSING"), ("empty.nii", "IMAGE-EMPTY-FILE")):
        inputs = [folder / each for each in ("first.nii", name, "last.nii")]
        ran = run("diagnose", *inputs, "--model", package, "--out", folder / "many", "--json")
        results = json.loads(ran.output)
        neighbours = ["probability" in result for result in results] == [True, False, True]
        yield _verdict("diagnose", name, code, ran, neighbours)


# ---- all of it ----


def all_verdicts(folder: Path) -> list[Verdict]:
    """Every kind in the order of the groups; `folder` is scratch space."""
    classical = '[segmentation]\nlungs = "classical"\ninfection = "crude"\n'
    return [
        *prepared(folder / "given", (*series_kinds(), *scan_kinds(), *mask_kinds(), *slice_kinds()), ""),
        *prepared(folder / "segmented", (*anatomy_kinds(), *shared_kinds()), classical),
        *listed(folder / "listed"),
        *configured(folder / "configured"),
        *labelled(folder / "labelled"),
        *packaged(_made(folder / "packaged")),
    ]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def table_text(verdicts: Iterable[Verdict]) -> str:
    """One line a kind."""
    head = f"{'group':<11}{'kind':<46}{'expected':<26}{'found':<26}{'silent':<8}{'traceback':<11}neighbours"
    words = {True: "yes", False: "no", None: "-"}
    rows = (
        f"{v.group:<11}{v.name[:44]:<46}{v.expected:<26}{v.found:<26}{words[v.is_silent]:<8}"
        f"{words[v.has_traceback]:<11}{words[v.neighbours]:<12}{'' if v.is_right else 'MISTAKEN'}".rstrip()
        for v in verdicts
    )
    return "\n".join((head, *rows))


def main() -> int:
    """Print the table; 1 if any kind is mistaken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mistaken", action="store_true", help="print only the kinds that are mistaken")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(sys.stderr):
        verdicts = all_verdicts(Path(name))
    mistaken = [verdict for verdict in verdicts if not verdict.is_right]
    print(table_text(mistaken if chosen.mistaken else verdicts))
    print(
        f"\n{len(verdicts)} kinds: {len(mistaken)} mistaken, {sum(v.is_silent for v in verdicts)} silent, "
        f"{sum(v.has_traceback for v in verdicts)} with a traceback, "
        f"{sum(v.neighbours is False for v in verdicts)} with a lost neighbour"
    )
    return 1 if mistaken else 0


if __name__ == "__main__":
    sys.exit(main())
