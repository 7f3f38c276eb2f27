"""The draws of `uncertain` by numpy, to the last bit the same; used where numpy is loaded already, as in a server.

Every elementwise operation is done in the order in which `uncertain` does it, so that IEEE 754 gives the same doubles.
"""

from __future__ import annotations

import functools
import math
import random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tutelage_advisor.costs.results import Interval, MonteCarlo
from tutelage_advisor.costs.uncertain import FACTORS, Closed, Reduced, places, triangular

if TYPE_CHECKING:
    from tutelage_advisor.costs.inputs import CostInputs

Vector = NDArray[np.float64]


def simulate(inputs: CostInputs, draws: int, seed: int) -> MonteCarlo:
    """As `uncertain.simulate`."""
    prompt, tuned = draw(inputs, draws, seed)
    savings = prompt - tuned
    return MonteCarlo(
        draws=draws,
        seed=seed,
        chance_pays=int(np.count_nonzero(savings > 0.0)) / draws,
        saving_usd=_interval(savings),
        prompt_usd=_interval(prompt),
        tuned_usd=_interval(tuned),
    )


def _interval(values: Vector) -> Interval:
    low, middle, high = places(len(values))  # one place at a time, which numpy finds several times as fast as all three
    parted = np.partition(values, middle)
    below, above = np.partition(parted[: middle + 1], low), np.partition(parted[middle:], high - middle)
    return Interval(*(round(float(each), 2) for each in (below[low], parted[middle], above[high - middle])))


def draw(inputs: CostInputs, draws: int, seed: int) -> tuple[Vector, Vector]:
    """Present values of prompting and of tuning in every draw."""
    closed, factors = Closed(inputs), _factors(draws, seed)
    calls = closed.requests * factors[0]
    return _present(closed, closed.prompt, calls, None, factors), _present(
        closed, closed.tuned, calls, factors[1], factors
    )


@functools.lru_cache(maxsize=4)
def _factors(draws: int, seed: int) -> list[Vector]:
    """The draws of every factor, which are the same for all questions."""
    generator, factors = random.Random(seed), []
    for low, high in FACTORS.values():
        slices = np.array(triangular(low, high))
        factors.append(slices[np.frombuffer(generator.randbytes(draws), dtype=np.uint8)])
    return factors


def _present(closed: Closed, option: Reduced, calls: Vector, prompt: Vector | None, factors: list[Vector]) -> Vector:
    """As `Closed._present`, in place; what would add 0 or multiply by 1 is left out (`prompt` is None for 1)."""
    _, _, output, tokens, gpus, seconds, people, training, repeats = factors
    total = option.people * people
    total += option.machine + option.fixed
    if option.training:
        total += option.training * training
    made = calls * (1 + option.repeated * repeats) if option.repeated else calls
    if option.input_usd or option.output_usd:
        reading, writing = option.input_usd * closed.all_months, option.output_usd * closed.all_months
        spent = writing * output
        spent += reading if prompt is None else reading * prompt
        spent *= made
        spent *= tokens
        total += spent
    if option.always_usd:
        hosting = _hosting(closed, option.always_usd, made * option.busy_usd * seconds)
        hosting *= gpus
        total += hosting
    return total


def _hosting(closed: Closed, always: float, busy: Vector) -> Vector:
    """Sum over the months of max(always, busy growth^(m-1)) v^m."""
    if closed.growth == 1:
        return np.where(busy <= always, always * closed.flat_months, busy * closed.all_months)
    last = busy * closed.growth ** (closed.months - 1)
    below = busy <= always
    flat = below if closed.growth <= 1 else below & (last <= always)
    full = ~below if closed.growth >= 1 else ~below & (last >= always)
    found = np.where(full, busy * closed.all_months, always * closed.flat_months)
    crossing = ~(flat | full)
    if crossing.any():
        found[crossing] = _crossing(closed, always, busy[crossing])
    return found


def _crossing(closed: Closed, always: float, busy: Vector) -> Vector:
    """The same where a traffic that grows or shrinks crosses from one of both to the other."""
    months = np.log(always / busy) / math.log(closed.growth)
    for index in np.flatnonzero(np.abs(months - np.rint(months)) < 1e-9):  # where numpy's last bit could count
        months[index] = math.log(always / float(busy[index])) / math.log(closed.growth)
    at = np.clip(np.ceil(months), 0, closed.months).astype(np.intp)
    every = range(closed.months + 1)
    flat = np.array([closed.flat_until(month) for month in every])[at]
    value: Vector
    if closed.growth > 1:
        value = always * flat + busy * np.array([closed.sum_of(month, closed.months) for month in every])[at]
    else:
        value = busy * np.array([closed.sum_of(0, month) for month in every])[at] + always * (closed.flat_months - flat)
    return value
