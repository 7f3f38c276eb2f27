"""The contract that every launcher passes, as tests to inherit.

In a test module of a plugin that brings a launcher:

    from tutelage.testing.launchers import LauncherContract

    class TestMine(LauncherContract):
        @pytest.fixture
        def launcher(self):
            return Mine(Mine.Config(queue="tests"))

Attempts run real commands, so the launcher's machines must be this one (a cluster on one host will do). Processes are
looked for in Linux's /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tutelage.launcher import Launch, Launcher, Resources, Status

WEIRD = {
    "SPACES": "  a b  ",
    "SEMICOLON": ";touch injected;",
    "SUBSTITUTION": "$(touch injected) `touch injected` ${HOME} $HOME %s %j",
    "QUOTES": "\"double\" 'single' \\back\\slash",
    "LINES": "one\ntwo\n\nexport INJECTED=1\n",
    "EQUALS": "a=b,c=d",
    "LETTERS": "déjà vu, 学習",
    "EMPTY": "",
}
"""Values that a shell, a template or a list of variables would change."""

_WRITE_ENVIRONMENT = "import json, os; json.dump(dict(os.environ), open('environment.json', 'w'))"
_UNTIL_TOLD = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path('saved').write_text('x')
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path('began').write_text('x')
while True:
    time.sleep(0.05)
"""
_STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
nap = [sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)']
marks = [os.environ['CONTRACT_MARK']]
subprocess.Popen(nap + marks)
subprocess.Popen(nap + marks, start_new_session=True)
subprocess.Popen(nap + marks, start_new_session=True, env={'PATH': os.environ['PATH']})
subprocess.run([sys.executable, '-c', f'import subprocess; subprocess.Popen({nap + marks!r}, start_new_session=True)'])
time.sleep(0.5)
pathlib.Path('began').write_text('x')
time.sleep(600)
"""


class Bench:
    """Makes attempts for a launcher, waits for them, and ends them all at the end."""

    def __init__(self, launcher: Launcher, folder: Path, patience: float) -> None:
        self.launcher = launcher
        self.folder = folder
        self.patience = patience
        self.made: list[Launch] = []

    def attempt(self, code: str, folder: str = "", **fields: object) -> Launch:
        """An attempt, not launched yet, that runs Python code in its job's folder."""
        name = f"tutelage-contract-{uuid.uuid4().hex[:10]}-1"
        job = self.folder / (folder or name)
        home = job / "attempts" / "1"
        home.mkdir(parents=True)
        command = [sys.executable, "-c", code]
        (home / "attempt.json").write_text(json.dumps({"command": command, "name": name}))
        made = Launch(name=name, folder=home, **{"resources": Resources(), **fields})  # type: ignore[arg-type]
        self.made.append(made)
        return made

    def job(self, attempt: Launch) -> Path:
        """The folder in which an attempt's command runs."""
        return attempt.folder.parent.parent

    def status(self, handle: str, attempt: Launch) -> Status:
        """The status of one attempt."""
        return self.launcher.statuses({handle: attempt})[handle]

    def ended(self, handle: str, attempt: Launch) -> Status:
        """Wait until an attempt has ended; its status."""
        self.until(lambda: self.status(handle, attempt).state == "ended")
        return self.status(handle, attempt)

    def began(self, attempt: Launch) -> None:
        """Wait until an attempt's command has written `began`."""
        self.until((self.job(attempt) / "began").exists)

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for something to come about; an AssertionError when it does not."""
        end = time.monotonic() + self.patience
        while not true():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.05)

    def end(self) -> None:
        """Kill whatever is left of any attempt."""
        for attempt in self.made:
            if handle := self.launcher.find(attempt):
                self.launcher.kill(handle, attempt)


class LauncherContract:
    """Inherit this, and give a fixture `launcher`."""

    patience = 60.0
    "Seconds to wait for what must come about."

    @pytest.fixture
    def launcher(self) -> Launcher:
        """The launcher under test."""
        raise NotImplementedError("give a fixture `launcher` that returns the launcher to test")

    @pytest.fixture
    def bench(self, launcher: Launcher, tmp_path: Path) -> Iterator[Bench]:
        """Attempts to launch."""
        made = Bench(launcher, tmp_path, self.patience)
        yield made
        made.end()

    @pytest.mark.parametrize("code", [0, 1, 3])
    def test_an_attempt_runs_to_its_end_with_its_exit_code(self, bench: Bench, code: int) -> None:
        attempt = bench.attempt(f"import pathlib, sys; pathlib.Path('ran').write_text('x'); sys.exit({code})")
        handle = bench.launcher.launch(attempt)
        assert handle
        found = bench.ended(handle, attempt)
        assert (found.why, found.exit_code) == ("exited", code)
        assert (bench.job(attempt) / "ran").exists()

    def test_a_running_attempt_is_running(self, bench: Bench) -> None:
        attempt = bench.attempt(_UNTIL_TOLD)
        handle = bench.launcher.launch(attempt)
        assert bench.status(handle, attempt).state in ("pending", "running")
        bench.began(attempt)
        found = bench.status(handle, attempt)
        assert found.state == "running"
        assert found.where

    def test_launched_twice_it_runs_once(self, bench: Bench) -> None:
        attempt = bench.attempt("open('ran', 'a').write('x'); import time; time.sleep(1)")
        first = bench.launcher.launch(attempt)
        second = self.another(bench.launcher).launch(attempt)
        bench.ended(first, attempt)
        found = bench.ended(second, attempt)
        assert found.exit_code == 0
        assert (bench.job(attempt) / "ran").read_text() == "x"

    def test_an_attempt_whose_answer_was_lost_is_found(self, bench: Bench) -> None:
        attempt, never = bench.attempt(_UNTIL_TOLD), bench.attempt(_UNTIL_TOLD)
        assert bench.launcher.find(attempt) == ""
        handle = bench.launcher.launch(attempt)
        another = self.another(bench.launcher)
        assert another.find(attempt) == handle
        bench.began(attempt)
        assert another.find(attempt) == handle
        assert another.statuses({handle: attempt})[handle].state == "running"
        assert another.find(never) == ""

    def test_an_attempt_that_is_stopped_saves_first(self, bench: Bench) -> None:
        attempt = bench.attempt(_UNTIL_TOLD)
        handle = bench.launcher.launch(attempt)
        bench.began(attempt)
        bench.launcher.stop(handle, attempt)
        bench.launcher.stop(handle, attempt)
        found = bench.ended(handle, attempt)
        assert (found.state, found.exit_code) == ("ended", 143)
        assert (bench.job(attempt) / "saved").exists()
        bench.launcher.stop(handle, attempt)

    def test_an_attempt_that_is_stopped_at_once_ends_too(self, bench: Bench) -> None:
        attempt = bench.attempt(_UNTIL_TOLD)
        handle = bench.launcher.launch(attempt)
        bench.launcher.stop(handle, attempt)
        assert bench.ended(handle, attempt).exit_code == 143

    def test_killing_leaves_no_process(self, bench: Bench) -> None:
        mark = uuid.uuid4().hex
        attempt = bench.attempt(_STUBBORN, environment={"CONTRACT_MARK": mark})
        handle = bench.launcher.launch(attempt)
        bench.began(attempt)
        assert len(_processes_with(mark)) == 4
        bench.launcher.kill(handle, attempt)
        bench.until(lambda: not _processes_with(mark))
        found = bench.ended(handle, attempt)
        assert found.why in ("killed", "cancelled")
        assert found.exit_code != 0
        bench.launcher.kill(handle, attempt)

    def test_an_end_leaves_no_process(self, bench: Bench) -> None:
        mark = uuid.uuid4().hex
        code = _STUBBORN.rpartition("time.sleep(600)")[0]
        attempt = bench.attempt(code, environment={"CONTRACT_MARK": mark})
        handle = bench.launcher.launch(attempt)
        assert bench.ended(handle, attempt).exit_code == 0
        bench.until(lambda: not _processes_with(mark))

    def test_many_are_asked_about_at_once(self, bench: Bench) -> None:
        codes = [f"import sys; sys.exit({code})" for code in (0, 1, 3)]
        attempts = [bench.attempt(code) for code in [*codes, _UNTIL_TOLD]]
        handles = [bench.launcher.launch(attempt) for attempt in attempts]
        asked = dict(zip(handles, attempts, strict=True))
        assert len(asked) == 4
        bench.began(attempts[3])
        bench.until(
            lambda: [bench.launcher.statuses(asked)[handle].state for handle in handles] == ["ended"] * 3 + ["running"]
        )
        found = bench.launcher.statuses(asked)
        assert [found[handle].exit_code for handle in handles[:3]] == [0, 1, 3]

    def test_what_was_never_launched_is_absent(self, bench: Bench) -> None:
        launched, never = bench.attempt("pass"), bench.attempt("pass")
        handle = bench.launcher.launch(launched)
        found = bench.launcher.statuses({handle: launched, "987654321": never})
        assert found["987654321"].state == "absent"
        assert found[handle].state != "absent"
        bench.launcher.stop("987654321", never)
        bench.launcher.kill("987654321", never)
        assert not (bench.job(never) / "environment.json").exists()

    def test_values_reach_the_attempt_letter_by_letter(self, bench: Bench) -> None:
        attempt = bench.attempt(_WRITE_ENVIRONMENT, environment=WEIRD)
        handle = bench.launcher.launch(attempt)
        assert bench.ended(handle, attempt).exit_code == 0
        seen = json.loads((bench.job(attempt) / "environment.json").read_text())
        assert {name: seen.get(name) for name in WEIRD} == WEIRD
        assert seen["TUTELAGE_ATTEMPT"] == attempt.name
        assert "INJECTED" not in seen
        assert not list(bench.folder.rglob("injected"))

    @pytest.mark.parametrize(
        "folder", ["with spaces", ";touch injected", "$(touch injected)", 'it\'s "quoted"', "%j %x"]
    )
    def test_folders_of_any_name_will_do(self, bench: Bench, folder: str) -> None:
        attempt = bench.attempt("open('ran', 'w').write('x')", folder=folder)
        handle = bench.launcher.launch(attempt)
        assert bench.ended(handle, attempt).exit_code == 0
        assert (bench.folder / folder / "ran").exists()
        assert not list(bench.folder.rglob("injected"))

    def test_secrets_show_nowhere(self, bench: Bench) -> None:
        secret = f"secret-{uuid.uuid4().hex}"
        attempt = bench.attempt(_UNTIL_TOLD, environment={"TOKEN": secret})
        handle = bench.launcher.launch(attempt)
        bench.began(attempt)
        assert not _processes_with(secret, "cmdline")
        assert _processes_with(secret, "environ")
        assert secret not in repr(bench.status(handle, attempt))
        bench.launcher.stop(handle, attempt)
        bench.ended(handle, attempt)
        for file in bench.folder.rglob("*"):
            if file.is_file() and file.stat().st_mode & 0o077:
                assert secret.encode() not in file.read_bytes(), file

    def test_what_is_the_servers_own_stays_there(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("TUTELAGE_SERVER_DATABASE", "TUTELAGE_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
            monkeypatch.setenv(name, "private")
        attempt = bench.attempt(_WRITE_ENVIRONMENT)
        handle = bench.launcher.launch(attempt)
        assert bench.ended(handle, attempt).exit_code == 0
        assert "private" not in json.loads((bench.job(attempt) / "environment.json").read_text()).values()

    def another(self, launcher: Launcher) -> Launcher:
        """The same launcher as another process would make it, which remembers nothing."""
        return type(launcher)(launcher.config)


def _processes_with(word: str, file: str = "cmdline") -> list[int]:
    """Living processes, not this one, that have a word among their arguments or in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (
                    word.encode() in (entry / file).read_bytes()
                    and b"\nState:\tZ" not in (entry / "status").read_bytes()
                ):
                    found.append(int(entry.name))
    return found
