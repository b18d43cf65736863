"""The golden case: one synthetic scan through the whole path, and the numbers that must come out (IV-B, III).

A site whose libraries or GPU compute something else is found here, before it joins. The scan, its masks and
the weights are made of integer arithmetic, so that they are the same bits on every machine.
"""

# Suffixes: _DHW is (z, y, x); _B a batch of one.

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from dsan_model.losses import total_loss
from dsan_model.network import AttentionResNet, NetworkConfig
from dsan_model.preprocessing import PreparedCase, Recipe, prepare_case
from dsan_model.training import build_network

SCAN_DHW = (48, 64, 64)
SPACING_MM_XYZ = (1.0, 1.0, 1.6)  # a miniature chest: the paper's scale factor of 0.5 comes out
RECIPE = Recipe(shape_DHW=(32, 48, 48))
NETWORK = NetworkConfig(blocks=(1, 1, 1, 1), width=8, stem_kernel=5, stem_pool=False)
LABEL = 1.0  # COVID-19, so that the attention loss takes part
ATTENTION_WEIGHT = 0.5


@dataclass(frozen=True)
class GoldenNumbers:
    """What the golden case comes out as; each stands for one part of the path."""

    infection_ratio: float
    lung_voxels: float  # nearest neighbour
    infection_place: float  # mean index of its voxels: left, right, front, back, up and down
    volume_mean: float  # linear resampling, window
    volume_detail: float  # mean absolute difference of neighbours: an alias or a blur changes it
    logit: float  # forward pass
    classification_loss: float
    attention_loss: float  # Eq. 2 and 3
    gradient_norm: float  # backward pass


GOLDEN = GoldenNumbers(  # made by `golden_numbers(torch.device("cpu"))` with torch 2.13.0 and SimpleITK 2.5.7
    infection_ratio=0.026636342610438672,
    lung_voxels=8085.0,
    infection_place=30446.166666666668,
    volume_mean=0.041515144118926,
    volume_detail=0.014503188839955057,
    logit=0.5808343291282654,
    classification_loss=0.44432127475738525,
    attention_loss=0.9128007888793945,
    gradient_norm=3.4592383824122956,
)
TOLERANCE = GoldenNumbers(  # relative; TF32 on a GPU errs by some 1e-3, the sigmoid of Eq. 2 makes more of it
    infection_ratio=1e-12,
    lung_voxels=1e-12,
    infection_place=1e-12,
    volume_mean=1e-5,
    volume_detail=1e-5,
    logit=5e-3,
    classification_loss=5e-3,
    attention_loss=2e-2,
    gradient_norm=2e-2,
)

Prepare = Callable[[sitk.Image, sitk.Image, sitk.Image, Recipe], PreparedCase]


@dataclass(frozen=True)
class GoldenResult:
    """What a machine computed, in a form that can travel: None stands for NaN and infinity."""

    device: str  # "cpu" or "cuda"
    numbers: dict[str, float | None]  # by the names of GoldenNumbers


def golden_result(device: torch.device) -> GoldenResult:
    """The golden case on this machine."""
    numbers = asdict(golden_numbers(device))
    return GoldenResult(device.type, {name: x if np.isfinite(x) else None for name, x in numbers.items()})


def golden_differences(found: GoldenResult) -> list[tuple[str, str]]:
    """Name and values of every number that is not what this release expects; none if all agree."""
    return [
        (name, f"computed {_text(value)}, expected {expected:.8g} (within {tolerance:g} of it)")
        for name, expected, tolerance in _EXPECTED
        if (value := found.numbers.get(name)) is None or abs(value - expected) > tolerance * abs(expected)
    ]


def golden_numbers(device: torch.device, prepare: Prepare = prepare_case) -> GoldenNumbers:
    """The golden case through preparing, forward and backward pass and loss; float32, about a second."""
    prepared = prepare(*golden_scan(), RECIPE)
    network = build_network(NETWORK, golden_state(), device).eval()
    volume_B1DHW = torch.from_numpy(prepared.volume_DHW)[None, None].to(device)
    infection_BDHW = torch.from_numpy(prepared.infection_DHW)[None].to(device)
    output = network(volume_B1DHW)
    losses = total_loss(output, torch.tensor([LABEL], device=device), infection_BDHW, ATTENTION_WEIGHT)
    losses.total.backward()  # type: ignore[no-untyped-call] # torch's
    assert losses.attention is not None
    return GoldenNumbers(
        infection_ratio=prepared.infection_ratio,
        lung_voxels=float(prepared.lung_DHW.sum()),
        infection_place=float(np.flatnonzero(prepared.infection_DHW).mean()),
        volume_mean=float(prepared.volume_DHW.mean(dtype=np.float64)),
        volume_detail=float(np.abs(np.diff(prepared.volume_DHW, axis=2)).mean(dtype=np.float64)),
        logit=float(output.logit_B[0].detach()),
        classification_loss=float(losses.classification.detach()),
        attention_loss=float(losses.attention.detach()),
        gradient_norm=_gradient_norm(network),
    )


def golden_scan() -> tuple[sitk.Image, sitk.Image, sitk.Image]:
    """Scan in HU, lung mask and infection mask: an ellipsoid body with two lungs, a lesion, and noise."""
    z, y, x = (np.arange(size) - size // 2 for size in SCAN_DHW)
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    body_DHW = 9 * y**2 + 5 * x**2 < 9 * 5 * 120 + 0 * z
    lung_DHW = sum(6 * (x - side) ** 2 + 3 * y**2 + 2 * z**2 < 700 for side in (-13, 13)) > 0
    infection_DHW = ((x + 14) ** 2 + (y - 3) ** 2 + (z + 5) ** 2 < 30) & lung_DHW
    noise_hu = (_random_bits(int(np.prod(SCAN_DHW)), seed=1) % np.uint64(121)).astype(np.int16) - 60
    hu_DHW = np.where(infection_DHW, -250, np.where(lung_DHW, -850, np.where(body_DHW, 40, -1000)))
    volume_DHW = (hu_DHW + noise_hu.reshape(SCAN_DHW)).astype(np.int16)
    lung, infection = (
        _image(np.broadcast_to(mask_DHW, SCAN_DHW).astype(np.uint8)) for mask_DHW in (lung_DHW, infection_DHW)
    )
    return _image(volume_DHW), lung, infection


def golden_state() -> dict[str, torch.Tensor]:
    """Weights of the golden network: uniform, scaled as for a ReLU network, the same bits everywhere."""
    with torch.device("meta"):
        empty = AttentionResNet(NETWORK).state_dict()
    return {name: _weights(name, tensor.shape, seed) for seed, (name, tensor) in enumerate(empty.items())}


def _text(value: float | None) -> str:
    return "no finite number" if value is None else f"{value:.8g}"


_EXPECTED = [(f.name, getattr(GOLDEN, f.name), getattr(TOLERANCE, f.name)) for f in fields(GoldenNumbers)]


def _weights(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.ones((), dtype=torch.int64)
    if name.endswith("running_mean"):
        return torch.zeros(shape)
    if name.endswith("running_var"):
        return torch.ones(shape)
    n = int(np.prod(shape))
    uniform = (_random_bits(n, seed + 100) >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - 1
    if len(shape) == 1:  # scale or shift of a normalisation, or the bias of the last layer
        values = 0.1 * uniform + (1.0 if name.endswith("weight") else 0.0)
    else:
        values = uniform * np.sqrt(6 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))


def _random_bits(n: int, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64: integers only, so that no library's version of a random generator matters."""
    state = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits: npt.NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return bits


def _gradient_norm(network: AttentionResNet) -> float:
    squares = [float(p.grad.double().square().sum()) for p in network.parameters() if p.grad is not None]
    return float(np.sqrt(sum(squares)))


def _image(array_DHW: npt.NDArray[np.generic]) -> sitk.Image:
    image = sitk.GetImageFromArray(array_DHW)
    image.SetSpacing(SPACING_MM_XYZ)
    return image
