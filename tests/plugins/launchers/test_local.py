from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage.config import convert
from tutelage.launcher import Launch, Resources
from tutelage.runs.attempt import boot_id, claims
from tutelage.testing.launchers import _UNTIL_TOLD, Bench, LauncherContract
from tutelage_plugins.launchers.environment import visible_devices
from tutelage_plugins.launchers.local import Local
from tutelage_plugins.launchers.processes import of_attempt


class TestContract(LauncherContract):
    @pytest.fixture
    def launcher(self):
        return Local()


@pytest.fixture
def bench(tmp_path):
    made = Bench(Local(), tmp_path, 60)
    yield made
    made.end()


WRITE_ENVIRONMENT = "import json, os; json.dump(dict(os.environ), open('environment.json', 'w'))"


def environment_of(bench, **fields):
    attempt = bench.attempt(WRITE_ENVIRONMENT, **fields)
    bench.ended(bench.launcher.launch(attempt), attempt)
    return json.loads((bench.job(attempt) / "environment.json").read_text())


def test_an_attempt_sees_the_gpus_and_cores_that_it_was_given(bench):
    seen = environment_of(bench, devices=[2, 5], resources=Resources(gpus=2, cpus=3))
    assert seen["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert seen["OMP_NUM_THREADS"] == seen["TUTELAGE_CPUS"] == "3"


def test_an_attempt_without_gpus_sees_none(bench):
    assert environment_of(bench)["CUDA_VISIBLE_DEVICES"] == ""


def test_gpus_are_counted_among_those_that_the_server_sees():
    assert visible_devices([1], {"CUDA_VISIBLE_DEVICES": "4,GPU-ab"})["CUDA_VISIBLE_DEVICES"] == "GPU-ab"


def test_an_attempt_is_ended_when_its_processes_together_use_too_much_memory(bench):
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'x = b\"x\" * 200_000_000; input()'], stdin=subprocess.PIPE); import time; time.sleep(60)"
    attempt = bench.attempt(code, resources=Resources(memory_gib=0.15))
    found = bench.ended(bench.launcher.launch(attempt), attempt)
    assert (found.why, found.exit_code) == ("memory-limit", 137)
    assert "0.15 GiB" in found.detail
    assert of_attempt(attempt.name) == []


def test_memory_within_the_limit_is_let_be(bench):
    attempt = bench.attempt("x = b'x' * 50_000_000; import time; time.sleep(1.5)", resources=Resources(memory_gib=0.25))
    assert bench.ended(bench.launcher.launch(attempt), attempt).exit_code == 0


def launch_and_die(folder: Path, attempt: Launch) -> subprocess.CompletedProcess:
    code = (
        "import os, sys, signal; from pathlib import Path; from tutelage.launcher import Launch, Resources\n"
        "from tutelage_plugins.launchers.local import Local\n"
        "Local().launch(Launch(name=sys.argv[1], folder=Path(sys.argv[2]), resources=Resources()))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    return subprocess.run([sys.executable, "-c", code, attempt.name, str(attempt.folder)])


def test_an_attempt_outlives_the_process_that_launched_it(bench, tmp_path):
    attempt = bench.attempt(_UNTIL_TOLD)
    assert launch_and_die(tmp_path, attempt).returncode == -signal.SIGKILL
    bench.began(attempt)
    assert bench.launcher.find(attempt) == attempt.name
    assert bench.status(attempt.name, attempt).state == "running"
    bench.launcher.stop(attempt.name, attempt)
    assert bench.ended(attempt.name, attempt).exit_code == 143


def test_launching_leaves_no_zombie(bench):
    attempts = [bench.attempt("pass") for _ in range(3)]
    for attempt in attempts:
        bench.ended(bench.launcher.launch(attempt), attempt)
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = (int(fields[1]), fields[0])
    assert [pid for pid, (parent, state) in parents.items() if parent == os.getpid() and state == "Z"] == []


@pytest.mark.parametrize("victim", ["attempt", "keeper", "both"])
def test_whoever_of_an_attempts_own_processes_is_killed_nothing_is_left(bench, victim):
    code = (
        "import subprocess, sys, time, pathlib\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "pathlib.Path('began').write_text('x'); time.sleep(600)"
    )
    attempt = bench.attempt(code)
    handle = bench.launcher.launch(attempt)
    bench.began(attempt)
    attempts_own = claims(attempt.folder)[-1].pid
    keeper = int(Path(f"/proc/{attempts_own}/stat").read_text().rpartition(")")[2].split()[1])
    if victim != "attempt":
        os.kill(keeper, signal.SIGKILL)
    if victim != "keeper":
        try:
            os.kill(attempts_own, signal.SIGKILL)
        except ProcessLookupError:
            assert victim == "both"
    found = bench.ended(handle, attempt)
    assert (found.why, found.exit_code) == ("killed", 137)
    bench.until(lambda: of_attempt(attempt.name) == [])


def claim(folder: Path, **fields) -> None:
    made = {"pid": os.getpid(), "started": 1, "host": os.uname().nodename, "boot_id": boot_id(), **fields}
    (folder / "claimed-0.json").write_text(json.dumps(made))


def test_a_process_that_was_given_the_same_number_is_not_taken_for_the_attempt(bench):
    attempt = bench.attempt("pass")
    claim(attempt.folder)
    assert bench.status(attempt.name, attempt).state == "ended"
    bench.launcher.stop(attempt.name, attempt)  # or this test would be stopped


def test_an_attempt_of_before_a_restart_of_the_machine_was_lost_with_it(bench):
    attempt = bench.attempt("pass")
    claim(attempt.folder, boot_id="another")
    assert bench.status(attempt.name, attempt).why == "node-lost"


def test_nothing_is_said_of_another_machines_processes(bench):
    attempt = bench.attempt("pass")
    claim(attempt.folder, boot_id="another", host="elsewhere")
    found = bench.status(attempt.name, attempt)
    assert found.state == "running"
    assert "elsewhere" in found.detail


def test_what_the_machine_lacks_is_refused_before_a_job_is_accepted():
    launcher = Local(convert({"cpus": 2, "gpus": 1, "memory_gib": 8}, Local.Config))
    asked = Resources(nodes=2, gpus=2, cpus=3, memory_gib=9)
    places = [problem.place for problem in launcher.problems(asked)]
    assert places == ["resources.nodes", "resources.gpus", "resources.cpus", "resources.memory_gib"]
    assert launcher.problems(Resources(gpus=1, cpus=2, memory_gib=8)) == []


def test_an_attempt_that_dies_before_it_begins_has_ended_and_says_why(bench, monkeypatch):
    monkeypatch.setattr("tutelage_plugins.launchers.local.FORKING", 0.0)
    attempt = bench.attempt("pass")
    (attempt.folder / "attempt.json").write_text("no order")
    handle = bench.launcher.launch(attempt)
    found = bench.ended(handle, attempt)
    assert "JSON is malformed" in found.detail
    assert not claims(attempt.folder)


def test_an_attempt_that_stalls_in_its_launch_is_given_up_after_a_while(bench):
    attempt = bench.attempt("pass")
    (attempt.folder / "launched").touch()
    assert bench.status(attempt.name, attempt).state == "pending"
    assert bench.launcher.find(attempt) == attempt.name
    os.utime(attempt.folder / "launched", (time.time() - 3600,) * 2)
    assert bench.status(attempt.name, attempt).state == "absent"
    assert bench.launcher.find(attempt) == ""
