"""The sample package in examples/plugins, installed as a stranger's would be, into a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "tutelage-sample"
pytestmark = pytest.mark.skipif(
    find_spec("hatchling") is None or find_spec("pip") is None,
    reason="building the sample package needs pip and hatchling: pip install hatchling",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put the package: with no dependencies and no downloads."""
    target = tmp_path_factory.mktemp("site")
    command = [
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        str(target),
        str(SAMPLE),
    ]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return target


def tutelage(installed: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)} if installed else dict(os.environ)
    code = "from tutelage.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_it_is_listed_beside_the_built_in_plugins(installed: Path) -> None:
    listed = json.loads(tutelage(installed, "plugins", "--json").stdout)
    (sample,) = [info for info in listed if info["name"] == "sample"]
    assert (sample["distribution"], sample["version"], sample["error"]) == ("tutelage-sample", "0.1.0", "")
    assert sample["provides"] == {"adapter": ["norms"], "format": ["quiz"], "command": ["quiz"]}
    assert "sample" not in tutelage(None, "plugins").stdout


def test_its_settings_are_in_the_schema(installed: Path) -> None:
    definitions = json.loads(tutelage(installed, "schema").stdout)["$defs"]
    assert definitions["adapter.norms"]["properties"]["biases"]["description"] == "Let every bias learn too."
    assert "quiz" in definitions["Data"]["properties"]["format"]["enum"]


def test_its_command_joins_and_tells_errors_as_ours_do(installed: Path, tmp_path: Path) -> None:
    assert "quiz Print a quiz file's questions." in " ".join(tutelage(installed, "--help").stdout.split())
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"question": "Capital of Peru?", "choices": ["Quito", "Lima"], "right": 1}\n')
    assert tutelage(installed, "quiz", str(file)).stdout == "Capital of Peru?\nA. Quito\nB. Lima\n"
    file.write_text('{"question": "?", "choices": ["Quito", "Lima"], "right": 2}\n')
    wrong = tutelage(installed, "quiz", str(file))
    assert wrong.returncode == 2
    assert wrong.stderr == (
        f"error: {file} line 1: right is 2, which is none of the 2 choices (they count from 0); mend the line\n"
    )


def test_its_settings_are_checked_like_ours(installed: Path, tmp_path: Path) -> None:
    recipe = {
        "name": "x",
        "model": "none",
        "stages": [{"name": "tune", "phase": "sft", "adapter": {"kind": "norms", "bases": True}, "data": "quiz.jsonl"}],
    }
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    done = tutelage(installed, "check", str(tmp_path / "r.json"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: stages.tune.adapter.bases: unknown field; did you mean biases?"


def test_a_recipe_trains_with_its_adapter_and_format(installed: Path, tiny_model, tmp_path: Path) -> None:
    """A stranger's adapter and format, from a recipe to an artifact that plain transformers loads."""
    from transformers import AutoModelForCausalLM

    line = '{"question": "Capital of Peru?", "choices": ["Quito", "Lima"], "right": 1}\n'
    (tmp_path / "quiz.jsonl").write_text(line * 12)
    trainer = {"max_steps": 2, "precision": "fp32", "max_length": 200}
    stage = {"name": "tune", "phase": "sft", "adapter": "norms", "data": "quiz.jsonl", "trainer": trainer}
    recipe = {"name": "quiz", "model": str(tiny_model("llama-untied")), "stages": [stage]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    told = tutelage(installed, "train", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run"), "--json")
    assert told.returncode == 0, told.stderr
    outcome = json.loads(told.stdout.splitlines()[-1])
    tuned = AutoModelForCausalLM.from_pretrained(outcome["stages"][0]["artifact"]).state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_model("llama-untied")).state_dict()
    moved = {name for name in before if not before[name].equal(tuned[name])}
    assert moved
    assert all("norm" in name for name in moved)
