"""Line plots as SVG that needs nothing else: no script, no font, no file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from tutelage.runs.words import number

if TYPE_CHECKING:
    from tutelage.runs.history import Points

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 40
MOST_POINTS = 800
COLORS = ("#2f6fde", "#e0692b", "#2a9d61", "#9b59b6")
GREY = "#808080"


@dataclass
class Series:
    """One line of a plot."""

    label: str
    points: Points


def line_plot(title: str, series: list[Series], across: str = "step") -> str:
    """An SVG element with a line per series; a series of many points is drawn as means of neighbours."""
    drawn = [Series(each.label, thinned(each.points)) for each in series if each.points]
    xs = [x for each in drawn for x, _ in each.points]
    ys = [y for each in drawn for _, y in each.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 5)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))
    y_high = y_high if y_high > y_low else y_low + max(abs(y_low), 1e-9)

    def across_at(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def up_at(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{GREY}"><title>{escape(title)}</title>',
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="600">{escape(title)}</text>',
    ]
    for y in y_ticks:
        at = up_at(y)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity=".25"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            parts.append(
                f'<text x="{across_at(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number(x)}</text>'
            )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(across)}</text>')
    for index, each in enumerate(drawn):
        color = COLORS[index % len(COLORS)]
        places = [(across_at(x), up_at(y)) for x, y in each.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        if len(places) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in places]
        if len(drawn) > 1:
            x = WIDTH - RIGHT - 110 * (len(drawn) - index)
            parts.append(f'<rect x="{x}" y="9" width="12" height="12" rx="2" fill="{color}"/>')
            parts.append(f'<text x="{x + 17}" y="19">{escape(each.label)}</text>')
    return "".join([*parts, "</svg>"])


def thinned(points: Points) -> Points:
    """At most `MOST_POINTS` points: each the mean of as many neighbours; the last one stays as it is."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [*means[:-1], points[-1]]


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose a range in about `wanted` steps."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(count * step, 12) for count in range(first, last + 1)]
