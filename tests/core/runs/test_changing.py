"""A run whose recipe is changed keeps the stages before the change."""

from __future__ import annotations

import json

import pytest
from tiny_models import tiny_model  # noqa: F401
from training import events, recipe, write_chats

import tutelage


@pytest.fixture(scope="module")
def chain(tiny_model, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("changing")
    chats = write_chats(folder / "chats.jsonl", rows=20)
    made = recipe(tiny_model("llama-tied"), chats, max_steps=2)
    second = json.loads(json.dumps(made["stages"][0])) | {"name": "again"}
    made["stages"].append(second)
    return tutelage.train(made, out=folder / "run").folder


def test_only_what_comes_after_a_change_is_run_again(chain):
    artifact = chain / "stages/tune/adapter/adapter_model.safetensors"
    before = artifact.stat()
    result = tutelage.resume(chain, overrides=["stages.again.trainer.max_steps=3"])
    assert result.state == "succeeded"
    assert artifact.stat().st_mtime_ns == before.st_mtime_ns
    started = [(event["stage"], event["steps"]) for event in events(chain, "stage_started")]
    assert started == [("tune", 2), ("again", 2), ("again", 3)]
    assert (chain / "stages/.again.before-1/adapter").is_dir()
    again = tutelage.resume(chain)
    assert [event["stage"] for event in events(chain, "stage_started")] == ["tune", "again", "again"]
    assert again.state == "succeeded"


def test_a_wrong_change_leaves_the_run_as_it_was(chain):
    before = (chain / "recipe.yaml").read_text()
    with pytest.raises(tutelage.TutelageError, match="max_step"):
        tutelage.resume(chain, overrides=["stages.again.trainer.max_step=3"])
    assert (chain / "recipe.yaml").read_text() == before


def test_what_can_be_known_to_fail_is_told_before_anything_is_put_aside(chain):
    before = sorted(path.name for path in (chain / "stages").iterdir())
    with pytest.raises(tutelage.TutelageError, match=r"adapter\.rank"):
        tutelage.resume(chain, overrides=["stages.again.adapter.rank=4000"])
    assert sorted(path.name for path in (chain / "stages").iterdir()) == before
