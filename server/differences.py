"""What a study does otherwise than the paper, in words for the readers of its report."""

from typing import NamedTuple

import torch

from dsan_model.configuration import parse_configuration
from dsan_model.network import AttentionResNet, NetworkConfig
from server.study import StudyConfig, segmentation_table


class Difference(NamedTuple):
    """One thing; `key` is the one of study.toml that decides it, empty for what no key decides."""

    key: str
    what: str
    paper: str
    here: str


WORDS = {
    "input.shape_dhw": "Grid of a prepared volume (slices x rows x columns)",
    "input.antialias": "Second resampling step smoothed to the size of a voxel",
    "network.blocks": "Residual blocks in the four stages",
    "network.width": "Channels of the first stage",
    "network.stem_kernel": "Side of the first convolution",
    "network.stem_pool": "Max-pooling after the first convolution",
    "network.standardise_input": "Normal lung set to 0 in units of 180 HU",
    "training.optimiser": "Optimiser",
    "training.learning_rate": "Learning rate of the first epochs",
    "training.weight_decay": "Weight decay",
    "training.decay_every_epochs": "Epochs after which the learning rate falls",
    "training.decay_factor": "Factor by which it falls",
    "training.batch_size": "Cases of a training step",
    "training.attention_weight": "Weight of the attention loss (lambda of Eq. 4)",
    "training.flips": "Training cases mirrored at random",
    "aggregation.proximal_mu": "Pull towards the common weights (FedProx, mu)",
    "aggregation.server_momentum": "Momentum of the averaged weights (FedAvgM)",
    "segmentation.spacing_mm_xyz": "Spacing of the grid in mm (x, y, z)",
    "segmentation.patch_dhw": "Patch (slices x rows x columns)",
    "segmentation.patches_per_case": "Patches drawn of a case in an epoch",
    "segmentation.width": "Channels of VB-Net's first scale",
    "segmentation.convolutions": "Convolutions of VB-Net's scales",
    "segmentation.plain_scales": "Scales of VB-Net without bottleneck",
    "folds": "Parts of the cross-validation",
}
CLASSIFICATION, SEGMENTATION = ("input", "network", "training", "aggregation"), ("segmentation", "training")


def differences_from_paper(study: StudyConfig) -> list[Difference]:
    """Every difference: first what is so in any federated study, then what this one's settings change."""
    by_settings = _by_settings(study)
    if any(difference.key.startswith("network.") for difference in by_settings):
        by_settings.append(_parameters(study))
    return [*_universal(study), *by_settings]


def _parameters(study: StudyConfig) -> Difference:
    with torch.device("meta"):  # counted, not made
        networks = [AttentionResNet(config) for config in (NetworkConfig(), study.network_config)]
    paper, here = (sum(p.numel() for p in network.parameters()) for network in networks)
    return Difference("", "Parameters of the network", f"{paper:,}", f"{here:,}")


def _universal(study: StudyConfig) -> list[Difference]:
    epochs = study.training.local_epochs
    is_paper = study.task == "classification"
    each = "one epoch" if epochs == 1 else f"{epochs} epochs"
    return [
        Difference(
            "rounds",
            "Training",
            "20 epochs over all cases in one place" if is_paper else "at one place",
            f"{study.rounds} rounds of {each} at each site; weights averaged by cases after each",
        ),
        Difference(
            "",
            "Running statistics of batch normalisation begin",
            "at mean 0 and variance 1 (not said; usual in PyTorch)",
            "at those of the first batch, so that a few steps at a site are enough",
        ),
    ]


def _by_settings(study: StudyConfig) -> list[Difference]:
    ours, theirs = _values(study), _values(_papers(study))
    return [
        Difference(key, WORDS[key], _text(theirs[key]), _text(ours[key]))
        for key in WORDS
        if key in ours and ours[key] != theirs[key]
    ]


def _papers(study: StudyConfig) -> StudyConfig:
    """The study with the paper's values, or with those of ref. [10] for a segmentation."""
    table = segmentation_table("full") if study.task == "segmentation" else {}
    return parse_configuration({"name": "paper", **table}, StudyConfig, "paper")


def _values(study: StudyConfig) -> dict[str, object]:
    """The values of study.toml by key, tables flattened."""
    flat: dict[str, object] = {"folds": study.folds}
    for name in SEGMENTATION if study.task == "segmentation" else CLASSIFICATION:
        table = getattr(study, name)
        flat |= {f"{name}.{key}": getattr(table, key) for key in type(table).model_fields}
    return flat


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
