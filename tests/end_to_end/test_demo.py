"""The demo, whole: what a new user is promised."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "demo.py"
NOTE = "Paid Jackson Taxi $12.50 for a ride to the airport on 3 May 2024."


@pytest.mark.slow
def test_demo_keeps_its_promises(tmp_path):
    command = [sys.executable, DEMO, "--seed", "1", "--out", tmp_path / "run"]
    threads = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as many as there are
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=threads)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    before, after = (exact_share(done.stdout, word) for word in ("before", "after"))
    assert before < 0.3
    assert after > 0.8
    assert "\x1b" not in done.stdout + done.stderr, "colours or cursor movements, with no terminal there"
    assert (tmp_path / "run" / "report.md").is_file()
    assert "Was that the right thing to do?" in done.stdout
    assert re.search(r"^Fine-tune it with .+confidence", done.stdout, flags=re.MULTILINE)
    assert re.search(r"takes \d+ tokens and the tuned model's \d+: \d+ are saved", done.stdout)

    commands = [shlex.split(line) for line in re.findall(r"^  (\S*tutelage .+)$", done.stdout, flags=re.MULTILINE)]
    assert [command[1] for command in commands] == ["generate", "chat", "merge"]
    for command in commands:
        tried = subprocess.run(command, input=f"{NOTE}\n", capture_output=True, text=True, check=False, cwd=tmp_path)
        assert tried.returncode == 0, tried.stderr
        assert command[1] == "merge" or '"payee": "Jackson Taxi"' in tried.stdout
    assert (tmp_path / "run-merged" / "config.json").is_file()


def exact_share(told: str, word: str) -> float:
    match = re.search(rf"^{word} .*?of (\d+) answers are JSON; (\d+) match exactly", told, flags=re.MULTILINE)
    assert match, told
    return int(match[2]) / int(match[1])
