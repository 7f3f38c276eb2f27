"""A run that was killed goes on to the very same weights; one that can't says so."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from training import events, in_child, learnt, losses, recipe, same, train_or_resume, write_chats

import tutelage
from tutelage.runs.folder import RunFolder


@pytest.fixture(scope="module")
def reference(tiny_model, tmp_path_factory):
    """A run never killed: its recipe, its weights and losses, and how long it took."""
    folder = tmp_path_factory.mktemp("reference")
    data = {"train": str(write_chats(folder / "chats.jsonl", rows=90)), "eval_split": 0.1}
    adapter = {"kind": "lora", "rank": 4, "dropout": 0.1}
    made = recipe(
        tiny_model("llama-tied"), data, adapter=adapter, epochs=3, checkpoint_every=2, tokens_per_micro_batch=200
    )
    began = time.monotonic()
    child = in_child(train_or_resume, made, str(folder / "run"))
    child.join()
    assert child.exitcode == 0
    return made, learnt(folder / "run"), losses(folder / "run"), time.monotonic() - began


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_instants(reference, tmp_path, seed):
    """Four kills a run, twenty in all, anywhere from its first second to its last."""
    made, weights, curve, seconds = reference
    generator = random.Random(seed)
    run = tmp_path / "run"
    for _ in range(4):
        child = in_child(train_or_resume, made, str(run))
        child.join(timeout=generator.uniform(0.02, 1.0) * seconds)
        child.kill()
        child.join()
    child = in_child(train_or_resume, made, str(run))
    child.join()
    assert child.exitcode == 0
    assert same(learnt(run), weights)
    assert losses(run) == curve
    assert RunFolder.open(run).record.state == "succeeded"


@pytest.mark.parametrize("point", ["half-written", "before-rename", "after-rename", "pruned"])
def test_killed_inside_a_checkpoint(reference, tmp_path, point):
    made, weights, curve, _ = reference
    run = tmp_path / "run"
    child = in_child(train_or_resume, made, str(run), point)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child = in_child(train_or_resume, made, str(run))
    child.join()
    assert child.exitcode == 0
    assert same(learnt(run), weights)
    assert losses(run) == curve


def test_killed_inside_the_rehearsal(tiny_model, tmp_path):
    """What a rehearsal leaves when it is killed hinders no later one."""
    run = tmp_path / "run"
    made = recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl", rows=20), max_steps=2)
    left = run / "stages" / "tune" / "checkpoints" / ".rehearsal"

    def leave(event):
        if event["event"] == "stage_started":
            (left / "artifact").mkdir(parents=True, exist_ok=True)
            (left / "learnt.safetensors").write_bytes(b"half")

    assert tutelage.train(made, out=run, listener=leave).state == "succeeded"
    assert not left.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(reference, tmp_path, number):
    made, weights, curve, _ = reference
    run = tmp_path / "run"
    child = in_child(train_or_resume, made, str(run))
    while not (run / "events.jsonl").is_file() or not events(run, "step"):
        time.sleep(0.01)
    os.kill(child.pid, number)
    child.join()
    stopped = RunFolder.open(run).record
    done = events(run, "step")[-1]["step"]
    if done < len(curve):  # unless it ended before it heard
        assert child.exitcode == 128 + number
        assert stopped.state == "stopped"
        assert signal.Signals(number).name in stopped.reason
        assert events(run, "checkpoint")[-1]["step"] == done
    child = in_child(train_or_resume, made, str(run))
    child.join()
    assert child.exitcode == 0
    assert same(learnt(run), weights)
    assert losses(run) == curve


def test_resume_at_the_edge_of_an_epoch(tiny_model, tmp_path):
    """Killed right after an epoch's last checkpoint: the next epoch is neither skipped nor done twice."""
    data = write_chats(tmp_path / "chats.jsonl", rows=40)
    made = recipe(tiny_model("qwen2"), data, epochs=2, checkpoint_every=1)
    whole = tutelage.train(made, out=tmp_path / "whole").folder
    edge = next(event["step"] for event in events(whole, "step") if event["epoch"] == 1.0)
    part = tmp_path / "part"

    class Stop(Exception):
        pass

    def stop_after_checkpoint(event):
        if event["event"] == "checkpoint" and event["step"] == edge:
            raise Stop

    with pytest.raises(Stop):
        tutelage.train(made, out=part, listener=stop_after_checkpoint)
    assert len(losses(part)) == edge
    tutelage.resume(part)
    assert losses(part) == losses(whole)
    assert same(learnt(part), learnt(whole))


def test_a_finished_run_is_not_run_again(tiny_model, tmp_path):
    made = recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl", rows=20), max_steps=2)
    run = tutelage.train(made, out=tmp_path / "run").folder
    again = tutelage.resume(run)
    assert again.state == "succeeded"
    assert len(events(run, "step")) == 2


def test_changed_data_is_refused_unless_allowed(tiny_model, tmp_path):
    chats = write_chats(tmp_path / "chats.jsonl", rows=40)
    run = _interrupted(tiny_model, chats, tmp_path)
    write_chats(chats, rows=40, seed=9)
    with pytest.raises(tutelage.TutelageError, match=r"changed since this run began.*--allow-changes"):
        tutelage.resume(run)
    assert tutelage.resume(run, allow_changes=True).state == "succeeded"
    assert any("changed data" in event["text"] for event in events(run, "notice"))


def test_changed_versions_are_refused_unless_allowed(tiny_model, tmp_path):
    run = _interrupted(tiny_model, write_chats(tmp_path / "chats.jsonl", rows=40), tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["versions"]["torch"] = "1.0.0"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(tutelage.TutelageError, match=r"torch was 1\.0\.0 and is"):
        tutelage.resume(run)
    assert tutelage.resume(run, allow_changes=True).state == "succeeded"


def test_two_processes_never_write_one_run(tiny_model, tmp_path):
    run = _interrupted(tiny_model, write_chats(tmp_path / "chats.jsonl", rows=40), tmp_path)
    with RunFolder.open(run).lock(), pytest.raises(tutelage.TutelageError, match=f"written by process {os.getpid()}"):
        tutelage.resume(run)


def _interrupted(tiny_model, chats, folder):
    """A run that stopped after its third step."""

    def stop(event):
        if event["event"] == "checkpoint":
            raise RuntimeError("the plug was pulled")

    with pytest.raises(RuntimeError, match="plug"):
        tutelage.train(recipe(tiny_model("qwen2"), chats), out=folder / "run", listener=stop)
    return folder / "run"
