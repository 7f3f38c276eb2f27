"""A run on two nodes of a real Slurm: killed, requeued, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from slurm import slurm_cluster
from training import events, learnt, losses, recipe, same, write_chats

import tutelage
from tutelage.launcher import Launch, Resources
from tutelage.testing.launchers import Bench
from tutelage_plugins.launchers.processes import of_attempt
from tutelage_plugins.launchers.slurm import Slurm

pytestmark = pytest.mark.slow

cluster = pytest.fixture(scope="module")(slurm_cluster)

BOTH = Resources(nodes=2, cpus=1, minutes=60)


@pytest.fixture
def bench(cluster, tmp_path):
    bench = Bench(Slurm(Slurm.Config(conf=str(cluster))), tmp_path, 400)
    yield bench
    bench.end()


@pytest.fixture
def attempt(bench, tiny_model, tmp_path):
    """A function that makes an attempt, on both nodes, at a recipe of 20 to 30 steps."""
    data = write_chats(tmp_path / "chats.jsonl")
    made = recipe(tiny_model("qwen2"), data, rehearsal=False, tokens_per_step=128, checkpoint_every=4)

    def make(name: str) -> Launch:
        job = bench.folder / name
        folder = job / "attempts" / "1"
        folder.mkdir(parents=True)
        (job / "recipe.yaml").write_text(json.dumps(made))
        (folder / "attempt.json").write_text(json.dumps({"recipe": "../../recipe.yaml", "run": "../../run"}))
        environment = {"TUTELAGE_CACHE": os.environ["TUTELAGE_CACHE"]}
        launch = Launch(name=f"tutelage-{name}-1", folder=folder, resources=BOTH, environment=environment)
        bench.made.append(launch)
        return launch

    return make


def run_of(bench, attempt):
    return bench.job(attempt) / "run"


def has_saved(bench, attempt, checkpoints):
    run = run_of(bench, attempt)
    return (run / "events.jsonl").exists() and len(events(run, "checkpoint")) >= checkpoints


def test_a_run_on_two_nodes_that_is_killed_and_requeued_ends_as_if_nothing_had_been(cluster, bench, attempt, tmp_path):
    whole = attempt("whole")
    handle = bench.launcher.launch(whole)
    assert bench.ended(handle, whole).exit_code == 0, (whole.folder / "log.txt").read_text()[-3000:]
    assert events(run_of(bench, whole), "stage_started")[0]["devices"] == 2

    killed = attempt("killed")
    handle = bench.launcher.launch(killed)
    bench.until(lambda: has_saved(bench, killed, 2))
    for pid in of_attempt(killed.name):
        os.kill(pid, signal.SIGKILL)
    assert bench.ended(handle, killed).exit_code != 0
    assert json.loads((run_of(bench, killed) / "run.json").read_text())["state"] == "running"  # nobody could say more

    environment = {**os.environ, "SLURM_CONF": str(cluster)}
    subprocess.run(["scontrol", "requeue", handle], env=environment, check=True)
    bench.until(lambda: bench.status(handle, killed).state != "ended")
    found = bench.ended(handle, killed)
    assert (found.why, found.exit_code) == ("exited", 0), (killed.folder / "log.txt").read_text()[-3000:]
    assert events(run_of(bench, killed), "stage_started")[-1]["resumed_from"] >= 8
    assert losses(run_of(bench, killed)) == losses(run_of(bench, whole))
    assert same(learnt(run_of(bench, killed)), learnt(run_of(bench, whole)))

    alone = json.loads((bench.job(whole) / "recipe.yaml").read_text())
    one = tutelage.train(alone, out=tmp_path / "one").folder
    assert losses(run_of(bench, whole)) == pytest.approx(losses(one), abs=1e-4)


def test_a_run_on_two_nodes_that_is_stopped_saves_first(bench, attempt):
    stopped = attempt("stopped")
    handle = bench.launcher.launch(stopped)
    bench.until(lambda: has_saved(bench, stopped, 1))
    bench.launcher.stop(handle, stopped)
    found = bench.ended(handle, stopped)
    assert found.exit_code == 143
    run = run_of(bench, stopped)
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"
    assert events(run, "checkpoint")[-1]["step"] == len(losses(run))
    assert of_attempt(stopped.name) == []
