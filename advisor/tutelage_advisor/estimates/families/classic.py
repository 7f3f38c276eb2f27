"""GPT's descendants: LayerNorm with bias, as many key-value heads as heads, a plain MLP."""

from __future__ import annotations

import msgspec

from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.families.common import Config, Layers, NotCoveredError, add_attention, decoder, heads_of


def _gpt2(config: Config) -> Architecture:
    hidden, count, vocabulary = int(config["n_embd"]), int(config["n_layer"]), int(config["vocab_size"])
    heads, positions = int(config["n_head"]), int(config["n_positions"])
    width = int(config.get("n_inner") or 4 * hidden)
    layers = Layers()
    layers.add("c_attn", hidden, 3 * hidden, count, "attention", True)
    layers.add("c_proj", hidden, hidden, count, "attention", True)
    layers.add("c_fc", hidden, width, count, "mlp", True)
    layers.add("c_proj", width, hidden, count, "mlp", True)
    if config.get("add_cross_attention"):
        raise NotCoveredError("gpt2 with cross-attention")
    return _classic(
        config,
        layers,
        hidden,
        count,
        heads,
        vocabulary,
        width,
        positions * hidden,
        tied=True,
        saved=4,
        longest=positions,
    )


def _gpt_neox(config: Config) -> Architecture:
    hidden, heads, _, _ = heads_of(config)
    count, width, vocabulary = (
        int(config["num_hidden_layers"]),
        int(config["intermediate_size"]),
        int(config["vocab_size"]),
    )
    layers = Layers()
    bias = bool(config.get("attention_bias", True))
    layers.add("query_key_value", hidden, 3 * hidden, count, "attention", bias)
    layers.add("dense", hidden, hidden, count, "attention", bias)
    layers.add("dense_h_to_4h", hidden, width, count, "mlp", True)
    layers.add("dense_4h_to_h", width, hidden, count, "mlp", True)
    return _classic(config, layers, hidden, count, heads, vocabulary, width, 0, tied=False, saved=1)


def _bloom(config: Config) -> Architecture:
    hidden = int(config.get("hidden_size") or config["n_embed"])
    count, heads, vocabulary = int(config["n_layer"]), int(config["n_head"]), int(config["vocab_size"])
    layers = Layers()
    layers.add("query_key_value", hidden, 3 * hidden, count, "attention", True)
    layers.add("dense", hidden, hidden, count, "attention", True)
    layers.add("dense_h_to_4h", hidden, 4 * hidden, count, "mlp", True)
    layers.add("dense_4h_to_h", 4 * hidden, hidden, count, "mlp", True)
    embedding_norm = 2 * hidden
    made = _classic(config, layers, hidden, count, heads, vocabulary, 4 * hidden, embedding_norm, tied=True, saved=4)
    return msgspec.structs.replace(made, eager=True)


def _opt(config: Config) -> Architecture:
    hidden, heads, _, _ = heads_of({**config, "num_key_value_heads": None, "head_dim": None})
    count, width, vocabulary = int(config["num_hidden_layers"]), int(config["ffn_dim"]), int(config["vocab_size"])
    plain = config.get("word_embed_proj_dim", hidden) == hidden and config.get("do_layer_norm_before", True)
    if not plain or config.get("_remove_final_layer_norm") or not config.get("enable_bias", True):
        raise NotCoveredError("opt with projected embeddings or other norms")
    if not config.get("layer_norm_elementwise_affine", True):
        raise NotCoveredError("opt without affine norms")
    longest = int(config["max_position_embeddings"])
    layers = Layers()
    add_attention(layers, hidden, hidden, hidden, count, True, "out_proj", True)
    layers.add("fc1", hidden, width, count, "mlp", True)
    layers.add("fc2", width, hidden, count, "mlp", True)
    positions = (longest + 2) * hidden
    return _classic(
        config, layers, hidden, count, heads, vocabulary, width, positions, tied=True, saved=1, longest=longest
    )


def _falcon(config: Config) -> Architecture:
    hidden, heads, _, size = heads_of({**config, "num_key_value_heads": None})
    count, vocabulary = int(config["num_hidden_layers"]), int(config["vocab_size"])
    new = bool(config.get("new_decoder_architecture", False))
    key_value_heads = (
        int(config.get("num_kv_heads") or heads) if new else (1 if config.get("multi_query", True) else heads)
    )
    width = int(config.get("ffn_hidden_size") or 4 * hidden)
    bias, parallel = bool(config.get("bias", False)), bool(config.get("parallel_attn", True))
    norms = (int(config.get("num_ln_in_parallel_attn") or 2) if new else 1) if parallel else 2
    layers = Layers()
    layers.add("query_key_value", hidden, (heads + 2 * key_value_heads) * size, count, "attention", bias)
    layers.add("dense", hidden, hidden, count, "attention", bias)
    layers.add("dense_h_to_4h", hidden, width, count, "mlp", bias)
    layers.add("dense_4h_to_h", width, hidden, count, "mlp", bias)
    made = _classic(config, layers, hidden, count, heads, vocabulary, width, 0, tied=True, saved=1, norms=norms)
    return msgspec.structs.replace(made, key_value_heads=key_value_heads, cached=2 * key_value_heads * size)


def _classic(
    config: Config,
    layers: Layers,
    hidden: int,
    count: int,
    heads: int,
    vocabulary: int,
    width: int,
    extra: int,
    *,
    tied: bool,
    saved: float,
    norms: int = 2,
    longest: int = 0,
) -> Architecture:
    """GPT-like decoders: LayerNorm with bias, no gate, as many key-value heads as heads."""
    return decoder(
        config,
        layers,
        hidden,
        count,
        vocabulary,
        tied=tied,
        heads=heads,
        key_value_heads=heads,
        head_size=hidden // heads,
        longest=longest or int(config.get("max_position_embeddings") or 0),
        other=count * norms * 2 * hidden + 2 * hidden + extra,
        norms=norms,
        norm_upcasts=False,
        mlp_width=width,
        mlp_saved=saved,
        cached=2 * hidden,
    )


BUILDERS = {"bloom": _bloom, "falcon": _falcon, "gpt2": _gpt2, "gpt_neox": _gpt_neox, "opt": _opt}
