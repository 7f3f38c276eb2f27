"""What tuning a model takes by each method: on the GPUs at hand, or on the cheapest rented ones that hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from tutelage_advisor.advice import Method
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.estimates import Architecture, EstimateRequest, estimate
from tutelage_advisor.facts import EPOCHS

if TYPE_CHECKING:
    from tutelage_advisor.catalog import Gpu, HourPrice
    from tutelage_advisor.situation import Hardware

Strategy = Literal["auto", "ddp", "fsdp"]

RENTED_COUNTS = (2, 4, 8)
"GPUs of one rented node that are tried where one is not enough."


class Job(msgspec.Struct, frozen=True):
    """What is to be trained: a model of a shape on so many examples of so many tokens."""

    model: str
    shape: Architecture
    examples: int
    tokens_per_example: float
    seq_len: int
    usd_per_gpu_hour: float | None = None

    @property
    def tokens(self) -> float:
        """Tokens of one pass over all examples."""
        return self.examples * self.tokens_per_example


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one set of GPUs: whether it fits, and (once `timed`) what one training takes."""

    model: str
    method: Method
    fits: bool
    gpu: str
    count: int
    nodes: int
    strategy: Strategy
    checkpointing: bool
    peak_gib: float
    memory_gib: float
    trainable_parameters: int
    artifact_mib: float
    hours: float | None = None
    usd: float | None = None

    @property
    def gpus(self) -> int:
        """GPUs over all nodes."""
        return self.count * self.nodes

    @property
    def hardware(self) -> str:
        """How a person says it: 2 x A100-80GB."""
        return f"{self.gpus} x {self.gpu}"


def fit(job: Job, method: Method, gpus: list[Gpu], hardware: Hardware | None) -> Tuning:
    """Whether a method fits the GPUs at hand: plainly, else with activations recomputed, else sharded too.

    Where there are none: on one of the rented `gpus`, else on the fewest of the largest, up to eight.
    """
    ways: list[tuple[Gpu, int, int, Strategy, bool]]
    if hardware is not None:
        count, nodes = hardware.count, hardware.nodes
        strategies: tuple[Strategy, ...] = ("ddp", "fsdp") if count * nodes > 1 else ("auto",)
        ways = [(gpus[0], count, nodes, strategy, again) for strategy in strategies for again in (False, True)]
    else:
        largest = max(gpus, key=lambda gpu: gpu.usable)
        ways = [(largest, 1, 1, "auto", False), (largest, 1, 1, "auto", True)]
        ways += [(largest, count, 1, "fsdp", True) for count in RENTED_COUNTS]
    found = _try(job, method, *ways[0])
    for way in ways[1:]:
        if found.fits:
            break
        found = _try(job, method, *way)
    return found


def timed(job: Job, tuning: Tuning, gpus: list[Gpu], hardware: Hardware | None) -> Tuning:
    """The same with hours and dollars of one training; rented on the GPU on which it costs least."""
    if not tuning.fits:
        return tuning
    if hardware is not None or tuning.count > 1:
        return _time(job, tuning, next(gpu for gpu in gpus if gpu.name == tuning.gpu))
    held = [(gpu, way) for way in _alone(job, tuning) for gpu in gpus if way.peak_gib <= gpu.usable]
    return min((_time(job, way, gpu) for gpu, way in held), key=lambda each: (each.usd or 0.0, each.gpu))


def a_million(job: Job) -> Job:
    """The same job on a million tokens."""
    return msgspec.structs.replace(job, examples=1, tokens_per_example=1e6)


def scaled(tuning: Tuning, times: float) -> Tuning:
    """A timed tuning of so many times the tokens."""
    if tuning.hours is None:
        return tuning
    usd = None if tuning.usd is None else tuning.usd * times
    return msgspec.structs.replace(tuning, hours=tuning.hours * times, usd=usd)


def least(job: Job, tuning: Tuning, gpus: list[Gpu]) -> Tuning:
    """A rented tuning on the single GPU with the lowest price an hour that holds it, if one does; timed."""
    if not tuning.fits or tuning.count > 1:
        return timed(job, tuning, gpus, None)
    smallest = _alone(job, tuning)[-1]
    return _time(job, smallest, min((gpu for gpu in gpus if smallest.peak_gib <= gpu.usable), key=cheapest))


def _alone(job: Job, tuning: Tuning) -> list[Tuning]:
    """One GPU's tuning, and the same with activations recomputed, which takes less memory and more time."""
    if tuning.checkpointing:
        return [tuning]
    made = estimate(_request(job, tuning.method, 1, 1, "auto", True), Catalog(), job.shape)
    return [tuning, msgspec.structs.replace(tuning, checkpointing=True, peak_gib=made.memory.peak_gib)]


def rentable(catalog: Catalog) -> list[Gpu]:
    """Priced GPUs that compute in bf16, of which no other has as much memory for less an hour."""
    priced = [gpu for gpu in catalog.gpus if gpu.prices and gpu.has_bf16]
    kept: list[Gpu] = []
    for gpu in sorted(priced, key=lambda gpu: (-gpu.usable, cheapest(gpu))):
        if not kept or cheapest(gpu) < min(cheapest(other) for other in kept):
            kept.append(gpu)
    return kept


def cheapest(gpu: Gpu) -> float:
    """The lowest listed price of an hour."""
    return offer(gpu).usd_per_hour


def offer(gpu: Gpu) -> HourPrice:
    """The cheapest listed offer on demand, or else on a marketplace, where a machine may be taken away."""
    steady = [price for price in gpu.prices if price.terms == "on demand"]
    return min(steady or gpu.prices, key=lambda price: price.usd_per_hour)


def _request(
    job: Job, method: Method, count: int, nodes: int, strategy: Strategy, checkpointing: bool
) -> EstimateRequest:
    return EstimateRequest(
        model=job.model,
        adapter=method,
        gpus=count,
        nodes=nodes,
        strategy=strategy,
        seq_len=job.seq_len,
        checkpointing=checkpointing,
    )


def _try(job: Job, method: Method, gpu: Gpu, count: int, nodes: int, strategy: Strategy, checkpointing: bool) -> Tuning:
    request = _request(job, method, count, nodes, strategy, checkpointing)
    made = estimate(msgspec.structs.replace(request, gpu=gpu.name), Catalog(gpus=[gpu]), job.shape)
    return Tuning(
        model=job.model,
        method=method,
        fits=made.memory.peak_gib <= gpu.usable,
        gpu=gpu.name,
        count=count,
        nodes=nodes,
        strategy=strategy,
        checkpointing=checkpointing,
        peak_gib=made.memory.peak_gib,
        memory_gib=gpu.usable,
        trainable_parameters=made.trainable_parameters,
        artifact_mib=made.artifact_mib,
    )


def _time(job: Job, tuning: Tuning, gpu: Gpu) -> Tuning:
    price = job.usd_per_gpu_hour
    if price is None and gpu.prices:
        price = cheapest(gpu)
    request = msgspec.structs.replace(
        _request(job, tuning.method, tuning.count, tuning.nodes, tuning.strategy, tuning.checkpointing),
        gpu=gpu.name,
        examples=job.examples,
        tokens_per_example=job.tokens_per_example,
        epochs=EPOCHS,
        usd_per_gpu_hour=price,
    )
    made = estimate(request, Catalog(gpus=[gpu]), job.shape)
    return msgspec.structs.replace(tuning, gpu=gpu.name, memory_gib=gpu.usable, hours=made.hours, usd=made.usd)
