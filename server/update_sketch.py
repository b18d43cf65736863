"""How alike the sites' updates are: the cosine of each with their mean, from sketches of a fixed size.

The mean is known when every reply was added, and no reply is kept until then. A sketch is: it has WIDTH
numbers, adds up as updates do, and keeps inner products in expectation (a tug-of-war sketch: pieces of WIDTH
values, each times a random sign, summed). Of a large tensor one piece in SAMPLE is taken, so that this costs
little beside the averaging. The standard error of a cosine is about 1 / sqrt(WIDTH), or 0.01.
"""

import math
import random
from collections.abc import Mapping

import torch
from torch import Tensor

from dsan_model.traffic import PackedWeights

WIDTH = 8192
SAMPLE = 8
SEED = 0  # signs are the same for every site and round


def sketch(update: PackedWeights) -> Tensor:
    """The sketch (WIDTH,) of the floats of an update; up to WIDTH of them it is exact but for signs."""
    total = torch.zeros(WIDTH)
    signs = random.Random(SEED)
    for place, exponent in zip(update.layout.float_slices, update.exponents, strict=True):
        stride = SAMPLE if place.stop - place.start > SAMPLE * WIDTH else 1
        starts = range(place.start, place.stop, stride * WIDTH)
        taken = sum(min(WIDTH, place.stop - start) for start in starts)
        scale = math.sqrt((place.stop - place.start) / max(1, taken)) * 2.0**exponent
        for start in starts:
            piece = torch.tensor(update.floats[start : min(start + WIDTH, place.stop)]).float()
            piece.mul_(scale * signs.choice((-1.0, 1.0)))
            at = start % WIDTH
            total[at : at + len(piece)] += piece[: WIDTH - at]
            total[: max(0, at + len(piece) - WIDTH)] += piece[WIDTH - at :]
    return total


def cosines_with_mean(sketches: Mapping[str, Tensor], cases: Mapping[str, int]) -> dict[str, float | None]:
    """By site: the cosine of its update with the mean update weighted by cases, in which it has its own part.

    None where the update or the mean is zero.
    """
    total = sum(cases[site] for site in sketches)
    mean = sum((of_site * (cases[site] / total) for site, of_site in sketches.items()), torch.zeros(WIDTH))
    return {site: _cosine(of_site, mean) for site, of_site in sketches.items()}


def _cosine(left: Tensor, right: Tensor) -> float | None:
    left, right = left.double(), right.double()
    norms = float(torch.linalg.vector_norm(left) * torch.linalg.vector_norm(right))
    return round(float(left @ right) / norms, 4) if norms > 0 and math.isfinite(norms) else None
