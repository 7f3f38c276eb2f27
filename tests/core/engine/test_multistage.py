"""Recipes of several stages: what each starts from, and going on in the middle."""

from __future__ import annotations

import copy

import pytest
from safetensors.torch import load_file
from training import events, recipe, same, write_chats

import tutelage


def stages(model, data):
    """LoRA, then LoRA on what it made, then every weight of that, and beside them a second branch of the first."""
    made = recipe(model, data, max_steps=3)
    (first,) = made["stages"]
    for name, adapter, start in (("second", "lora", ""), ("third", "full", ""), ("branch", "lora", "stage:tune")):
        stage = copy.deepcopy(first)
        stage.update(name=name, adapter=adapter, model=start)
        made["stages"].append(stage)
    made["tokenizer"] = {"add": ["<new>"]}
    return made


def learnt_by(run, stage):
    folder = run / next(record.artifact for record in tutelage.resume(run).stages if record.name == stage)
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_stages_pass_models_on_and_resume_in_the_middle(tiny_model, tmp_path):
    made = stages(tiny_model("llama-tied"), write_chats(tmp_path / "chats.jsonl", rows=40))
    whole = tutelage.train(made, out=tmp_path / "whole").folder
    first = {event["stage"]: event["loss"] for event in reversed(events(whole, "step"))}
    assert first["second"] < first["tune"]
    assert first["third"] < first["second"]
    assert first["branch"] == pytest.approx(first["second"], abs=1e-6)

    def stop(event):
        if event["event"] == "checkpoint" and event["stage"] == "third":
            raise RuntimeError("the plug was pulled")

    part = tmp_path / "part"
    with pytest.raises(RuntimeError, match="plug"):
        tutelage.train(made, out=part, listener=stop)
    assert [stage.state for stage in tutelage.resume(part).stages] == ["succeeded"] * 4
    assert len(events(part, "step")) == 12
    for stage in ("tune", "second", "third", "branch"):
        assert same(learnt_by(part, stage), learnt_by(whole, stage))


def test_a_later_stage_is_checked_against_the_model_that_it_will_start_from(tiny_model, tmp_path):
    """The first stage has a model of its own; the second's targets are layers of that, not of the recipe's."""
    made = recipe(tiny_model("llama-tied"), write_chats(tmp_path / "chats.jsonl", rows=20), max_steps=1)
    second = copy.deepcopy(made["stages"][0])
    made["stages"][0]["model"] = str(tiny_model("gpt2"))
    second.update(name="second", adapter={"kind": "lora", "targets": ["c_attn"]})
    made["stages"].append(second)
    assert tutelage.check(made).ok
    second["adapter"]["targets"] = ["q_proj"]
    (problem,) = tutelage.check(made).problems
    assert problem.place == "stages.second.adapter.targets"
