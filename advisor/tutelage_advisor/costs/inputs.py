"""What the costs are computed from: what each option takes upfront, how it is served, and the traffic."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from tutelage.config import Config

HOURS_PER_MONTH = 730
"365 days x 24 hours / 12, as cloud vendors count a month."

Amount = Annotated[float, Meta(ge=0, le=1e15)]
Share = Annotated[float, Meta(ge=0, le=1)]
Kind = Literal["people", "training", "machine"]


class Item(Config):
    """Something that is paid for once: `quantity` of a unit, each at `usd_each`."""

    what: str
    kind: Annotated[Kind, Meta(description="people's hours, training compute, or other machine work.")]
    quantity: Amount
    unit: str
    usd_each: Amount


class Serving(Config):
    """How one call is paid for: by the token, by the GPU-hour, or both."""

    prompt_tokens: Amount = 0
    cached_tokens: Annotated[Amount, Meta(description="How many of the prompt's tokens are read from the cache.")] = 0
    output_tokens: Amount = 0
    repeated_share: Annotated[
        Share, Meta(description="Share of calls made a second time because the answer was unfit.")
    ] = 0
    input_per_million: Amount = 0
    cached_input_per_million: Amount = 0
    output_per_million: Amount = 0
    gpus: Annotated[Amount, Meta(description="GPUs that are always on; 0 where tokens are paid for.")] = 0
    gpu_per_hour: Amount = 0
    gpu_seconds_per_call: Annotated[Amount, Meta(description="GPU-seconds of one call at full load.")] = 0
    utilisation: Annotated[float, Meta(gt=0, le=1, description="Highest average load that leaves room for peaks.")] = (
        0.5
    )
    fixed_per_month: Annotated[Amount, Meta(description="An index, storage and the like.")] = 0


class Option(Config):
    """One way to do the task."""

    name: str
    serving: Serving
    upfront: list[Item] = []
    again_every_months: Annotated[
        int | None, Meta(ge=1, le=1200, description="After how many months `again` is paid anew; null never.")
    ] = None
    again: Annotated[list[Item], Meta(description="What is paid anew: tuning on a new base or on changed data.")] = []


class CostInputs(Config):
    """Options over the same traffic. Month m has `requests_per_month * (1 + growth)^(m - 1)` calls."""

    requests_per_month: Amount
    options: list[Option]
    growth_per_month: Annotated[float, Meta(gt=-1, le=10)] = 0
    horizon_months: Annotated[int, Meta(ge=1, le=1200)] = 12
    discount_per_year: Annotated[float, Meta(ge=0, le=10)] = 0.08
