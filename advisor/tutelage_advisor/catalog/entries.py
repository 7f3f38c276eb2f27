"""The entries of a catalog."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Day = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Name = Annotated[str, Meta(min_length=1, max_length=100)]
Dollars = Annotated[float, Meta(ge=0, le=1_000_000)]


class Figure(msgspec.Struct, frozen=True, array_like=True):
    """A number with its source (a key of the catalog's `sources`, or the source itself) and the day it was read.

    No day: it was known, and not read again for this catalog.
    """

    value: Annotated[float, Meta(gt=0)]
    source: str
    read: Day | None

    @property
    def from_memory(self) -> bool:
        """Whether it was known, and not read for this catalog."""
        return self.read is None


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a GPU reaches the others of its node; GB/s, both directions together."""

    kind: str
    gb_s: Figure


class HourPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one GPU costs for an hour at a provider."""

    provider: Name
    usd_per_hour: Dollars
    source: str
    read: Day
    terms: str = "on demand"


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An accelerator. FLOP/s are dense, by precision; without a `bf16` rate it can't compute in bfloat16."""

    name: Name
    memory_gib: Figure
    bandwidth_gb_s: Figure
    tflops: dict[str, Figure]
    link: Link
    aliases: list[str] = []
    usable_gib: Figure | None = None
    "What a program can allocate, where it is known: the driver and error correction take the rest."
    watts: Figure | None = None
    achievable: Figure | None = None
    "The share of the rated FLOP/s that large matrix products reach, where it was measured."
    prices: list[HourPrice] = []

    @property
    def usable(self) -> float:
        """GiB that a program can allocate: as listed, else 98% of the memory."""
        return self.usable_gib.value if self.usable_gib else 0.98 * self.memory_gib.value

    @property
    def typical_price(self) -> float | None:
        """Dollars for an hour: the median of the on-demand prices, else of all; None where none is listed."""
        from statistics import median

        listed = [price for price in self.prices if price.terms == "on demand"] or self.prices
        return median(price.usd_per_hour for price in listed) if listed else None

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bfloat16 at full rate."""
        return "bf16" in self.tflops

    def from_memory(self, precision: str) -> list[str]:
        """Which of the figures that an estimate rests on were quoted from memory."""
        rate = self.tflops.get(precision)
        figures = {"memory": self.usable_gib or self.memory_gib, "bandwidth": self.bandwidth_gb_s, "FLOP/s": rate}
        return [name for name, figure in figures.items() if figure is not None and figure.from_memory]

    def peak_tflops(self, precision: str) -> float:
        """Dense TFLOP/s in `bf16`, `fp16` or `fp32`; the nearest slower rate where that one is not listed."""
        for name in {"bf16": ("bf16", "fp32"), "fp16": ("fp16", "bf16"), "fp32": ("fp32",)}.get(
            precision, (precision,)
        ):
            if name in self.tflops:
                return self.tflops[name].value
        return self.tflops.get("fp16", next(iter(self.tflops.values()))).value / 8


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model: the fields of its `config.json` that decide its shape."""

    name: Name
    config: dict[str, Any]
    source: str
    read: Day | None
    hub: str = ""
    aliases: list[str] = []
    license: str = ""
    published_parameters: int = 0


class ApiPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a hosted model costs, in dollars per million tokens; None where it is not offered or not known."""

    model: Name
    vendor: Name
    source: str
    read: Day
    aliases: list[str] = []
    input: Dollars | None = None
    cached_input: Dollars | None = None
    output: Dollars | None = None
    since: Day | None = None
    training: Dollars | None = None
    tuned_input: Dollars | None = None
    tuned_cached_input: Dollars | None = None
    tuned_output: Dollars | None = None
    tuning_until: Day | None = None
    "The first day on which no new tuning job is taken; None where no end is known."
    tuning_source: str = ""
    note: str = ""

    def tunable(self, today: str) -> bool:
        """Whether the vendor still takes tuning jobs on that day (ISO date)."""
        return self.training is not None and (self.tuning_until is None or today < self.tuning_until)
