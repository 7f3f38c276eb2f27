"""The recipe of each card that advises tuning: checked and trained on data that the project ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from situations import TODAY
from tiny_models import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import tutelage
from tutelage.config import read_file
from tutelage_advisor import advise

DATA = Path(__file__).parents[3] / "examples" / "demo" / "train.jsonl"
STARTER = "starter:smollm2-135m-instruct"
CARDS: list[dict[str, Any]] = read_file(Path(__file__).with_name("cards.yaml"))
RECIPES: dict[str, dict[str, Any]] = {
    card["card"]: recipe
    for card in CARDS
    if (recipe := advise(card["situation"], today=TODAY, draws=0).recipe) is not None
}
UNLIKE = list({json.dumps(recipe["stages"], sort_keys=True): name for name, recipe in RECIPES.items()}.values())
"A card of each recipe that differs in more than its names."


def on_this(model: Path | str, recipe: dict[str, Any], **trainer: Any) -> tuple[dict[str, Any], list[str]]:
    """The recipe as it was advised, but for the model and the data, which here are others."""
    rank = ["stages.tune.adapter.rank=16"] if recipe["stages"][0]["adapter"].get("rank", 0) > 192 else []
    changes = [f"stages.tune.trainer.{name}={value}" for name, value in trainer.items()]
    return {**recipe, "model": str(model)}, [f"stages.tune.data.train={DATA}", *rank, *changes]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the context and the widths of a usual one, and a layer."""
    folder, tokens = tmp_path_factory.mktemp("small"), tokenizer()
    shape = {"hidden_size": 192, "intermediate_size": 192, "num_attention_heads": 6, "max_position_embeddings": 8192}
    made = LlamaConfig(**shape, num_hidden_layers=1, vocab_size=len(tokens), bos_token_id=None, eos_token_id=0)
    LlamaForCausalLM(made).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def test_tuning_is_advised_often_and_in_different_ways() -> None:
    assert len(RECIPES) >= 20
    assert {recipe["stages"][0]["adapter"]["kind"] for recipe in RECIPES.values()} >= {"full", "lora", "qlora"}


@pytest.mark.parametrize("name", UNLIKE)
def test_check_accepts_every_advised_recipe_on_shipped_data(name: str, small_model: Path) -> None:
    report = tutelage.check(*on_this(small_model, RECIPES[name]))
    assert report.ok, report.problems


@pytest.mark.parametrize("name", ["minimum-narrow", "new-domain-full"])
def test_an_advised_recipe_trains(name: str, small_model: Path, tmp_path: Path) -> None:
    recipe, changes = on_this(small_model, RECIPES[name], epochs="null", max_steps=2, devices=1)
    result = tutelage.train(recipe, changes, tmp_path / "run")
    assert result.artifact is not None
    assert any(result.artifact.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_check_accepts_every_card_s_recipe_for_the_starter_model(name: str) -> None:
    report = tutelage.check(*on_this(STARTER, RECIPES[name]))
    assert report.ok, report.problems


@pytest.mark.slow
@pytest.mark.parametrize("name", ["house-style", "small-gpu-8b"])
def test_an_advised_recipe_trains_the_starter_model(name: str, tmp_path: Path) -> None:
    recipe, changes = on_this(STARTER, RECIPES[name], epochs="null", max_steps=2, devices=1, tokens_per_step=1024)
    result = tutelage.train(recipe, changes, tmp_path / "run")
    assert result.artifact is not None
    assert (result.artifact / "adapter_model.safetensors").is_file()
