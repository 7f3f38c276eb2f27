"""From nothing to a tuned model over HTTP: a real server, the command line, and a server that is killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from serving import Served, start

pytestmark = pytest.mark.slow

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "saw"]
TUTELAGE = [sys.executable, "-m", "tutelage"]


def write_recipe(folder: Path, steps: int) -> Path:
    """Pretrains a model of two layers on a few words, then tunes it with LoRA."""
    chance = random.Random(0)
    folder.mkdir()
    (folder / "text.txt").write_text("\n\n".join(" ".join(chance.choices(WORDS, k=12)) for _ in range(80)))
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(60):
            asked = chance.choices(WORDS, k=5)
            file.write(json.dumps({"prompt": " ".join(asked), "completion": f" {asked[0]}"}) + "\n")
    trainer = {"tokens_per_step": 256, "precision": "fp32", "devices": 1, "rehearsal": False}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    stages = [
        {
            "name": "read",
            "phase": {"kind": "pretrain", "shape": shape, "vocabulary": 280},
            "data": "text.txt",
            "trainer": {**trainer, "max_length": 32, "max_steps": 5},
        },
        {
            "name": "tune",
            "phase": "sft",
            "adapter": {"kind": "lora", "rank": 4},
            "data": "rows.jsonl",
            "trainer": {**trainer, "max_length": 64, "max_steps": steps},
        },
    ]
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({"name": "tiny", "model": "new", "stages": stages}))
    return recipe


class Command:
    """A command that runs; what it prints goes to files, which are read as often as one likes."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder.parent))
        with (self._folder / "out").open("w") as out, (self._folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    @property
    def lines(self) -> list[Any]:
        """Whole lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    def wait(self) -> int:
        return self.process.wait(300)

    def until_a_step(self) -> str:
        """Wait until the job that it follows has done a step of its last stage; the job's id."""
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            told = [line["data"] for line in self.lines if line.get("kind") == "step"]
            if any(data["stage"] == "tune" for data in told):
                return str(self.lines[0]["id"])
            time.sleep(0.1)
        raise AssertionError(self.err + self.out)


class Place:
    """Somebody's folder, and the commands that they type there."""

    def __init__(self, folder: Path, server: Served) -> None:
        folder.mkdir()
        self.folder = folder
        self.environment = {**os.environ, "TUTELAGE_CONFIG": str(server.config), "OMP_NUM_THREADS": "1"}
        self.environment.pop("TUTELAGE_RUNS", None)

    def start(self, *arguments: str | Path) -> Command:
        return Command([*TUTELAGE, *map(str, arguments)], self.folder, self.environment)

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        command = self.start(*arguments)
        assert command.wait() == code, command.err + command.out
        return command.out


def stop(server: Served) -> None:
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    if server.process.stdout:
        server.process.stdout.close()


def test_submit_follow_brings_back_a_tuned_model_though_the_server_is_killed(tmp_path):
    server = start(tmp_path)
    here = Place(tmp_path / "mine", server)
    recipe = write_recipe(tmp_path / "recipe", steps=400)
    try:
        following = here.start("submit", recipe, "--follow", "--json")
        job = following.until_a_step()
        port = int(server.url.rpartition(":")[2])
        server.kill()
        time.sleep(1)
        stop(server)
        server = start(tmp_path, port=port)
        assert following.wait() == 0, following.err
        lines = following.lines
        events = [line for line in lines if "number" in line]
        assert [event["number"] for event in events] == list(range(1, len(events) + 1))
        tuned = [
            event["data"]["step"] for event in events if event["kind"] == "step" and event["data"]["stage"] == "tune"
        ]
        assert tuned == list(range(1, 401))  # not begun anew: each step was done once
        assert lines[-2]["state"] == "succeeded"
        assert Path(lines[-1]["folder"]) == here.folder / "runs" / "tiny"
        assert json.loads(here.run("jobs", "show", job, "--json"))["attempt"] == 1
    finally:
        stop(server)
    there = server.home / "jobs"
    there.rename(tmp_path / "gone")  # what was fetched needs nothing of the server's
    answer = here.run("generate", "tiny", "--prompt", "the cat sat on a", "--max-new-tokens", "8", "--json")
    assert json.loads(answer.splitlines()[-1])

    from peft import AutoPeftModelForCausalLM

    loaded = AutoPeftModelForCausalLM.from_pretrained(here.folder / "runs" / "tiny" / "stages" / "tune" / "adapter")
    assert sum("lora" in name for name, _ in loaded.named_parameters()) > 0


def test_ctrl_c_leaves_a_job_that_goes_on(tmp_path):
    server = start(tmp_path)
    here = Place(tmp_path / "mine", server)
    recipe = write_recipe(tmp_path / "recipe", steps=1500)
    try:
        following = here.start("submit", recipe, "--follow", "--json")
        job = following.until_a_step()
        following.process.send_signal(signal.SIGINT)
        assert following.wait() == 130
        assert f"tutelage jobs events -f {job}" in following.err
        assert json.loads(here.run("jobs", "show", job, "--json"))["state"] in ("running", "succeeded")
        here.run("jobs", "wait", job)
        log = [json.loads(line) for line in here.run("jobs", "logs", job).splitlines()]
        assert [line["step"] for line in log if line.get("event") == "step"][-1] == 1500
        here.run("jobs", "artifacts", "get", job)
        assert (here.folder / "runs" / "tiny" / "stages" / "tune" / "adapter" / "adapter_model.safetensors").is_file()
    finally:
        stop(server)


def test_a_job_that_fails_or_is_cancelled_says_so_by_its_exit_code(tmp_path):
    server = start(tmp_path)
    here = Place(tmp_path / "mine", server)
    recipe = write_recipe(tmp_path / "recipe", steps=100_000)
    try:
        following = here.start("submit", recipe, "--follow", "--json")
        job = following.until_a_step()
        here.run("jobs", "cancel", job)
        assert following.wait() == 4, following.err
        out = here.run("submit", recipe, "--set", "stages.tune.trainer.learning_rate=10", "--minutes", "1")
        here.run("jobs", "cancel", out.strip())
        assert here.run("jobs", "wait", job, out.strip(), code=4) == ""
    finally:
        stop(server)
