"""The evaluation phase: figures against independent computations on tiny models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_model  # noqa: F401
from training import events, recipe, write_chats
from transformers import AutoModelForCausalLM, AutoTokenizer

import tutelage
from tutelage_plugins.phases._evaluating import _divergence, interval


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("evaluation")
    chats = write_chats(folder / "chats.jsonl", rows=30)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the cat saw {n} birds"}) + "\n" for n in range(12)))
    text = folder / "text.jsonl"
    text.write_text(json.dumps({"text": "the cat sat on the mat and then it saw two birds. " * 20}) + "\n")
    made = recipe(tiny_model("llama-tied"), chats, adapter="full", max_steps=4)
    phase = {
        "kind": "evaluation",
        "judge": [{"kind": "length", "target": 5}],
        "max_new_tokens": 12,
        "text": str(text),
        "text_tokens": 400,
        "batch_size": 5,
    }
    made["stages"].append(
        {"name": "verdict", "phase": phase, "data": str(prompts), "trainer": {"precision": "fp32", "devices": 1}}
    )
    return tutelage.train(made, out=folder / "run").folder


def test_every_model_answers_every_prompt_and_is_judged(finished):
    told = json.loads((finished / "stages/verdict/dataset/comparison.json").read_text())
    assert [each["model"] for each in told["results"]] == ["start", "tune"]
    rows = [json.loads(line) for line in (finished / "stages/verdict/dataset/data.jsonl").read_text().splitlines()]
    answers = [row for row in rows if "answer" in row]
    assert sorted((row["model"], row["prompt"]) for row in answers) == sorted(
        (model, number) for model in ("start", "tune") for number in range(12)
    )
    titles = [event["title"] for event in events(finished, "section")]
    assert titles[0] == "Models side by side"
    assert "Models side by side" in (finished / "report.md").read_text()


def test_the_start_has_no_kl_and_a_trained_model_has_that_of_whole_distributions(finished, tiny_model):  # noqa: F811
    told = json.loads((finished / "stages/verdict/dataset/comparison.json").read_text())
    start, tuned = told["results"]
    assert start["kl"] == 0
    assert tuned["kl"] > 0
    first = AutoModelForCausalLM.from_pretrained(tiny_model("llama-tied")).eval()
    second = AutoModelForCausalLM.from_pretrained(finished / "stages/tune/model").eval()
    head, answer = [5, 17, 40, 8], [100, 33, 7, 61, 250]
    with torch.no_grad():
        ids = torch.tensor([head + answer])
        p, q = (model(ids).logits[0, len(head) - 1 : -1].double().log_softmax(-1) for model in (second, first))
    by_hand = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
    assert _divergence(second, first, head, answer) == pytest.approx(float(by_hand), rel=1e-4)


def test_the_perplexity_is_that_of_the_text(finished, tiny_model):  # noqa: F811
    told = json.loads((finished / "stages/verdict/dataset/comparison.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-tied")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama-tied"))
    text = "the cat sat on the mat and then it saw two birds. " * 20
    total, count = 0.0, 0
    for start in range(0, len(text), 800):
        ids = torch.tensor([tokenizer(text[start : start + 800])["input_ids"]])
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        total += float(loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert told["results"][0]["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-3)


def test_an_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        found = interval(generator.normal(1.0, 2.0, 60), trial)
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_judge_that_is_not_there_is_told_before_anything_runs(tiny_model, tmp_path):  # noqa: F811
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    made = recipe(tiny_model("gpt2"), prompts)
    made["stages"][0]["phase"] = {"kind": "evaluation", "judge": ["lenght"], "models": ["stage:none"]}
    report = tutelage.check(made)
    told = "\n".join(map(str, report.problems))
    assert "no reward is called 'lenght'" in told
    assert "no earlier stage is called 'none'" in told
