"""Puts an estimate together: counts, memory, speed, time and money, each figure with an interval."""

from __future__ import annotations

import msgspec

from tutelage.errors import TutelageError
from tutelage_advisor.catalog import Catalog, Gpu, load
from tutelage_advisor.estimates import calibration as known
from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.memory import Memory, learning, memory
from tutelage_advisor.estimates.models import architecture_of
from tutelage_advisor.estimates.phases import example_seconds, example_tokens, flops_of_writing, settled, shape_of
from tutelage_advisor.estimates.request import MAKING, ONLINE, EstimateRequest
from tutelage_advisor.estimates.speed import flops_per_token

Interval = tuple[float, float]
MIB = 2**20


class Estimate(msgspec.Struct, kw_only=True):
    """What a run needs. Figures are None where the request leaves them open (no GPU, no examples)."""

    model: str
    adapter: str
    gpu: str | None
    devices: int
    strategy: str
    precision: str
    parameters: int
    trainable_parameters: int
    memory: Memory
    fits: bool | None
    flops_per_token: float
    tokens_per_second: float | None
    utilisation: float | None
    hours: float | None
    usd: float | None
    artifact_mib: float
    phase: str
    parts: dict[str, float]
    "Hours by what is done: learning, answering (drawing answers), reading (scores, log-probabilities), judging …"
    intervals: dict[str, Interval]
    "Lowest and highest likely value of every figure, by its name (`memory.peak_gib`, `hours` …)."
    assumptions: list[str]


def estimate(
    request: EstimateRequest, catalog: Catalog | None = None, architecture: Architecture | None = None
) -> Estimate:
    """Estimate one run.

    Args:
        catalog: by default the package's own, with the user's file.
        architecture: of the model, where it is at hand; else `request.model` is looked up.
    Raises:
        TutelageError: when the model, the GPU or a LoRA target is unknown.
    """
    catalog = catalog or load()
    gpu = catalog.gpu(request.gpu, "gpu") if request.gpu else None
    made = architecture or architecture_of(request.model, catalog)
    assumptions: list[str] = []
    request, made = settled(request), shape_of(made, request)
    _check(request, made)
    precision = decided_precision(request, gpu, assumptions)
    strategy, needed = _strategy_and_memory(request, made, gpu, precision, assumptions)
    count = learning(made, request)
    parts = example_seconds(made, request, gpu, precision, strategy) if gpu else {}
    tokens = example_tokens(request)
    rate = tokens * _passes(request) / sum(parts.values()) if parts else None
    hours = _hours(request, sum(parts.values()) if parts else None, assumptions)
    usd, prices = _usd(request, gpu, hours, assumptions)
    _assume(request, made, assumptions)
    recalled = gpu.from_memory({"fp32": "fp32", "fp16-true": "fp16"}.get(precision, "bf16")) if gpu else []
    if gpu and recalled:
        assumptions.append(f"quoted from memory, not read for this catalog: {' and '.join(recalled)} of {gpu.name}")
    result = Estimate(
        model=request.model,
        adapter=request.adapter,
        gpu=gpu.name if gpu else None,
        devices=request.devices,
        strategy=strategy,
        precision=precision,
        parameters=count.base,
        trainable_parameters=count.learnt,
        memory=needed,
        fits=None if gpu is None else needed.peak_gib <= gpu.usable,
        flops_per_token=_flops(made, request),
        tokens_per_second=rate,
        utilisation=_utilisation(made, request, gpu, precision, rate),
        hours=hours,
        usd=usd,
        artifact_mib=_artifact(made, request, precision) / MIB,
        phase=request.phase,
        parts={name: seconds * (request.examples or 0) / 3600 for name, seconds in parts.items() if request.examples},
        intervals={},
        assumptions=assumptions,
    )
    result.intervals = _intervals(result, prices)
    return result


def _check(request: EstimateRequest, made: Architecture) -> None:
    if request.adapter not in ("lora", "qlora"):
        return
    try:
        targets = made.targets(request.targets)
    except KeyError as error:
        names = ", ".join(dict.fromkeys(linear.name for linear in made.linears))
        missing = str(error.args[0])
        wrong = f"{missing}: they are one weight" if " without " in missing else f"no layer is called {missing}"
        raise TutelageError.at("targets", wrong, f"known are {names}") from None
    if not targets:
        raise TutelageError.at("targets", f"{request.targets} means no layer of this model", "use all-linear")
    smallest = min(min(linear.inputs, linear.outputs) for linear in targets)
    if request.rank > smallest and request.targets != "all-linear":
        wrong = f"{request.rank} is more than the {smallest} dimensions of a layer"
        raise TutelageError.at("rank", wrong, f"use at most {smallest}")


def decided_precision(request: EstimateRequest, gpu: Gpu | None, assumptions: list[str]) -> str:
    """`auto` becomes bf16, or fp32 on a GPU without it."""
    if request.precision != "auto":
        if request.precision.startswith("bf16") and gpu is not None and not gpu.has_bf16:
            assumptions.append(f"{gpu.name} has no bfloat16 units: {request.precision} is emulated, at float32's rate")
        return request.precision
    if gpu is not None and not gpu.has_bf16:
        assumptions.append(f"precision fp32, because {gpu.name} has no bfloat16 units")
        return "fp32"
    return "bf16"


def _strategy_and_memory(
    request: EstimateRequest, made: Architecture, gpu: Gpu | None, precision: str, assumptions: list[str]
) -> tuple[str, Memory]:
    if request.strategy != "auto":
        alone = request.devices == 1 and request.strategy in ("ddp", "fsdp") and not request.offload
        strategy = "single" if alone else request.strategy
        return strategy, memory(made, request, precision, strategy)
    if request.devices == 1:
        return "single", memory(made, request, precision, "single")
    copied = memory(made, request, precision, "ddp")
    if gpu is None or copied.peak_gib <= gpu.usable:
        return "ddp", copied
    assumptions.append("strategy fsdp, because whole copies (ddp) do not fit")
    return "fsdp", memory(made, msgspec.structs.replace(request, strategy="fsdp"), precision, "fsdp")


def _passes(request: EstimateRequest) -> float:
    """How often a stage goes over its examples."""
    return 1.0 if request.phase in MAKING else request.epochs


def _flops(made: Architecture, request: EstimateRequest) -> float:
    return flops_of_writing(made, request) if request.phase in MAKING else flops_per_token(made, request)


def _utilisation(
    made: Architecture, request: EstimateRequest, gpu: Gpu | None, precision: str, rate: float | None
) -> float | None:
    """Share of the rated FLOP/s that learning reaches; not said of phases that mostly wait for single tokens."""
    if gpu is None or rate is None or request.phase in ONLINE | MAKING:
        return None
    kind = {"fp32": "fp32", "fp16-true": "fp16"}.get(precision, "bf16")
    return rate * flops_per_token(made, request) / (gpu.peak_tflops(kind) * 1e12 * request.devices)


def _artifact(made: Architecture, request: EstimateRequest, precision: str) -> float:
    """Bytes of what is left: an adapter or a model (and PPO's value model beside it), or a dataset of texts."""
    if request.phase in MAKING:
        written = (request.examples or 0) * example_tokens(request)
        return 4.0 * written if request.phase != "evaluation" else 0.0
    return learning(made, request).learnt * (2 if request.adapter == "full" and precision != "fp32" else 4)


def _hours(request: EstimateRequest, seconds: float | None, assumptions: list[str]) -> float | None:
    if seconds is None or request.examples is None:
        return None
    if request.tokens_per_example is None and request.phase not in ONLINE | MAKING:
        assumptions.append(
            f"every example fills {'a row' if request.answers == 1 else f'{request.answers} rows'} of "
            f"{request.seq_len} tokens; give tokens_per_example to refine time and cost"
        )
    return request.examples * seconds / 3600


def _usd(
    request: EstimateRequest, gpu: Gpu | None, hours: float | None, assumptions: list[str]
) -> tuple[float | None, Interval]:
    """Dollars, and the lowest and highest price as shares of the one that was used."""
    if gpu is None or hours is None:
        return None, (1.0, 1.0)
    if request.usd_per_gpu_hour is not None:
        return hours * request.devices * request.usd_per_gpu_hour, (1.0, 1.0)
    middle = gpu.typical_price
    if middle is None:
        assumptions.append(f"the catalog lists no price of {gpu.name}; give usd_per_gpu_hour")
        return None, (1.0, 1.0)
    lowest = min(price.usd_per_hour for price in gpu.prices)
    highest = max(price.usd_per_hour for price in gpu.prices)
    read = max(price.read for price in gpu.prices)
    assumptions.append(
        f"${middle:.2f} for an hour of {gpu.name}, the median of on-demand prices; "
        f"all are ${lowest:.2f} to ${highest:.2f} (read until {read})"
    )
    return hours * request.devices * middle, (lowest / middle, highest / middle)


def _assume(request: EstimateRequest, made: Architecture, assumptions: list[str]) -> None:
    if request.gpu is None:
        assumptions.append("no GPU was named, so nothing is said of fit, time and cost")
    if made.longest and request.seq_len > made.longest:
        assumptions.append(f"{request.seq_len} tokens are more than the {made.longest} that the model was made for")
    if made.experts is not None and request.adapter == "qlora":
        assumptions.append(
            "experts stay in 16 bits: bitsandbytes packs linear layers, and transformers stacks experts in one tensor"
        )
    if made.experts is not None and request.adapter in ("lora", "qlora"):
        adapted = any(target.share < 1 for target in made.targets(request.targets))
        assumptions.append(
            "LoRA adapts the experts too; PEFT adds whole updates to their stacked weights, a copy of those it works on"
            if adapted
            else "LoRA adapts linear layers, not the stacked experts"
        )
    if request.tokens_per_step is None and request.phase not in MAKING:
        assumptions.append("gradients are not accumulated over micro-batches")
    assumptions += _of_phase(request)
    if request.nodes > 1:
        assumptions.append(f"{request.network_gb_s:g} GB/s between nodes for each GPU")
    assumptions.append(
        "memory parts are each one's own maximum; they do not all peak together, so the peak can be less than their sum"
    )


def _of_phase(request: EstimateRequest) -> list[str]:
    """What is assumed of a phase that draws answers or compares them."""
    found = []
    if request.phase in ("dpo", "reward_model"):
        found.append(f"{request.answers} answers an example, each a row of its own in the micro-batch")
    if request.phase in ONLINE:
        roles = {"shared": "an adapter on the same base", "separate": "a model of the same size", "none": "none"}
        found.append(
            f"{request.answers} answers a prompt, of {request.new_tokens} tokens all, learnt from "
            f"{request.inner_epochs} times; reward model: {roles[request.reward_model or 'none']}"
        )
    if request.phase in MAKING:
        found.append(f"answers are {request.new_tokens} tokens long, all of them, {request.micro_batch} at a time")
    if request.phase in ONLINE | MAKING:
        found.append("drawing answers was not held against published measurements; its interval is wide")
    return found


_EXACT = ("parameters", "trainable_parameters", "artifact_mib", "flops_per_token")


def _intervals(result: Estimate, prices: Interval) -> dict[str, Interval]:
    low, high = known.MEMORY_INTERVAL
    parts = msgspec.structs.asdict(result.memory)
    found = {f"memory.{name}": (value * low, value * high) for name, value in parts.items()}
    found["memory.weights_gib"] = (parts["weights_gib"], parts["weights_gib"] * 1.03)
    for name in _EXACT:
        value = float(getattr(result, name))
        found[name] = (value, value)
    slow, fast = known.DRAWING_INTERVAL if result.phase in ONLINE | MAKING else known.SPEED_INTERVAL
    if result.tokens_per_second is not None:
        found["tokens_per_second"] = (result.tokens_per_second * slow, result.tokens_per_second * fast)
    if result.utilisation is not None:
        found["utilisation"] = (result.utilisation * slow, min(1.0, result.utilisation * fast))
    if result.hours is not None:
        found["hours"] = (result.hours / fast, result.hours / slow)
    if result.usd is not None:
        found["usd"] = (result.usd / fast * prices[0], result.usd / slow * prices[1])
    return found
