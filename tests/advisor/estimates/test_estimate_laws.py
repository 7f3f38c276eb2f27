"""Laws that hold for every request."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, architecture_of, estimate, inference_memory, what_fits
from tutelage_advisor.estimates.models import from_config

CATALOG = load()
MODELS = ["SmolLM2-135M", "Llama-3.1-8B", "Qwen3-30B-A3B", "Gemma-2-9B", "GPT-2", "Phi-3-mini", "DeepSeek-V2-Lite"]
MADE = {name: architecture_of(name, CATALOG) for name in MODELS}


@st.composite
def requests(draw: st.DrawFn, **fixed: object) -> EstimateRequest:
    fields: dict[str, object] = {
        "model": draw(st.sampled_from(MODELS)),
        "adapter": draw(st.sampled_from(["full", "lora", "qlora", "prompt"])),
        "gpus": draw(st.sampled_from([1, 2, 3, 8])),
        "strategy": draw(st.sampled_from(["ddp", "fsdp", "zero1", "zero2", "zero3"])),
        "rank": draw(st.integers(1, 128)),
        "micro_batch": draw(st.integers(1, 32)),
        "seq_len": draw(st.integers(1, 16384)),
        "tokens_per_step": draw(st.none() | st.integers(1, 10**6)),
        "precision": draw(st.sampled_from(["bf16", "bf16-true", "fp16-true", "fp32"])),
        "checkpointing": draw(st.booleans()),
        "optimizer": draw(st.sampled_from(["adamw", "adamw-foreach", "adamw-8bit", "sgd", "lion", "adafactor"])),
        "chunked_loss": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.1])),
        "gpu": "H100-SXM",
        "examples": 1000,
    }
    return EstimateRequest(**{**fields, **fixed})  # type: ignore[arg-type]


def peak(request: EstimateRequest, **changes: object) -> float:
    changed = msgspec.structs.replace(request, **changes)
    return estimate(changed, CATALOG, MADE[changed.model]).memory.peak_gib


def not_less(more: float, less: float) -> bool:
    return more >= less * (1 - 1e-12)


@settings(max_examples=60, deadline=None)
@given(requests(), st.integers(1, 4096))
def test_memory_grows_with_everything_that_is_computed_or_learnt(request: EstimateRequest, more: int):
    before = peak(request)
    for field in ("seq_len", "micro_batch", "rank"):
        fixed = {"tokens_per_step": None} if field != "rank" else {}
        start = peak(request, **fixed)
        assert not_less(peak(request, **{field: getattr(request, field) + more}, **fixed), start), field
    assert before > 0


@settings(max_examples=40, deadline=None)
@given(
    requests(),
    st.sampled_from(["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"]),
    st.integers(1, 8),
)
def test_memory_grows_with_the_model(request: EstimateRequest, field: str, factor: int):
    small = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
    }
    less, more = (estimate(request, CATALOG, from_config(c)) for c in (small, {**small, field: small[field] * factor}))
    assert not_less(more.parameters, less.parameters)
    assert not_less(more.memory.peak_gib, less.memory.peak_gib)
    assert not_less(more.flops_per_token, less.flops_per_token)


@settings(max_examples=60, deadline=None)
@given(requests(), st.sampled_from(["fsdp", "zero1", "zero2", "zero3"]))
def test_shards_never_raise_the_memory_of_a_gpu(request: EstimateRequest, strategy: str):
    steady = {"tokens_per_step": None, "strategy": strategy}
    peaks = [peak(request, gpus=gpus, **steady) for gpus in (1, 2, 3, 4, 8, 64)]
    assert all(not_less(fewer, more) for fewer, more in zip(peaks, peaks[1:], strict=False))
    stages = [peak(request, strategy=stage, tokens_per_step=None) for stage in ("zero1", "zero2", "zero3")]
    if request.gpus > 1:
        assert not_less(stages[0], stages[1])
        assert not_less(stages[1], stages[2])


@settings(max_examples=60, deadline=None)
@given(requests())
def test_frugal_settings_never_cost_memory(request: EstimateRequest):
    assert not_less(peak(request, chunked_loss=False), peak(request, chunked_loss=True))
    assert not_less(peak(request, checkpointing=False), peak(request, checkpointing=True))
    assert not_less(peak(request, optimizer="adamw"), peak(request, optimizer="sgd"))
    assert not_less(peak(request, dropout=0.1), peak(request, dropout=0.0))


@settings(max_examples=60, deadline=None)
@given(requests(), st.floats(0.01, 100), st.floats(1.0, 10.0))
def test_cost_follows_price_amount_and_passes(request: EstimateRequest, price: float, factor: float):
    cheap = estimate(msgspec.structs.replace(request, usd_per_gpu_hour=price), CATALOG, MADE[request.model])
    dear = estimate(msgspec.structs.replace(request, usd_per_gpu_hour=price * factor), CATALOG, MADE[request.model])
    longer = estimate(
        msgspec.structs.replace(request, usd_per_gpu_hour=price, epochs=request.epochs * factor, examples=1001),
        CATALOG,
        MADE[request.model],
    )
    assert cheap.usd is not None
    assert dear.usd is not None
    assert longer.usd is not None
    assert cheap.usd <= dear.usd
    assert cheap.usd <= longer.usd
    assert cheap.memory == dear.memory


@settings(max_examples=60, deadline=None)
@given(requests())
def test_figures_are_finite_and_within_their_intervals(request: EstimateRequest):
    result = estimate(request, CATALOG, MADE[request.model])
    flat = {**msgspec.to_builtins(result), **{f"memory.{k}": v for k, v in msgspec.to_builtins(result.memory).items()}}
    for name, (low, high) in result.intervals.items():
        assert 0 <= low <= flat[name] <= high < float("inf"), name
    assert 0 < (result.utilisation or 0) < 1
    assert result.memory.peak_gib <= sum(msgspec.to_builtins(result.memory).values()) - result.memory.peak_gib + 1e-6
    assert estimate(request, CATALOG, MADE[request.model]) == result


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODELS), st.integers(1, 100_000), st.integers(1, 64), st.integers(1, 1000))
def test_serving_takes_more_for_more(model: str, context: int, batch: int, more: int):
    made = MADE[model]
    base = inference_memory(made, context, batch).peak_gib
    assert inference_memory(made, context + more, batch).peak_gib >= base
    assert inference_memory(made, context, batch + more).peak_gib >= base
    assert (
        inference_memory(made, context, batch, "nf4").peak_gib < inference_memory(made, context, batch, "fp32").peak_gib
    )


@settings(max_examples=5, deadline=None)
@given(st.floats(0.1, 0.9))
def test_cheaper_hardware_never_raises_the_least_cost(factor: float):
    request = EstimateRequest(model="Llama-3.1-8B", seq_len=1024, examples=1000)
    cheaper = CATALOG.merged(msgspec.structs.replace(CATALOG, gpus=[_cheaper(gpu, factor) for gpu in CATALOG.gpus]))
    least = min(option.usd for option in what_fits(request, CATALOG) if option.usd is not None)
    assert min(option.usd for option in what_fits(request, cheaper) if option.usd is not None) <= least


def _cheaper(gpu, factor):
    prices = [msgspec.structs.replace(price, usd_per_hour=price.usd_per_hour * factor) for price in gpu.prices]
    return msgspec.structs.replace(gpu, prices=prices)
