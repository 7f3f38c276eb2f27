"""The commands that need a model, from a recipe to a merged model, with a small random one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe, and a run of it that was trained by the command."""
    from tiny_models import write_model

    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model", "llama-tied")
    rows = [{"prompt": f"{number} + 3 =", "completion": str(number + 3)} for number in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = """
name: sums
model: model
stages:
  - name: tune
    phase: sft
    adapter: {kind: lora, rank: 4}
    data: {train: rows.jsonl, eval_split: 0.25}
    trainer: {max_steps: 4, max_length: 64, tokens_per_step: 64, precision: fp32, accelerator: cpu, rehearsal: false}
"""
    (folder / "recipe.yaml").write_text(recipe)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> list[dict[str, Any]]:
    """What `train --json` printed."""
    code = "from tutelage.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "recipe.yaml", "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("TUTELAGE_RUNS", raising=False)


def test_train_prints_events_and_the_outcome_alone(trained: list[dict[str, Any]], place: Path) -> None:
    *events, outcome = trained
    kinds = [event["event"] for event in events]
    assert kinds[0] == "run_started"
    assert kinds.count("step") == 4
    assert outcome["run"] == str(place / "runs" / "sums")
    assert outcome["state"] == "succeeded"
    (stage,) = outcome["stages"]
    assert stage["kind"] == "adapter"
    assert (Path(stage["artifact"]) / "adapter_model.safetensors").is_file()
    assert (place / "runs/sums/report.html").is_file()
    assert (place / "runs/sums/stages/tune/metrics.csv").read_text().startswith("step,")


def test_runs_show_knows_what_was_trained(tutelage: Run, trained: list[dict[str, Any]]) -> None:
    out = tutelage("runs", "show", "sums").out
    assert "tune: succeeded (4 steps, loss " in out
    assert "tutelage chat sums --beside-base" in out


def test_data_show_tells_learnt_from_seen(tutelage: Run) -> None:
    (told,) = tutelage("data", "show", "recipe.yaml", "--rows", "2", "--json").lines
    assert told["stage"] == "tune"
    assert told["report"]["read"] == 12
    assert len(told["examples"]) == 2
    segments = told["examples"][0]["segments"]
    assert [segment["learnt"] for segment in segments][:2] == [False, True]
    assert segments[1]["text"].endswith("<|im_end|>")
    assert "⟦" in tutelage("data", "show", "recipe.yaml").out
    wrong = tutelage("data", "show", "recipe.yaml", "--stage", "tone")
    assert (wrong.code, wrong.err) == (2, "error: --stage: the recipe has no stage tone; did you mean tune?\n")


def test_check_agrees_and_finds_what_is_wrong(tutelage: Run) -> None:
    (fine,) = tutelage("check", "recipe.yaml", "--json").lines
    assert fine["ok"] is True
    assert fine["data"]["tune"]["examples"] == 9
    (bad,) = tutelage(
        "check",
        "recipe.yaml",
        "--set=stages.tune.adapter.targets=[nothing]",
        "--set=stages.tune.data=none.jsonl",
        "--json",
    ).lines
    assert {problem["place"] for problem in bad["problems"]} >= {
        "stages.tune.adapter.targets",
        "stages.tune.data.train",
    }


def test_generate_answers_with_a_run_a_folder_and_a_model_alike(tutelage: Run, trained: list[dict[str, Any]]) -> None:
    options = ("--prompt", "1 + 3 =", "--max-new-tokens", "4", "--json")
    artifact = trained[-1]["stages"][0]["artifact"]
    by_run, by_folder = tutelage("generate", "sums", *options), tutelage("generate", artifact, *options)
    assert by_run.code == 0, by_run.err
    assert by_run.lines == by_folder.lines
    assert by_run.lines[0]["prompt"] == "1 + 3 ="
    assert tutelage("generate", "model", *options).code == 0


def test_generate_reads_prompts_from_files_and_pipes(
    tutelage: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = ("--max-new-tokens", "2", "--json")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "one"}\n\n{"messages": [{"role": "user", "content": "two"}]}\n')
    read = tutelage("generate", "model", "--prompts", str(rows), "--system", "Be brief.", *few).lines
    system = {"role": "system", "content": "Be brief."}
    assert [line["prompt"] for line in read] == [[system, {"role": "user", "content": text}] for text in ("one", "two")]
    monkeypatch.setattr("sys.stdin", io.StringIO("three\nfour\n"))
    piped = tutelage("generate", "model", "--prompts", "-", *few).lines
    assert [line["prompt"] for line in piped] == ["three", "four"]
    rows.write_text('{"prompt": "one"}\n{"text": 1}\n')
    wrong = tutelage("generate", "model", "--prompts", str(rows))
    assert (wrong.code, f"{rows} line 2: has neither prompt nor messages" in wrong.err) == (2, True)
    assert tutelage("generate", "model").code == 2


def test_merge_makes_a_model_that_answers_alike(tutelage: Run, trained: list[dict[str, Any]], place: Path) -> None:
    (told,) = tutelage("merge", "sums", "--out", "merged", "--json").lines
    assert told == {"model": str(place / "merged"), "verified": True}
    options = ("--prompt", "1 + 3 =", "--max-new-tokens", "8", "--json")
    assert tutelage("generate", "merged", *options).lines == tutelage("generate", "sums", *options).lines
    again = tutelage("merge", "sums", "--out", "merged")
    assert (again.code, "exists already" in again.err) == (2, True)
    whole = tutelage("merge", "model", "--out", "other")
    assert (whole.code, whole.err) == (2, "error: model: is a whole model, not an adapter; it can be used as it is\n")


def test_chat_streams_the_tuned_model_beside_its_base(
    tutelage: Run, trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("1 + 3 =\n/nonsense\n/reset\n/system Be brief.\n1 + 3 =\n/quit\nnever\n")
    )
    outcome = tutelage("chat", "sums", "--beside-base", "--max-new-tokens", "3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("tuned: ") == outcome.out.count("base: ") == 2
    assert outcome.err.count("/reset begins anew") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    refused = tutelage("chat", "model", "--beside-base")
    assert (refused.code, "what it was made from is not known" in refused.err) == (2, True)


def test_a_chat_remembers_until_it_is_reset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tutelage.cli.chat import converse

    heard: list[list[str]] = []

    def answer(messages: list[dict[str, str]]) -> Any:
        heard.append([turn["content"] for turn in messages])
        yield from ("well", ", yes")

    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n/reset\nc\n/system be kind\nd\n"))
    converse({"": answer}, system="be brief")
    assert heard == [
        ["be brief", "a"],
        ["be brief", "a", "well, yes", "b"],
        ["be brief", "c"],
        ["be kind", "d"],
    ]
    assert capsys.readouterr().out == "well, yes\n" * 4
