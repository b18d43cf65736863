"""A trained VB-Net in one file: its weights, the grid that it works on, and a digest of both."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dsan_model.patches import SegmentationConfig
from dsan_model.vbnet import VBNet
from dsan_model.weights import FlatWeights, flatten

SEGMENTER_FORMAT = 1
METHOD = "vbnet-3"  # raise the number with every change that alters masks made from the same weights


class SegmenterError(Exception):
    """A weights file that cannot be used: a stable code, and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Segmenter:
    """All that it takes to segment a scan."""

    config: SegmentationConfig
    weights: FlatWeights

    @cached_property
    def digest(self) -> str:
        """SHA-256 of configuration and weights, hex."""
        text = json.dumps(asdict(self.config), sort_keys=True) + self.weights.digest
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Method, version and weights: ratios of different segmenters are not comparable."""
        return f"{METHOD}-{self.digest[:12]}"


def save_segmenter(path: Path, segmenter: Segmenter) -> None:
    """Write the named tensors as safetensors; how to use them stands in the header."""
    head = {
        "format": SEGMENTER_FORMAT,
        "config": asdict(segmenter.config),
        "digest": segmenter.digest,
    }
    save_file(segmenter.weights.state_dict(), path, metadata={"vbnet": json.dumps(head)})


def load_segmenter(path: Path) -> Segmenter:
    """What `save_segmenter` wrote. SegmenterError VBNET-MISSING, VBNET-FORMAT or VBNET-DAMAGED."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        weights = flatten(load_file(path))
    except OSError as error:
        raise SegmenterError("VBNET-MISSING", f"it cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise SegmenterError("VBNET-DAMAGED", f"it is no whole safetensors file ({error})") from None
    config, digest = _head(metadata)
    _check_layout(config, weights)
    segmenter = Segmenter(config, weights)
    if segmenter.digest != digest:
        message = f"its content has the digest {segmenter.digest[:16]}..., written was {digest[:16]}..."
        raise SegmenterError("VBNET-DAMAGED", message)
    if not bool(torch.isfinite(weights.floats).all()):
        raise SegmenterError("VBNET-DAMAGED", "some weights are NaN or infinite")
    return segmenter


_CONFIG = TypeAdapter(SegmentationConfig)


def _head(metadata: dict[str, str]) -> tuple[SegmentationConfig, str]:
    if "vbnet" not in metadata:
        raise SegmenterError("VBNET-FORMAT", "these are weights of something else than VB-Net")
    try:
        head = json.loads(metadata["vbnet"])
        if head["format"] != SEGMENTER_FORMAT:
            raise ValueError(f"its format is {head['format']}, this release reads {SEGMENTER_FORMAT}")
        return _CONFIG.validate_json(json.dumps(head["config"])), str(head["digest"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SegmenterError("VBNET-FORMAT", f"{key}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SegmenterError("VBNET-FORMAT", f"its header is not readable: {error}") from None


def _check_layout(config: SegmentationConfig, weights: FlatWeights) -> None:
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in VBNet(config.network).state_dict().items()}
    found = dict(zip(weights.layout.names, weights.layout.shapes, strict=True))
    if found != expected:
        differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        message = (
            f"{len(differing)} tensors are not those of the network that its header describes, first "
            f"{differing[0]}: {found.get(differing[0])}, expected {expected.get(differing[0])}"
        )
        raise SegmenterError("VBNET-DAMAGED", message)
