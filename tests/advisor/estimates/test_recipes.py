"""Recipes are estimated stage by stage."""

from __future__ import annotations

import json

import pytest

from tutelage.errors import TutelageError
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, estimate
from tutelage_advisor.estimates.recipes import estimate_recipe

RECIPE = {
    "name": "demo",
    "model": "starter:smollm2-135m-instruct",
    "stages": [
        {
            "name": "tune",
            "phase": "sft",
            "adapter": {"kind": "lora", "rank": 8, "targets": ["q_proj", "v_proj"]},
            "data": "rows.jsonl",
            "trainer": {"max_length": 512, "tokens_per_step": 4096, "tokens_per_micro_batch": 2048, "epochs": 2},
        }
    ],
}


@pytest.fixture
def recipe(tmp_path):
    row = json.dumps({"prompt": "x" * 190, "completion": "y" * 180})
    (tmp_path / "rows.jsonl").write_text((row + "\n") * 100)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE))
    return path


def test_a_recipe_is_the_same_as_its_settings(recipe):
    result = estimate_recipe(recipe, {"gpu": "L4"}, load(), [])
    asked = EstimateRequest(
        model="SmolLM2-135M",
        gpu="L4",
        rank=8,
        targets=["q_proj", "v_proj"],
        seq_len=512,
        micro_batch=4,
        tokens_per_step=4096,
    )
    stage = result.stages["tune"]
    direct = estimate(asked, load())
    assert stage.memory == direct.memory
    assert stage.trainable_parameters == direct.trainable_parameters
    assert stage.tokens_per_second == direct.tokens_per_second
    tokens = 100 * 2 * (len((recipe.parent / "rows.jsonl").read_bytes()) / 100 / 4)
    assert result.hours == pytest.approx(tokens / stage.tokens_per_second / 3600)


def test_overrides_and_steps_count(recipe):
    changes = ["stages.tune.trainer.epochs=null", "stages.tune.trainer.max_steps=10", "stages.tune.adapter.rank=16"]
    result = estimate_recipe(recipe, {"gpu": "L4"}, load(), changes)
    stage = result.stages["tune"]
    assert stage.hours == pytest.approx(10 * 4096 / stage.tokens_per_second / 3600)
    assert stage.trainable_parameters == 2 * estimate_recipe(recipe, {}, load(), []).stages["tune"].trainable_parameters


def test_what_may_be_compiled_is_estimated_as_not_compiled(recipe):
    switches = ("false", "auto", "true")
    plain, auto, compiled = (
        estimate_recipe(recipe, {"gpu": "L4"}, load(), [f"stages.tune.trainer.compile={switch}"]).stages["tune"]
        for switch in switches
    )
    assert auto == plain != compiled


def test_data_that_can_not_be_counted_leaves_time_open(recipe):
    result = estimate_recipe(recipe, {"gpu": "L4"}, load(), ["stages.tune.data.train=hub:someone/rows"])
    assert result.hours is None
    assert any("not measured" in text for text in result.stages["tune"].assumptions)


def test_a_recipe_that_is_wrong_is_told_in_sentences(recipe):
    with pytest.raises(TutelageError, match="rnak"):
        estimate_recipe(recipe, {}, load(), ["stages.tune.adapter.rnak=3"])
