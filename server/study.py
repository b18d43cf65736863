"""study.toml: what a study varies. The defaults are the paper's; presets for small machines shrink them."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsan_model.configuration import Strict, parse_configuration, read_configuration
from dsan_model.network import NetworkConfig
from dsan_model.patches import PRESETS as SEGMENTATION_PRESETS
from dsan_model.patches import SegmentationConfig
from dsan_model.preprocessing import PAPER_SHAPE_DHW, Recipe
from dsan_model.protocol import StudyTerms
from dsan_model.sampling import Branch
from dsan_model.segmentation_grid import SegmentationRecipe
from dsan_model.traffic import Precision
from dsan_model.training import TrainingConfig
from dsan_model.vbnet import VBNetConfig

STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
LONGEST_NAME_OF_PARTS = 64 - len(".without-") - 32  # a part adds its own, with a site's name
SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9-]{0,31}$"
Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(ge=8, le=1024)]  # of a grid, as in site.toml
SiteName = Annotated[str, Field(pattern=SITE_NAME)]
Scales = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=6)]
Millimetres = Annotated[float, Field(ge=0.1, le=20)]
Task = Literal["classification", "segmentation"]


class InputTable(Strict):
    """[input]: the grid that the network sees."""

    shape_dhw: tuple[Side, Side, Side] = PAPER_SHAPE_DHW
    antialias: bool = False  # only where a preset shrinks the grid: the paper's two linear steps would alias


class NetworkTable(Strict):
    """[network]: the shape of the 3D ResNet (III-A)."""

    blocks: tuple[Positive, Positive, Positive, Positive] = NetworkConfig.blocks
    width: Positive = NetworkConfig.width
    stem_kernel: Literal[3, 5, 7] = 7
    stem_pool: bool = NetworkConfig.stem_pool
    standardise_input: bool = NetworkConfig.standardise_input


class TrainingTable(Strict):
    """[training]: optimiser, batch, schedule and loss (IV-C, Eq. 4)."""

    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = TrainingConfig.learning_rate
    weight_decay: Annotated[float, Field(ge=0)] = TrainingConfig.weight_decay
    decay_every_epochs: Positive = TrainingConfig.decay_every_epochs
    decay_factor: Annotated[float, Field(gt=0, le=1)] = TrainingConfig.decay_factor
    batch_size: Positive = TrainingConfig.batch_size
    local_epochs: Positive = TrainingConfig.local_epochs
    attention_weight: Annotated[float, Field(ge=0)] = TrainingConfig.attention_weight
    flips: bool = TrainingConfig.flips


class AggregationTable(Strict):
    """[aggregation]: what there is beyond federated averaging; the defaults are FedAvg."""

    proximal_mu: Annotated[float, Field(ge=0)] = TrainingConfig.proximal_mu  # FedProx
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # FedAvgM


class TrafficTable(Strict):
    """[traffic]: how weights travel."""

    precision: Literal["float32", "float16"] = "float16"


class SegmentationTable(Strict):
    """[segmentation]: grid, patches and network of a study whose task is segmentation (ref. [10])."""

    spacing_mm_xyz: tuple[Millimetres, Millimetres, Millimetres] = SegmentationConfig.spacing_mm_xyz
    patch_dhw: tuple[Positive, Positive, Positive] = SegmentationConfig.patch_dhw
    patches_per_case: Positive = SegmentationConfig.patches_per_case
    width: Positive = VBNetConfig.width
    convolutions: Scales = VBNetConfig.convolutions
    plain_scales: Annotated[int, Field(ge=0)] = VBNetConfig.plain_scales

    @model_validator(mode="after")
    def _patch_fits_the_network(self) -> "SegmentationTable":
        stride = self.config.network.stride
        if any(side % stride for side in self.patch_dhw):
            raise ValueError(f"patch_dhw {self.patch_dhw}: each side must be a multiple of {stride}")
        return self

    @property
    def config(self) -> SegmentationConfig:
        """The same, as the messages have it."""
        network = VBNetConfig(self.width, self.convolutions, self.plain_scales)
        return SegmentationConfig(self.spacing_mm_xyz, self.patch_dhw, self.patches_per_case, network)


class PlanTable(Strict):
    """[plan]: one training, or several that are told together."""

    kind: Literal["single", "k-fold", "leave-one-site-out", "evaluate"] = "single"


class StartTable(Strict):
    """[start]: the model package to start from; empty: from untrained networks."""

    model: str = ""


class SitesTable(Strict):
    """[sites]: who must take part. Empty lists are filled from the sites that are there at the start."""

    training: tuple[SiteName, ...] = ()
    held_out: tuple[SiteName, ...] = ()

    @model_validator(mode="after")
    def _no_site_has_two_roles(self) -> "SitesTable":
        both = sorted(set(self.training) & set(self.held_out))
        if both:
            raise ValueError(f"{', '.join(both)}: a site trains or is held out, not both")
        for name, sites in (("training", self.training), ("held_out", self.held_out)):
            twice = sorted({site for site in sites if sites.count(site) > 1})
            if twice:
                raise ValueError(f"{name} names {', '.join(twice)} more than once")
        return self


class ParticipationTable(Strict):
    """[participation]: how long a round waits, and with how few training sites it may go on."""

    deadline_h: Annotated[float, Field(gt=0)] = 12.0
    quorum: Annotated[int, Field(ge=0)] = 0  # 0: all; a round that misses a site pauses the study
    largest_relative_update: Annotated[float, Field(gt=0)] = (
        10.0  # norm of an update over that of the weights
    )


class StudyConfig(Strict):
    """A whole study.toml."""

    name: Annotated[str, Field(pattern=STUDY_NAME)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    preset: str = "full"
    task: Task = "classification"
    rounds: Positive = 20
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    baseline: bool = False  # train RN34 + US too
    input: InputTable = InputTable()
    network: NetworkTable = NetworkTable()
    training: TrainingTable = TrainingTable()
    aggregation: AggregationTable = AggregationTable()
    traffic: TrafficTable = TrafficTable()
    segmentation: SegmentationTable = SegmentationTable()
    plan: PlanTable = PlanTable()
    start: StartTable = StartTable()
    sites: SitesTable = SitesTable()
    participation: ParticipationTable = ParticipationTable()

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> "StudyConfig":
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: there are folds 0 to {self.folds - 1}")
        return self

    @model_validator(mode="after")
    def _quorum_can_be_reached(self) -> "StudyConfig":
        n_training, quorum = len(self.sites.training), self.participation.quorum
        if n_training and quorum > n_training:
            raise ValueError(f"participation.quorum is {quorum}, and there are {n_training} training sites")
        return self

    @model_validator(mode="after")
    def _plan_can_be_carried_out(self) -> "StudyConfig":
        kind, training = self.plan.kind, self.sites.training
        if kind != "single" and self.task == "segmentation":
            raise ValueError(f"a segmentation study has the plan single, not {kind}")
        if kind == "leave-one-site-out" and (len(training) < 3 or self.sites.held_out):
            raise ValueError(
                "leave-one-site-out holds out each of the sites.training in turn: name three or more, and "
                "no sites.held_out"
            )
        if kind == "evaluate" and (not self.start.model or training):
            raise ValueError("the plan evaluate needs start.model, and no sites.training")
        if kind in ("k-fold", "leave-one-site-out") and len(self.name) > LONGEST_NAME_OF_PARTS:
            raise ValueError(
                f"a study of several parts has a name of at most {LONGEST_NAME_OF_PARTS} characters"
            )
        return self

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The networks to train, in the order in which they are trained."""
        if self.task == "segmentation":
            return (Branch.VBNET,)
        return (Branch.US, Branch.SS, Branch.BASELINE) if self.baseline else (Branch.US, Branch.SS)

    @property
    def recipe(self) -> Recipe:
        """How the sites must have prepared the volumes of a classification."""
        return Recipe(shape_DHW=self.input.shape_dhw, antialias=self.input.antialias)

    @property
    def segmentation_recipe(self) -> SegmentationRecipe:
        """How the sites must have prepared the volumes of a segmentation."""
        return SegmentationRecipe(self.segmentation.spacing_mm_xyz)

    @property
    def network_config(self) -> NetworkConfig:
        """The network that every branch trains."""
        return NetworkConfig(**self.network.model_dump())

    @property
    def precision(self) -> Precision:
        """How weights travel."""
        return Precision(self.traffic.precision)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what a site computes; who takes part does not belong to it."""
        text = self.model_dump_json(exclude={"sites", "participation", "preset", "plan", "start"})
        return hashlib.sha256(text.encode()).hexdigest()

    def terms(self) -> StudyTerms:
        """What the messages to the sites say of the study."""
        is_segmentation = self.task == "segmentation"
        return StudyTerms(
            name=self.name,
            digest=self.digest,
            seed=self.seed,
            input_shape_dhw=self.input.shape_dhw,
            recipe_digest=self.segmentation_recipe.digest if is_segmentation else self.recipe.digest,
            network=self.network_config,
            training=TrainingConfig(**self.training.model_dump(), proximal_mu=self.aggregation.proximal_mu),
            folds=self.folds,
            fold=self.fold,
            branches=self.branches,
            precision=self.precision,
            segmentation=self.segmentation.config if is_segmentation else None,
        )


def read_study(path: Path) -> StudyConfig:
    """A study.toml, checked. ConfigurationError says what is wrong in it."""
    return read_configuration(path, StudyConfig)


def preset_study(preset: str, name: str, seed: int) -> StudyConfig:
    """A study with the values of a preset; `full` is the paper's."""
    return parse_configuration(
        {"name": name, "seed": seed, "preset": preset, **PRESETS[preset]}, StudyConfig, preset
    )


def segmentation_table(preset: str) -> dict[str, object]:
    """What a preset of the training of VB-Net says in a study.toml."""
    values = SEGMENTATION_PRESETS[preset]
    segmentation = asdict(values.segmentation)
    network = segmentation.pop("network")
    training = {key: getattr(values.training, key) for key in TrainingTable.model_fields}
    return {
        "task": "segmentation",
        "rounds": values.rounds,
        "segmentation": segmentation | network,
        "training": training,
    }


# What a preset shrinks so that two CPU cores learn in minutes. Never the method: network family, attention
# module, losses, both samplings, batch size and ensemble stay. With few steps the rate is higher and decays
# later, lung is set to 0 and drawn cases are mirrored (docs/decisions/0005).
PRESETS: dict[str, dict[str, object]] = {
    "full": {},
    "demo": {
        "rounds": 28,
        "input": {"shape_dhw": [32, 64, 64], "antialias": True},
        "network": {
            "blocks": [1, 1, 1, 1],
            "width": 8,
            "stem_kernel": 3,
            "stem_pool": False,
            "standardise_input": True,
        },
        "training": {"learning_rate": 5e-3, "decay_every_epochs": 16, "flips": True},
    },
    "tiny": {
        "rounds": 2,
        "input": {"shape_dhw": [16, 32, 32], "antialias": True},
        "network": {"blocks": [1, 1, 1, 1], "width": 4, "stem_kernel": 3, "stem_pool": False},
        "training": {"learning_rate": 2e-3},
    },
}
