"""Every recipe that the project shows: valid always; in the journeys trained, and used with the plain libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.config import parse_yaml
from tutelage.plugins import host
from tutelage.recipe import load, resolve

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PATHS = [path for path in EXAMPLES if path.stem in ("alignment", "constitutional")]
"Those of many stages, which have journeys of their own."
ONE_STAGE = [path for path in EXAMPLES if path not in PATHS]
RECIPES = [*EXAMPLES, ROOT / "examples" / "demo" / "recipe.yaml"]
TUTELAGE = Path(sys.executable).with_name("tutelage")
PROMPT = "Paid Jackson Taxi $12.50 for a ride to the airport on 3 May 2024."
AS_LIKELY = 1.0
"Logits here go up to 40, of which bfloat16 keeps 8 bits."


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_recipe_is_valid_and_its_data_is_there(path):
    data, base = load(path)
    resolved = resolve(data, base, host())
    for stage in resolved.recipe.stages:
        assert stage.data.train.startswith("stage:") or (base / stage.data.train).is_file()
        assert not stage.data.eval or (base / stage.data.eval).is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_recipes_in_the_documentation_are_valid(page):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        resolve(parse_yaml(block), ROOT, host())


def test_each_adapter_has_an_example():
    shown = {resolve(*load(path), host()).adapters["tune"].name for path in ONE_STAGE}
    assert shown == {"full", "lora", "qlora", "prompt"}


@pytest.mark.slow
@pytest.mark.parametrize("path", ONE_STAGE, ids=lambda path: path.stem)
def test_example_trains_and_is_used_without_tutelage(path, tmp_path):
    run = tmp_path / "run"
    command = [TUTELAGE, "train", path, "--out", run, "--json"]
    trained = subprocess.run(command, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    outcome = json.loads(trained.stdout.splitlines()[-1])
    assert outcome["state"] == "succeeded"
    stage = outcome["stages"][0]
    losses = [
        event["loss"] for line in trained.stdout.splitlines() if (event := json.loads(line)).get("event") == "step"
    ]
    assert losses[-1] < losses[0]

    command = [TUTELAGE, "generate", run, "--prompt", PROMPT, "--max-new-tokens", "24", "--json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(told.stdout)["answer"]
    assert plain_libraries_agree(stage["artifact"], stage["kind"], answer)


def plain_libraries_agree(folder: str, kind: str, answer: str) -> bool:
    """Whether transformers and peft alone, loading what was saved, would greedily write this answer.

    A whole forward pass for every token, because peft's own `generate` (0.21) loses a soft prompt. Of tokens that are
    about as likely, that which continues the answer is taken: 16 bits may decide between them either way.
    """
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loader = AutoPeftModelForCausalLM if kind == "adapter" else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": PROMPT}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    written: list[int] = []
    while tokenizer.decode(written) != answer:
        ids = torch.tensor([[*asked, *written]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].float()
        likely = (logits >= logits.max() - AS_LIKELY).nonzero()[:, 0].tolist()
        fitting = [token for token in likely if answer.startswith(tokenizer.decode([*written, token]))]
        if not fitting:
            return False
        written.append(max(fitting, key=lambda token: float(logits[token])))
    return True
