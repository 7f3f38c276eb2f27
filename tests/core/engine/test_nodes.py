"""Training on several machines: here two launchers of processes on one host, which meet as those of two would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training import events, learnt, losses, recipe, same, write_chats

import tutelage
from tutelage.engine.devices import Devices, choose_devices
from tutelage.recipe import Trainer

SPREAD = json.dumps([sys.executable, str(Path(__file__).parents[2] / "support" / "two_nodes.py")])


@pytest.fixture
def two_nodes(monkeypatch):
    monkeypatch.setenv("TUTELAGE_NODES", "2")
    monkeypatch.setenv("TUTELAGE_SPREAD", SPREAD)


@pytest.mark.parametrize(
    ("strategy", "adapter"), [("ddp", "lora"), pytest.param("fsdp", "full", marks=pytest.mark.slow)]
)
def test_two_nodes_equal_one(tiny_model, tmp_path, monkeypatch, strategy, adapter):
    data = {"train": str(write_chats(tmp_path / "chats.jsonl")), "eval_split": 0.1}
    one = tutelage.train(recipe(tiny_model("llama-untied"), data, adapter=adapter), out=tmp_path / "one")
    monkeypatch.setenv("TUTELAGE_NODES", "2")
    monkeypatch.setenv("TUTELAGE_SPREAD", SPREAD)
    made = recipe(tiny_model("llama-untied"), data, adapter=adapter, strategy=strategy)
    two = tutelage.train(made, out=tmp_path / "two")
    assert losses(two.folder) == pytest.approx(losses(one.folder), abs=1e-4)
    assert two.stages[0].metrics["eval_loss"] == pytest.approx(one.stages[0].metrics["eval_loss"], abs=1e-4)
    assert events(two.folder, "stage_started")[0]["devices"] == 2
    assert len(losses(two.folder)) == len(events(two.folder, "step"))


def test_nodes_times_devices_are_the_processes_that_share_a_step(two_nodes):
    chosen = choose_devices(Trainer(devices=2, accelerator="cpu"), "trainer")
    assert (chosen.nodes, chosen.count, chosen.world, chosen.strategy) == (2, 2, 4, "ddp")
    assert choose_devices(Trainer(devices=1, accelerator="cpu", strategy="fsdp"), "trainer").strategy == "fsdp"
    assert Devices("cpu", 1, "single", "fp32").world == 1


def test_a_launcher_that_says_not_how_to_reach_the_nodes_is_told(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_NODES", "2")
    monkeypatch.setenv("TUTELAGE_SPREAD", "srun --nodes=2")
    made = recipe(tiny_model("qwen2"), write_chats(tmp_path / "chats.jsonl"))
    with pytest.raises(tutelage.TutelageError, match="TUTELAGE_SPREAD is not a JSON list of words"):
        tutelage.train(made, out=tmp_path / "run")


@pytest.mark.slow
def test_two_nodes_that_are_stopped_save_and_go_on_to_the_same_weights(tiny_model, tmp_path):
    data = write_chats(tmp_path / "chats.jsonl")
    made = recipe(tiny_model("qwen2"), data, rehearsal=False, tokens_per_step=128, epochs=10, checkpoint_every=1000)
    (tmp_path / "recipe.json").write_text(json.dumps(made))
    environment = {
        **os.environ,
        "TUTELAGE_NODES": "2",
        "TUTELAGE_SPREAD": SPREAD,
        "TUTELAGE_HOST": socket.gethostname(),
    }
    command = [sys.executable, "-m", "tutelage"]
    whole = [*command, "train", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "whole"), "--json"]
    assert subprocess.run(whole, env=environment, capture_output=True).returncode == 0

    run = tmp_path / "run"
    process = subprocess.Popen([*whole[:-2], str(run), "--json"], env=environment, stdout=subprocess.DEVNULL)
    while not (run / "events.jsonl").exists() or len(events(run, "step")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    saved = events(run, "checkpoint")
    assert len(saved) == 1
    assert saved[0]["step"] < len(losses(tmp_path / "whole"))
    resumed = subprocess.run([*command, "resume", str(run), "--json"], env=environment, capture_output=True)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(run) == losses(tmp_path / "whole")
    assert same(learnt(run), learnt(tmp_path / "whole"))
