"""Drawings of the QC page as inline SVG: HU in the lungs of a case, and Fig. 1 of the cohort."""

import math
from collections.abc import Sequence

from client.case_sketch import HISTOGRAM_EDGES_HU
from dsan_model.cases import LARGE_CAP_ABOVE, RATIO_EDGES, SMALL_COVID_BELOW, Case, Label

COLOUR = {Label.COVID: "#aa3377", Label.CAP: "#4a9fd4"}
INK, SOFT, GRID = "#1c2430", "#5b6673", "#e6e9ed"

_HU_SIZE = (190, 96)
_RATIO_SIZE = (760, 270)
_RATIO_PLOT = (46, 34, 744, 214)  # left, top, right, bottom


def hu_histogram_svg(shares: Sequence[float]) -> str:
    """HU of the voxels in the lungs: aerated lung stands left, consolidation and fluid right of -500."""
    width, height = _HU_SIZE
    base, low, high = height - 18, HISTOGRAM_EDGES_HU[0], HISTOGRAM_EDGES_HU[-1]
    step = width / len(shares)
    top = max([*shares, 1e-9])
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{base - share / top * (base - 4):.1f}" width="{step - 0.5:.1f}" '
        f'height="{share / top * (base - 4):.1f}"/>'
        for i, share in enumerate(shares)
    )
    ticks = "".join(
        f'<path d="M{x:.1f} {base}v4" stroke="{SOFT}"/><text x="{x:.1f}" y="{base + 15}" '
        f'text-anchor="middle" font-size="10" fill="{SOFT}">{hu}</text>'
        for hu, x in ((hu, (hu - low) / (high - low) * width) for hu in (-1000, -500, 0))
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="Histogram of HU in the lungs"><g fill="#7b8794">{bars}</g>'
        f'<path d="M0 {base}h{width}" stroke="{SOFT}"/>{ticks}</svg>'
    )


def ratio_histogram_svg(cases: Sequence[Case]) -> str:
    """Fig. 1: cases by infection ratio and class, with the thresholds of the size groups (III-C)."""
    counts = {label: _ratio_counts(cases, label) for label in Label}
    top = max(max(column) for column in counts.values())
    y_step = _round_step(top)
    body = [_grid(top, y_step)]
    for offset, label in enumerate(Label):
        body += [_bar(i, offset, n, top, label) for i, n in enumerate(counts[label]) if n]
    body += [_tick(edge) for edge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    body += [
        _threshold(LARGE_CAP_ABOVE, "CAP large above 0.001"),
        _threshold(SMALL_COVID_BELOW, "COVID-19 small below 0.030"),
    ]
    width, height = _RATIO_SIZE
    left, _, right, bottom = _RATIO_PLOT
    body.append(
        f'<text x="{(left + right) / 2}" y="{bottom + 44}" text-anchor="middle" fill="{SOFT}">'
        "infection volume / lung volume (logarithmic; the first column holds all below 0.0001)</text>"
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-size="12" fill="{INK}" '
        f'role="img" aria-label="Histogram of the infection ratio">{"".join(body)}</svg>'
    )


def _ratio_counts(cases: Sequence[Case], label: Label) -> list[int]:
    counts = [0] * (len(RATIO_EDGES) - 1)
    for case in cases:
        if case.label is label:
            above = sum(case.infection_ratio >= edge for edge in RATIO_EDGES)
            counts[min(above, len(counts)) - 1] += 1
    return counts


def _column_px() -> float:
    left, _, right, _ = _RATIO_PLOT
    return (right - left) / (len(RATIO_EDGES) - 1)


def _ratio_px(ratio: float) -> float:
    """Columns are equally wide in the logarithm from 0.0001 to 1; before them lies that of the rest."""
    left, _, right, _ = _RATIO_PLOT
    start = left + _column_px()
    return start + (math.log10(ratio) + 4) / 4 * (right - start)


def _bar(column: int, offset: int, n: int, top: int, label: Label) -> str:
    left, upper, _, bottom = _RATIO_PLOT
    width = (_column_px() - 3) / len(Label)
    x = left + column * _column_px() + 1.5 + offset * width
    height = n / top * (bottom - upper - 14)
    title = f"{label}: {n} cases from {RATIO_EDGES[column]:g} to {RATIO_EDGES[column + 1]:g}"
    return (
        f'<rect x="{x:.1f}" y="{bottom - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}" '
        f'fill="{COLOUR[label]}"><title>{title}</title></rect>'
    )


def _grid(top: int, step: int) -> str:
    left, upper, right, bottom = _RATIO_PLOT
    lines = []
    for n in range(0, top + 1, step):
        y = bottom - n / max(top, 1) * (bottom - upper - 14)
        lines.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{SOFT if n == 0 else GRID}"/>')
        lines.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="{SOFT}">{n}</text>')
    return "".join(lines)


def _tick(ratio: float) -> str:
    x, bottom = _ratio_px(ratio), _RATIO_PLOT[3]
    anchor = "end" if ratio == 1 else "middle"
    return (
        f'<path d="M{x:.1f} {bottom}v5" stroke="{SOFT}"/>'
        f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="{anchor}" fill="{SOFT}">{ratio:g}</text>'
    )


def _threshold(ratio: float, name: str) -> str:
    x, (_, upper, _, bottom) = _ratio_px(ratio), _RATIO_PLOT
    return (
        f'<path d="M{x:.1f} {upper - 8}V{bottom}" stroke="{INK}" stroke-dasharray="4 3"/>'
        f'<text x="{x:.1f}" y="{upper - 14}" text-anchor="middle">{name}</text>'
    )


def _round_step(top: int) -> int:
    """A step that gives three to six lines."""
    return next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if top <= 6 * step), max(1, top // 5))
