"""What the costs come to. Dollars are floats that were rounded to the cent."""

from __future__ import annotations

import msgspec


class Line(msgspec.Struct, frozen=True):
    """One upfront cost."""

    what: str
    kind: str
    quantity: float
    unit: str
    usd_each: float
    usd: float


class Month(msgspec.Struct, frozen=True):
    """One month of one option: calls, and what they, the hosting and tuning again cost."""

    month: int
    requests: float
    tokens_usd: float
    hosting_usd: float
    again_usd: float
    total_usd: float
    cumulative_usd: float
    utilisation: float | None
    "Average load of the GPUs that host it, where GPUs do."


class OptionCost(msgspec.Struct, frozen=True):
    """What one option costs over the horizon."""

    name: str
    upfront: list[Line]
    upfront_usd: float
    months: list[Month]
    running_usd: float
    total_usd: float
    present_value_usd: float


class Swing(msgspec.Struct, frozen=True):
    """What one uncertain input is worth: the saving when it alone is at its low or its high end."""

    input: str
    low: float
    high: float
    saving_at_low_usd: float
    saving_at_high_usd: float
    swing_usd: float


class Interval(msgspec.Struct, frozen=True):
    """The 5th, 50th and 95th percentile of the draws."""

    low: float
    middle: float
    high: float


class MonteCarlo(msgspec.Struct, frozen=True):
    """What the draws say. The saving is a present value: prompting's cost less tuning's."""

    draws: int
    seed: int
    chance_pays: float
    saving_usd: Interval
    prompt_usd: Interval
    tuned_usd: Interval


class Costs(msgspec.Struct, kw_only=True, frozen=True):
    """Every option, and tuning beside prompting where tuning is possible."""

    horizon_months: int
    options: list[OptionCost]
    saving_usd: float | None = None
    "Total of prompting less total of tuning."
    npv_usd: float | None = None
    "The same as present values: what tuning is worth today."
    tuned_to_prompt: float | None = None
    "Present cost of tuning as a share of that of prompting; falls as traffic rises."
    pays: bool | None = None
    "Whether tuning's net present value over the horizon is over 0."
    break_even_month: int | None = None
    "The month from which tuning has cost less in all than prompting; null: not within the horizon."
    break_even_requests: int | None = None
    "Calls a month in the first month from which tuning pays over the horizon; null: at no volume."
    tornado: list[Swing] = []
    monte_carlo: MonteCarlo | None = None
    assumptions: list[str] = []
