"""Llama's descendants: RMSNorm, rotary positions, mostly a gated MLP."""

from __future__ import annotations

import msgspec

from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.families.common import Config, Layers, NotCoveredError, llama_like, with_linears


def _llama(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return llama_like(config, bias=bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))


def _mistral(config: Config) -> Architecture:
    return llama_like(config)


def _qwen2(config: Config) -> Architecture:
    return llama_like(config, bias=True)


def _qwen3(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    config = {**config, "head_dim": config.get("head_dim") or 128}
    return llama_like(config, bias=bias, output_bias=bias, head_norms="head")


def _gemma(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return llama_like({"head_dim": 256, **config}, bias=bias, output_bias=bias, tied=True)


def _gemma2(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    capped = config.get("attn_logit_softcapping", 50.0) is not None
    with_defaults = {"head_dim": 256, "sliding_window": 4096, **config}
    return llama_like(with_defaults, bias=bias, output_bias=bias, tied=True, norms=4, window_pattern=2, eager=capped)


def _gemma3(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    with_defaults = {"head_dim": 256, "sliding_window": 4096, **config}
    return llama_like(
        with_defaults, bias=bias, output_bias=bias, tied=True, norms=4, head_norms="head", window_pattern=6
    )


def _olmo2(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return llama_like(config, bias=bias, output_bias=bias, head_norms="full")


def _olmo3(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return llama_like(
        {"sliding_window": 4096, **config}, bias=bias, output_bias=bias, head_norms="full", window_pattern=4
    )


def _smollm3(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return llama_like(config, bias=bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)), tied=True)


def _seed_oss(config: Config) -> Architecture:
    return llama_like(
        {"head_dim": 128, **config},
        bias=bool(config.get("attention_bias", True)),
        output_bias=bool(config.get("attention_out_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _arcee(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    return llama_like(config, bias=bias, output_bias=bias, mlp_bias=mlp_bias, mlp="plain", mlp_saved=2)


def _apertus(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return llama_like(
        config,
        bias=bias,
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        mlp="plain",
        mlp_saved=2,
        mlp_extra=2 if config.get("hidden_act", "xielu") == "xielu" else 0,
        head_norms="head",
    )


def _stablelm(config: Config) -> Architecture:
    if config.get("qk_layernorm") or config.get("use_parallel_residual"):
        raise NotCoveredError("stablelm with qk_layernorm or use_parallel_residual")
    return llama_like(config, bias=bool(config.get("use_qkv_bias", False)), norm_size=2)


def _starcoder2(config: Config) -> Architecture:
    bias = bool(config.get("use_bias", True))
    if config.get("mlp_type", "default") != "default" or config.get("norm_type", "layer_norm") != "layer_norm":
        raise NotCoveredError("starcoder2 with another mlp or norm")
    plain = llama_like(
        config, bias=bias, output_bias=bias, mlp_bias=bias, tied=True, norm_size=2, mlp="plain", mlp_saved=1
    )
    return _renamed(plain, {"up_proj": "c_fc", "down_proj": "c_proj"})


def _phi(config: Config) -> Architecture:
    if config.get("qk_layernorm"):
        raise NotCoveredError("phi with qk_layernorm")
    plain = llama_like(
        config,
        bias=True,
        output_bias=True,
        mlp_bias=True,
        norms=1,
        norm_size=2,
        mlp="plain",
        mlp_saved=4,
        head_bias=True,
    )
    return _renamed(plain, {"o_proj": "dense", "up_proj": "fc1", "down_proj": "fc2"})


def _renamed(made: Architecture, names: dict[str, str]) -> Architecture:
    linears = [msgspec.structs.replace(linear, name=names.get(linear.name, linear.name)) for linear in made.linears]
    return msgspec.structs.replace(made, linears=linears)


def _phi3(config: Config) -> Architecture:
    """Llama with q, k and v in one matrix, and gate and up in another."""
    base = llama_like(config)
    hidden, count, width = base.hidden, base.layers, base.mlp_width
    layers = Layers()
    layers.add("qkv_proj", hidden, base.query_width + 2 * base.key_value_width, count, "attention")
    layers.add("o_proj", base.query_width, hidden, count, "attention")
    layers.add("gate_up_proj", hidden, 2 * width, count, "mlp")
    layers.add("down_proj", width, hidden, count, "mlp")
    return with_linears(base, layers)


def _qwen(config: Config) -> Architecture:
    """The first Qwen generation (2023), whose code is not part of transformers: width is half of intermediate_size."""
    base = llama_like({**config, "intermediate_size": int(config["intermediate_size"]) // 2})
    hidden, count, width = base.hidden, base.layers, base.mlp_width
    layers = Layers()
    layers.add("c_attn", hidden, 3 * hidden, count, "attention", True)
    layers.add("c_proj", hidden, hidden, count, "attention")
    layers.add("w1", hidden, width, count, "mlp", False, "mlp")
    layers.add("w2", hidden, width, count, "mlp", False, "mlp")
    layers.add("c_proj", width, hidden, count, "mlp")
    return with_linears(base, layers)


BUILDERS = {
    "apertus": _apertus,
    "arcee": _arcee,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "granite": _llama,
    "llama": _llama,
    "mistral": _mistral,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "phi": _phi,
    "phi3": _phi3,
    "qwen": _qwen,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
