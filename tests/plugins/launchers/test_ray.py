"""Against a real Ray of two nodes."""

from __future__ import annotations

import json
import os
import urllib.request

import pytest
from ray_cluster import TOKEN, ray_cluster
from training import events, losses, recipe, write_chats

import tutelage
from tutelage.config import convert
from tutelage.launcher import Launch, LauncherUnreachable, Resources
from tutelage.testing.launchers import _UNTIL_TOLD, Bench, LauncherContract
from tutelage_plugins.launchers.processes import of_attempt
from tutelage_plugins.launchers.ray import Ray

pytestmark = pytest.mark.slow

cluster = pytest.fixture(scope="module")(ray_cluster)


@pytest.fixture
def made(cluster, tmp_path):
    """A function that makes the launcher."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    return lambda **config: Ray(convert({"address": cluster, "token_file": str(token), **config}, Ray.Config))


class TestContract(LauncherContract):
    patience = 120

    @pytest.fixture
    def launcher(self, made):
        return made()


@pytest.fixture
def bench(made, tmp_path):
    bench = Bench(made(), tmp_path, 240)
    yield bench
    bench.end()


def test_a_cluster_that_wants_a_token_lets_nobody_in_without(made, bench, tmp_path):
    (tmp_path / "wrong").write_text("f" * 32)
    attempt = bench.attempt("pass")
    with pytest.raises(LauncherUnreachable, match="it wants a token"):
        made(token_file="").find(attempt)
    with pytest.raises(LauncherUnreachable, match="it refuses this token"):
        made(token_file=str(tmp_path / "wrong")).launch(attempt)


def test_ray_itself_is_told_no_secret(bench, cluster):
    attempt = bench.attempt(_UNTIL_TOLD, environment={"SECRET": "hidden-word"})
    bench.launcher.launch(attempt)
    bench.began(attempt)
    request = urllib.request.Request(f"{cluster}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    listed = urllib.request.urlopen(request).read().decode()
    assert attempt.name in listed
    assert "hidden-word" not in listed
    assert not (attempt.folder / "environment.json").exists()


def test_stopping_takes_as_long_as_saving_takes(bench):
    """Ray itself would allow three seconds."""
    code = _UNTIL_TOLD.replace("def save(*_):", "def save(*_):\n    time.sleep(6)")
    attempt = bench.attempt(code)
    handle = bench.launcher.launch(attempt)
    bench.began(attempt)
    bench.launcher.stop(handle, attempt)
    assert bench.ended(handle, attempt).exit_code == 143
    assert (bench.job(attempt) / "saved").exists()


def test_a_job_that_waits_for_a_node_can_be_stopped(bench):
    attempt = bench.attempt("open('ran', 'w')", resources=Resources(cpus=64))
    handle = bench.launcher.launch(attempt)
    assert bench.status(handle, attempt).state == "pending"
    bench.launcher.stop(handle, attempt)
    assert bench.ended(handle, attempt).why == "cancelled"
    assert not (bench.job(attempt) / "ran").exists()


def test_what_the_cluster_does_not_have_is_refused_before_a_job_is_accepted(made):
    assert made().problems(Resources(nodes=2, cpus=2)) == []
    assert "no 3 nodes with CPU 1: 2 are up" in made().problems(Resources(nodes=3))[0].wrong
    assert "GPU 1" in made().problems(Resources(gpus=1))[0].wrong
    assert made(autoscaling=True).problems(Resources(gpus=1)) == []


def test_a_cluster_that_does_not_answer_says_nothing_of_its_jobs(made, bench):
    attempt, away = bench.attempt("pass"), made(address="http://127.0.0.1:9")
    for ask in (
        lambda: away.statuses({"x": attempt}),
        lambda: away.launch(attempt),
        lambda: away.find(attempt),
        lambda: away.kill("x", attempt),
        lambda: away.problems(Resources()),
    ):
        with pytest.raises(LauncherUnreachable):
            ask()


def test_a_run_on_two_nodes_learns_as_on_one(bench, tiny_model, tmp_path):
    data = write_chats(tmp_path / "chats.jsonl")
    made = recipe(tiny_model("qwen2"), data, rehearsal=False)
    job = tmp_path / "job"
    folder = job / "attempts" / "1"
    folder.mkdir(parents=True)
    (job / "recipe.yaml").write_text(json.dumps(made))
    (folder / "attempt.json").write_text("{}")
    attempt = Launch(
        name="tutelage-two-nodes-1",
        folder=folder,
        resources=Resources(nodes=2, cpus=1),
        environment={"TUTELAGE_CACHE": os.environ["TUTELAGE_CACHE"]},
    )
    bench.made.append(attempt)
    handle = bench.launcher.launch(attempt)
    found = bench.ended(handle, attempt)
    assert found.exit_code == 0, (folder / "log.txt").read_text()[-3000:]
    assert events(job / "run", "stage_started")[0]["devices"] == 2
    one = tutelage.train(made, out=tmp_path / "one").folder
    assert losses(job / "run") == pytest.approx(losses(one), abs=1e-4)


def test_killing_an_attempt_on_two_nodes_leaves_nothing_on_either(bench):
    nap = "import time, pathlib, os; pathlib.Path(f'began-{os.getpid()}').write_text('x'); time.sleep(600)"
    code = f"import json, os, subprocess, sys; subprocess.run([*json.loads(os.environ['TUTELAGE_SPREAD']), sys.executable, '-c', {nap!r}])"
    attempt = bench.attempt(code, resources=Resources(nodes=2, cpus=1))
    handle = bench.launcher.launch(attempt)
    bench.until(lambda: len(list(bench.job(attempt).glob("began-*"))) == 2)
    assert len(of_attempt(attempt.name)) >= 5
    bench.launcher.kill(handle, attempt)
    bench.until(lambda: not of_attempt(attempt.name))
    assert bench.ended(handle, attempt).why in ("killed", "cancelled")


def test_a_command_that_fails_on_one_of_two_nodes_ends_on_both(bench):
    each = "import os, sys, time; os.mkdir('first') if not os.path.exists('first') else sys.exit(7); time.sleep(600)"
    code = f"import json, os, subprocess, sys; sys.exit(subprocess.run([*json.loads(os.environ['TUTELAGE_SPREAD']), sys.executable, '-c', {each!r}]).returncode)"
    attempt = bench.attempt(code, resources=Resources(nodes=2, cpus=1))
    handle = bench.launcher.launch(attempt)
    assert bench.ended(handle, attempt).exit_code == 7
    bench.until(lambda: not of_attempt(attempt.name))
