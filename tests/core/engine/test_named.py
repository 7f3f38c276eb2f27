"""What a stage names is looked at before anything runs: earlier stages, models and data."""

from __future__ import annotations

import json

import pytest
from training import recipe, write_chats

import tutelage


@pytest.fixture
def told(tiny_model, tmp_path):
    """A function that gives the problems of a recipe whose last stage is changed."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the cat saw {n} birds"}) + "\n" for n in range(3)))

    def problems(**last) -> str:
        made = recipe(tiny_model("llama-tied"), write_chats(tmp_path / "chats.jsonl", rows=4))
        pairs = {"prompt": "why", "chosen": "so", "rejected": "no"}
        (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs) + "\n")
        comparisons = {"kind": "comparisons", "max_new_tokens": 8}
        made["stages"] += [
            {"name": "drawn", "phase": comparisons, "data": str(prompts)},
            {"name": "reward", "phase": "reward_model", "data": str(tmp_path / "pairs.jsonl")},
            {"name": "last", "data": str(prompts), **last},
        ]
        return "\n".join(map(str, tutelage.check(made).problems))

    return problems


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"phase": "sft", "model": "stage:drawn"}, "stages.last.model: the stage drawn makes a dataset, where a model"),
        ({"phase": "dpo", "model": "stage:reward"}, "stages.last.model: the stage reward makes a reward model"),
        (
            {"phase": "reward_model", "data": "stage:drawn"},
            "stages.last.data.train: the stage drawn makes rows of a prompt alone, where rows of ranked answers are",
        ),
        (
            {"phase": {"kind": "evaluation", "models": ["stage:reward"]}},
            "stages.last.phase.models.0: the stage reward makes a reward model",
        ),
        (
            {"phase": {"kind": "evaluation", "models": ["./nowhere"]}},
            "stages.last.phase.models.0: no model is found at",
        ),
        ({"phase": {"kind": "evaluation", "text": "none.txt"}}, "stages.last.phase.text: there is no file"),
        (
            {"phase": {"kind": "ranking", "gold": "none.jsonl"}, "data": "stage:drawn"},
            "stages.last.phase.gold: there is no file",
        ),
    ],
)
def test_what_is_not_there_or_of_the_wrong_kind_is_told(told, last, words):
    assert words in told(**last)


def test_what_fits_is_let_through(told):
    assert told(phase={"kind": "ranking"}, data="stage:drawn") == ""
