"""A model is compiled where the recipe says so, or where that pays; it learns the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from training import events, learnt, losses, recipe, same, write_chats
from transformers import LlamaConfig, LlamaForCausalLM

import tutelage
from tutelage.data.batches import Plan
from tutelage.engine import compiling
from tutelage.engine.compile_costs import Costs, Measured, Subject
from tutelage.engine.compiling import alike, device_name, tokens_left
from tutelage.engine.kernels import Fused, as_the_libraries_compute
from tutelage.engine.kernels.blocks import fuse_blocks
from tutelage.errors import TutelageError
from tutelage.plugins import host
from tutelage.recipe import Trainer, resolve

MANY = {"tokens_per_micro_batch": 8, "tokens_per_step": 2048, "epochs": 1}
"So many micro-batches that one may be tried before the first step."


def train(made, folder, **variables):
    """In a process of its own: the compiler wants setuptools before anything else has imported distutils."""
    beside = folder.with_suffix(".json")
    beside.write_text(json.dumps(made))
    command = [sys.executable, "-c", "from tutelage.cli.main import main; main()", "train", beside, "--out", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def remember_a_gain(cache):
    """As though another model had been compiled here in no time, to much gain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(cache))
        device = device_name(torch.device("cpu")).rpartition(": ")[0] + ": 1"  # as many threads as `train` gives it
        known = Subject(device, str(torch.__version__), "Another", "0")
        Costs().remember(known, Measured(cold=0.0, ratio=0.1))


def notices(run):
    return [event for event in events(run, "notice") if "compil" in event["text"]]


def test_auto_and_both_switches_are_settings(tiny_model, tmp_path):
    data = write_chats(tmp_path / "chats.jsonl")
    for value in ("auto", True, False):
        made = recipe(tiny_model("qwen2"), data, compile=value)
        assert resolve(made, tmp_path, host()).recipe.stages[0].trainer.compile == value
    with pytest.raises(TutelageError, match="compile"):
        resolve(recipe(tiny_model("qwen2"), data, compile="sometimes"), tmp_path, host())


def test_a_short_run_is_not_compiled_and_says_why(tiny_model, tmp_path, monkeypatch):
    """What nothing is known of is assumed to take minutes, and the run seconds: not a bit of it changes."""
    monkeypatch.setattr(compiling, "LARGEST_SHARE", 0.5)  # so short a run would not even be tried
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    data = write_chats(tmp_path / "chats.jsonl", rows=30)
    runs = {}
    for value in ("auto", False):
        made = recipe(tiny_model("llama-tied"), data, compile=value, max_steps=2, tokens_per_micro_batch=32)
        runs[value] = tutelage.train(made, out=tmp_path / str(value)).folder
    (told,) = notices(runs["auto"])
    assert told["text"].startswith("not compiled: it would save about ")
    assert told["compiled"] is False
    assert told["basis"] == "assumed"
    assert 0 < told["saved_seconds"] < told["planned_seconds"] < told["compile_seconds"]
    assert not notices(runs[False])
    assert losses(runs["auto"]) == losses(runs[False])
    assert same(learnt(runs["auto"]), learnt(runs[False]))
    assert told["text"] in (runs["auto"] / "report.md").read_text()


def test_too_little_to_find_out_is_not_tried(tiny_model, tmp_path):
    made = recipe(tiny_model("llama-tied"), write_chats(tmp_path / "chats.jsonl"), compile="auto", max_steps=1)
    (told,) = notices(tutelage.train(made, out=tmp_path / "run").folder)
    assert "too few to gain by it" in told["text"]


def test_a_resumed_run_decides_for_the_steps_that_are_left():
    plan = Plan(np.arange(1, 41), tokens_per_step=90, epochs=2, max_steps=None, seed=0)
    each = [int(plan.lengths[plan[number].examples].sum()) for number in range(1, len(plan) + 1)]
    for done in (0, 1, 11, len(plan)):
        assert tokens_left(plan, done) == sum(each[done:])


def test_what_stood_on_modules_can_be_put_back():
    model = fuse_blocks(llama(2))
    before = {module: vars(module).get("forward") for module in model.modules()}
    taken = as_the_libraries_compute(model)
    assert taken == {module: forward for module, forward in before.items() if isinstance(forward, Fused)}
    assert len(taken) == 7  # two norms and a gate in each of two blocks, and the last norm
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_first_block_whose_input_nothing_learns_from_is_left_out():
    """It would need its own compiled code; of few blocks it is a large share."""
    lora = get_peft_model(llama(10), LoraConfig(r=2, target_modules=["q_proj"]))
    assert len(alike(lora, Trainer())) == 9
    assert len(alike(lora, Trainer(activation_checkpointing=True))) == 10  # its input is given a gradient
    assert len(alike(llama(10), Trainer())) == 10
    few = get_peft_model(llama(3), LoraConfig(r=2, target_modules=["q_proj"]))
    assert len(alike(few, Trainer())) == 3


def llama(layers):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes))


@pytest.mark.slow
def test_a_run_that_gains_is_compiled_and_learns_the_same(tiny_model, tmp_path):
    """Another model of this device is remembered to have gained much for nothing; then this one is known itself."""
    cache = tmp_path / "cache"
    data = write_chats(tmp_path / "chats.jsonl", rows=200)
    made = recipe(tiny_model("llama-tied"), data, **MANY)
    assert train(made, tmp_path / "plain", TUTELAGE_CACHE=str(cache)).returncode == 0
    remember_a_gain(cache)
    made = recipe(tiny_model("llama-tied"), data, compile="auto", **MANY)
    done = train(made, tmp_path / "auto", TUTELAGE_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    before, after = notices(tmp_path / "auto")
    assert before["text"].startswith("compiling: it would save about ")
    assert before["basis"] == "similar"
    assert after["text"].startswith("compiled in ")
    assert after["compile_seconds"] > 0
    assert losses(tmp_path / "auto") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
    kept = json.loads((cache / "compiled" / "measured.json").read_text())
    (own,) = [each for each in kept.values() if each["subject"]["blocks"] == "LlamaDecoderLayer"]
    assert own["cold"] == pytest.approx(after["compile_seconds"], abs=1e-3)
    assert own["ratio"] == pytest.approx(after["ratio"])
    assert any((cache / "compiled" / "inductor" / "fxgraph").iterdir())


@pytest.mark.slow
def test_several_processes_decide_alike_and_say_so_once(tiny_model, tmp_path):
    """Both begin to compile, find no compiler, and go on without."""
    cache = tmp_path / "cache"
    data = write_chats(tmp_path / "chats.jsonl", rows=420)
    remember_a_gain(cache)
    made = recipe(tiny_model("llama-tied"), data, compile="auto", devices=2, **{**MANY, "tokens_per_step": 4096})
    done = train(made, tmp_path / "auto", TUTELAGE_CACHE=str(cache), CXX="/nowhere/g++")
    assert done.returncode == 0, done.stderr
    before, after = notices(tmp_path / "auto")
    assert before["text"].startswith("compiling: it would save about ")
    assert after["text"].startswith("not compiled: it can't be: ")
    made["stages"][0]["trainer"]["compile"] = False
    assert train(made, tmp_path / "plain", TUTELAGE_CACHE=str(cache)).returncode == 0
    assert losses(tmp_path / "auto") == losses(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["auto", True])
def test_a_machine_without_a_compiler(tiny_model, tmp_path, switch):
    """auto goes on without, to the bit; true says what is wrong."""
    cache = tmp_path / "cache"
    data = write_chats(tmp_path / "chats.jsonl", rows=200)
    remember_a_gain(cache)
    made = recipe(tiny_model("llama-tied"), data, compile=switch, **MANY)
    done = train(made, tmp_path / "run", TUTELAGE_CACHE=str(cache), CXX="/nowhere/g++")
    if switch is True:
        assert done.returncode != 0
        assert "stages.tune.trainer.compile: the model can't be compiled: " in done.stderr
        assert "Traceback" not in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "not compiled: it can't be: " in notices(tmp_path / "run")[-1]["text"]
    plain = tutelage.train({**recipe(tiny_model("llama-tied"), data, **MANY)}, out=tmp_path / "plain").folder
    assert losses(tmp_path / "run") == losses(plain)
