"""Trainer settings do what they say."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from training import events, learnt, losses, recipe, write_chats

import tutelage
from tutelage.data.batches import collate, split_packed, split_padded
from tutelage.data.rendering import Tokens
from tutelage.engine.learner import schedule
from tutelage.recipe import Trainer


def rates(settings: Trainer, steps: int) -> list[float]:
    return [schedule(settings, step, steps) for step in range(1, steps + 1)]


def test_cosine_after_warm_up_by_hand():
    found = rates(Trainer(schedule="cosine", warmup=0.2), 10)
    by_hand = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * done / 9)) for done in range(1, 9)]
    assert found == pytest.approx(by_hand)


def test_linear_ends_just_above_its_floor():
    found = rates(Trainer(schedule="linear", warmup=0.0, final_learning_rate=0.1), 9)
    assert found == pytest.approx([0.1 + 0.9 * (1 - done / 10) for done in range(1, 10)])


def test_constant_is_constant_after_warm_up():
    assert rates(Trainer(schedule="constant", warmup=0.5), 4) == [0.5, 1.0, 1.0, 1.0]


def test_logged_learning_rate_is_the_one_used(tiny_model, tmp_path):
    """With AdamW's first step every weight moves by the learning rate, whatever its gradient."""
    made = recipe(
        tiny_model("llama-untied"),
        write_chats(tmp_path / "chats.jsonl"),
        adapter="full",
        max_steps=1,
        warmup=0.0,
        schedule="constant",
        weight_decay=0.0,
        learning_rate=1e-3,
    )
    run = tutelage.train(made, out=tmp_path / "run").folder
    assert events(run, "step")[0]["learning_rate"] == 1e-3
    before = _weights(tiny_model("llama-untied"))
    moved = max(float((after - before[name]).abs().max()) for name, after in learnt(run).items())
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_weight_decay_leaves_norms_and_embeddings_alone(tiny_model, tmp_path):
    """A decay of 5 at a learning rate of 0.01 shrinks a matrix by 5% in one step, beside AdamW's own 0.01."""
    options = {"adapter": "full", "max_steps": 1, "warmup": 0.0, "schedule": "constant", "learning_rate": 1e-2}
    data = write_chats(tmp_path / "chats.jsonl")
    weights = []
    for number, decay in enumerate((0.0, 5.0)):
        made = recipe(tiny_model("llama-untied"), data, weight_decay=decay, **options)
        weights.append(learnt(tutelage.train(made, out=tmp_path / f"run{number}").folder))
    plain, decayed = weights
    before = _weights(tiny_model("llama-untied"))
    for name, weight in plain.items():
        shrinks = weight.dim() >= 2 and "embed" not in name
        expected = weight - 0.05 * before[name] if shrinks else weight
        assert torch.allclose(decayed[name], expected, atol=1e-6), name


def test_clip_bounds_a_step_s_gradient(tiny_model, tmp_path):
    """The norm that is told is the one before clipping; clipped to almost nothing, AdamW's epsilon stops all movement."""
    data = write_chats(tmp_path / "chats.jsonl")
    made = recipe(tiny_model("qwen2"), data, adapter="full", max_steps=1, clip=1e-12, weight_decay=0.0)
    run = tutelage.train(made, out=tmp_path / "run").folder
    assert events(run, "step")[0]["grad_norm"] > 0.1
    before = _weights(tiny_model("qwen2"))
    assert all(torch.allclose(after, before[name], atol=1e-6) for name, after in learnt(run).items())


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_activation_checkpointing_changes_no_loss(tiny_model, tmp_path, adapter):
    data = write_chats(tmp_path / "chats.jsonl")
    curves = []
    for switch in (False, True):
        made = recipe(tiny_model("llama-tied"), data, adapter=adapter, max_steps=4, activation_checkpointing=switch)
        curves.append(losses(tutelage.train(made, out=tmp_path / str(switch)).folder))
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.slow
def test_compile_changes_no_loss(tiny_model, tmp_path):
    """In a process of its own: the compiler wants setuptools before anything else has imported distutils."""
    data = write_chats(tmp_path / "chats.jsonl")
    curves = []
    for switch in (False, True):
        made = recipe(tiny_model("llama-tied"), data, max_steps=4, compile=switch)
        (tmp_path / "recipe.json").write_text(json.dumps(made))
        command = [
            sys.executable,
            "-c",
            "from tutelage.cli.main import main; main()",
            "train",
            tmp_path / "recipe.json",
        ]
        subprocess.run([*command, "--out", tmp_path / str(switch)], check=True, capture_output=True)
        curves.append(losses(tmp_path / str(switch)))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)


def test_little_is_computed_that_is_padding():
    """Packed rows have none; rows of one example each, grouped by length, less than one token in five."""
    lengths = np.random.default_rng(0).lognormal(4.5, 0.6, 400).astype(np.int64).clip(8, 900)
    store = _Store(lengths)
    for split, packed, most in ((split_packed, True, 0.0), (split_padded, False, 0.2)):
        (share,) = split(np.arange(400), lengths, tokens=4096, devices=1)
        computed = sum(collate(store, list(batch), packed=packed, filler=0).ids.numel() for batch in share)
        assert 1 - lengths.sum() / computed <= most


class _Store:
    def __init__(self, lengths):
        self.lengths = lengths

    def __getitem__(self, index):
        length = int(self.lengths[index])
        return Tokens(np.ones(length, dtype=np.int32), np.ones(length, dtype=bool))


def _weights(folder):
    from safetensors.torch import load_file

    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}
