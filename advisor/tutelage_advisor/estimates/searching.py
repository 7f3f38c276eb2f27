"""The question turned round: which hardware for a run, or which model for a GPU."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tutelage_advisor.catalog import Catalog, load
from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.estimating import Estimate, estimate
from tutelage_advisor.estimates.models import architecture_of
from tutelage_advisor.estimates.request import AdapterName, EstimateRequest

COUNTS = (1, 2, 4, 8)
ADAPTERS: tuple[AdapterName, ...] = ("full", "lora", "qlora")


class Option(msgspec.Struct, kw_only=True):
    """One way to run it."""

    gpu: str
    gpus: int
    strategy: str
    checkpointing: bool
    chunked_loss: bool
    peak_gib: float
    tokens_per_second: float
    usd_per_hour: float | None
    hours: float | None
    usd: float | None


def what_fits(request: EstimateRequest, catalog: Catalog | None = None, only: str | None = None) -> list[Option]:
    """Hardware and settings that a run fits on, the cheapest first.

    For each GPU and count the least frugal settings that fit are taken: whole copies before shards, all activations
    before checkpointing. Without examples, cost is compared for a million tokens.

    Args:
        only: a GPU of the catalog, to look at no other.
    Raises:
        TutelageError: when the model or the GPU is unknown.
    """
    catalog = catalog or load()
    made = architecture_of(request.model, catalog)
    gpus = [catalog.gpu(only)] if only else catalog.gpus
    found = [option for gpu in gpus for count in COUNTS if (option := _first(request, catalog, made, gpu.name, count))]
    return sorted(found, key=_cost)


def _first(request: EstimateRequest, catalog: Catalog, made: Architecture, gpu: str, count: int) -> Option | None:
    for settings in _settings(request, count):
        tried = msgspec.structs.replace(request, gpu=gpu, gpus=count, nodes=1, offload=False, **settings)
        result = estimate(tried, catalog, made)
        if result.fits:
            return _option(tried, result, catalog)
    return None


def _settings(request: EstimateRequest, count: int) -> Iterable[dict[str, object]]:
    strategies = ("auto",) if count == 1 else ("ddp", "fsdp")
    for strategy in strategies:
        yield {"strategy": strategy}
        if not request.checkpointing:
            yield {"strategy": strategy, "checkpointing": True}
        if not request.chunked_loss:
            yield {"strategy": strategy, "checkpointing": True, "chunked_loss": True}


def _option(request: EstimateRequest, result: Estimate, catalog: Catalog) -> Option:
    assert result.gpu is not None
    assert result.tokens_per_second is not None
    return Option(
        gpu=result.gpu,
        gpus=request.gpus,
        strategy=result.strategy,
        checkpointing=request.checkpointing,
        chunked_loss=request.chunked_loss,
        peak_gib=result.memory.peak_gib,
        tokens_per_second=result.tokens_per_second,
        usd_per_hour=_usd_per_hour(request, catalog),
        hours=result.hours,
        usd=result.usd,
    )


def _usd_per_hour(request: EstimateRequest, catalog: Catalog) -> float | None:
    if request.usd_per_gpu_hour is not None:
        return request.usd_per_gpu_hour * request.devices
    assert request.gpu is not None
    price = catalog.gpu(request.gpu).typical_price
    return None if price is None else price * request.devices


def _cost(option: Option) -> tuple[float, float]:
    if option.usd_per_hour is None:
        return (float("inf"), option.peak_gib)
    return (option.usd_per_hour / option.tokens_per_second, option.peak_gib)


class Largest(msgspec.Struct, kw_only=True):
    """The largest model of the catalog that an adapter can tune on some hardware."""

    adapter: str
    model: str
    parameters: int
    peak_gib: float
    settings: str


def largest_models(gpu: str, request: EstimateRequest, catalog: Catalog | None = None) -> list[Largest]:
    """For full, LoRA and QLoRA: the largest catalog model that fits on the request's GPUs, as frugally as needed.

    Raises:
        TutelageError: when the GPU is unknown.
    """
    catalog = catalog or load()
    inventories = sorted(
        ((entry.name, architecture_of(entry.name, catalog)) for entry in catalog.models),
        key=lambda pair: pair[1].parameters,
        reverse=True,
    )
    found = []
    for adapter in ADAPTERS:
        for name, made in inventories:
            tried = msgspec.structs.replace(request, model=name, adapter=adapter, targets="all-linear")
            option = _first(tried, catalog, made, gpu, request.gpus)
            if option is not None:
                frugal = [
                    word
                    for word, on in (("checkpointing", option.checkpointing), ("chunked loss", option.chunked_loss))
                    if on
                ]
                settings = ", ".join([option.strategy, *frugal])
                found.append(
                    Largest(
                        adapter=adapter,
                        model=name,
                        parameters=made.parameters,
                        peak_gib=option.peak_gib,
                        settings=settings,
                    )
                )
                break
    return found
