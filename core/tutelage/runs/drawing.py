"""A line plot in characters: a braille cell holds 2 x 4 dots, so a plot of 60 x 12 cells has 120 x 48."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tutelage.runs.words import number

if TYPE_CHECKING:
    from tutelage.runs.history import Points

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"Bits of a braille cell by row and column (Unicode 15, Braille Patterns)."


def text_plot(line: Points, marks: Points, width: int = 72, height: int = 12) -> str:
    """A line and, over it, single marks (●), with the ranges of both axes. `width` and `height` are in characters.

    Raises:
        ValueError: when the line has no points.
    """
    everything = [*line, *marks]
    x_low, x_high = min(x for x, _ in everything), max(x for x, _ in everything)
    y_low, y_high = min(y for _, y in everything), max(y for _, y in everything)
    labels = [number(y_high), number((y_low + y_high) / 2), number(y_low)]
    margin = max(len(label) for label in labels)
    columns = max(width - margin - 2, 8)

    def place(x: float, y: float) -> tuple[int, int]:
        across = (x - x_low) / (x_high - x_low or 1) * (columns * 2 - 1)
        down = (y_high - y) / (y_high - y_low or 1) * (height * 4 - 1)
        return round(across), round(down)

    cells = [[0] * columns for _ in range(height)]
    for x, y in _joined([place(x, y) for x, y in line]):
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    rows = [[chr(0x2800 + bits) if bits else " " for bits in row] for row in cells]
    for x, y in (place(*mark) for mark in marks):
        rows[y // 4][x // 2] = "●"
    beside = {0: labels[0], height // 2: labels[1], height - 1: labels[2]}
    drawn = [f"{beside.get(index, ''):>{margin}} ┤{''.join(row)}" for index, row in enumerate(rows)]
    left, right = number(x_low), number(x_high)
    drawn.append(f"{'':>{margin}} └{'─' * columns}")
    drawn.append(f"{'':>{margin}}  {left}{right:>{columns - len(left)}}")
    return "\n".join(row.rstrip() for row in drawn)


def _joined(dots: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The dots, and those on the straight lines between neighbours."""
    drawn = set(dots)
    for (x0, y0), (x1, y1) in itertools.pairwise(dots):
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        drawn |= {(x0 + round((x1 - x0) * at / count), y0 + round((y1 - y0) * at / count)) for at in range(count)}
    return drawn
