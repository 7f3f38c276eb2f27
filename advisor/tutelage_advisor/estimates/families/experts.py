"""Mixtures of experts, whose weights transformers stacks into tensors of three dimensions."""

from __future__ import annotations

import msgspec

from tutelage_advisor.estimates.architecture import Architecture, Experts
from tutelage_advisor.estimates.families.common import (
    Config,
    Layers,
    NotCoveredError,
    add_gated_mlp,
    decoder,
    llama_like,
)

MIXTRAL_NAMES = {"w1": "gate_up", "w3": "gate_up", "w2": "down", "gate": "router"}
QWEN_NAMES = {"gate_proj": "gate_up", "up_proj": "gate_up", "down_proj": "down", "gate": "router"}
"By what names PEFT still finds fused experts, in Mixtral and in what it treats like Qwen2-MoE."


def _mixtral(config: Config) -> Architecture:
    return _all_experts(
        llama_like(config),
        int(config.get("num_local_experts", 8)),
        int(config.get("num_experts_per_tok", 2)),
        int(config["intermediate_size"]),
        names=MIXTRAL_NAMES,
    )


def _all_experts(
    base: Architecture,
    number: int,
    active: int,
    width: int,
    *,
    router: int = 0,
    expert_extra: int = 0,
    names: dict[str, str] | None = None,
) -> Architecture:
    """Replace the feed-forward layers of every layer by experts: gate_up (number, 2 width, hidden) and down."""
    linears = [linear for linear in base.linears if linear.kind != "mlp"]
    experts = Experts(
        layers=base.layers,
        number=number,
        active=active,
        width=width,
        parameters=base.layers * number * (3 * base.hidden * width + expert_extra),
        names=names or {},
    )
    other = base.other + base.layers * number * (base.hidden + router)
    return msgspec.structs.replace(base, linears=linears, experts=experts, other=other, mlp_width=active * width)


def _experts(layers: int, number: int, active: int, width: int, hidden: int, names: dict[str, str]) -> Experts | None:
    return Experts(layers, number, active, width, layers * number * 3 * hidden * width, names) if layers else None


def _gpt_oss(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", True))
    base = llama_like({"head_dim": 64, "sliding_window": 128, **config}, bias=bias, output_bias=bias, window_pattern=2)
    width, hidden = int(config["intermediate_size"]), base.hidden
    number, active = int(config.get("num_local_experts", 128)), int(config.get("num_experts_per_tok", 4))
    made = _all_experts(base, number, active, width, router=1, expert_extra=2 * width + hidden)
    sinks = base.layers * base.heads
    return msgspec.structs.replace(made, other=made.other + sinks, mlp_saved=5)


def _qwen_moe(config: Config, base: Architecture, number: int, active: int, shared: int) -> Architecture:
    """Experts in all layers but the dense ones, beside a shared expert with a gate where there is one."""
    only = set(config.get("mlp_only_layers") or [])
    step = int(config.get("decoder_sparse_step", 1))
    sparse = sum(1 for index in range(base.layers) if index not in only and number > 0 and (index + 1) % step == 0)
    dense, width = base.layers - sparse, int(config["moe_intermediate_size"])
    hidden = base.hidden
    layers = Layers()
    layers.linears = [linear for linear in base.linears if linear.kind == "attention"]
    add_gated_mlp(layers, hidden, int(config["intermediate_size"]), dense)
    if shared:
        add_gated_mlp(layers, hidden, shared, sparse, mark="shared")
        layers.add("shared_expert_gate", hidden, 1, sparse, "mlp")
    layers.linears += [base.head] if base.head else []
    mean = (dense * int(config["intermediate_size"]) + sparse * (active * width + shared)) // base.layers
    return msgspec.structs.replace(
        base,
        linears=layers.linears,
        experts=_experts(sparse, number, active, width, hidden, {} if shared else QWEN_NAMES),
        other=base.other + sparse * number * hidden,
        mlp_width=mean,
    )


def _qwen2_moe(config: Config) -> Architecture:
    base = llama_like(config, bias=bool(config.get("qkv_bias", True)))
    shared = int(config["shared_expert_intermediate_size"])
    return _qwen_moe(config, base, int(config["num_experts"]), int(config["num_experts_per_tok"]), shared)


def _qwen3_moe(config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    base = llama_like(config, bias=bias, output_bias=bias, head_norms="head")
    number = config.get("num_experts", config.get("num_local_experts"))
    return _qwen_moe(config, base, int(number), int(config["num_experts_per_tok"]), 0)


def _deepseek(config: Config) -> Architecture:
    """Multi-head latent attention and fine-grained experts (DeepSeek-V2 and V3)."""
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise NotCoveredError("deepseek with biases")
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    count, vocabulary = int(config["num_hidden_layers"]), int(config["vocab_size"])
    rope, plain = int(config["qk_rope_head_dim"]), int(config["qk_nope_head_dim"])
    value, latent, query_latent = int(config["v_head_dim"]), int(config["kv_lora_rank"]), config.get("q_lora_rank")
    number, width = int(config["n_routed_experts"]), int(config["moe_intermediate_size"])
    active, shared = int(config["num_experts_per_tok"]), int(config.get("n_shared_experts") or 0) * width
    dense = min(int(config.get("first_k_dense_replace", 3)), count)
    sparse = count - dense
    layers = Layers()
    if query_latent:
        layers.add("q_a_proj", hidden, query_latent, count, "attention", False, "attention")
        layers.add("q_b_proj", query_latent, heads * (plain + rope), count, "attention")
    else:
        layers.add("q_proj", hidden, heads * (plain + rope), count, "attention", False, "attention")
    layers.add("kv_a_proj_with_mqa", hidden, latent + rope, count, "attention", False, "attention")
    layers.add("kv_b_proj", latent, heads * (plain + value), count, "attention")
    layers.add("o_proj", heads * value, hidden, count, "attention")
    add_gated_mlp(layers, hidden, int(config["intermediate_size"]), dense)
    add_gated_mlp(layers, hidden, shared, sparse if shared else 0, mark="shared")
    norms = count * (2 * hidden + latent + int(query_latent or 0)) + hidden
    return decoder(
        config,
        layers,
        hidden,
        count,
        vocabulary,
        tied=False,
        heads=heads,
        key_value_heads=heads,
        head_size=plain + rope,
        other=norms + sparse * number * hidden,
        experts=_experts(sparse, number, active, width, hidden, QWEN_NAMES),
        norms=2 + (latent + int(query_latent or 0)) / hidden,
        mlp_width=(dense * int(config["intermediate_size"]) + sparse * (active * width + shared)) // count,
        cached=latent + rope,
    )


BUILDERS = {
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gpt_oss": _gpt_oss,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
}
