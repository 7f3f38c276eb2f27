"""The attempt command, run as launchers run it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage.runs.attempt import Claim, claims, close, is_alive, last_outcome, last_start, started_at

SH = ["/bin/sh", "-c"]


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "attempts" / "1"
    folder.mkdir(parents=True)
    return folder


def order(folder: Path, script: str = "", **fields) -> None:
    (folder / "attempt.json").write_text(json.dumps({"command": [*SH, script] if script else None, **fields}))


def start(folder: Path, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tutelage.runs.attempt", str(folder)]
    return subprocess.Popen(
        command, env={**os.environ, "TUTELAGE_ATTEMPT": str(folder), **environment}, stderr=subprocess.PIPE
    )


def run(folder: Path, **environment: str) -> int:
    process = start(folder, **environment)
    _, error = process.communicate(timeout=60)
    assert error == b""
    return process.returncode


def outcome(folder: Path) -> dict:
    return json.loads((folder / "outcome.json").read_bytes())


def living(folder: Path) -> list[int]:
    """Processes of an attempt."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"TUTELAGE_ATTEMPT={folder}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def wait_for(true) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 143])
def test_the_run_s_exit_code_is_passed_on(folder, code):
    order(folder, f"echo said; exit {code}")
    assert run(folder) == code
    assert (outcome(folder)["exit_code"], outcome(folder)["signal"]) == (code, 0)
    assert (folder / "log.txt").read_text() == "said\n"


def test_a_run_that_was_killed(folder):
    order(folder, "kill -9 $$")
    assert run(folder) == 137
    assert (outcome(folder)["exit_code"], outcome(folder)["signal"]) == (137, 9)


def test_of_many_that_start_at_once_one_runs(folder):
    order(folder, "echo once >> ran; sleep 0.3; exit 1")
    processes = [start(folder) for _ in range(8)]
    codes = [process.wait(timeout=60) for process in processes]
    for process in processes:
        process.stderr.close()
    assert sorted(codes) == [0] * 7 + [1]
    assert (folder.parents[1] / "ran").read_text() == "once\n"


def test_a_requeued_job_of_slurm_runs_again(folder):
    order(folder, "echo once >> ran")
    for restart in ("0", "1", "1"):
        run(folder, SLURM_RESTART_COUNT=restart)
    assert (folder.parents[1] / "ran").read_text() == "once\n" * 2
    assert len(claims(folder)) == 2


def test_what_a_former_start_said_counts_until_the_next_begins(folder):
    order(folder, "exit ${SLURM_RESTART_COUNT}")
    run(folder, SLURM_RESTART_COUNT="3")
    assert (last_outcome(folder).exit_code, last_start(folder)) == (3, 3)
    (folder / "claimed-4.json").write_bytes((folder / "claimed-3.json").read_bytes())
    assert (last_outcome(folder), last_start(folder)) == (None, 4)
    (folder / "outcome.json").write_text("{")
    assert last_outcome(folder) is None


def test_a_closed_attempt_never_runs(folder):
    order(folder, "touch ran")
    assert close(folder) is False
    assert run(folder) == 0
    assert not (folder.parents[1] / "ran").exists()
    assert not (folder / "outcome.json").exists()
    assert close(folder) is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_what_asks_it_to_stop_reaches_the_run_once(folder, number):
    order(folder, "trap 'echo asked; exit 143' TERM; touch ready; while :; do sleep 0.05; done")
    process = start(folder)
    wait_for((folder.parents[1] / "ready").exists)
    assert is_alive(claims(folder)[0])
    process.send_signal(number)
    process.send_signal(number)
    assert process.wait(timeout=30) == 143
    process.stderr.close()
    assert (folder / "log.txt").read_text() == "asked\n"
    assert not is_alive(claims(folder)[0])


def test_nothing_that_the_run_started_is_left(folder):
    order(
        folder,
        "setsid sleep 60 & (sleep 61 &) ; setsid sh -c 'trap \"\" TERM; sleep 62 & sleep 63' & sleep 0.3; exit 0",
    )
    assert run(folder) == 0
    assert living(folder) == []


def test_the_run_dies_with_the_attempt(folder):
    order(folder, "touch ready; exec sleep 60")
    process = start(folder)
    wait_for((folder.parents[1] / "ready").exists)
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not living(folder))
    assert not (folder / "outcome.json").exists()


def test_a_time_limit_asks_first_and_kills_at_its_end(folder):
    order(folder, "trap 'echo asked' TERM; while :; do sleep 0.05; done", time_limit=0.02)
    began = time.monotonic()
    assert run(folder) == 137
    assert time.monotonic() - began >= 1.2
    assert outcome(folder)["why"] == "time-limit"
    assert (folder / "log.txt").read_text() == "asked\n"


def test_a_run_that_ends_well_at_its_limit_has_ended_well(folder):
    order(folder, "trap 'exit 0' TERM; while :; do sleep 0.05; done", time_limit=0.01)
    assert run(folder) == 0
    assert outcome(folder)["why"] == ""


def test_the_outcome_tells_what_this_run_s_record_says(folder):
    record = folder.parents[1] / "run" / "run.json"
    order(
        folder,
        f'mkdir -p run; echo \'{{"state": "failed", "reason": "the loss diverged"}}\' > {record}; exit 1',
        run="../../run",
    )
    run(folder)
    assert (outcome(folder)["state"], outcome(folder)["reason"]) == ("failed", "the loss diverged")
    later = folder.parent / "2"
    later.mkdir()
    os.utime(record, (time.time() - 100, time.time() - 100))
    order(later, "exit 1")
    run(later)
    assert outcome(later)["state"] == ""


def test_it_trains_and_then_resumes(folder):
    """The real commands: a recipe with something to mend is refused, with the sentences of `tutelage check`."""
    recipe = folder.parents[1] / "recipe.yaml"
    recipe.write_text("name: x\nstages: [{name: tune, phase: nonsense}]\n")
    order(folder)
    assert run(folder) == 2
    assert "nonsense" in outcome(folder)["reason"]
    (folder.parents[1] / "run").mkdir()
    (folder.parents[1] / "run" / "run.json").write_text("{")
    later = folder.parent / "2"
    later.mkdir()
    order(later)
    assert run(later) == 2
    assert "run.json" in outcome(later)["reason"]


def test_a_process_is_known_by_its_start(folder):
    here = Claim(pid=os.getpid(), started=started_at(os.getpid()), host=os.uname().nodename, boot_id="another boot")
    assert is_alive(here) is False
    here.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert is_alive(here) is True
    here.started += 1
    assert is_alive(here) is False
    here.host = "elsewhere"
    assert is_alive(here) is None
    assert started_at(2**22 + 1) is None
