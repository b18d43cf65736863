"""A site's own settings: site.toml."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from client.findings import Finding, FindingError
from client.slice_thickness import MAX_SLICE_THICKNESS_MM
from dsan_model.configuration import Problem, Strict, load_toml, problems_of
from dsan_model.preprocessing import Recipe
from dsan_model.segmentation_grid import SegmentationRecipe

SITE_FILE = "site.toml"
KindName = Literal["describe", "round", "evaluate", "fit_ensemble", "explain"]
ALL_KINDS: tuple[KindName, ...] = ("describe", "round", "evaluate", "fit_ensemble", "explain")

Side = Annotated[int, Field(ge=8, le=1024)]
Millimetres = Annotated[float, Field(ge=0.1, le=20)]


class RecipeTable(Strict):
    """[recipe]: what a study prescribes for the preparation; the defaults are the paper's (IV-B)."""

    shape_dhw: Annotated[tuple[Side, Side, Side], Field(strict=False)] = (138, 256, 256)
    antialias: bool = False
    segmentation_spacing_mm_xyz: Annotated[
        tuple[Millimetres, Millimetres, Millimetres], Field(strict=False)
    ] = SegmentationRecipe.spacing_mm_xyz


class MachineTable(Strict):
    """[machine]: what this computer gives to the work."""

    workers: Annotated[int, Field(ge=0, le=1024)] = 0  # 0: one for each core
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # 0: torch's default
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Annotated[int, Field(ge=0, le=64)] = 0  # that train together; 0: one for each GPU, or one


class AuditTable(Strict):
    """[audit]: what is still accepted beyond the paper's protocol."""

    max_slice_thickness_mm: Annotated[float, Field(gt=0, le=50)] = MAX_SLICE_THICKNESS_MM


class SegmentationTable(Strict):
    """[segmentation]: where the masks come from that cohort.csv does not name; "given": nowhere."""

    lungs: Literal["given", "classical", "vbnet", "lungmask"] = "given"
    infection: Literal["given", "crude", "vbnet"] = "given"
    weights: str = ""  # of "vbnet"; `read_site` makes the path absolute
    lungmask_weights: Annotated[str, Field(pattern=r"^/.+$|^$")] = ""  # of "lungmask"


class ServerTable(Strict):
    """[server]: the centre that this site works for."""

    address: Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$|^$")] = ""

    @field_validator("address")
    @classmethod
    def _port_exists(cls, address: str) -> str:
        if address and not 1 <= int(address.rpartition(":")[2]) <= 65535:
            raise ValueError("the port is none: give 1 to 65535")
        return address


class PolicyTable(Strict):
    """[policy]: what this site does and tells; a message beyond it is refused with a code."""

    studies: Annotated[tuple[str, ...], Field(strict=False)] = ("*",)  # names, or patterns as of a shell
    kinds: Annotated[tuple[KindName, ...], Field(strict=False)] = ALL_KINDS
    min_cases: Annotated[int, Field(ge=1)] = 1  # of the cases that an answer is about
    demographics: bool = True  # ages and sexes of Table I may leave
    ratio_histogram: bool = True  # Fig. 1 may leave
    attention: bool = True  # sums of the attention scores may leave


class DaemonTable(Strict):
    """[daemon]: how `dsan-client start` watches over its processes."""

    health_port: Annotated[int, Field(ge=0, le=65535)] = 0  # of /healthz and /metrics; 0: any free one
    begin_s: Annotated[float, Field(ge=10)] = 300.0  # from taking a message to the first sign of its process
    silence_s: Annotated[float, Field(ge=10)] = 3600.0  # without progress: the process hangs


class SiteConfig(Strict):
    """site.toml, checked. Paths in it are relative to its folder, `home`.

    A new table gets a class above and a field here; every field but the name has a default, so that a file
    written for an older release stays good.
    """

    home: Path
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=32)]
    cohort: Annotated[str, Field(min_length=1)] = "cohort.csv"
    store: Annotated[str, Field(min_length=1)] = "store"
    recipe: RecipeTable = RecipeTable()
    machine: MachineTable = MachineTable()
    audit: AuditTable = AuditTable()
    segmentation: SegmentationTable = SegmentationTable()
    server: ServerTable = ServerTable()
    policy: PolicyTable = PolicyTable()
    daemon: DaemonTable = DaemonTable()

    @property
    def segments_lungs(self) -> bool:
        """Whether the lungs of its scans are found here where no mask is given."""
        return self.segmentation.lungs != "given"

    @property
    def manifest(self) -> Path:
        """The list of cases."""
        return self.home / self.cohort

    @property
    def store_folder(self) -> Path:
        """Where prepared volumes are kept; may lie elsewhere, on a larger disk."""
        return self.home / self.store

    @property
    def preprocessing_recipe(self) -> Recipe:
        """How this site prepares its volumes."""
        return Recipe(self.recipe.shape_dhw, self.recipe.antialias)

    @property
    def segmentation_recipe(self) -> SegmentationRecipe:
        """How this site prepares whole scans for training VB-Net."""
        return SegmentationRecipe(self.recipe.segmentation_spacing_mm_xyz)

    @property
    def work_folder(self) -> Path:
        """Where finished rounds and optimiser states of studies are kept."""
        return self.home / "work"

    @property
    def keys_folder(self) -> Path:
        """The site's private keys and certificates."""
        return self.home / "keys"

    @property
    def state_folder(self) -> Path:
        """What the daemon keeps: its status, its logs, the record of what left."""
        return self.home / "state"

    @property
    def panel_folder(self) -> Path:
        """Where pictures of attention are drawn; they show patients and stay here."""
        return self.home / "panels"

    @property
    def progress_file(self) -> Path:
        """Where the message in work tells how far it is."""
        return self.work_folder / "progress.jsonl"


_SHAPES = {  # what a pattern means, in words
    "name": "a name is of letters, digits and hyphens, and does not begin with a hyphen",
    "segmentation.lungmask_weights": "the path must begin with /",
    "server.address": "an address is HOST:PORT",
}


def _with_weights(site: SiteConfig) -> SiteConfig:
    chosen = site.segmentation
    if not chosen.weights:
        return site
    weights = str(site.home / chosen.weights)
    return site.model_copy(update={"segmentation": chosen.model_copy(update={"weights": weights})})


def read_site(path: Path) -> SiteConfig:
    """The settings of the site whose site.toml this is.

    Raises FindingError, which names the file and line (no TOML) or the key, its value and what it may be;
    an unknown key is an error and comes with the nearest known one.
    """
    try:
        table = load_toml(path)
    except OSError as error:
        fix = "Give the path of site.toml with --config, or write one with `dsan-client init`."
        raise _bad("SITE-FILE", str(path), f"the file cannot be read ({error.strerror})", fix) from None
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8"
        raise _bad("SITE-ENCODING", path.name, message, "Save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:  # its text ends in "(at line 3, column 7)"
        raise _bad("SITE-SYNTAX", path.name, f"this is not TOML: {error}", "Correct that line.") from None
    if "home" in table:  # the one field that is not a key
        raise _bad("SITE-KEY", f"{path.name}, key home", "the key is not known", "Remove it.")
    try:
        return _with_weights(SiteConfig.model_validate({**table, "home": path.resolve().parent}))
    except ValidationError as error:
        raise _first_of(problems_of(error, SiteConfig), path.name) from None


def _first_of(problems: list[Problem], file_name: str) -> FindingError:
    first, others = problems[0], [problem.key for problem in problems[1:]]
    also = f" (also wrong: {', '.join(others)})" if others else ""
    where = f"{file_name}, key {first.key}"
    if first.kind == "unknown":
        known = ", ".join(key for key in first.known if key != "home")
        fix = f"Did you mean {first.nearest}?" if first.nearest else f"Known here are {known}."
        return _bad("SITE-KEY", where, f"the key is not known{also}", fix)
    if first.kind == "missing":
        return _bad("SITE-MISSING", where, f"the key is missing{also}", "Add it.")
    reason = _SHAPES.get(first.key, first.reason) if "pattern" in first.reason else first.reason
    message = f"{first.found!r} is not accepted: {reason}{also}"
    return _bad("SITE-VALUE", where, message, "Correct the value.")


def _bad(code: str, where: str, message: str, fix: str) -> FindingError:
    return FindingError(Finding(code, "error", where, message, fix))
