"""Costs to the cent: every line of every month is rounded as a bill is, and totals add the lines."""

from __future__ import annotations

import functools
from decimal import ROUND_HALF_UP, Decimal

from tutelage_advisor.costs.inputs import HOURS_PER_MONTH, CostInputs, Item, Option, Serving
from tutelage_advisor.costs.results import Costs, Line, Month, OptionCost
from tutelage_advisor.costs.uncertain import Closed, simulate, swings

_CENT = Decimal("0.01")
_MILLION = Decimal(1_000_000)
_LARGEST_VOLUME = 10**12


def compare(inputs: CostInputs, draws: int = 10_000, seed: int = 0) -> Costs:
    """Cost of every option; where `prompt` and `fine-tune` are among them, what tuning saves and how sure that is.

    Present value of month m's cost c: c / (1 + discount)^(m/12), payable at the month's end; upfront costs are paid
    today. Net present value is the present value of prompting less that of tuning.
    """
    options = [option_cost(inputs, option) for option in inputs.options]
    costs = {option.name: option for option in options}
    if "prompt" not in costs or "fine-tune" not in costs:
        return Costs(horizon_months=inputs.horizon_months, options=options)
    prompt, tuned = costs["prompt"], costs["fine-tune"]
    npv = _dollars(_exact(prompt.present_value_usd) - _exact(tuned.present_value_usd))
    return Costs(
        horizon_months=inputs.horizon_months,
        options=options,
        saving_usd=_dollars(_exact(prompt.total_usd) - _exact(tuned.total_usd)),
        npv_usd=npv,
        tuned_to_prompt=round(tuned.present_value_usd / prompt.present_value_usd, 6)
        if prompt.present_value_usd
        else None,
        pays=npv > 0,
        break_even_month=_break_even_month(prompt, tuned),
        break_even_requests=break_even_requests(inputs),
        tornado=swings(inputs),
        monte_carlo=simulate(inputs, draws, seed) if draws else None,
    )


def option_cost(inputs: CostInputs, option: Option) -> OptionCost:
    """Upfront lines, every month, totals and present value of one option."""
    upfront = [_line(item) for item in option.upfront]
    upfront_usd = sum((_exact(line.usd) for line in upfront), Decimal(0))
    again_usd = sum((_exact(_line(item).usd) for item in option.again), Decimal(0))
    growth, yearly = 1 + _exact(inputs.growth_per_month), 1 + _exact(inputs.discount_per_year)
    cumulative = present = upfront_usd
    requests, per_call = _exact(inputs.requests_per_month), usd_per_call(option.serving)
    tokens, hosting, load = _use(option.serving, requests, per_call)
    months = []
    for number in range(1, inputs.horizon_months + 1):
        if growth != 1 and number > 1:
            requests = _exact(inputs.requests_per_month) * growth ** (number - 1)
            tokens, hosting, load = _use(option.serving, requests, per_call)
        again = again_usd if is_due(option, number) else Decimal(0)
        total = tokens + hosting + again
        cumulative += total
        present += total / _power(yearly, number)
        months.append(
            Month(
                month=number,
                requests=float(requests),
                tokens_usd=float(tokens),
                hosting_usd=float(hosting),
                again_usd=float(again),
                total_usd=float(total),
                cumulative_usd=float(cumulative),
                utilisation=load,
            )
        )
    return OptionCost(
        name=option.name,
        upfront=upfront,
        upfront_usd=float(upfront_usd),
        months=months,
        running_usd=float(cumulative - upfront_usd),
        total_usd=float(cumulative),
        present_value_usd=_dollars(present),
    )


def _use(serving: Serving, requests: Decimal, per_call: Decimal) -> tuple[Decimal, Decimal, float | None]:
    """Dollars of tokens and of hosting in a month of so many calls, and the load of the GPUs."""
    hours = gpu_hours(serving, requests)
    hosting = _cents(hours * _exact(serving.gpu_per_hour)) + _cents(_exact(serving.fixed_per_month))
    load = float(busy_hours(serving, requests) / hours) if hours else None
    return _cents(requests * per_call), hosting, load


@functools.lru_cache(maxsize=1024)
def _power(yearly: Decimal, months: int) -> Decimal:
    """What a yearly rate makes of money in some months; roots of decimals take long."""
    return yearly ** (Decimal(months) / 12)


def usd_per_call(serving: Serving) -> Decimal:
    """Dollars for one call's tokens: fresh, cached and answered ones at their prices, times 1 + the repeated share."""
    cached = min(_exact(serving.cached_tokens), _exact(serving.prompt_tokens))
    tokens = (
        (_exact(serving.prompt_tokens) - cached) * _exact(serving.input_per_million)
        + cached * _exact(serving.cached_input_per_million)
        + _exact(serving.output_tokens) * _exact(serving.output_per_million)
    )
    return tokens * (1 + _exact(serving.repeated_share)) / _MILLION


def busy_hours(serving: Serving, requests: Decimal) -> Decimal:
    """GPU-hours of pure work that a month's calls take."""
    return requests * (1 + _exact(serving.repeated_share)) * _exact(serving.gpu_seconds_per_call) / 3600


def gpu_hours(serving: Serving, requests: Decimal) -> Decimal:
    """GPU-hours to pay for: those always on, or more once their utilisation would go over its limit."""
    if not serving.gpus:
        return Decimal(0)
    always = _exact(serving.gpus) * HOURS_PER_MONTH
    return max(always, busy_hours(serving, requests) / _exact(serving.utilisation))


def is_due(option: Option, month: int) -> bool:
    """Whether `again` is paid in this month: after every `again_every_months` months of use."""
    return option.again_every_months is not None and month > 1 and (month - 1) % option.again_every_months == 0


def break_even_requests(inputs: CostInputs) -> int | None:
    """The fewest calls in the first month at which tuning pays over the horizon.

    Where tuning takes no less than prompting before the first call, paying is monotone in the volume: hosting is a
    fixed amount until the GPUs are full and proportional after, so tuning that pays at some volume pays at every
    larger one.
    """
    closed = Closed(inputs)
    if not closed.pays_at(_LARGEST_VOLUME):
        return None
    low, high = 0, _LARGEST_VOLUME
    while low < high:
        middle = (low + high) // 2
        if closed.pays_at(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _break_even_month(prompt: OptionCost, tuned: OptionCost) -> int | None:
    """The first month from whose end on tuning's cumulative cost stays at or below prompting's."""
    found = None
    for one, other in zip(reversed(prompt.months), reversed(tuned.months), strict=True):
        if other.cumulative_usd > one.cumulative_usd:
            break
        found = one.month
    return found


def _line(item: Item) -> Line:
    usd = float(_cents(_exact(item.quantity) * _exact(item.usd_each)))
    return Line(item.what, item.kind, item.quantity, item.unit, item.usd_each, usd)


@functools.lru_cache(maxsize=4096, typed=True)
def _exact(number: float) -> Decimal:
    """The decimal number that a person wrote: 0.1, not its nearest binary fraction."""
    return Decimal(str(number))


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(_CENT, ROUND_HALF_UP)


def _dollars(amount: Decimal) -> float:
    return float(_cents(amount))
