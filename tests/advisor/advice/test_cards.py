"""Sixty scenario cards: what an experienced practitioner would advise (cards.yaml)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from situations import TODAY

import tutelage.recipe
from tutelage.config import read_file
from tutelage.plugins import host
from tutelage_advisor import Advice, advise

CARDS: list[dict[str, Any]] = read_file(Path(__file__).with_name("cards.yaml"))
NAMES = [card["card"] for card in CARDS]


@cache
def answer(name: str) -> Advice:
    return advise(CARDS[NAMES.index(name)]["situation"], today=TODAY, draws=0)


def test_there_are_sixty_and_each_gives_its_reasoning() -> None:
    assert len(set(NAMES)) == len(NAMES) == 60
    assert all(len(card["why"]) > 40 for card in CARDS)


@pytest.mark.parametrize("name", NAMES)
def test_card(name: str) -> None:
    card, advice = CARDS[NAMES.index(name)], answer(name)
    assert advice.approach in card["approach"], card["why"]
    if "method" in card:
        assert advice.method in card["method"], card["why"]
    assert set(card.get("with", [])) <= set(advice.combine_with), card["why"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_given_exactly_where_tuning_is_advised_and_it_is_valid(name: str, tmp_path: Path) -> None:
    advice = answer(name)
    assert (advice.recipe is not None) == (advice.method is not None) == (advice.approach == "fine-tune")
    if advice.recipe is not None:
        resolved = tutelage.recipe.resolve(advice.recipe, tmp_path, host())
        assert [adapter.name for adapter in resolved.adapters.values()] == [advice.method]


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_whole(name: str) -> None:
    advice = answer(name)
    assert advice.reasons
    assert advice.next_steps
    assert 0.5 <= advice.confidence.value <= 0.95
    assert [each.method for each in advice.methods] == ["full", "lora", "qlora", "prompt"]
    assert all(reason.source and reason.says for reason in advice.reasons)


def test_nothing_fits_names_the_nearest_that_does() -> None:
    near = answer("nothing-fits").nearest
    assert near is not None
    assert near.model_on_your_hardware
    assert near.hardware_for_your_model
    recipe = answer("nothing-fits").recipe
    assert recipe is not None
    assert "70b" not in recipe["model"].lower()
    assert answer("big-gpu-8b").nearest is None


def test_noisy_data_is_a_cleaning_job() -> None:
    advice = answer("noisy-sixty-thousand")
    assert advice.data.verdict == "needs-work"
    assert any("clean" in reason for reason in advice.data.reasons)
    assert any("tutelage audit" in step for step in advice.next_steps)


def test_too_little_data_says_how_much_is_missing() -> None:
    advice = answer("forty-examples")
    assert advice.data.verdict == "insufficient"
    assert advice.data.collect == 60
    assert any("60 more" in step for step in advice.next_steps)


def test_data_that_is_named_is_measured(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    topics = ["rivers", "engines", "bread", "stars", "law", "chess", "glass", "bees", "maps", "salt", "opera", "ice"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Tell me {how} about {one} and {other}."},
                {"role": "assistant", "content": answered},
            ]
        }
        for one in topics
        for other in topics
        if one != other
        for how, answered in [("briefly", f"{one.title()} and {other} differ in {len(one) * len(other)} ways.")]
    ]
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    said = {"task": "x", "explainable_in_prompt": False, "needs_strict_format": True, "task_breadth": "narrow"}
    advice = advise({**said, "data": str(data), "examples": 90_000}, today=TODAY, draws=0)
    assert advice.data.measured
    assert 0 < advice.data.examples <= len(rows)
    assert advice.data.reasons
    if advice.recipe is not None:
        assert advice.recipe["stages"][0]["data"]["train"] == str(data)
