"""The loss that is trained, against transformers alone; and that no way of cutting a step changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES
from torch.nn import functional as F
from training import events, losses, recipe, write_chats
from transformers import AutoModelForCausalLM, AutoTokenizer

import tutelage
from tutelage.data.batches import Plan
from tutelage.data.preparing import prepare
from tutelage.models.loading import end_ids
from tutelage.plugins import host
from tutelage.recipe import Data


def first_step(model_folder, data, tokens_per_step):
    """Token ids and learnt masks of the first step's examples."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    phase = host().get("phase", "sft", "")()
    prepared = prepare(
        phase,
        Data(train=str(data)),
        data.parent,
        tokenizer,
        max_length=200,
        seed=0,
        host=host(),
        place="data",
        end_ids=end_ids(tokenizer, tokenizer),
    )
    plan = Plan(prepared.train.lengths, tokens_per_step=tokens_per_step, epochs=1.0, max_steps=None, seed=0)
    return [prepared.train[int(index)] for index in plan[1].examples]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", ["auto", False])
def test_first_loss_is_what_transformers_computes(tiny_model, tmp_path, family, packing):
    """Each example alone through the plain model; the mean over all learnt tokens of the step, by hand."""
    data = write_chats(tmp_path / "chats.jsonl")
    folder = tiny_model(family)
    result = tutelage.train(
        recipe(folder, data, max_steps=1, packing=packing, tokens_per_micro_batch=150), out=tmp_path / "run"
    )
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    total, learnt = 0.0, 0
    for example in first_step(folder, data, 512):
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        targets = torch.from_numpy(np.array(example.learn))[1:]
        total -= float(scores[targets].gather(1, ids[0, 1:][targets][:, None]).sum())
        learnt += int(targets.sum())
    assert losses(result.folder)[0] == pytest.approx(total / learnt, abs=1e-5)
    assert events(result.folder, "stage_started")[0]["packed"] is (packing == "auto")


def test_masked_tokens_are_those_of_the_assistant(tiny_model, tmp_path):
    """The learnt tokens of a step, decoded, are the answers and the token that ends each, nothing else."""
    data = write_chats(tmp_path / "chats.jsonl", rows=5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("qwen2"))
    for example in first_step(tiny_model("qwen2"), data, 10_000):
        text = tokenizer.decode(example.ids[np.array(example.learn)])
        assert text.endswith("<|im_end|>")
        assert "user" not in text


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("packing", ["auto", False])
def test_micro_batches_do_not_change_the_losses(tiny_model, tmp_path, family, packing):
    """Once, in four and in as many micro-batches as there are examples: the same losses and gradients."""
    data = write_chats(tmp_path / "chats.jsonl")
    curves = []
    for number, tokens in enumerate((4096, 128, 8)):
        made = recipe(tiny_model(family), data, packing=packing, tokens_per_micro_batch=tokens, adapter="full")
        run = tutelage.train(made, out=tmp_path / f"run{number}").folder
        curves.append(losses(run))
    assert len(curves[0]) > 5
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_two_processes_equal_one(tiny_model, tmp_path, strategy, adapter):
    data = {"train": str(write_chats(tmp_path / "chats.jsonl")), "eval_split": 0.1}
    one = tutelage.train(recipe(tiny_model("llama-untied"), data, adapter=adapter), out=tmp_path / "one")
    made = recipe(tiny_model("llama-untied"), data, adapter=adapter, devices=2, strategy=strategy)
    two = tutelage.train(made, out=tmp_path / "two")
    assert losses(two.folder) == pytest.approx(losses(one.folder), abs=1e-4)
    assert two.stages[0].metrics["eval_loss"] == pytest.approx(one.stages[0].metrics["eval_loss"], abs=1e-4)
    assert events(two.folder, "stage_started")[0]["devices"] == 2


def test_evaluation_is_a_mean_over_held_out_tokens(tiny_model, tmp_path):
    train, held_out = write_chats(tmp_path / "train.jsonl"), write_chats(tmp_path / "eval.jsonl", rows=9, seed=5)
    data = {"train": str(train), "eval": str(held_out)}
    run = tutelage.train(recipe(tiny_model("qwen2"), data, adapter="full", max_steps=2), out=tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(run.artifact).eval()
    total, learnt = 0.0, 0
    for example in first_step(tiny_model("qwen2"), held_out, 10_000):
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(np.array(example.learn)), ids[0], -100)[1:]
        with torch.no_grad():
            total += float(F.cross_entropy(model(input_ids=ids).logits[0, :-1], labels, reduction="sum"))
        learnt += int((labels != -100).sum())
    assert run.stages[0].metrics["eval_loss"] == pytest.approx(total / learnt, abs=1e-4)
