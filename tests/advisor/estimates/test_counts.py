"""Counts by formula against the models themselves, built by transformers and PEFT on the meta device."""

from __future__ import annotations

import pytest

from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, estimate
from tutelage_advisor.estimates.architecture import lora_parameters
from tutelage_advisor.estimates.families import FAMILIES, NotCoveredError, by_formula
from tutelage_advisor.estimates.memory import learning

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {**SIZES, "head_dim": 16}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 24}
FALCON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT = {**FALCON, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
CONFIGS = [
    ("apertus", SIZES),
    ("arcee", HEADS),
    ("bloom", {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    ("deepseek_v3", {**LATENT, "q_lora_rank": 12, "n_group": 2, "topk_group": 1}),
    ("falcon", FALCON),
    ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True}),
    ("gemma", HEADS),
    ("gemma2", HEADS),
    ("gemma3_text", HEADS),
    (
        "gpt2",
        {
            "vocab_size": 96,
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    ("gpt_neox", SIZES),
    ("gpt_oss", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("granite", SIZES),
    ("llama", SIZES),
    ("llama", {**HEADS, "attention_bias": True, "mlp_bias": True}),
    ("llama", {**SIZES, "tie_word_embeddings": True}),
    ("mistral", HEADS),
    ("mixtral", {**SIZES, "num_local_experts": 4}),
    ("olmo2", SIZES),
    ("olmo3", SIZES),
    ("opt", OPT),
    ("phi", SIZES),
    ("phi3", SIZES),
    ("qwen2", SIZES),
    ("qwen2", {**SIZES, "tie_word_embeddings": True}),
    ("qwen2_moe", SHARED),
    ("qwen2_moe", {**SHARED, "mlp_only_layers": [0], "decoder_sparse_step": 2}),
    ("qwen3", HEADS),
    ("qwen3", {**HEADS, "attention_bias": True}),
    ("qwen3_moe", {**HEADS, **EXPERTS}),
    ("seed_oss", HEADS),
    ("smollm3", SIZES),
    ("stablelm", SIZES),
    ("stablelm", {**SIZES, "use_qkv_bias": True}),
    ("starcoder2", SIZES),
]


def on_meta(family: str, config: dict[str, object]):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    settings = AutoConfig.for_model(family, **config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings), settings


def count(model, learnt: bool = False) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not learnt)


def test_every_family_is_tried():
    assert {family for family, _ in CONFIGS} | {"qwen"} == set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "config"), CONFIGS, ids=[f"{index}-{name}" for index, (name, _) in enumerate(CONFIGS)]
)
def test_counts_are_what_transformers_and_peft_build(family: str, config: dict[str, object]):
    from peft import LoraConfig, get_peft_model

    model, settings = on_meta(family, config)
    short = by_formula({"model_type": family, **config})
    assert short.parameters == count(model)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert lora_parameters(short.targets("all-linear"), 3) == count(adapted, learnt=True)
    whole = by_formula(settings.to_dict())
    assert whole.parameters == short.parameters


def test_named_targets_and_soft_prompts_count_as_peft_counts_them():
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    config = {**HEADS, "num_hidden_layers": 2}
    made = by_formula({"model_type": "llama", **config})
    model, _ = on_meta("llama", config)
    adapted = get_peft_model(model, LoraConfig(r=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    request = EstimateRequest(model="x", rank=5, targets=["q_proj", "down_proj"])
    assert learning(made, request).learnt == count(adapted, learnt=True)
    model, _ = on_meta("llama", config)
    import torch

    with torch.device("meta"):
        prompted = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7))
    request = EstimateRequest(model="x", adapter="prompt", virtual_tokens=7)
    assert learning(made, request).learnt == count(prompted, learnt=True)


@pytest.mark.parametrize(
    "name", ["SmolLM2-135M", "Llama-3.2-1B", "Qwen3-0.6B", "Gemma-2-2B", "Phi-2", "GPT-2", "Falcon-7B"]
)
def test_real_sizes_are_what_transformers_builds(name: str):
    entry = load().model(name)
    config = {key: value for key, value in entry.config.items() if key != "model_type"}
    model, _ = on_meta(entry.config["model_type"], config)
    assert by_formula(entry.config).parameters == count(model)


@pytest.mark.parametrize("entry", load().models, ids=lambda entry: entry.name)
def test_catalog_models_have_the_published_number_of_parameters(entry):
    assert by_formula(entry.config).parameters == entry.published_parameters


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("stablelm", {"use_parallel_residual": True}),
        ("phi", {"qk_layernorm": True}),
        ("opt", {"word_embed_proj_dim": 16, "ffn_dim": 48, "max_position_embeddings": 64}),
        ("llama", {"hidden_size": None}),
        ("unheard_of", {}),
    ],
)
def test_what_no_formula_covers_is_refused_not_guessed(family: str, more: dict[str, object]):
    with pytest.raises(NotCoveredError):
        by_formula({"model_type": family, **SIZES, **more})


def test_active_parameters_of_a_mixture_of_experts():
    made = by_formula(load().model("Qwen3-30B-A3B").config)
    assert made.active_matrix_parameters == pytest.approx(3.0e9, rel=0.05)  # 3.3B activated, embedding look-up included
    result = estimate(EstimateRequest(model="Qwen3-30B-A3B", adapter="full", seq_len=1), load())
    assert result.flops_per_token == pytest.approx(6 * made.active_matrix_parameters, rel=1e-3)
