"""What goes wrong while training is met, said and, where it can be, mended."""

from __future__ import annotations

import time

import pytest
import torch
from training import events, in_child, learnt, losses, recipe, same, train_or_resume, write_chats
from transformers import AutoModelForCausalLM

import tutelage
from tutelage.plugins import host


@pytest.fixture
def phase(monkeypatch):
    """Registers a phase for one test: SFT with something of the test's own before its loss."""

    def register(before):
        sft = host().get("phase", "sft", "")

        class Odd(sft):
            name = "odd"

            def loss(self, model, batch):
                return before(super().loss(model, batch), batch)

        monkeypatch.setitem(host().classes("phase"), "odd", Odd)

    return register


ODD_PHASES = """
import os, time, tutelage
from tutelage.plugins import hookimpl
from tutelage_plugins.phases.sft import SFT

class MemoryHog(SFT):
    name = "memory-hog"
    class Config(tutelage.Config):
        most: int
    def loss(self, model, batch):
        if os.environ.get("RANK") == "1" and batch.ids.numel() > self.config.most:
            raise RuntimeError("CUDA out of memory")
        return super().loss(model, batch)

class Sleeper(SFT):
    name = "sleeper"
    calls = 0
    def loss(self, model, batch):
        self.calls += 1
        if os.environ.get("RANK") == "1" and self.calls == 2:
            time.sleep(1000)
        return super().loss(model, batch)

@hookimpl
def register_phases(register):
    register(MemoryHog)
    register(Sleeper)
"""


@pytest.fixture
def odd_phases(tmp_path, monkeypatch):
    """Installs a third party's phases, so that other processes find them too."""
    site = tmp_path / "site"
    (site / "odd_phases-1.dist-info").mkdir(parents=True)
    (site / "odd_phases-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-phases\nVersion: 1\n")
    (site / "odd_phases-1.dist-info" / "entry_points.txt").write_text("[tutelage]\nodd = odd_phases\n")
    (site / "odd_phases.py").write_text(ODD_PHASES)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    host.cache_clear()
    yield
    host.cache_clear()


def odd(made):
    made["stages"][0]["phase"] = "odd"
    return made


def test_out_of_memory_halves_the_micro_batch_to_the_same_result(tiny_model, tmp_path, phase):
    data = write_chats(tmp_path / "chats.jsonl")
    made = recipe(tiny_model("llama-tied"), data, tokens_per_micro_batch=512, rehearsal=False)
    whole = tutelage.train(made, out=tmp_path / "whole").folder

    def out_of_memory(loss, batch):
        if batch.ids.numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return loss

    phase(out_of_memory)
    run = tutelage.train(odd(made), out=tmp_path / "run").folder
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    told = [event["text"] for event in events(run, "notice")]
    assert any("out of memory: micro-batches now have" in text for text in told)


def test_a_single_example_that_does_not_fit_is_said(tiny_model, tmp_path, phase):
    def out_of_memory(loss, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    phase(out_of_memory)
    made = odd(recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl", rows=8)))
    with pytest.raises(tutelage.RunFailed, match="memory does not suffice for a single example"):
        tutelage.train(made, out=tmp_path / "run")


def test_out_of_memory_on_one_of_two_processes(tiny_model, tmp_path, odd_phases):
    """The run goes on from its checkpoint with half the micro-batch, to the losses it would have had."""
    data = write_chats(tmp_path / "chats.jsonl")
    made = recipe(tiny_model("llama-tied"), data, tokens_per_micro_batch=256, max_steps=4)
    whole = tutelage.train(made, out=tmp_path / "whole").folder
    made["stages"][0]["trainer"]["devices"] = 2
    made["stages"][0]["phase"] = {"kind": "memory-hog", "most": 150}
    run = tutelage.train(made, out=tmp_path / "run").folder
    assert losses(run) == pytest.approx(losses(whole), abs=1e-4)
    assert any("micro-batches now have 128 tokens" in event["text"] for event in events(run, "notice"))


def test_nan_names_the_step_and_its_rows(tiny_model, tmp_path, phase):
    calls = {"count": 0}

    def nan_later(loss, batch):
        calls["count"] += 1
        return loss * float("nan") if calls["count"] > 3 else loss

    phase(nan_later)
    data = write_chats(tmp_path / "chats.jsonl")
    with pytest.raises(tutelage.RunFailed, match=r"step 2: the loss of these rows is nan: .*chats\.jsonl line \d+"):
        tutelage.train(
            odd(recipe(tiny_model("qwen2"), data, rehearsal=False, tokens_per_micro_batch=200)), out=tmp_path / "run"
        )
    assert events(tmp_path / "run", "run_finished")[-1]["state"] == "failed"


def test_a_diverging_gradient_stops(tiny_model, tmp_path, phase):
    phase(lambda loss, batch: loss * 1e38)
    with pytest.raises(tutelage.RunFailed, match=r"step 1: the (gradient's norm|loss)"):
        tutelage.train(
            odd(recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl"), rehearsal=False)),
            out=tmp_path / "run",
        )


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_rehearsal_leaves_no_trace(tiny_model, tmp_path, adapter):
    data = {"train": str(write_chats(tmp_path / "chats.jsonl", rows=300)), "eval_split": 0.1}
    made = recipe(tiny_model("llama-tied"), data, adapter=adapter, epochs=2)
    with_it = tutelage.train(made, out=tmp_path / "with").folder
    made["stages"][0]["trainer"]["rehearsal"] = False
    without = tutelage.train(made, out=tmp_path / "without").folder
    (told,) = events(with_it, "rehearsal")
    assert told["steps"] == 2
    assert told["tokens"] <= 0.03 * events(with_it, "stage_started")[0]["tokens"]
    assert not events(without, "rehearsal")
    assert losses(with_it) == losses(without)
    assert same(learnt(with_it), learnt(without))


def test_the_rehearsal_shrinks_with_the_work(tiny_model, tmp_path):
    made = recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl", rows=10), max_steps=1)
    (told,) = events(tutelage.train(made, out=tmp_path / "run").folder, "rehearsal")
    assert told["steps"] == 0


def test_patience_stops_early_and_keeps_the_best(tiny_model, tmp_path):
    """With a learning rate that ruins the model, the kept weights are those of the best evaluation."""
    train, held_out = write_chats(tmp_path / "train.jsonl"), write_chats(tmp_path / "eval.jsonl", rows=12, seed=3)
    made = recipe(
        tiny_model("qwen2"),
        {"train": str(train), "eval": str(held_out)},
        adapter="full",
        learning_rate=0.3,
        epochs=8,
        eval_every=1,
        patience=2,
        schedule="constant",
    )
    run = tutelage.train(made, out=tmp_path / "run")
    evaluations = [event["eval_loss"] for event in events(run.folder, "eval")]
    assert len(evaluations) < events(run.folder, "stage_started")[0]["steps"]
    assert run.stages[0].metrics["eval_loss"] == min(evaluations)
    best = evaluations.index(min(evaluations))
    assert len(evaluations) - 1 - best == 2
    assert any("stopped early" in event["text"] for event in events(run.folder, "notice"))


def test_a_stalled_rank_is_named_with_its_stack(tiny_model, tmp_path, monkeypatch, odd_phases):
    monkeypatch.setenv("TUTELAGE_STALL_SECONDS", "4")
    data = write_chats(tmp_path / "chats.jsonl")
    made = recipe(
        tiny_model("qwen2"), data, max_steps=3, devices=2, rehearsal=False, tokens_per_micro_batch=1024
    )  # one micro-batch a step
    made["stages"][0]["phase"] = "sleeper"
    run = tmp_path / "run"
    child = in_child(train_or_resume, made, str(run), method="spawn")
    until = time.monotonic() + 120
    stalled: dict = {}
    while time.monotonic() < until and stalled.get("step") != 2:
        time.sleep(0.2)
        if (run / "events.jsonl").is_file():
            stalled = next(iter(events(run, "stalled")[-1:]), {})
    child.kill()
    child.join()
    assert (stalled["rank"], stalled["step"]) == (1, 2)
    assert "in loss" in stalled["stack"]
    assert {event["rank"] for event in events(run, "stalled")} == {1}  # the other only waits


def test_frozen_weights_are_bf16_and_learnt_ones_float32(tiny_model, tmp_path):
    """In bf16 the base is held in bfloat16; what is learnt is kept, and saved, in float32."""
    made = recipe(
        tiny_model("llama-tied"), write_chats(tmp_path / "chats.jsonl", rows=20), max_steps=2, precision="bf16"
    )
    run = tutelage.train(made, out=tmp_path / "run").folder
    assert {tensor.dtype for tensor in learnt(run).values()} == {torch.float32}
    for save, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        made["stages"][0]["adapter"] = {"kind": "full", "save": save}
        full = tutelage.train(made, out=tmp_path / save)
        assert AutoModelForCausalLM.from_pretrained(full.artifact).dtype == dtype
