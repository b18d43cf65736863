"""Drawing primitives of the report's figures: SVG elements as text, axes, round ticks.

Written by hand rather than with a plotting library: text stays text in the page's own font, a whole report
is drawn in milliseconds, and the same numbers always give the same bytes. All lengths are CSS pixels, y
grows downwards. A panel is one <svg> element; `figure_file` lays panels side by side in a file of its own.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from server.report_input import Score

INK, SOFT, GRID, FRAME = "#1c2430", "#5b6673", "#e6e9ed", "#9aa4af"
FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
NAMESPACE = "http://www.w3.org/2000/svg"

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From values to pixels; `start_px` is where `low` stands."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False

    def px(self, value: float) -> float:
        """Pixel of a value."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start_px + (at - low) / (high - low) * (self.end_px - self.start_px)


@dataclass(frozen=True)
class Area:
    """A plotting area: two axes and the labels of their ticks."""

    x: Axis
    y: Axis
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    def frame(self) -> str:
        """Grid, axes and tick labels."""
        x, y = self.x, self.y
        parts = [line((x.start_px, y.px(v)), (x.end_px, y.px(v)), GRID) for v, _ in self.y_ticks]
        parts += [line((x.px(v), y.start_px), (x.px(v), y.start_px + 4), FRAME) for v, _ in self.x_ticks]
        parts += [text(x.start_px - 7, y.px(v) + 4, label, "end") for v, label in self.y_ticks]
        parts += [text(x.px(v), y.start_px + 18, label, "middle") for v, label in self.x_ticks]
        parts.append(line((x.start_px, y.start_px), (x.end_px, y.start_px), FRAME))
        return "".join(parts)

    def curve(self, values: Sequence[tuple[float, Score]], colour: str, dash: str, width: float) -> str:
        """A line through the values, with a gap at every undefined one; a lone value is a dot."""
        parts = []
        for run in _runs(values):
            points = [(self.x.px(a), self.y.px(b)) for a, b in run]
            dots = points if len(points) == 1 else []
            parts += [polyline(points, colour, dash, width)] if len(points) > 1 else []
            parts += [dot(point, 3, colour) for point in dots]
        return "".join(parts)


def figure_file(panels: Sequence[str], per_row: int = 3) -> str:
    """Panels as one SVG file: rows of `per_row`, white background."""
    sizes = [_size_px(svg_text) for svg_text in panels]
    cell_width, cell_height = max(w for w, _ in sizes), max(h for _, h in sizes)
    columns, rows = min(per_row, len(panels)), -(-len(panels) // per_row)
    width, height = columns * cell_width, rows * cell_height
    placed = (
        f'<svg x="{i % per_row * cell_width}" y="{i // per_row * cell_height}"{svg_text.removeprefix("<svg")}'
        for i, svg_text in enumerate(panels)
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return f'<svg xmlns="{NAMESPACE}" {size}>{background}{"".join(placed)}</svg>\n'


def panel(width: float, height: float, label: str, body: Iterable[str]) -> str:
    """One figure panel: an <svg> element of its own, read out as `label`."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    look = f'font-family="{FONT}" font-size="12" fill="{INK}"'
    return f'<svg {size} {look} role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def _size_px(svg_text: str) -> tuple[int, int]:
    """Width and height as `panel` wrote them."""
    fields = svg_text.split('"', 2)[1].split()
    return math.ceil(float(fields[2])), math.ceil(float(fields[3]))


def line(
    start: Point, end: Point, colour: str, dash: str = "none", width: float = 1, opacity: float = 1
) -> str:
    """A straight line."""
    ends = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    look = f'stroke="{colour}" stroke-width="{width:g}"'
    look += f' stroke-dasharray="{dash}"' if dash != "none" else ""
    look += f' opacity="{opacity:g}"' if opacity != 1 else ""
    return f"<line {ends} {look}/>"


def polyline(points: Sequence[Point], colour: str, dash: str, width: float) -> str:
    """A line through points."""
    look = f'fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-linejoin="round"'
    look += f' stroke-dasharray="{dash}"' if dash != "none" else ""
    return f'<path d="{path_data(points)}" {look}/>'


def path_data(points: Sequence[Point]) -> str:
    """The `d` of a path through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def rect(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    """A filled rectangle; a negative size is drawn as nothing."""
    size = f'x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{max(0, height):.1f}"'
    faint = f' opacity="{opacity:g}"' if opacity != 1 else ""
    return f'<rect {size} fill="{colour}"{faint}/>'


def dot(at: Point, radius: float, colour: str, stroke: str = "none") -> str:
    """A filled circle."""
    look = f'fill="{colour}" stroke="{stroke}" stroke-width="2.2"'
    return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" {look}/>'


def diamond(at: Point) -> str:
    """The mark of a value of the paper."""
    x, y = at
    corners = path_data([(x - 6, y), (x, y - 6), (x + 6, y), (x, y + 6)])
    return f'<path d="{corners}Z" fill="#fff" stroke="{SOFT}" stroke-width="2"/>'


def text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    size: int = 12,
    colour: str = INK,
    bold: bool = False,
    halo: bool = False,
) -> str:
    """One line of text, escaped; a halo keeps it readable over lines."""
    look = f' text-anchor="{anchor}"' if anchor != "start" else ""
    look += f' font-size="{size}"' if size != 12 else ""
    look += f' fill="{colour}"' if colour != INK else ""
    look += ' font-weight="600"' if bold else ""
    look += ' stroke="#fff" stroke-width="4" paint-order="stroke"' if halo else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{look}>{escape(words)}</text>'


def title(x: float, y: float, words: str) -> str:
    """The title of a panel."""
    return text(x, y, words, size=14, bold=True)


def axis_names(area: Area, x_name: str, y_name: str) -> str:
    """What the two axes of an area show."""
    middle = (area.x.start_px + area.x.end_px) / 2
    beside = (area.y.start_px + area.y.end_px) / 2
    turned = f'<text transform="translate(14 {beside:.1f}) rotate(-90)" text-anchor="middle" font-size="13">'
    return text(middle, area.y.start_px + 42, x_name, "middle", size=13) + f"{turned}{escape(y_name)}</text>"


def _runs(values: Sequence[tuple[float, Score]]) -> list[list[Point]]:
    """Unbroken stretches of defined values."""
    runs: list[list[Point]] = [[]]
    for x, y in values:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def ticks(low: float, high: float, smallest_step: float = 0) -> tuple[tuple[float, str], ...]:
    """Two to six round numbers from low to high; counts have a smallest step of 1."""
    step = max(smallest_step, round_step((high - low) / 4))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple((i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1))


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 5, 10 times a power of ten that is not below `rough`."""
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)


def nice_top(highest: float, smallest_step: float = 0) -> float:
    """The end of an axis that starts at 0, on one of its ticks."""
    if highest <= 0:
        return 1.0
    step = max(smallest_step, round_step(highest / 4))
    return step * math.ceil(highest / step - 1e-9)
