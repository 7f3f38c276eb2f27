"""What repeats say: a middle and a 95 % interval of positive figures, and of the ratio of two contenders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"Student's t for 95 %, both sides, of 1 to 9 degrees of freedom."


class Interval(NamedTuple):
    """A middle, and where it lies with 95 %; None on both sides where one repeat tells nothing of that."""

    middle: float
    low: float | None = None
    high: float | None = None


def interval(values: Sequence[float]) -> Interval:
    """The geometric mean of positive figures, with Student's t interval of their logarithms.

    Speeds, times and memory vary in proportion, so that logarithms are what is nearly normal.

    Raises:
        ValueError: for no figures, or one that is not positive.
    """
    if not values or min(values) <= 0:
        raise ValueError(f"an interval is of one or more positive figures, and not of {list(values)}")
    logs = [math.log(value) for value in values]
    count = len(logs)
    mean = math.fsum(logs) / count
    if count == 1:
        return Interval(values[0])
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in logs) / (count - 1))
    half = _T[min(count - 1, len(_T)) - 1] * deviation / math.sqrt(count)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The ratio of two contenders over repeats that were taken in turns: of each pair, then their interval.

    Pairs, because what slows the machine for a while slows both.

    Raises:
        ValueError: when there are not as many of the one as of the other.
    """
    return interval([one / other for one, other in zip(above, below, strict=True)])


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power of its size that a cost grows with: the slope of a line fitted to both logarithms (least squares).

    Raises:
        ValueError: for fewer than two different sizes.
    """
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    if not spread:
        raise ValueError("an exponent is fitted to two or more different sizes")
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
