"""Several answers to each prompt: told apart, attributed, and the same however the work is interrupted or shared."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tiny_models import TEXTS
from training import events, in_child

import tutelage
from tutelage.models.sampling import seed_of


def write_prompts(path: Path, rows: list[dict] | None = None) -> Path:
    rows = rows or [{"prompt": f"{text} {number}", "topic": number} for number in range(2) for text in TEXTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(model: Path | str, data: Path, *, devices: int = 1, **config):
    phase = {"kind": "comparisons", "samples": 3, "max_new_tokens": 10, "batch_size": 6, **config}
    trainer = {"precision": "fp32", "devices": devices, "seed": 2}
    stage = {"name": "ask", "phase": phase, "data": {"train": str(data)}, "trainer": trainer}
    return {"name": "asking", "model": str(model), "stages": [stage]}


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "stages/ask/dataset/data.jsonl").read_text().splitlines()]


def ask(made: dict, run: str, batches: int = 0) -> None:
    """What a child process does: begin, or go on; killed after so many batches."""
    from tutelage_plugins.phases import comparisons

    work = comparisons._Drawing.work
    done = []

    def killing(self, batch):
        if batches and len(done) == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(batch)
        return work(self, batch)

    comparisons._Drawing.work = killing
    tutelage.resume(run) if (Path(run) / "run.json").is_file() else tutelage.train(made, out=Path(run))


def test_a_row_tells_who_answered_what(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tutelage.models import sampling

    models = [str(tiny_model("llama-untied")), str(tiny_model("qwen2"))]
    asked = [{"prompt": TEXTS[0], "answer": "mat", "topic": 3}, {"prompt": [{"role": "user", "content": TEXTS[1]}]}]
    data = write_prompts(tmp_path / "data.jsonl", asked)
    made = recipe(models[0], data, models=models, temperature=[0, 0.7, 1.3], top_p=0.9, system="Be brief.")
    tutelage.train(made, out=tmp_path / "run")
    first, second = rows_of(tmp_path / "run")
    system = {"role": "system", "content": "Be brief."}
    assert first["prompt"] == [system, {"role": "user", "content": TEXTS[0]}]
    assert second["prompt"] == [system, {"role": "user", "content": TEXTS[1]}]
    assert (first["answer"], first["fields"]) == ("mat", {"topic": 3})
    assert "answer" not in second
    assert "fields" not in second
    for number, row in enumerate((first, second)):
        assert len({*row["answers"]}) == len(row["made_by"]) == 6
        assert [maker["model"] for maker in row["made_by"]] == [models[0]] * 3 + [models[1]] * 3
        assert [maker["temperature"] for maker in row["made_by"]] == [0, 0.7, 1.3] * 2
        assert [maker["seed"] for maker in row["made_by"]] == [
            seed_of(2, number, writer, sample, 0) for writer in range(2) for sample in range(3)
        ]
        for answer, maker in zip(
            row["answers"], row["made_by"], strict=True
        ):  # it can be drawn again from what is told
            model = AutoModelForCausalLM.from_pretrained(maker["model"])
            tokenizer = AutoTokenizer.from_pretrained(maker["model"])
            ids = tokenizer(tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))
            (again,) = sampling.sample(
                model, [ids["input_ids"]], max_new_tokens=10, temperature=maker["temperature"], top_p=0.9,
                seeds=[maker["seed"]], batch_size=1, **sampling.ends_of(model, tokenizer),
            )  # fmt: skip
            assert sampling.text(tokenizer, again).strip() == answer
            assert again.finished == maker["finished"]


def test_killed_resumed_and_shared_out_it_makes_the_same(tiny_model, tmp_path):
    made = recipe(tiny_model("llama-untied"), write_prompts(tmp_path / "data.jsonl"))
    tutelage.train(made, out=tmp_path / "whole")
    expected = (tmp_path / "whole/stages/ask/dataset/data.jsonl").read_bytes()
    killed = in_child(ask, made, str(tmp_path / "killed"), 2)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed/stages/ask/dataset").exists()
    tutelage.resume(tmp_path / "killed")
    assert (tmp_path / "killed/stages/ask/dataset/data.jsonl").read_bytes() == expected
    assert events(tmp_path / "killed", "stage_started")[-1]["resumed_from"] == 2
    shared = recipe(tiny_model("llama-untied"), tmp_path / "data.jsonl", devices=2)
    tutelage.train(shared, out=tmp_path / "shared")
    assert (tmp_path / "shared/stages/ask/dataset/data.jsonl").read_bytes() == expected
    record = json.loads((tmp_path / "shared/run.json").read_text())["stages"][0]
    assert (record["state"], record["kind"], record["steps_done"], record["steps_planned"]) == (
        "succeeded", "dataset", 4, 4
    )  # fmt: skip
    assert record["metrics"] == {"prompts": 8, "left_out": 0, "answers": 24, "cut": record["metrics"]["cut"]}


def test_repeated_answers_are_drawn_anew_and_then_left_out(tiny_model, tmp_path):
    data = write_prompts(tmp_path / "data.jsonl")
    model = tiny_model("llama-untied")
    # Of one token from two, a prompt can get two different answers at most.
    narrow = {"samples": 6, "max_new_tokens": 1, "top_k": 2, "temperature": 3.0}
    tutelage.train(recipe(model, data, retries=8, **narrow), out=tmp_path / "many")
    rows = rows_of(tmp_path / "many")
    assert all(len(row["answers"]) == len({*row["answers"]}) == 2 for row in rows)
    (notice,) = [event["text"] for event in events(tmp_path / "many", "notice") if "repeated" in event["text"]]
    assert f"{8 - len(rows)} of 8 prompts got less than two" in notice
    assert f"{len(rows) * 4} answers of the others" in notice
    tutelage.train(recipe(model, data, distinct=False, **narrow), out=tmp_path / "all")
    kept = rows_of(tmp_path / "all")
    assert all(row["answers"] and all(row["answers"]) for row in kept)
    assert max(len(row["answers"]) for row in kept) == 6
    with pytest.raises(tutelage.RunFailed, match="none of 8 prompts got two answers that differ"):
        tutelage.train(recipe(model, data, samples=2, max_new_tokens=1, top_k=1), out=tmp_path / "none")


def test_prompts_that_do_not_fit_are_named_before_anything_runs(tiny_model, tmp_path):
    rows = [{"prompt": "short"}, {"prompt": "long " * 300}, {"prompt": "short too"}, {"prompt": "longer " * 400}]
    data = write_prompts(tmp_path / "data.jsonl", rows)
    with pytest.raises(tutelage.TutelageError) as error:
        tutelage.train(recipe(tiny_model("llama-untied"), data), out=tmp_path / "run")
    told = [str(problem) for problem in error.value.problems]
    assert len(told) == 2
    assert "data.jsonl line 2" in told[0]
    assert "10 new ones are more than the model's window of 256" in told[0]
    assert "data.jsonl line 4" in told[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"samples": 1}, "leaves nothing to compare"),
        ({"temperature": 0}, "temperature 0 gives the same answer each time"),
        ({"temperature": [0, 1], "samples": 3}, "temperature 0 gives the same answer each time"),
        ({"temperature": []}, "phase.temperature"),
        ({"temperature": -1}, "phase.temperature"),
        ({"models": ["a", "a"]}, "names 'a' twice"),
        ({"models": ["stage:later"]}, "no earlier stage is called 'later'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_model, tmp_path, config, said):
    data = write_prompts(tmp_path / "data.jsonl")
    with pytest.raises(tutelage.TutelageError, match=said):
        tutelage.train(recipe(tiny_model("llama-untied"), data, **config), out=tmp_path / "run")
