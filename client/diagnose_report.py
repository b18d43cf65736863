"""What `diagnose` writes and prints: result.json, panel.png, and a line for each scan."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from client.diagnose import BANNER, Diagnosis, Model, Precision, Scan, diagnose, load_model
from client.finding_table import findings_text
from client.findings import Finding, FindingError
from client.image_files import ImageFile
from client.volume_store import write_atomically
from dsan_daemon.files import PRIVATE
from dsan_model.ensemble import BAND
from dsan_model.explain import draw_panel
from dsan_model.preprocessing import PAPER_SHAPE_DHW
from dsan_model.sampling import Branch

RESULT_FORMAT = 1
RESULT, PANEL = "result.json", "panel.png"
LONGEST_NAME = 80  # in the caption of a picture
FIXES = {  # what findings say to a site that prepares a cohort, and what `diagnose` has in its place
    "raise the limit in site.toml and say so in the study": "allow it with --max-slice-thickness",
    "Name an infection mask in cohort.csv": "Give an infection mask with --infection-mask",
    "Name a lung mask in cohort.csv": "Give a lung mask with --lung-mask",
    "Look at the case in the QC page": "Look at the scan and its masks",
    "check left and right in the QC page": "check left and right in the panel",
    "choose another method in site.toml": "choose another method with --vbnet or --lungmask",
    "Set lungmask_weights under [segmentation] in site.toml to": "Give with --lungmask",
    ", from / on": "",
    "Correct the path in cohort.csv": "Correct the path",
}


@dataclass(frozen=True)
class DiagnoseRequest:
    """Which scans to diagnose by which model, and where to write."""

    scans: tuple[Scan, ...]
    model: Path
    out: Path
    device: str  # "auto", "cpu" or "cuda"
    precision: Precision


@dataclass(frozen=True)
class DiagnoseOutcome:
    """A text for people, and for each scan its result.json or the finding that it was refused with."""

    text: str
    results: list[dict[str, Any]]
    errors: tuple[Finding, ...]


def diagnose_scans(request: DiagnoseRequest, import_s: float, say: Callable[[str], None]) -> DiagnoseOutcome:
    """Diagnose one scan after the other with the model loaded once; one that is refused stops no other.

    `import_s` is the time that Python took to load its libraries, `say` takes lines of progress. Raises
    FindingError with a MODEL- or MACHINE- code.
    """
    started = time.monotonic()
    model = load_model(request.model, _device(request.device), request.precision)
    before_s = {"import": import_s, "load": time.monotonic() - started}
    say(f"[{sum(before_s.values()):6.1f} s] model of study {model.package.study} loaded, {model.precision}")
    lines, results, errors = [BANNER], [], []
    folders = output_folders([scan.image for scan in request.scans], request.out)
    used: list[Path] = []
    for scan, wanted in zip(request.scans, folders, strict=True):
        try:
            diagnosis = diagnose(model, scan)
            diagnosis = replace(diagnosis, findings=_in_options(diagnosis.findings))
        except FindingError as error:
            (finding,) = _in_options([error.finding])
            finding = replace(finding, case_id=wanted.name if len(folders) > 1 else None)
            errors.append(finding)
            results.append({"input": str(scan.image), "error": asdict(finding)})
            lines.append(findings_text([finding]))
            continue
        folder = free_folder(request, scan, used, diagnosis.scan_sha256)
        used.append(folder)
        name = folder.name if len(folders) > 1 else _stem(scan.image)
        for verdict in diagnosis.series:
            say(f"{name}: {verdict}")
        results.append(write_diagnosis(folder, name, scan.image, diagnosis, model, before_s))
        lines.append(diagnosis_line(name, diagnosis))
        lines += [findings_text(diagnosis.findings)] if diagnosis.findings else []
    look_at = request.out / PANEL if len(folders) == 1 else request.out
    nothing = "nothing was written; mend what is said above, then give the command again"
    lines += ["", f"next: look at {look_at}" if used else f"next: {nothing}"]
    return DiagnoseOutcome("\n".join(lines), results, tuple(errors))


def _in_options(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings whose cure names options of `diagnose`, which has no cohort and no settings."""
    found = []
    for finding in findings:
        fix = finding.fix
        for of_a_cohort, of_a_scan in FIXES.items():
            fix = fix.replace(of_a_cohort, of_a_scan)
        found.append(replace(finding, fix=fix))
    return tuple(found)


def write_diagnosis(
    folder: Path, name: str, image: Path, diagnosis: Diagnosis, model: Model, before_s: dict[str, float]
) -> dict[str, Any]:
    """Write panel.png, which bears the scan's name, and then result.json, which is returned.

    `before_s` are the seconds of importing libraries and of loading the model.
    """
    started = time.perf_counter()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        caption = panel_caption(name, diagnosis, model)
        draw_panel(replace(diagnosis.panel, caption=caption), folder / PANEL)
        (folder / PANEL).chmod(PRIVATE)
        drawn_s = time.perf_counter() - started
        result = result_json(image, diagnosis, model, {**before_s, "panel": drawn_s})
        write_atomically(folder / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    except OSError as error:
        message = f"the result cannot be written: {error.strerror}"
        fix = "Free space, or choose another folder with --out."
        raise FindingError(Finding("OUTPUT-FILES", "error", str(folder), message, fix)) from None
    return result


def result_json(
    image: Path, diagnosis: Diagnosis, model: Model, before_s: dict[str, float]
) -> dict[str, Any]:
    """The result for programs; probabilities are P(COVID-19), ratios 0 to 1."""
    package = model.package
    return {
        "format_version": RESULT_FORMAT,
        "notice": BANNER,
        "input": str(image),
        "scan_sha256": diagnosis.scan_sha256,
        "series": [asdict(verdict) for verdict in diagnosis.series],
        "probability": diagnosis.probability,
        "probability_by_branch": {branch.value: p for branch, p in diagnosis.by_branch.items()},
        "infection_ratio": diagnosis.infection_ratio,
        "lung_volume_ml": diagnosis.lung_volume_ml,
        "w": diagnosis.w,
        "band": list(BAND),
        "is_inside_band": diagnosis.is_inside_band,
        "masks": diagnosis.mask_source,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "model": {
            "study": package.study,
            "is_complete": package.is_complete,
            "is_paper_size": package.recipe.shape_DHW == PAPER_SHAPE_DHW,
            "sha256sums": package.sha256sums,
            "weights": {branch.value: flat.digest for branch, flat in package.weights.items()},
            "recipe": package.recipe.digest,
        },
        "device": model.device.type,
        "precision": model.precision.value,
        "seconds": {step: round(value, 3) for step, value in {**before_s, **diagnosis.seconds}.items()},
    }


def diagnosis_line(name: str, diagnosis: Diagnosis) -> str:
    """One scan in one line."""
    seconds = diagnosis.seconds
    return (
        f"{name}  P(COVID-19) {diagnosis.probability:.3f}  infection ratio {diagnosis.infection_ratio:.4f}  "
        f"w {diagnosis.w:.2f}  networks {seconds['networks']:.1f} s of {sum(_steps(seconds)):.1f} s"
    )


def panel_caption(name: str, diagnosis: Diagnosis, model: Model) -> str:
    """The banner, which scan by which model, and what came out."""
    us, ss = diagnosis.by_branch[Branch.US], diagnosis.by_branch[Branch.SS]
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    return (
        f"{BANNER}\n{shown}, by the model of study {model.package.study}\n"
        f"P(COVID-19) {diagnosis.probability:.2f}: US {us:.2f}, SS {ss:.2f}; "
        f"infection ratio {diagnosis.infection_ratio:.3f}"
    )


def output_folders(images: list[Path], out: Path) -> list[Path]:
    """OUT itself for one scan; a folder below it for each of several, by the name of its input."""
    if len(images) == 1:
        return [out]
    stems, names = [_stem(image) for image in images], list[str]()
    for stem in stems:
        numbered = (f"{stem}-{number}" for number in count(2))
        others = {*names, *stems}
        names.append(stem if stem not in names else next(name for name in numbered if name not in others))
    return [out / name for name in names]


def free_folder(request: DiagnoseRequest, scan: Scan, used: Sequence[Path], scan_sha256: str) -> Path:
    """OUT for the one scan; of several the scan's name, or a number of it, that no other scan's result has.

    `used` are the folders of this call. Raises FindingError OUTPUT-TAKEN if another scan's result is in OUT.
    """
    out = request.out
    if len(request.scans) == 1:
        if (out / RESULT).exists() and not _is_result_of(out, scan_sha256):
            message = f"{RESULT} there is of another scan, or not to be read"
            fix = "Choose another folder with --out, or move what is there."
            raise FindingError(Finding("OUTPUT-TAKEN", "error", str(out), message, fix))
        return out
    stem, stems = _stem(scan.image), {_stem(each.image) for each in request.scans}
    numbered = (f"{stem}-{number}" for number in count(2))
    names = chain([stem], (name for name in numbered if name not in stems))
    folders = (out / name for name in names)
    return next(each for each in folders if each not in used and _is_free(each, scan_sha256))


def _stem(image: Path) -> str:
    """What an input is called: a folder by all of its name, a file without what says its format."""
    name = image.name if image.name not in ("", "..") else image.resolve().name
    suffix = ImageFile(image, "scan", None).suffix or (".dcm" if name.lower().endswith(".dcm") else "")
    is_file = suffix and not image.is_dir()
    return (name[: -len(suffix)] if is_file else name) or "scan"


def _is_free(folder: Path, scan_sha256: str) -> bool:
    """Whether nothing lies there but what an earlier call wrote for the same scan, or began to write."""
    if not folder.is_dir():
        return True
    return all(path.name == PANEL for path in folder.iterdir()) or _is_result_of(folder, scan_sha256)


def _is_result_of(folder: Path, scan_sha256: str) -> bool:
    try:
        return bool(json.loads((folder / RESULT).read_bytes())["scan_sha256"] == scan_sha256)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        message, fix = "torch sees no GPU", "Install the CUDA build of torch, or leave --device away."
        raise FindingError(Finding("MACHINE-NO-GPU", "error", "--device cuda", message, fix))
    uses_gpu = asked == "cuda" or (asked == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if uses_gpu else "cpu")


def _steps(seconds: dict[str, float]) -> list[float]:
    return [value for step, value in seconds.items() if not step.startswith("network_")]
