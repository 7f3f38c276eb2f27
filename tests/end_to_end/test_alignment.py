"""The examples of the whole path, made short: every stage runs on the real model, and the report compares them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTELAGE = Path(sys.executable).with_name("tutelage")
SHORT = {
    "alignment": [
        "sft.trainer.epochs=1",
        "comparisons.phase.samples=2",
        "comparisons.phase.max_new_tokens=16",
        "reward.trainer.epochs=1",
        "ppo.phase.prompts_per_step=8",
        "ppo.phase.max_new_tokens=12",
        "ppo.phase.inner_epochs=1",
        "ppo.trainer.max_steps=2",
        "verdict.phase.prompts=6",
        "verdict.phase.max_new_tokens=12",
        "verdict.phase.text_tokens=600",
    ],
    "constitutional": [
        "revisions.phase.max_new_tokens=40",
        "revisions.phase.critique_tokens=12",
        "revisions.phase.allow_cut=true",
        "revised.trainer.epochs=1",
        "comparisons.phase.max_new_tokens=12",
        "feedback.phase.principles=1",
        "verdict.phase.prompts=6",
        "verdict.phase.max_new_tokens=12",
        "verdict.phase.text_tokens=600",
    ],
}


def tutelage(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TUTELAGE, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_whole_path_runs_and_its_report_compares_every_model(name, tmp_path):
    run = tmp_path / "run"
    settings = [f"--set=stages.{setting}" for setting in SHORT[name]]
    if name == "constitutional":
        few = tmp_path / "few.jsonl"
        lines = (ROOT / "examples" / "data" / "constitution_prompts.jsonl").read_text().splitlines(keepends=True)
        few.write_text("".join(lines[:16]))
        settings += [f"--set=stages.{stage}.data={few}" for stage in ("revisions", "comparisons")]
    done = tutelage("train", ROOT / "examples" / f"{name}.yaml", "--out", run, "--json", *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    stages = {stage["name"]: stage for stage in json.loads((run / "run.json").read_text())["stages"]}
    assert {stage["state"] for stage in stages.values()} == {"succeeded"}
    made = {stage: record["kind"] for stage, record in stages.items()}
    assert made["comparisons"] == "dataset"
    assert made["verdict"] == "report"
    told = json.loads((run / stages["verdict"]["artifact"] / "comparison.json").read_text())
    models = [result["model"] for result in told["results"]]
    assert models == ["start", *(stage for stage, kind in made.items() if kind == "adapter")]
    assert all(result["reward"]["low"] <= result["reward"]["high"] for result in told["results"])
    assert "Models side by side" in (run / "report.md").read_text()
    assert json.loads(done.stdout.splitlines()[-1])["state"] == "succeeded"


@pytest.mark.slow
def test_a_run_waits_for_people_and_goes_on_with_what_they_say(tmp_path):
    """The alignment example with people: answers made, a person who ranks over a pipe, a reward model from that."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"Name {what}."}) + "\n" for what in ("a fruit", "a bird", "a sea"))
    )
    recipe = tmp_path / "recipe.json"
    trainer = {"max_steps": 1, "max_length": 128, "tokens_per_step": 256}
    stages = [
        {
            "name": "comparisons",
            "phase": {"kind": "comparisons", "samples": 2, "max_new_tokens": 8},
            "data": str(prompts),
        },
        {"name": "ranking", "phase": "ranking", "data": "stage:comparisons"},
        {"name": "reward", "phase": "reward_model", "data": "stage:ranking", "trainer": trainer},
    ]
    recipe.write_text(json.dumps({"name": "people", "model": "starter:smollm2-135m-instruct", "stages": stages}))
    run = tmp_path / "run"
    waiting = tutelage("train", recipe, "--out", run)
    assert waiting.returncode == 3, waiting.stderr
    assert "tutelage rank" in waiting.stdout
    ranked = subprocess.run(
        [TUTELAGE, "rank", run, "--person", "ada"], input="b a\na b\na b\n", capture_output=True, text=True, check=False
    )
    assert ranked.returncode == 0, ranked.stderr
    done = tutelage("resume", run)
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "run.json").read_text())
    assert record["stages"][-1]["kind"] == "reward_model"
    rows = [
        json.loads(line) for line in (run / record["stages"][1]["artifact"] / "data.jsonl").read_text().splitlines()
    ]
    assert [row["by"] for row in rows] == ["people"] * 3
