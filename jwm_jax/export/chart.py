"""Line charts as inline SVG: axes with round ticks, a legend, and a tooltip on every point.

Colours are CSS classes (`s0` to `s5`), which the report's style sheet sets for light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 560, 280
"""Size of the drawing in its own units; it scales with the page."""

COLORS = 6
"""How many series can be told apart."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 42


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: For the legend.
        x: Ascending.
        y: One a point; NaN or infinity leaves a gap.
        dashed: Whether the line is dashed, as for a baseline or a ceiling.
    """

    label: str
    x: Sequence | np.ndarray
    y: Sequence | np.ndarray
    dashed: bool = False


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, log_y: bool = False, title: str = ""
) -> str:
    """An <svg> element and its legend.

    Args:
        series: Lines to draw; the first six have colours of their own.
        x_label: With its unit.
        y_label: With its unit.
        log_y: Logarithmic y axis; points that are not positive are left out.
        title: For screen readers.
    """
    points = [_points(s, log_y) for s in series]
    flat = [p for line in points for p in line if p is not None]
    if not flat:
        return '<p class="note">No finite values to draw.</p>'
    x_ticks, x_low, x_high = _axis([x for x, _ in flat])
    y_values = [math.log10(y) if log_y else y for _, y in flat]
    y_ticks, y_low, y_high = _axis(y_values, pad=0.05)
    if log_y:
        y_ticks = [t for t in y_ticks if abs(t - round(t)) < 1e-9] or y_ticks

    def place(x, y):
        y = math.log10(y) if log_y else y
        px = _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        py = HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return px, py

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title or y_label)}">'
    ]
    for tick in y_ticks:
        value = 10**tick if log_y else tick
        _, y = place(x_low, value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_word(value)}'
            "</text>"
        )
    base = HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in x_ticks:
        x = _LEFT + (tick - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
            f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{_word(tick)}'
            "</text>"
        )
    middle = (_TOP + base) / 2
    parts.append(
        f'<text class="name" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="name" x="13" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 13 {middle})">{escape(y_label)}</text>'
    )
    for index, (one, line) in enumerate(zip(series, points, strict=True)):
        parts.append(_draw(one, line, index, place))
    parts.append("</svg>")
    return "".join(parts) + _legend(series)


def _points(series: Series, log_y: bool) -> list[tuple[float, float] | None]:
    """(x, y), or None where the line has a gap."""
    pairs = zip(series.x, series.y, strict=True)
    numbers = [(float(x), float(y)) for x, y in pairs]
    return [
        p if math.isfinite(p[0]) and math.isfinite(p[1]) and (p[1] > 0 or not log_y) else None
        for p in numbers
    ]


def _draw(series: Series, points: list, index: int, place) -> str:
    color = f"s{index % COLORS}"
    dash = ' stroke-dasharray="5 4"' if series.dashed else ""
    pieces, run = [], []
    for point in [*points, None]:
        if point is not None:
            run.append("{:.1f},{:.1f}".format(*place(*point)))
        elif run:
            pieces.append(f'<polyline class="line {color}"{dash} points="{" ".join(run)}"/>')
            run = []
    seen = [p for p in points if p is not None]
    visible = len(seen) <= 40
    for x, y in seen:
        px, py = place(x, y)
        kind = "dot" if visible else "ghost"
        pieces.append(
            f'<circle class="{kind} {color}" cx="{px:.1f}" cy="{py:.1f}" r="{3 if visible else 5}">'
            f"<title>{escape(series.label)}: {_word(y)} at {_word(x)}</title></circle>"
        )
    return "".join(pieces)


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    entries = "".join(
        f'<li><svg class="key" viewBox="0 0 22 10" aria-hidden="true">'
        f'<line class="line s{i % COLORS}" x1="1" x2="21" y1="5" y2="5"'
        f"{' stroke-dasharray=' + chr(34) + '5 4' + chr(34) if s.dashed else ''}/></svg>"
        f"{escape(s.label)}</li>"
        for i, s in enumerate(series)
    )
    return f'<ul class="legend">{entries}</ul>'


def _axis(values: list[float], pad: float = 0.0) -> tuple[list[float], float, float]:
    """Round ticks inside the range, and the range."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    low, high = low - pad * (high - low), high + pad * (high - low)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return ticks, low, high


def _word(value: float) -> str:
    """A number, short."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}"
