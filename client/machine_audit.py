"""Is this computer fit for the work: cores, memory, disk, accelerator?"""

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from client.findings import Finding
from client.preparation import SPARE_DISK_BYTES
from client.site import SiteConfig
from client.volume_store import volume_bytes
from dsan_model.preprocessing import PAPER_SHAPE_DHW

WORKER_BYTES = 1_500_000_000  # a scan of 512 x 512 x 600 with both masks while it is prepared
PACKAGES = ("dsan-federated", "torch", "SimpleITK", "pydicom", "numpy", "flwr")


@dataclass(frozen=True)
class Machine:
    """What the computer has, and what of it the site's settings use."""

    cores: int
    workers: int
    memory_bytes: int
    disk_free_bytes: int
    gpu: str | None  # name of the first one
    device: str  # what the networks run on: "cpu" or "cuda"
    versions: dict[str, str]


def read_machine(site: SiteConfig) -> Machine:
    """Look at this computer."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    asked = site.machine.device
    return Machine(
        cores=os.cpu_count() or 1,
        workers=site.machine.workers or os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_free_bytes=shutil.disk_usage(_existing(site.store_folder)).free,
        gpu=gpu,
        device="cuda" if gpu and asked != "cpu" else "cpu",
        versions={package: version(package) for package in PACKAGES},
    )


def machine_findings(machine: Machine, site: SiteConfig, n_cases: int) -> tuple[Finding, ...]:
    """What of the computer does not fit the settings and a cohort of so many cases."""
    return (*_memory(machine), *_disk(machine, site, n_cases), *_accelerator(machine, site))


def _memory(machine: Machine) -> list[Finding]:
    needed = machine.workers * WORKER_BYTES
    if machine.memory_bytes >= needed:
        return []
    message = (
        f"{machine.workers} workers may need {_gb(needed)} while they prepare large scans; "
        f"there are {_gb(machine.memory_bytes)}"
    )
    fix = "Set workers in [machine] of site.toml to a lower number."
    return [Finding("MACHINE-MEMORY", "warning", "this computer, memory", message, fix)]


def _disk(machine: Machine, site: SiteConfig, n_cases: int) -> list[Finding]:
    needed = n_cases * volume_bytes(site.preprocessing_recipe) + SPARE_DISK_BYTES
    prepared = sum(path.stat().st_size for path in (site.store_folder / "volumes").glob("*.safetensors"))
    if machine.disk_free_bytes >= needed - prepared:
        return []
    message = (
        f"{n_cases} prepared cases take {_gb(needed)}, of which {_gb(prepared)} are there; "
        f"{_gb(machine.disk_free_bytes)} are free"
    )
    fix = "Free space, or set `store` in site.toml to a folder on a larger disk."
    return [Finding("MACHINE-DISK", "error", str(site.store_folder), message, fix)]


def _accelerator(machine: Machine, site: SiteConfig) -> list[Finding]:
    if machine.gpu is None and site.machine.device == "cuda":
        message = "device is cuda, but torch sees no GPU"
        fix = 'Install the driver and the CUDA build of torch, or set device = "auto".'
        return [Finding("MACHINE-NO-GPU", "error", "site.toml, key machine.device", message, fix)]
    if machine.device == "cpu" and site.preprocessing_recipe.shape_DHW == PAPER_SHAPE_DHW:
        message = (
            "no GPU is used; a training step at the paper's size takes about 11 s a case on two cores, "
            "so that an epoch of 1000 cases takes 3 h"
        )
        fix = "Use a computer with a GPU for training; preparing and `diagnose` need none."
        return [Finding("MACHINE-CPU-ONLY", "warning", "this computer", message, fix)]
    return []


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists: a store is made when it is needed."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
