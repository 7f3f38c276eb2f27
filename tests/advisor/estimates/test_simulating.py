"""Formulas against torch's own account of transformers' and PEFT's code."""

from __future__ import annotations

import json

import pytest

from tutelage.errors import TutelageError
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, estimate
from tutelage_advisor.estimates.simulating import _Task, run, simulate

CONFIG = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8000,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": "full", "precision": "bf16"},
        {"adapter": "full", "precision": "bf16-true"},
        {"adapter": "full", "precision": "bf16", "checkpointing": True},
        {"adapter": "lora", "precision": "bf16"},
        {"adapter": "lora", "precision": "bf16", "checkpointing": True},
        {"adapter": "prompt", "precision": "bf16"},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_formula_and_simulation_agree(folder, settings):
    request = EstimateRequest(model=folder, micro_batch=2, seq_len=1024, **settings)
    simulated = run(_Task(CONFIG, request))
    assert estimate(request, load()).memory.allocated_gib == pytest.approx(simulated.peak_gib, rel=0.08)


def test_a_family_with_written_out_gelu_agrees(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 512, "n_layer": 3, "n_head": 8, "n_positions": 1024, "vocab_size": 4000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    request = EstimateRequest(model=str(tmp_path), adapter="full", precision="bf16", micro_batch=2, seq_len=1024)
    simulated = run(_Task(config, request))
    assert estimate(request, load()).memory.allocated_gib == pytest.approx(simulated.peak_gib, rel=0.08)


def test_a_child_process_simulates(folder):
    request = EstimateRequest(model=folder, seq_len=256)
    result = simulate(request, load(), "bf16")
    assert result.peak_gib >= result.weights_gib > 0
    assert result.optimizer_gib > 0


def test_what_can_not_be_simulated_is_said(folder):
    for fields, word in (({"adapter": "qlora"}, "4-bit"), ({"strategy": "zero3", "gpus": 2}, "one device")):
        with pytest.raises(TutelageError, match=word):
            simulate(EstimateRequest(model=folder, **fields), load(), "bf16")
    (request := EstimateRequest(model=folder, targets=["nowhere"]))
    with pytest.raises(TutelageError, match="nowhere"):
        simulate(request, load(), "bf16")
