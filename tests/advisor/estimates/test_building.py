"""Families without a formula are built by transformers in a child process."""

from __future__ import annotations

import json

import pytest

from tutelage.errors import TutelageError
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import architecture_of
from tutelage_advisor.estimates.architecture import lora_parameters
from tutelage_advisor.estimates.building import inventory
from tutelage_advisor.estimates.families import by_formula

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_a_family_without_a_formula_counts_exactly(tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {"model_type": "cohere", **SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    made = architecture_of(str(tmp_path), load())
    settings = AutoConfig.for_model("cohere", **{key: value for key, value in config.items() if key != "model_type"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert made.tied
    assert [linear.count for linear in made.linears if linear.name == "q_proj"] == [3]


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {}),
        ("gemma2", {"head_dim": 8}),
        ("qwen3_moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
        ("gpt_neox", {"num_key_value_heads": 4}),
    ],
)
def test_building_and_formula_agree(family, more):
    config = {"model_type": family, **SMALL, **more}
    built, known = inventory(config), by_formula(config)
    assert built.parameters == known.parameters
    assert built.active_matrix_parameters == known.active_matrix_parameters
    assert built.quantizable() == known.quantizable()
    assert built.mlp_width == known.mlp_width
    assert built.cached == known.cached
    assert lora_parameters(built.targets("all-linear"), 4) == lora_parameters(known.targets("all-linear"), 4)


def test_what_transformers_can_not_build_is_told_in_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_family", "hidden_size": 8}))
    with pytest.raises(TutelageError, match="transformers can't build it \\(no_such_family\\)"):
        architecture_of(str(tmp_path), load())


@pytest.mark.parametrize("content", ["[1, 2]", "{}", '{"model_type": 3}', "{not json", '{"hidden_size": NaN}'])
def test_a_config_that_is_none_is_told_in_a_sentence(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(TutelageError):
        architecture_of(str(path), load())


def test_files_that_are_no_configuration(tmp_path):
    binary = tmp_path / "config.json"
    binary.write_bytes(b"\xff\xfe\x00\x01" * 100)
    with pytest.raises(TutelageError, match="UTF-8"):
        architecture_of(str(binary), load())
    other = tmp_path / "weights.bin"
    other.write_bytes(b"1")
    with pytest.raises(TutelageError, match=r"not a config\.json"):
        architecture_of(str(other), load())
    with pytest.raises(TutelageError, match="no such file"):
        architecture_of(str(tmp_path / "gone" / "config.json"), load())
