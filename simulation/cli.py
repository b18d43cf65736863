"""dsan-simulate: a whole federated study over synthetic (or real) hospitals on one machine."""

import logging
import os
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dsan_daemon.commands import command_line

STARTED = time.monotonic()

app = command_line(__doc__)


class EngineName(StrEnum):
    """How messages travel."""

    INPROCESS = "inprocess"
    RAY = "ray"
    DEPLOYMENT = "deployment"


class Preset(StrEnum):
    """Sizes of a study; the method is the paper's in all of them."""

    DEMO = "demo"
    TINY = "tiny"
    FULL = "full"


class Plan(StrEnum):
    """What a study is made of."""

    SINGLE = "single"
    K_FOLD = "k-fold"
    LEAVE_ONE_SITE_OUT = "leave-one-site-out"
    EVALUATE = "evaluate"


class FileFormat(StrEnum):
    """What scans are written as; `mixed` is DICOM at the smallest hospitals, one of each four."""

    MIXED = "mixed"
    NIFTI = "nifti"
    DICOM = "dicom"


class HeldOutMix(StrEnum):
    """Classes of the held-out hospital; in the paper's test set all CAP comes from one unseen site."""

    MIXED = "mixed"
    CAP_ONLY = "cap-only"


class Task(StrEnum):
    """What the networks of a study learn."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"


Out = Annotated[Path | None, typer.Option(help="Run folder; the same folder again resumes the study.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides the hospitals, the folds and every draw.")]


_SUFFIX = {Task.CLASSIFICATION: "", Task.SEGMENTATION: "-segmentation"}  # of a run folder's name


@app.command()
def run(
    preset: Annotated[Preset, typer.Option(help="demo: two CPU cores; full: the paper.")] = Preset.DEMO,
    task: Annotated[
        Task, typer.Option(help="segmentation: VB-Net, lungs and infection.")
    ] = Task.CLASSIFICATION,
    sites: Annotated[int, typer.Option(min=2, help="Number of hospitals to write.")] = 8,
    cases: Annotated[int | None, typer.Option(min=4, help="Scans of a hospital, on average.")] = None,
    held_out: Annotated[str, typer.Option(help="Held-out hospitals, by comma (default: the last).")] = "",
    held_out_mix: Annotated[HeldOutMix, typer.Option(help="Classes of the held-out one.")] = HeldOutMix.MIXED,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds (default: the preset's).")] = None,
    engine: Annotated[EngineName, typer.Option(help="How messages travel.")] = EngineName.INPROCESS,
    seed: Seed = 0,
    baseline: Annotated[bool, typer.Option("--baseline", help="Train RN34 + US too.")] = False,
    quorum: Annotated[int, typer.Option(min=0, help="Training sites that a round needs; 0: all.")] = 0,
    hospitals: Annotated[Path | None, typer.Option(help="Folder of hospitals that are there.")] = None,
    out: Out = None,
    workers: Annotated[int, typer.Option(min=0, help="Sites at a time; 0: one for each core.")] = 0,
    plan: Annotated[Plan, typer.Option(help="One training, or several told together.")] = Plan.SINGLE,
    start: Annotated[Path | None, typer.Option(help="Model package to start from or to evaluate.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and traffic only.")] = False,
) -> None:
    """Run a whole federated study and write its report.

    Example: dsan-simulate run --preset demo --seed 7 --out runs/demo-7
    """
    _configure_logging()
    logging.getLogger("dsan.simulation").info("dsan-simulate: loading torch and Flower")
    from simulation.command import RunOptions, run_command

    options = RunOptions(
        preset=preset.value,
        task=task.value,
        n_sites=sites,
        cases=cases,
        held_out=tuple(name.strip() for name in held_out.split(",") if name.strip()),
        held_out_mix=held_out_mix.value,
        rounds=rounds,
        engine=engine.value,
        seed=seed,
        baseline=baseline,
        quorum=quorum,
        hospitals=hospitals,
        out=out or Path("runs") / f"{preset.value}{_SUFFIX[task]}-seed{seed}",
        workers=workers or os.cpu_count() or 1,
        plan=plan.value,
        start=start,
        is_dry_run=dry_run,
    )
    raise typer.Exit(run_command(options, STARTED))


@app.command()
def hospitals(
    out: Annotated[Path, typer.Argument(help="Folder to write them to.")],
    sites: Annotated[int, typer.Option(min=2, help="Number of hospitals.")] = 8,
    cases: Annotated[int, typer.Option(min=4, help="Scans of a hospital, on average.")] = 60,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Grid of a scan: D H W, 16 to 1024 each.")] = (
        40,
        96,
        96,
    ),
    format: Annotated[FileFormat, typer.Option(help="What scans are written as.")] = FileFormat.MIXED,
    held_out_mix: Annotated[HeldOutMix, typer.Option(help="Classes of the last one.")] = HeldOutMix.MIXED,
    preset: Annotated[Preset, typer.Option(help="Whose preparation site.toml asks for.")] = Preset.DEMO,
    seed: Seed = 0,
) -> None:
    """Write synthetic hospitals to disk as hospitals have them: scans, masks, cohort.csv, site.toml.

    Example: dsan-simulate hospitals hospitals --sites 3 --cases 20 --format dicom
    """
    _configure_logging()
    from simulation.command import HospitalOptions, hospitals_command

    options = HospitalOptions(
        out, sites, cases, shape, None if format is FileFormat.MIXED else format.value, held_out_mix.value,
        preset.value, seed, os.cpu_count() or 1,
    )  # fmt: skip
    raise typer.Exit(hospitals_command(options))


@app.command()
def federation(
    out: Annotated[Path, typer.Argument(help="New folder for the centre and the hospitals.")],
    preset: Annotated[Preset, typer.Option(help="Sizes of the study.")] = Preset.TINY,
    sites: Annotated[int, typer.Option(min=2, help="Number of hospitals; the last is held out.")] = 8,
    cases: Annotated[int | None, typer.Option(min=4, help="Scans of a hospital, on average.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds (default: the preset's).")] = None,
    seed: Seed = 0,
) -> None:
    """A deployment on one machine: a centre and hospitals in folders of their own, over TLS with node keys.

    Everything is done by dsan-server and dsan-client alone, as on real machines; needs nginx.

    Example: dsan-simulate federation runs/federation
    """
    _configure_logging()
    from simulation.command import FederationOptions, federation_command

    options = FederationOptions(out, preset.value, sites, cases, rounds, seed, os.cpu_count() or 1)
    raise typer.Exit(federation_command(options))


@app.command("real-hospitals")
def real_hospitals(
    ct_folder: Annotated[Path, typer.Argument(help="Folder with covid-ct-md: P002, cap002, normal002.")],
    out: Annotated[Path, typer.Argument(help="Folder to write them to, outside of any repository.")],
    cases: Annotated[int, typer.Option(min=4, help="Scans of a hospital.")] = 8,
    preset: Annotated[Preset, typer.Option(help="Whose preparation site.toml asks for.")] = Preset.DEMO,
    seed: Seed = 0,
) -> None:
    """Write three small hospitals over real CT: two real cases, and lesions painted into one normal scan.

    Example: dsan-simulate real-hospitals ../shared/ct /tmp/real
    """
    _configure_logging()
    from simulation.command import real_hospitals_command

    raise typer.Exit(real_hospitals_command(ct_folder, out, cases, preset.value, seed))


class _Elapsed(logging.Formatter):
    """Plain lines with the seconds since the start."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"[{time.monotonic() - STARTED:6.1f} s] {level}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _configure_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Elapsed())
    logger = logging.getLogger("dsan")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # what was started is stopped on the way out, as by Ctrl-C


def main() -> Any:
    """Entry point of dsan-simulate."""
    signal.signal(signal.SIGTERM, _interrupt)
    return app()
