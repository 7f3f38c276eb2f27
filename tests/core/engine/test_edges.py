"""A run at its edges: its last instants, very long rows, full disks, trackers that fail, windows of attention."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from training import events, in_child, learnt, losses, recipe, same, train_or_resume, write_chats
from transformers import AutoModelForCausalLM, Llama4TextConfig, MistralConfig, PhimoeConfig

import tutelage
from tutelage.data.batches import Plan, collate
from tutelage.data.rendering import Tokens
from tutelage.engine.attention import _Probe, choose_packed_attention
from tutelage.engine.forward import learnt_logits
from tutelage.engine.heartbeat import EVALUATION, Heartbeat, Watch
from tutelage.plugins import host
from tutelage.runs.folder import RunFolder


class Pulled(Exception):
    """The plug was."""


def pull_at(kind, step, event):
    if event["event"] == kind and event.get("step") == step:
        raise Pulled


def pulled(made, run, kind, step):
    with pytest.raises(Pulled):
        tutelage.train(made, out=run, listener=partial(pull_at, kind, step))
    return tutelage.resume(run)


@pytest.fixture
def chats(tmp_path):
    return {"train": str(write_chats(tmp_path / "chats.jsonl", rows=40)), "eval_split": 0.1}


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_killed_after_the_last_checkpoint(tiny_model, tmp_path, chats, adapter):
    """Only saving remains, and what is saved is what was trained, with the metrics of its steps."""
    made = recipe(tiny_model("qwen2"), chats, adapter=adapter, max_steps=3)
    whole = tutelage.train(made, out=tmp_path / "whole")
    part = pulled(made, tmp_path / "part", "checkpoint", 3)
    assert same(learnt(part.folder), learnt(whole.folder))
    assert part.stages[0].metrics == whole.stages[0].metrics
    assert len(events(part.folder, "step")) == 3


def test_killed_after_stopping_early(tiny_model, tmp_path, chats):
    """Kept are the weights of the best evaluation, with the metrics that they had then; no step follows."""
    ruinous = {"learning_rate": 0.3, "schedule": "constant", "eval_every": 1, "patience": 2, "epochs": 8}
    made = recipe(tiny_model("qwen2"), chats, adapter="full", **ruinous)
    whole = tutelage.train(made, out=tmp_path / "whole")
    told = whole.stages[0].metrics
    best = min(events(whole.folder, "eval"), key=lambda event: event["eval_loss"])
    assert told["eval_loss"] == best["eval_loss"]
    assert told["eval_perplexity"] == pytest.approx(math.exp(best["eval_loss"]))
    assert told["loss"] == losses(whole.folder)[best["step"] - 1]
    last = len(losses(whole.folder))
    part = pulled(made, tmp_path / "part", "checkpoint", last)
    assert same(learnt(part.folder), learnt(whole.folder))
    assert part.stages[0].metrics == told
    assert len(events(part.folder, "step")) == last


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_resume_after_an_evaluation(tiny_model, tmp_path, chats, strategy):
    """A checkpoint written right after an evaluation holds the moments of every weight, sharded or not."""
    made = recipe(
        tiny_model("llama-untied"),
        chats,
        adapter="full",
        devices=2,
        strategy=strategy,
        max_steps=6,
        eval_every=1,
        checkpoint_every=1,
    )
    whole = tutelage.train(made, out=tmp_path / "whole").folder
    checkpoint = whole / "stages" / "tune" / "checkpoints" / "step-00000006"
    names = set(load_file(checkpoint / "learnt.safetensors"))
    assert set(load_file(checkpoint / "optimizer.safetensors")) == {
        f"{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in names
    }
    run = tmp_path / "run"
    child = in_child(train_or_resume, made, str(run))
    while not (run / "events.jsonl").is_file() or not events(run, "checkpoint"):
        time.sleep(0.01)
    child.kill()
    child.join()
    assert tutelage.resume(run).state == "succeeded"
    assert losses(run) == pytest.approx(losses(whole), abs=1e-6)


@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=40),
    st.integers(8, 100),
    st.one_of(st.tuples(st.none(), st.integers(1, 30)), st.tuples(st.floats(0.01, 4), st.none())),
)
@settings(deadline=None, max_examples=60)
def test_a_plan_counts_the_tokens_of_its_own_steps(lengths, tokens_per_step, limits):
    epochs, max_steps = limits
    sizes = np.array(lengths, dtype=np.int64)
    plan = Plan(sizes, tokens_per_step=tokens_per_step, epochs=epochs, max_steps=max_steps, seed=1)
    steps = list(plan.iterate(0))
    assert len(steps) == len(plan) == (max_steps or len(plan))
    assert all(len(step.examples) for step in steps)
    assert plan.tokens == sum(int(sizes[step.examples].sum()) for step in steps)
    assert max(plan.epoch_ends()) == len(plan)


def test_rows_longer_than_a_step_are_rehearsed(tiny_model, tmp_path):
    data = {"train": str(write_chats(tmp_path / "chats.jsonl", rows=400)), "eval_split": 0.1}
    made = recipe(tiny_model("qwen2"), data, tokens_per_step=8, tokens_per_micro_batch=8, epochs=1)
    run = tmp_path / "run"
    with pytest.raises(Pulled):
        tutelage.train(made, out=run, listener=partial(pull_at, "rehearsal", None))
    (told,) = events(run, "rehearsal")
    planned = events(run, "stage_started")[0]["tokens"]
    assert told["steps"] == 2
    assert told["evaluated_tokens"] > 8
    assert told["tokens"] + told["evaluated_tokens"] / 3 <= 0.03 * planned


def test_every_forward_has_the_stage_s_precision(tiny_model, tmp_path, monkeypatch):
    """Rehearsal and evaluation too: else they would measure, and judge, what is not trained."""
    seen = []
    sft = host().get("phase", "sft", "")

    class Seeing(sft):
        name = "seeing"

        def loss(self, model, batch):
            seen.append((torch.is_autocast_enabled("cpu"), model.training))
            return super().loss(model, batch)

    monkeypatch.setitem(host().classes("phase"), "seeing", Seeing)
    data = {"train": str(write_chats(tmp_path / "chats.jsonl", rows=300)), "eval_split": 0.1}
    made = recipe(tiny_model("llama-tied"), data, adapter="full", epochs=1, precision="bf16")
    made["stages"][0]["phase"] = "seeing"
    run = tutelage.train(made, out=tmp_path / "run").folder
    assert events(run, "rehearsal")[0]["steps"]
    assert set(seen) == {(True, True), (True, False)}


def test_weights_that_learn_start_unrounded(tiny_model, tmp_path, chats):
    folder = tiny_model("llama-tied")
    made = recipe(folder, chats, adapter="full", precision="bf16", max_steps=1, learning_rate=1e-6, weight_decay=0)
    run = tutelage.train(made, out=tmp_path / "run").folder
    before = load_file(folder / "model.safetensors")
    after = load_file(run / "stages" / "tune" / "checkpoints" / "step-00000001" / "learnt.safetensors")
    assert all(torch.allclose(tensor, before[name], rtol=0, atol=1e-5) for name, tensor in after.items())


def test_a_full_disk_is_said_and_resumed_from(tiny_model, tmp_path, chats):
    """Files can't grow beyond 64 KiB from the third step on, so its checkpoint can't be written."""
    made = recipe(tiny_model("qwen2"), chats, adapter="full", max_steps=6, checkpoint_every=2)
    whole = tutelage.train(made, out=tmp_path / "whole").folder
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event):
        if event["event"] == "step" and event["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))

    run = tmp_path / "run"
    try:
        with pytest.raises(tutelage.RunFailed, match="a checkpoint can't be written"):
            tutelage.train(made, out=run, listener=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tutelage.resume(run).state == "succeeded"
    assert same(learnt(run), learnt(whole))
    assert not list((run / "stages" / "tune" / "checkpoints").glob(".step*"))


def test_trackers_are_told_how_it_ended_and_cost_no_run(tiny_model, tmp_path, chats, monkeypatch):
    told = []

    class Faithful(tutelage.Tracker):
        name = "faithful"

        def start(self, folder, name, settings, resumed_from):
            told.append(("start", resumed_from))

        def log(self, step, metrics):
            told.append(("log", step))

        def finish(self, state):
            told.append(("finish", state))

    class Offline(Faithful):
        name = "offline"

        def log(self, step, metrics):
            raise ConnectionError("no route to host")

    for tracker in (Faithful, Offline):
        monkeypatch.setitem(host().classes("tracker"), tracker.name, tracker)
    made = {**recipe(tiny_model("qwen2"), {"train": chats["train"]}, max_steps=3), "trackers": ["faithful", "offline"]}
    made["stages"][0]["trainer"]["checkpoint_every"] = 1
    run = tmp_path / "run"
    pulled(made, run, "checkpoint", 1)
    assert [item for item in told if item[0] == "start"] == [("start", 0), ("start", 0), ("start", 1), ("start", 1)]
    assert [item for item in told if item[0] == "finish"] == [("finish", "failed"), ("finish", "succeeded")]
    assert [item for item in told if item[0] == "log"] == [("log", 1), ("log", 2), ("log", 3)]
    assert any("offline failed" in event["text"] for event in events(run, "notice"))

    def interrupt(event):
        if event["event"] == "step" and event["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(tutelage.RunStopped):
        tutelage.train(made, out=tmp_path / "stopped", listener=interrupt)
    assert told[-1] == ("finish", "stopped")


def test_a_second_interrupt_ends_the_run_at_once(tiny_model, tmp_path, chats):
    def interrupt(event):
        if event["event"] == "step" and event["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tutelage.train(recipe(tiny_model("qwen2"), chats), out=tmp_path / "run", listener=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert RunFolder.open(tmp_path / "run").record.state == "stopped"


def test_an_interrupt_while_two_processes_still_load(tiny_model, tmp_path, chats):
    run = tmp_path / "run"
    child = in_child(train_or_resume, recipe(tiny_model("qwen2"), chats, devices=2), str(run))
    while not (run / "stages" / "tune" / "processes.log").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGINT)
    child.join()
    assert child.exitcode == 128 + signal.SIGINT
    assert RunFolder.open(run).record.state == "stopped"


def test_who_stalls_in_an_evaluation(tmp_path, monkeypatch):
    """The one that is least far, though it is further than those still in the step; what rests does not stall."""
    monkeypatch.setenv("TUTELAGE_STALL_SECONDS", "0.02")
    first, second = Heartbeat(tmp_path, 0), Heartbeat(tmp_path, 1)
    stalled = []
    watch = Watch(tmp_path, lambda event, **fields: stalled.append((event, fields["rank"])))
    try:
        first.beat(3, EVALUATION + 5)
        second.beat(3, EVALUATION + 1)
        time.sleep(0.05)
        watch.look()
        assert stalled == [("stalled", 1)]
        first.beat(4, EVALUATION)
        second.beat(4, 2)
        time.sleep(0.5)  # more than three times the slowest so far
        watch.look()
        assert stalled[1:] == [("stalled", 1)]
        first.rest()
        second.rest()
        time.sleep(0.05)
        watch.look()
        assert len(stalled) == 2
    finally:
        first.stop()
        second.stop()


def test_a_killed_process_s_last_sign_of_life_is_no_stall(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_STALL_SECONDS", "0.02")
    dead = {"rank": 0, "pid": 1, "step": 9, "micro_batch": 0, "time": time.time() - 1000, "allowed": 45.0}
    (tmp_path / "rank-0.json").write_text(json.dumps(dead))
    stalled = []
    with Watch(tmp_path, lambda *_, **fields: stalled.append(fields)) as watch:
        watch.look()
    assert not stalled


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MistralConfig(**SHAPE, sliding_window=16), id="window told to attention"),
        pytest.param(PhimoeConfig(**SHAPE, sliding_window=16, num_local_experts=2), id="window in the mask alone"),
        pytest.param(
            Llama4TextConfig(
                **SHAPE, attention_chunk_size=16, head_dim=8, intermediate_size_mlp=32, num_local_experts=2
            ),
            id="chunks in the mask alone",
        ),
    ],
)
def test_packed_examples_longer_than_a_window(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    alone = model.config._attn_implementation
    assert choose_packed_attention(model, 120)
    generator = torch.Generator().manual_seed(3)
    examples = [
        Tokens(torch.randint(0, 120, (length,), generator=generator).int().numpy(), np.ones(length, dtype=bool))
        for length in (40, 60)
    ]
    rows = _Probe(examples)
    with torch.no_grad():
        packed = learnt_logits(model, collate(rows, range(2), packed=True, filler=0))[0]
        model.set_attn_implementation(alone)
        each = [learnt_logits(model, collate(rows, [row], packed=False, filler=0))[0] for row in range(2)]
    assert torch.allclose(packed, torch.cat(each), atol=1e-4)
