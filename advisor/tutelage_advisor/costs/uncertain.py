"""The same costs in closed form, fast enough to vary: one input at a time, and by Monte Carlo.

Uncertain inputs are factors on what was given, triangular between a low and a high end with the mode at 1. Sums over
months are geometric series: with q = (1 + growth) v and v = (1 + discount)^(-1/12), the present value of a cost c per
call is c N v (1 - q^T) / (1 - q). Hosting is the larger of a fixed and a proportional cost; a growing traffic crosses
from one to the other once, so it is two such sums. Draws are computed column by column, which is fastest in plain
Python.
"""

from __future__ import annotations

import math
import random
import sys
from functools import cache, lru_cache
from typing import NamedTuple

from tutelage_advisor.costs.inputs import HOURS_PER_MONTH, CostInputs, Item, Kind, Option
from tutelage_advisor.costs.results import Interval, MonteCarlo, Swing

FACTORS: dict[str, tuple[float, float]] = {
    "requests per month": (0.4, 2.0),
    "tuned prompt tokens": (0.7, 1.6),
    "output tokens": (0.8, 1.25),
    "token prices": (0.5, 1.1),
    "GPU prices": (0.8, 1.3),
    "GPU time per call": (0.5, 2.0),
    "people's hours": (0.7, 2.0),
    "training cost": (0.5, 2.5),
    "repeated calls": (0.5, 2.0),
}
"""Low and high end of each factor. Judgement, open to reading: traffic forecasts are commonly off by a factor of two,
list prices of tokens fall more often than they rise, and data work and training take more tries than planned."""


Column = list[float]


class Reduced(NamedTuple):
    """An option reduced to what the closed form needs."""

    people: float
    machine: float
    training: float
    fixed: float
    input_usd: float
    output_usd: float
    repeated: float
    always_usd: float
    busy_usd: float


class Closed:
    """`CostInputs` in closed form; `totals` takes the factors in the order of `FACTORS`."""

    def __init__(self, inputs: CostInputs) -> None:
        self.requests = float(inputs.requests_per_month)
        self.months = inputs.horizon_months
        self.growth = float(1 + inputs.growth_per_month)
        self.v = math.exp(-math.log1p(inputs.discount_per_year) / 12)
        options = {option.name: option for option in inputs.options}
        self.all_months = self.sum_of(0, self.months)
        self.flat_months = _sum_of_powers(self.v, 1, self.months, 1)
        self.prompt = self._reduce(options["prompt"])
        self.tuned = self._reduce(options["fine-tune"])

    def totals(self, factors: list[Column]) -> tuple[Column, Column]:
        """Present values of prompting and of tuning, a draw each; `factors` are columns in the order of `FACTORS`."""
        calls = [self.requests * factor for factor in factors[0]]
        ones = [1.0] * len(calls)
        return self._present(self.prompt, calls, ones, factors), self._present(self.tuned, calls, factors[1], factors)

    def given(self, requests: float | None = None) -> tuple[float, float]:
        """Present values of prompting and of tuning with every input as it was given, or at another volume."""
        calls = self.requests if requests is None else float(requests)
        return self._present_as_given(self.prompt, calls), self._present_as_given(self.tuned, calls)

    def pays_at(self, requests: float) -> bool:
        """Whether tuning pays at another volume."""
        prompt, tuned = self.given(requests)
        return tuned < prompt

    def _present_as_given(self, option: Reduced, calls: float) -> float:
        """What `_present` is where every factor is 1."""
        total = option.machine + option.fixed + option.people + option.training
        made = calls * (1 + option.repeated)
        if option.input_usd or option.output_usd:
            total += made * (option.input_usd * self.all_months + option.output_usd * self.all_months)
        if option.always_usd:
            total += self._hosting(option.always_usd, made * option.busy_usd)
        return total

    def _present(self, option: Reduced, calls: Column, prompt: Column, factors: list[Column]) -> Column:
        _, _, output, tokens, gpus, seconds, people, training, repeats = factors
        once = option.machine + option.fixed
        total = [once + option.people * p + option.training * t for p, t in zip(people, training, strict=True)]
        made = calls
        if option.repeated:
            made = [n * (1 + option.repeated * r) for n, r in zip(calls, repeats, strict=True)]
        if option.input_usd or option.output_usd:
            reading, writing = option.input_usd * self.all_months, option.output_usd * self.all_months
            spent = zip(total, made, prompt, output, tokens, strict=True)
            total = [usd + n * (reading * p + writing * o) * price for usd, n, p, o, price in spent]
        if option.always_usd:
            always, busy, hosting = option.always_usd, option.busy_usd, self._hosting
            hosted = zip(total, made, gpus, seconds, strict=True)
            total = [usd + price * hosting(always, n * busy * s) for usd, n, price, s in hosted]
        return total

    def sum_of(self, start: int, stop: int) -> float:
        """Sum over months start+1 … stop of growth^(m-1) v^m."""
        if stop <= start:
            return 0.0
        q = self.growth * self.v
        if abs(q - 1) < 1e-12:
            return self.v * (stop - start)
        return self.v * q**start * (1 - q ** (stop - start)) / (1 - q)

    def flat_until(self, month: int) -> float:
        """Sum of v^m over months 1 … month."""
        return self.v * (1 - self.v**month) / (1 - self.v) if self.v < 1 else float(month)

    def _hosting(self, always: float, busy: float) -> float:
        """Sum over the months of max(always, busy growth^(m-1)) v^m."""
        if not always or busy <= always:
            if not always:
                return 0.0
            if self.growth <= 1 or busy * self.growth ** (self.months - 1) <= always:
                return always * self.flat_months
        elif self.growth >= 1 or busy * self.growth ** (self.months - 1) >= always:
            return busy * self.all_months
        crossing = min(self.months, max(0, math.ceil(math.log(always / busy) / math.log(self.growth))))
        flat = self.flat_until(crossing)
        if self.growth > 1:
            return always * flat + busy * self.sum_of(crossing, self.months)
        return busy * self.sum_of(0, crossing) + always * (self.flat_months - flat)

    def _reduce(self, option: Option) -> Reduced:
        serving = option.serving
        again = 0.0
        if option.again_every_months is not None:
            again = _sum_of_powers(self.v, 1 + option.again_every_months, self.months, option.again_every_months)
        cached = min(serving.cached_tokens, serving.prompt_tokens)
        fresh = serving.prompt_tokens - cached
        first, later = _by_kind(option.upfront), _by_kind(option.again)
        return Reduced(
            people=first["people"] + again * later["people"],
            machine=first["machine"] + again * later["machine"],
            training=first["training"] + again * later["training"],
            fixed=serving.fixed_per_month * self.flat_months,
            input_usd=(fresh * serving.input_per_million + cached * serving.cached_input_per_million) / 1e6,
            output_usd=serving.output_tokens * serving.output_per_million / 1e6,
            repeated=serving.repeated_share,
            always_usd=serving.gpus * HOURS_PER_MONTH * serving.gpu_per_hour,
            busy_usd=serving.gpu_seconds_per_call / 3600 / serving.utilisation * serving.gpu_per_hour,
        )


def swings(inputs: CostInputs) -> list[Swing]:
    """What each uncertain input is worth by itself, the most valuable first (a tornado chart's order)."""
    closed, count = Closed(inputs), len(FACTORS)
    ends = [end for pair in FACTORS.values() for end in pair]
    # row 2i has factor i at its low end, row 2i + 1 at its high end, all others at 1
    columns = [[end if row // 2 == index else 1.0 for row, end in enumerate(ends)] for index in range(count)]
    savings = [prompt - tuned for prompt, tuned in zip(*closed.totals(columns), strict=True)]
    found = []
    for index, (name, (low, high)) in enumerate(FACTORS.items()):
        at_low, at_high = savings[2 * index : 2 * index + 2]
        found.append(Swing(name, low, high, round(at_low, 2), round(at_high, 2), round(abs(at_high - at_low), 2)))
    return sorted(found, key=lambda swing: -swing.swing_usd)


def simulate(inputs: CostInputs, draws: int = 10_000, seed: int = 0) -> MonteCarlo:
    """Draw all uncertain inputs at once, `draws` times, the same for the same seed.

    Loading numpy takes longer than it saves on one question, so it is used where it is loaded.
    """
    if "numpy" in sys.modules:
        from tutelage_advisor.costs import vectors

        return vectors.simulate(inputs, draws, seed)
    prompt, tuned = draw(inputs, draws, seed)
    savings = [one - other for one, other in zip(prompt, tuned, strict=True)]
    return MonteCarlo(
        draws=draws,
        seed=seed,
        chance_pays=sum(saving > 0.0 for saving in savings) / draws,
        saving_usd=_interval(savings),
        prompt_usd=_interval(prompt),
        tuned_usd=_interval(tuned),
    )


def draw(inputs: CostInputs, draws: int, seed: int) -> tuple[Column, Column]:
    """Present values of prompting and of tuning in every draw."""
    generator, columns = random.Random(seed), []
    for low, high in FACTORS.values():
        slices = triangular(low, high)
        columns.append([slices[byte] for byte in generator.randbytes(draws)])
    return Closed(inputs).totals(columns)


@cache
def triangular(low: float, high: float) -> Column:
    """The middles of 256 equally likely slices of a triangular variable with mode 1: a random byte draws one of them.

    Its distribution's inverse at a uniform u is a + sqrt(u (b-a)(c-a)) below F(c), else b - sqrt((1-u)(b-a)(b-c)).
    """
    width, mode = high - low, (1 - low) / (high - low)
    middles = [(byte + 0.5) / 256 for byte in range(256)]
    return [
        low + math.sqrt(u * width * (1 - low)) if u < mode else high - math.sqrt((1 - u) * width * (high - 1))
        for u in middles
    ]


def _interval(values: Column) -> Interval:
    ordered = sorted(values)
    return Interval(*(round(ordered[place], 2) for place in places(len(values))))


def places(draws: int) -> list[int]:
    """Where the ends and the middle of an interval lie among ordered draws: 5%, 50%, 95%."""
    return [round(share * (draws - 1)) for share in (0.05, 0.5, 0.95)]


@lru_cache(maxsize=1024)
def _sum_of_powers(v: float, first: int, last: int, step: int) -> float:
    return sum(v**month for month in range(first, last + 1, step))


def _by_kind(items: list[Item]) -> dict[Kind, float]:
    totals: dict[Kind, float] = {"people": 0.0, "machine": 0.0, "training": 0.0}
    for item in items:
        totals[item.kind] += item.quantity * item.usd_each
    return totals
