"""Against a real Slurm of two nodes."""

from __future__ import annotations

import os
import subprocess

import pytest
from slurm import slurm_cluster

import tutelage
from tutelage.config import convert
from tutelage.launcher import LauncherUnreachable, Resources
from tutelage.runs.attempt import claims, last_outcome
from tutelage.testing.launchers import _UNTIL_TOLD, Bench, LauncherContract
from tutelage_plugins.launchers.slurm import Slurm

pytestmark = pytest.mark.slow

cluster = pytest.fixture(scope="module")(slurm_cluster)


def made(cluster, **config):
    return Slurm(convert({"conf": str(cluster), **config}, Slurm.Config))


class TestContract(LauncherContract):
    patience = 90

    @pytest.fixture
    def launcher(self, cluster):
        return made(cluster)


@pytest.fixture
def bench(cluster, tmp_path):
    bench = Bench(made(cluster), tmp_path, 90)
    yield bench
    bench.end()


def control(cluster, *words):
    environment = {**os.environ, "SLURM_CONF": str(cluster)}
    return subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_job_asks_for_what_the_attempt_asks_for(cluster, bench):
    resources = Resources(nodes=2, cpus=2, memory_gib=0.5, minutes=30)
    attempt = bench.attempt(_UNTIL_TOLD, resources=resources)
    handle = bench.launcher.launch(attempt)
    bench.began(attempt)
    told = control(cluster, "scontrol", "show", "job", handle)
    for expected in ("NumNodes=2", "CPUs/Task=2", "MinMemoryNode=512M", "TimeLimit=00:30:00", "Requeue=1"):
        assert expected in told
    assert f"JobName={attempt.name}" in told
    assert bench.status(handle, attempt).where == "n[1-2]"


def test_what_the_cluster_does_not_have_is_refused_before_a_job_is_accepted(cluster):
    launcher = made(cluster)
    assert launcher.problems(Resources(nodes=2, cpus=2)) == []
    assert "not available" in launcher.problems(Resources(nodes=3))[0].wrong
    assert "gres" in launcher.problems(Resources(gpus=1))[0].wrong
    assert "partition" in made(cluster, partition="none").problems(Resources())[0].wrong


def test_a_job_that_can_never_be_is_refused(cluster, bench):
    launcher = made(cluster, partition="none")
    with pytest.raises(tutelage.TutelageError, match=r"Slurm refuses the job: .*partition") as refused:
        launcher.launch(bench.attempt("pass"))
    assert not isinstance(refused.value, LauncherUnreachable)


def test_a_job_that_waits_says_why_and_is_cancelled_without_ever_running(cluster, bench):
    bench.launcher = made(cluster, extra=["--hold"])
    attempt = bench.attempt("open('ran', 'w')")
    handle = bench.launcher.launch(attempt)
    found = bench.status(handle, attempt)
    assert (found.state, found.detail) == ("pending", "JobHeldUser")
    bench.launcher.stop(handle, attempt)
    assert bench.ended(handle, attempt).why == "cancelled"
    assert not (bench.job(attempt) / "ran").exists()


def test_a_cluster_that_does_not_answer_is_told_apart_from_one_that_refuses(cluster, bench, tmp_path):
    attempt = bench.attempt(_UNTIL_TOLD)
    handle = bench.launcher.launch(attempt)
    bench.began(attempt)
    text = cluster.read_text()
    lines = ["SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in text.splitlines()]
    (tmp_path / "away.conf").write_text("\n".join(lines))
    away = made(tmp_path / "away.conf", seconds=1)
    with pytest.raises(LauncherUnreachable, match="Unable to contact slurm controller"):
        made(tmp_path / "away.conf").statuses({handle: attempt})
    for ask in (
        lambda: away.statuses({handle: attempt}),
        lambda: away.launch(bench.attempt("pass")),
        lambda: away.find(attempt),
        lambda: away.stop(handle, attempt),
        lambda: away.kill(handle, attempt),
        lambda: away.problems(Resources()),
        lambda: made(cluster, seconds=0.001).statuses({handle: attempt}),
    ):
        with pytest.raises(LauncherUnreachable):
            ask()


def test_a_job_that_slurm_starts_again_is_the_same_attempt(cluster, bench):
    """What a preemption or a lost node brings: the same id, another claim, and the new start's outcome."""
    code = "import os, sys, time\nif not int(os.environ.get('SLURM_RESTART_COUNT', 0)):\n    open('began', 'w').write('x'); time.sleep(600)\nsys.exit(5)"
    attempt = bench.attempt(code)
    handle = bench.launcher.launch(attempt)
    bench.began(attempt)
    control(cluster, "scontrol", "requeue", handle)
    bench.until(lambda: bench.status(handle, attempt).state == "pending")
    found = bench.ended(handle, attempt)
    assert (found.why, found.exit_code) == ("exited", 5)
    assert len(claims(attempt.folder)) == 2
    assert bench.launcher.find(attempt) == handle


def test_what_a_former_start_saved_and_said_is_not_the_end(cluster, bench):
    """The run saves when it is preempted, and its outcome lies there while the job waits and runs again."""
    attempt = bench.attempt(_UNTIL_TOLD)
    handle = bench.launcher.launch(attempt)
    bench.began(attempt)
    control(cluster, "scontrol", "requeue", handle)
    bench.until((attempt.folder / "outcome.json").exists)
    assert last_outcome(attempt.folder).exit_code == 143
    seen = set()

    def again() -> bool:
        seen.add(bench.status(handle, attempt).state)
        return len(claims(attempt.folder)) == 2

    bench.until(again)
    assert "ended" not in seen
    assert last_outcome(attempt.folder) is None
    assert bench.status(handle, attempt).state == "running"
    bench.launcher.stop(handle, attempt)
    bench.ended(handle, attempt)
    assert last_outcome(attempt.folder).start == 1


def test_two_jobs_of_one_name_are_one_attempt(cluster, bench):
    """As they are when sbatch's answer was lost and it was not yet seen to have a job."""
    attempt = bench.attempt("open('ran', 'a').write('x'); import time; time.sleep(2)")
    blind = made(cluster)
    blind.find = lambda launch: ""
    first, second = blind.launch(attempt), blind.launch(attempt)
    assert first != second
    found = bench.ended(second, attempt)
    assert found.exit_code == 0
    assert bench.ended(first, attempt).exit_code == 0
    assert (bench.job(attempt) / "ran").read_text() == "x"
