"""Single estimates against arithmetic done by hand, and what is said of requests that can't be answered."""

from __future__ import annotations

import json

import msgspec
import pytest

from tutelage.config import convert
from tutelage.errors import TutelageError
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, architecture_of, estimate, inference_memory

CATALOG = load()
GIB = 2**30


def test_full_tuning_in_mixed_precision_takes_16_bytes_of_states_a_parameter():
    result = estimate(EstimateRequest(model="Llama-3.2-1B", adapter="full", seq_len=8, tokens_per_step=16), CATALOG)
    count = 1_235_814_400
    memory = result.memory
    assert memory.gradients_gib == pytest.approx(4 * count / GIB)
    assert memory.optimizer_gib == pytest.approx(8 * count / GIB)
    assert memory.weights_gib == pytest.approx((4 + 2) * count / GIB)  # autocast's copies are the 2
    assert memory.peak_gib == pytest.approx(18 * count / GIB, rel=0.12)


def test_zero_divides_12_2_and_2_bytes():
    request = EstimateRequest(model="Llama-3.1-8B", adapter="full", seq_len=8, gpus=4, precision="bf16")
    count = 8_030_261_248
    parts = {
        stage: estimate(msgspec.structs.replace(request, strategy=stage), CATALOG).memory
        for stage in ("zero1", "zero2", "zero3")
    }
    assert parts["zero1"].weights_gib == pytest.approx(2 * count / GIB)
    assert parts["zero3"].gradients_gib == pytest.approx(2 * count / 4 / GIB)
    states = parts["zero3"].optimizer_gib - 6 * 1e9 / GIB  # a billion weights are updated at a time
    assert states == pytest.approx(12 * count / 4 / GIB)


def test_nf4_packs_linear_layers_into_4_127_bits():
    request = EstimateRequest(model="Llama-2-7B", adapter="qlora", seq_len=8)
    result = estimate(request, CATALOG)
    packed = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = 6_738_415_616 - packed
    adapters = 39_976_960  # rank 16 on all linear layers
    dequantised = 2 * 4096 * 11008
    held = packed * 4.127 / 8 + 2 * rest + 4 * adapters + dequantised
    assert result.trainable_parameters == adapters
    assert result.memory.weights_gib == pytest.approx(held / GIB, rel=1e-4)


def test_time_and_money_are_amount_over_speed_times_price():
    request = EstimateRequest(
        model="Llama-3.1-8B",
        gpu="h100",
        gpus=2,
        seq_len=1024,
        examples=5000,
        tokens_per_example=300,
        epochs=2,
        usd_per_gpu_hour=3.0,
    )
    result = estimate(request, CATALOG)
    assert result.tokens_per_second is not None
    assert result.hours == pytest.approx(5000 * 300 * 2 / result.tokens_per_second / 3600)
    assert result.usd == pytest.approx(result.hours * 2 * 3.0)


def test_flops_are_six_and_four_for_each_weight():
    made = architecture_of("Llama-3.1-8B", CATALOG)
    weights = 8_030_261_248 - 128256 * 4096 - 65 * 4096  # no embedding look-up, no norms
    assert made.active_matrix_parameters == weights
    attention = 2 * 512 * 4096 * 32
    full = estimate(EstimateRequest(model="Llama-3.1-8B", adapter="full", seq_len=512), CATALOG)
    assert full.flops_per_token == pytest.approx(6 * weights + 3 * attention)
    lora = estimate(EstimateRequest(model="Llama-3.1-8B", adapter="lora", seq_len=512), CATALOG)
    assert lora.flops_per_token == pytest.approx(4 * weights + 6 * lora.trainable_parameters + 3 * attention)


def test_auto_takes_what_the_hardware_has():
    turing = estimate(EstimateRequest(model="SmolLM2-135M", gpu="T4"), CATALOG)
    assert turing.precision == "fp32"
    assert any("no bfloat16" in text for text in turing.assumptions)
    copied = estimate(EstimateRequest(model="Llama-3.1-8B", gpu="A100-80GB", gpus=8), CATALOG)
    assert copied.strategy == "ddp"
    sharded = estimate(EstimateRequest(model="Llama-3.1-70B", gpu="A100-80GB", gpus=8, checkpointing=True), CATALOG)
    assert sharded.strategy == "fsdp"
    assert sharded.fits
    alone = estimate(EstimateRequest(model="Llama-3.1-70B", gpu="A100-80GB"), CATALOG)
    assert alone.fits is False


def test_without_gpu_only_memory_is_said():
    result = estimate(EstimateRequest(model="Qwen3-8B", examples=100), CATALOG)
    assert result.fits is None
    assert result.tokens_per_second is None
    assert result.hours is None
    assert result.usd is None
    assert result.memory.peak_gib > 15


def test_a_gpu_without_a_price_gives_time_and_says_so():
    result = estimate(EstimateRequest(model="Qwen3-8B", gpu="GH200", examples=100), CATALOG)
    assert result.hours is not None
    assert result.usd is None
    assert any("no price" in text for text in result.assumptions)


def test_experts_are_not_adapted_and_that_is_said():
    result = estimate(EstimateRequest(model="Qwen3-30B-A3B", adapter="qlora"), CATALOG)
    assert any("experts stay in 16 bits" in text for text in result.assumptions)
    assert result.memory.weights_gib > 50


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"model": "Llama-3.1-9B"}, "model"),
        ({"model": "Llama-3.1-8B", "gpu": "RTX 9090"}, "gpu"),
        ({"model": "Llama-3.1-8B", "targets": ["q_proj", "nonsense"]}, "targets"),
        ({"model": "Llama-3.1-8B", "targets": "q_proj", "rank": 5000}, "rank"),
    ],
)
def test_unknown_names_are_told_with_the_nearest(fields, place):
    with pytest.raises(TutelageError) as caught:
        estimate(convert(fields, EstimateRequest), CATALOG)
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].place == place
    assert caught.value.problems[0].fix


def test_every_wrong_field_is_told_at_once():
    fields = {"model": "GPT-2", "gpus": -1, "epochs": float("nan"), "rnak": 8, "adapter": "lor", "seq_len": 0.5}
    with pytest.raises(TutelageError) as caught:
        convert(fields, EstimateRequest)
    assert {problem.place for problem in caught.value.problems} == {"gpus", "epochs", "rnak", "adapter", "seq_len"}
    assert "did you mean rank?" in str(caught.value)
    with pytest.raises(TutelageError, match="offload needs"):
        convert({"model": "GPT-2", "offload": True}, EstimateRequest)


def test_json_has_the_promised_fields():
    request = EstimateRequest(model="Llama-3.1-8B", gpu="l4", examples=10)
    data = json.loads(msgspec.json.encode(estimate(request, CATALOG)))
    for name in ("parameters", "trainable_parameters", "fits", "flops_per_token", "tokens_per_second", "hours", "usd"):
        assert name in data
    parts = {"peak", "weights", "gradients", "optimizer", "activations", "logits", "overhead"}
    assert set(data["memory"]) >= {f"{part}_gib" for part in parts}
    assert set(data["intervals"]) >= {"memory.peak_gib", "hours", "usd", "tokens_per_second", "artifact_mib"}


@pytest.mark.parametrize(
    ("hidden", "layers", "width", "weights", "measured_gb"),
    [(2048, 24, 11008, "bf16", 4.23), (4096, 32, 22016, "bf16", 16.99), (5120, 40, 27392, "bf16", 30.15)],
)
def test_serving_against_qwens_readme(hidden, layers, width, weights, measured_gb):
    """QwenLM/Qwen README.md, Inference Performance: 2048 tokens generated, A100, FlashAttention-2."""
    from tutelage_advisor.estimates.models import from_config

    made = from_config(
        {
            "model_type": "qwen",
            "hidden_size": hidden,
            "intermediate_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 128,
            "vocab_size": 151936 if hidden < 5000 else 152064,
        }
    )
    result = inference_memory(made, 2048, 1, weights)
    assert result.peak_gib * GIB / 1e9 == pytest.approx(measured_gb, rel=0.15)


def test_the_cache_by_hand():
    made = architecture_of("Llama-3.1-8B", CATALOG)
    result = inference_memory(made, 8192, 4)
    assert result.cache_kib_per_token == 2 * 32 * 8 * 128 * 2 / 1024  # 128 KiB
    assert result.cache_gib == pytest.approx(4 * 8192 * 128 / 2**20)
    gemma = architecture_of("Gemma-3-1B", CATALOG)
    short, long = (inference_memory(gemma, context).cache_gib for context in (512, 32768))
    assert long < short * 64 / 4  # five of six layers keep 512 tokens
    with pytest.raises(ValueError, match="at least 1"):
        inference_memory(made, 0)


def test_a_model_of_the_local_hub_cache_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "models--someone--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    config = dict(CATALOG.model("SmolLM2-135M").config, num_hidden_layers=2)
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert architecture_of("someone/tiny", CATALOG).layers == 2
    with pytest.raises(TutelageError, match="no model is called"):
        architecture_of("someone/other", CATALOG)
