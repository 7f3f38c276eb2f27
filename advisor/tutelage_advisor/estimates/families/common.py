"""What builders of inventories share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from tutelage_advisor.estimates.architecture import Architecture, Kind, Linear

Config = Mapping[str, Any]


class NotCoveredError(Exception):
    """No formula is known for this configuration."""


class Layers:
    """Collects linear layers: `count` copies of each, sharing inputs by mark."""

    def __init__(self) -> None:
        self.linears: list[Linear] = []

    def add(
        self, name: str, inputs: int, outputs: int, count: int, kind: Kind, bias: bool = False, mark: str = ""
    ) -> None:
        if count:
            self.linears.append(Linear(name, inputs, outputs, count, kind, bias, mark))


def add_attention(
    layers: Layers,
    hidden: int,
    query: int,
    key_value: int,
    count: int,
    bias: bool = False,
    output: str = "o_proj",
    output_bias: bool = False,
) -> None:
    layers.add("q_proj", hidden, query, count, "attention", bias, "attention")
    layers.add("k_proj", hidden, key_value, count, "attention", bias, "attention")
    layers.add("v_proj", hidden, key_value, count, "attention", bias, "attention")
    layers.add(output, query, hidden, count, "attention", output_bias)


def add_gated_mlp(layers: Layers, hidden: int, width: int, count: int, bias: bool = False, mark: str = "mlp") -> None:
    layers.add("gate_proj", hidden, width, count, "mlp", bias, mark)
    layers.add("up_proj", hidden, width, count, "mlp", bias, mark)
    layers.add("down_proj", width, hidden, count, "mlp", bias)


def heads_of(config: Config) -> tuple[int, int, int, int]:
    """Hidden size, heads, key-value heads and head size."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    key_value = config.get("num_key_value_heads")
    size = config.get("head_dim") or hidden // heads
    return hidden, heads, int(heads if key_value is None else key_value), int(size)


def window_of(config: Config, default_pattern: int = 0) -> tuple[int, float]:
    """Sliding window and the share of layers that use it."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return 0, 0.0
    kinds = config.get("layer_types")
    if kinds:
        return int(window), sum(kind == "sliding_attention" for kind in kinds) / len(kinds)
    pattern = config.get("sliding_window_pattern") or default_pattern
    return int(window), (1 - 1 / pattern) if pattern else 1.0


def llama_like(
    config: Config,
    *,
    bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    tied: bool = False,
    norms: int = 2,
    norm_size: int = 1,
    head_norms: Literal["none", "head", "full"] = "none",
    mlp: Literal["gated", "plain"] = "gated",
    mlp_saved: float = 3,
    mlp_extra: int = 0,
    head_bias: bool = False,
    window_pattern: int = 0,
    **more: Any,
) -> Architecture:
    """What Llama's descendants have in common.

    `norm_size` is 2 where norms have a bias; `mlp_extra` counts further parameters of a layer's MLP.
    """
    hidden, heads, key_value_heads, size = heads_of(config)
    count, width, vocabulary = (
        int(config["num_hidden_layers"]),
        int(config["intermediate_size"]),
        int(config["vocab_size"]),
    )
    query, key_value = heads * size, key_value_heads * size
    layers = Layers()
    add_attention(layers, hidden, query, key_value, count, bias, output_bias=output_bias)
    if mlp == "gated":
        add_gated_mlp(layers, hidden, width, count, mlp_bias)
    else:
        layers.add("up_proj", hidden, width, count, "mlp", mlp_bias)
        layers.add("down_proj", width, hidden, count, "mlp", mlp_bias)
    inner = {"none": 0, "head": 2 * size, "full": query + key_value}[head_norms]
    window, share = window_of(config, window_pattern)
    values: dict[str, Any] = {
        "heads": heads,
        "key_value_heads": key_value_heads,
        "head_size": size,
        "other": count * (norms * norm_size * hidden + inner + mlp_extra) + norm_size * hidden,
        "norms": norms + (0 if head_norms == "none" else (query + key_value) / hidden),
        "norm_upcasts": norm_size == 1,
        "mlp_width": width,
        "mlp_saved": mlp_saved,
        "cached": 2 * key_value,
        "window": window,
        "window_share": share,
    }
    return decoder(config, layers, hidden, count, vocabulary, tied=tied, head_bias=head_bias, **(values | more))


def decoder(
    config: Config,
    layers: Layers,
    hidden: int,
    count: int,
    vocabulary: int,
    *,
    tied: bool,
    head_bias: bool = False,
    **more: Any,
) -> Architecture:
    """The inventory of these layers, and of an output layer unless that is the embedding; `more` says the rest.

    `tied` is what the family does where the configuration says nothing.
    """
    tied = bool(config.get("tie_word_embeddings", tied))
    if not tied:
        layers.add("lm_head", hidden, vocabulary, 1, "head", head_bias)
    values: dict[str, Any] = {
        "family": str(config["model_type"]),
        "vocabulary": vocabulary,
        "hidden": hidden,
        "layers": count,
        "longest": int(config.get("max_position_embeddings") or 0),
        "linears": layers.linears,
        "embedding": vocabulary * hidden,
        "tied": tied,
    }
    return Architecture(**(values | more))


def with_linears(base: Architecture, layers: Layers) -> Architecture:
    head = [base.head] if base.head else []
    return msgspec.structs.replace(base, linears=[*layers.linears, *head])
