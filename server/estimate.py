"""What a study will take, before it starts: bytes from its network, time from a step at each site."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from dsan_model.network import AttentionResNet
from dsan_model.protocol import SiteDescription
from dsan_model.traffic import Precision, packed_layout_bytes
from dsan_model.vbnet import VBNet
from dsan_model.weights import Layout
from server.status import duration
from server.study import StudyConfig

VALIDATION_SHARE = 1 / 3  # of a training step: the forward pass alone


@dataclass(frozen=True)
class Estimate:
    """Of a whole study, all parts together; seconds are None if no site measured a step."""

    parts: int
    rounds: int  # of a part
    training_sites: int
    held_out_sites: int
    bytes_a_round: int  # to one site, and as many back
    bytes_to_sites: int
    bytes_from_sites: int
    seconds_a_round: float | None  # of the slowest site
    seconds: float | None

    def as_json(self) -> dict[str, object]:
        """For estimate.json."""
        return asdict(self)


def estimate(study: StudyConfig, sites: Mapping[str, SiteDescription]) -> Estimate:
    """What rounds, last validation and test will take; of classification the ensemble and attention too.

    Sites work at the same time: a round lasts as long as its slowest site. Enrolment, the centre's own work
    and the way of the bytes are not in the time.
    """
    training = {name: site for name, site in sites.items() if name not in study.sites.held_out}
    held_out = {name: site for name, site in sites.items() if name in study.sites.held_out}
    parts = {"k-fold": study.folds, "leave-one-site-out": len(training)}.get(study.plan.kind, 1)
    if study.plan.kind == "evaluate":
        training, held_out = {}, dict(sites)
    n_training, n_held_out = len(training), len(held_out)
    if study.plan.kind == "leave-one-site-out":
        n_training, n_held_out = n_training - 1, 1
    weights = packed_layout_bytes(network_layout(study), study.precision) * len(study.branches)
    if study.plan.kind == "evaluate":
        weights = packed_layout_bytes(network_layout(study), Precision.FLOAT32) * len(study.branches)
    rounds = 0 if study.plan.kind == "evaluate" else study.rounds
    to_sites = (rounds + 1) * n_training * weights + n_held_out * weights  # rounds, last validation, test
    if study.task == "classification":
        fitted = 2 * weights // len(study.branches)  # the ensemble needs US and SS
        to_sites += n_training * fitted + (n_training + n_held_out) * weights  # and attention scores
    seconds_a_round = _slowest_round_s(study, training)
    return Estimate(
        parts=parts,
        rounds=rounds,
        training_sites=n_training,
        held_out_sites=n_held_out,
        bytes_a_round=weights,
        bytes_to_sites=parts * to_sites,
        bytes_from_sites=parts * rounds * n_training * weights,
        seconds_a_round=seconds_a_round,
        seconds=None if seconds_a_round is None else parts * rounds * seconds_a_round,
    )


def estimate_text(found: Estimate) -> str:
    """For people: one line each for parts, traffic and time."""
    lines = [
        f"{found.parts} part(s) of {found.rounds} rounds; {found.training_sites} training and "
        f"{found.held_out_sites} held-out site(s) in each",
        f"traffic: {_size(found.bytes_a_round)} each way for a site in a round; in all "
        f"{_size(found.bytes_to_sites)} to the sites, {_size(found.bytes_from_sites)} from them",
    ]
    if found.seconds is None or found.seconds_a_round is None:
        lines.append(
            "time: not known before the first round; --dry-run has the sites measure a training step"
        )
    else:
        lines.append(
            f"time: {found.seconds_a_round:.1f} s a round at the slowest site, "
            f"{duration(found.seconds)} in all, beside the way of the bytes"
        )
    return "\n".join(lines)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def network_layout(study: StudyConfig) -> Layout:
    """The layout of the study's network, without its values."""
    with torch.device("meta"):
        is_segmentation = study.task == "segmentation"
        network = (
            VBNet(study.segmentation.config.network)
            if is_segmentation
            else AttentionResNet(study.network_config)
        )
        state = network.state_dict()
    ordered = sorted(state.items())
    return Layout(
        tuple(name for name, _ in ordered),
        tuple(tensor.is_floating_point() for _, tensor in ordered),
        tuple(tuple(tensor.shape) for _, tensor in ordered),
    )


def _slowest_round_s(study: StudyConfig, training: Mapping[str, SiteDescription]) -> float | None:
    rounds = []
    for site in training.values():
        if site.seconds_per_case is None:
            return None
        n_training = sum(site.training_groups.values()) * study.training.local_epochs
        n_validation = sum(site.validation_groups.values()) * VALIDATION_SHARE
        rounds.append((n_training + n_validation) * site.seconds_per_case * len(study.branches))
    return max(rounds, default=None)
