"""Estimates of phases other than supervised tuning: by hand, against transformers, and by what must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from tutelage.config import convert
from tutelage.errors import TutelageError
from tutelage.plugins import host
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, architecture_of, estimate
from tutelage_advisor.estimates.calibration import CRITIQUE_TOKENS, QUESTION_TOKENS
from tutelage_advisor.estimates.memory import GIB
from tutelage_advisor.estimates.phases import scored
from tutelage_advisor.estimates.recipes import estimate_recipe
from tutelage_advisor.estimates.rows import rows_of
from tutelage_advisor.estimates.speed import forward_seconds, step_seconds

CATALOG = load()
EXAMPLE = Path(__file__).parents[3] / "examples" / "alignment.yaml"
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def asked(phase: Any, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "seq_len": 512, "micro_batch": 4, **fields}
    return estimate(EstimateRequest(phase=phase, **given), CATALOG)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"model_type": "gpt2", "n_embd": 64}])
def test_a_model_of_one_score_has_as_many_parameters_as_transformers_makes(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    config = {**TINY, **changes}
    if config["model_type"] == "gpt2":
        config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    kind = config.pop("model_type")
    with torch.device("meta"):
        built = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **config, num_labels=1))
    made = scored(architecture_of(str(tmp_path), CATALOG))
    assert made.parameters == built.num_parameters()


def test_reward_modelling_learns_the_head_beside_the_adapter_and_holds_no_logits() -> None:
    reward, sft = asked("reward_model"), asked("sft")
    assert reward.trainable_parameters == sft.trainable_parameters + 4096
    assert reward.parameters == sft.parameters - 128_256 * 4096 + 4096
    assert reward.memory.logits_gib < 0.001 < sft.memory.logits_gib
    assert reward.memory.peak_gib < sft.memory.peak_gib


def test_dpo_takes_the_memory_of_its_rows_and_asks_the_reference_once() -> None:
    sft, dpo = asked("sft", examples=2000, epochs=3), asked("dpo", examples=1000, epochs=3)
    assert dpo.memory == sft.memory
    assert dpo.parts["learning"] == pytest.approx(sft.hours)
    made = architecture_of("Llama-3.1-8B", CATALOG)
    once = forward_seconds(
        made, EstimateRequest(model="x", seq_len=512, micro_batch=4), CATALOG.gpu("H100-SXM"), "bf16"
    )
    assert dpo.parts["reading"] * 3600 == pytest.approx(2 * 1000 * 512 * once)
    assert asked("dpo", examples=1000, epochs=1).parts["reading"] == dpo.parts["reading"]
    assert "reading" not in asked("dpo", examples=1000, reference=False).parts


def test_ppo_on_one_base_is_a_second_adapter_and_little_more() -> None:
    ppo, sft = asked("ppo"), asked("sft")
    adapter = sft.trainable_parameters
    assert ppo.trainable_parameters == 2 * adapter + 4096
    assert ppo.memory.gradients_gib * GIB == 4 * (2 * adapter + 4096)
    assert ppo.memory.others_gib * GIB == 4 * (adapter + 4096)  # the reward model's adapter and head
    assert 0.9 * sft.memory.peak_gib < ppo.memory.peak_gib < 1.3 * sft.memory.peak_gib
    layers, key_values, width = 32, 2 * 8 * 128, 2
    assert ppo.memory.cache_gib * GIB == 4 * 4 * (512 * layers * key_values * width + 12 * 128_256)


def test_ppo_with_all_weights_holds_four_models() -> None:
    base = 8_030_261_248
    value = base - 128_256 * 4096 + 4096
    full = asked("ppo", adapter="full")
    assert full.trainable_parameters == base + value
    assert full.memory.optimizer_gib * GIB == 8 * (base + value)
    assert full.memory.others_gib * GIB == 4 * base + 2 * value  # a copy as reference, a reward model in 16 bits
    assert asked("ppo", adapter="full", reward_model="none", reference=False).memory.others_gib == 0


def test_drawing_and_reading_by_hand() -> None:
    gpu, made = CATALOG.gpu("H100-SXM"), architecture_of("Llama-3.1-8B", CATALOG)
    request = EstimateRequest(model="x", seq_len=512, micro_batch=4)
    matrices = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    attention = 2 * 512 * 4096 * 32
    peak = 989e12 * gpu.achievable.value
    launches = 32 * 1.1e-3 + 7 * 32 * 0.11e-3
    read = (2 * matrices + attention / 0.4) / peak + launches / 2048
    assert forward_seconds(made, request, gpu, "bf16") == pytest.approx(read)
    moved = (2 * matrices + 16 * 300 * 32 * 2 * 1024 * 2) / (3350e9 * 0.7)
    step = (moved**2 + launches**2) ** 0.5
    assert step_seconds(made, request, gpu, "bf16", 16, 300) == pytest.approx(step)
    ppo = asked("ppo", examples=100, epochs=1, prompt_tokens=172, new_tokens=256)
    assert ppo.parts["answering"] * 3600 == pytest.approx(100 * (172 * read + 256 * step / 16))
    assert ppo.parts["reading"] * 3600 == pytest.approx(4 * 100 * (172 + 256) * read)
    assert ppo.hours == pytest.approx(sum(ppo.parts.values()))


def test_grpo_has_no_value_model_and_asks_who_is_there() -> None:
    grpo, ppo = (asked(phase, examples=100, answers=8, inner_epochs=1) for phase in ("grpo", "ppo"))
    assert grpo.trainable_parameters == asked("sft").trainable_parameters
    assert grpo.memory.others_gib == 0
    assert ppo.parts["reading"] == pytest.approx(4 * grpo.parts["reading"])
    with_reference = asked("grpo", examples=100, answers=8, inner_epochs=1, reference=True)
    assert with_reference.parts["reading"] == pytest.approx(2 * grpo.parts["reading"])


def test_making_data_learns_nothing_and_is_as_long_as_what_is_said() -> None:
    made = architecture_of("Llama-3.1-8B", CATALOG)
    gpu, request = CATALOG.gpu("H100-SXM"), EstimateRequest(model="x", adapter="full", seq_len=512, micro_batch=4)
    lengths = {"adapter": "full", "prompt_tokens": 100, "new_tokens": 200, "examples": 50}

    def said(reads: float, writes: int) -> float:
        read = reads * forward_seconds(made, request, gpu, "bf16")
        return read + writes * step_seconds(made, request, gpu, "bf16", 4, reads + writes / 2) / 4

    drawn = asked("comparisons", answers=4, **lengths)
    assert (drawn.trainable_parameters, drawn.memory.gradients_gib, drawn.memory.optimizer_gib) == (0, 0, 0)
    assert drawn.hours * 3600 == pytest.approx(50 * 4 * said(100, 200))
    judged = asked("ai_feedback", answers=3, principles=2, thought_tokens=60, **lengths)
    assert judged.hours * 3600 == pytest.approx(50 * 3 * 2 * 2 * said(100 + 400 + QUESTION_TOKENS, 60))
    revised = asked("critique_revision", rounds=2, thought_tokens=80, **lengths)
    request_tokens = CRITIQUE_TOKENS + 300
    each = said(request_tokens, 80) + said(request_tokens + 80, 200)
    assert revised.hours * 3600 == pytest.approx(50 * (said(100, 200) + 2 * each))


def test_muon_keeps_one_state_for_matrices_and_two_for_the_rest() -> None:
    adamw, muon = (
        asked("pretrain", model="SmolLM2-135M", adapter="full", optimizer=name) for name in ("adamw", "muon")
    )
    made = architecture_of("SmolLM2-135M", CATALOG)
    outside = made.embedding + made.other
    assert adamw.memory.optimizer_gib * GIB == 8 * made.parameters
    assert muon.memory.optimizer_gib * GIB == 4 * made.parameters + 4 * outside


@settings(deadline=None, max_examples=40)
@given(
    phase=st.sampled_from(["ppo", "grpo", "comparisons", "critique_revision", "ai_feedback"]),
    field=st.sampled_from(["answers", "new_tokens", "thought_tokens", "inner_epochs", "rounds", "principles"]),
    gpu=st.sampled_from(["T4", "RTX 4090", "H100-SXM"]),
    adapter=st.sampled_from(["lora", "qlora", "full"]),
)
def test_more_to_do_never_takes_less_time(phase: Any, field: str, gpu: str, adapter: Any) -> None:
    base = {"model": "SmolLM2-135M", "gpu": gpu, "adapter": adapter, "examples": 10, "prompt_tokens": 50.0}
    few, many = (asked(phase, **{**base, field: value}).hours for value in (2, 4))
    assert many >= few


@settings(deadline=None, max_examples=40)
@given(
    phase=st.sampled_from(["ppo", "grpo"]),
    adapter=st.sampled_from(["lora", "qlora"]),
    rank=st.sampled_from([4, 64]),
    checkpointing=st.booleans(),
)
def test_who_is_there_takes_memory(phase: Any, adapter: Any, rank: int, checkpointing: bool) -> None:
    base = {"adapter": adapter, "rank": rank, "checkpointing": checkpointing}
    none, shared, separate = (
        asked(phase, **base, reward_model=where).memory.peak_gib for where in ("none", "shared", "separate")
    )
    assert none < shared < separate


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"phase": "ppo", "new_tokens": 512}, "new_tokens 512 leave no room for a prompt in seq_len 512"),
        ({"phase": "ppo", "adapter": "full", "reward_model": "shared"}, "a frozen base only"),
        ({"phase": "ppo", "adapter": "prompt"}, "ppo does not learn a soft prompt"),
        ({"phase": "dpop"}, "phase"),
        ({"phase": "grpo", "answers": 0}, "answers"),
    ],
)
def test_what_can_not_be_is_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        convert({"model": "GPT-2", "seq_len": 512, **fields}, EstimateRequest)


def test_the_alignment_recipe_is_estimated_from_stage_to_stage() -> None:
    result = estimate_recipe(EXAMPLE, {"gpu": "L4"}, CATALOG, [])
    assert list(result.stages) == ["sft", "comparisons", "reward", "ppo", "verdict"]
    assert result.people == {}  # the ranking is simulated
    questions = rows_of("data/questions.jsonl", EXAMPLE.parent, host())
    assert questions is not None
    comparisons, ppo = result.stages["comparisons"], result.stages["ppo"]
    assert (comparisons.trainable_parameters, comparisons.phase) == (0, "comparisons")
    assert any(text.startswith("4 answers an example") for text in result.stages["reward"].assumptions)
    assert ppo.parts.keys() == {"answering", "reading", "learning"}
    assert result.hours == pytest.approx(sum(stage.hours for stage in result.stages.values() if stage.hours))
    assert result.usd == pytest.approx(sum(stage.usd for stage in result.stages.values() if stage.usd))
    assert result.peak_gib == max(stage.memory.peak_gib for stage in result.stages.values())


def test_people_are_counted_where_a_stage_waits_for_them() -> None:
    changes = ["stages.ranking.phase.simulated=null", "stages.ranking.phase.people=3", "stages.ranking.phase.overlap=2"]
    result = estimate_recipe(EXAMPLE, {"gpu": "L4"}, CATALOG, changes)
    questions = len((EXAMPLE.parent / "data" / "questions.jsonl").read_text().splitlines())
    people = result.people["ranking"]
    assert people.judgements == 2 * questions
    assert people.hours == pytest.approx(2 * questions * 4 * 0.5 / 60)
    assert people.usd == pytest.approx(60 * people.hours)


def test_rows_are_measured(tmp_path: Path) -> None:
    pair = {"prompt": "p" * 40, "chosen": "c" * 80, "rejected": "r" * 160}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 30)
    found = rows_of("pairs.jsonl", tmp_path, host())
    assert found is not None
    assert (found.count, found.prompt, found.answer, found.answers) == (30, 10, 30, 2)
    assert rows_of("hub:someone/rows", tmp_path, host()) is None
    assert rows_of("nowhere.jsonl", tmp_path, host()) is None


def test_a_new_model_is_estimated_without_being_made(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A sentence of some words. " * 4000)
    recipe = {
        "name": "new",
        "model": "new",
        "stages": [
            {
                "name": "begin",
                "phase": {"kind": "pretrain", "parameters": "5M", "vocabulary": 1024},
                "data": "text.txt",
                "trainer": {"max_length": 128, "tokens_per_step": 1024, "epochs": 1},
            }
        ],
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    result = estimate_recipe(tmp_path / "recipe.json", {"gpu": "L4"}, CATALOG, []).stages["begin"]
    assert result.parameters == pytest.approx(5e6, rel=0.05)
    assert result.trainable_parameters == result.parameters
    assert result.hours is not None
    assert result.tokens_per_second is not None
    assert result.hours * 3600 * result.tokens_per_second == pytest.approx(26 * 4000 / 4, rel=0.02)
