"""`tutelage advise` as people and scripts use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tutelage.cli.main import main
from tutelage_advisor.cli.advise import advise

TUNE = """\
task: Product texts in our house style
explainable_in_prompt: false
base_capability: partial
examples: 1500
example_quality: reviewed
task_breadth: narrow
needs_strict_format: true
quality_critical: true
"""


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def situation(tmp_path: Path) -> Path:
    path = tmp_path / "situation.yaml"
    path.write_text(TUNE, encoding="utf-8")
    return path


def test_a_page_that_a_busy_person_reads(situation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("advise", situation, "--draws", "100") == 0
    page = capsys.readouterr().out
    assert page.startswith("Fine-tune it with LoRA")
    words = " ".join(page.split())  # a narrow terminal breaks lines anywhere
    for part in ("Why", "Data", "Costs over 12 months", "Methods", "Next", "tutelage train recipe.yaml"):
        assert part in words
    assert len(page.split()) < 600
    assert max(map(len, page.splitlines())) <= 130


def test_json_holds_everything(situation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("advise", situation, "--json", "--draws", "100") == 0
    advice = json.loads(capsys.readouterr().out)
    assert (advice["approach"], advice["method"]) == ("fine-tune", "lora")
    assert advice.keys() >= {
        "combine_with",
        "confidence",
        "reasons",
        "costs",
        "methods",
        "data",
        "risks",
        "assumptions",
        "next_steps",
        "recipe",
    }
    assert {"rule", "side", "weight", "fields", "source"} <= advice["reasons"][0].keys()
    assert advice["costs"]["monte_carlo"]["draws"] == 100


def test_why_explains_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("advise", "--why", "fresh-facts") == 0
    assert "Ovadia" in capsys.readouterr().out
    assert run("advise", "--why", "fresh-facts", "--json") == 0
    assert json.loads(capsys.readouterr().out)["option"] == "retrieve"


def test_every_rule_that_a_page_names_can_be_explained(situation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("advise", situation, "--json", "--draws", "0") == 0
    for reason in json.loads(capsys.readouterr().out)["reasons"]:
        assert run("advise", "--why", reason["rule"]) == 0


def test_the_recipe_is_written_once(situation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tutelage.config import read_file

    written = tmp_path / "recipe.yaml"
    assert run("advise", situation, "--recipe", written) == 0
    assert read_file(written)["stages"][0]["adapter"]["kind"] == "lora"
    assert run("advise", situation, "--recipe", written) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


BAD: list[tuple[str, str]] = [
    ("task: x\nexamples: -5", "examples"),
    ("task: x\nexamples: many", "examples"),
    ("task: x\nexamples: 2.5", "examples"),
    ("task: x\nbudget_usd: .nan", "not a finite number"),
    ("task: x\nbudget_usd: .inf", "not a finite number"),
    ("task: x\nbudget_usd: -1", "budget_usd"),
    ("task: x\nbase_capabilty: weak", "did you mean base_capability"),
    ("task: x\nbase_capability: good", "weak, partial, strong"),
    ("task: x\ntraffic: {growth_per_month: 5}", "0.05 is 5%"),
    ("task: x\ntraffic: {cached_share: 80}", "0.8 is 80%"),
    ("task: x\ntraffic: {requests_per_month: -1}", "traffic.requests_per_month"),
    ("task: x\ntraffic: {requests: 7}", "traffic.requests"),
    ("task: x\ntraffic: 1000", "traffic"),
    ("task: x\nprices: {gpu_per_hour: -2}", "prices.gpu_per_hour"),
    ("task: x\nhorizon_months: 0", "horizon_months"),
    ("task: x\nhorizon_months: 1200", "horizon_months"),
    ("task: x\nhardware: {gpu: h100-sx}", "H100"),
    ("task: x\nhardware: {count: 2}", "hardware.gpu"),
    ("task: x\nhardware: {gpu: l4, count: 0}", "hardware.count"),
    ("task: x\nmodel: llama-9-900b", "model"),
    ("task: x\ndata: nowhere.jsonl", "nowhere.jsonl"),
    ("task: ''", "task"),
    ("examples: 5", "task"),
    ("- task", "not a mapping"),
    ("task: [", "malformed"),
    ("", "not a mapping"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_bad_input_gets_a_sentence_and_exit_code_2(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    assert run("advise", path) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_files_that_are_no_situations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary, large = tmp_path / "binary.yaml", tmp_path / "large.json"
    binary.write_bytes(bytes(range(256)))
    with large.open("wb") as file:
        file.truncate(10 * 2**30)  # 10 GiB that take no space
    for path, said in (
        (binary, "UTF-8"),
        (large, "larger than"),
        (tmp_path, "folder"),
        (tmp_path / "none.yaml", "no such"),
    ):
        assert run("advise", path) == 2
        assert said in capsys.readouterr().err
    assert run("advise") == 2
    assert "--interactive" in capsys.readouterr().err


def interactive(answers: list[str]) -> Any:
    done = CliRunner().invoke(advise, ["--interactive", "--json", "--draws", "0"], input="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_interactive_asks_until_nothing_matters_any_more() -> None:
    known = {
        "explainable_in_prompt": "yes",
        "base_capability": "strong",
        "iteration_speed": "hours",
        "needs_strict_format": "no",
        "needs_domain_knowledge": "none",
        "quality_critical": "no",
        "weights_access": "api-only",
    }
    advice, asked = interactive(["Rewrite e-mails", *(["unclear", ""] * 0), *[""] * 40])
    assert advice["approach"] == "prompt"
    assert "What shall the model do?" in asked
    few, questions = answered(known)
    assert few["approach"] == "prompt"
    assert questions < 12
    assert questions < asked.count("Enter: don't know")


def answered(known: dict[str, str]) -> tuple[Any, int]:
    """Play a person who answers what they know, by running the dialogue again with one more answer each time."""
    answers: list[str] = ["Rewrite e-mails"]
    while True:
        _, asked = interactive([*answers, *[""] * 40])
        fields = [line.split()[0] for line in asked.splitlines() if "Enter: don't know" in line]
        if len(fields) < len(answers):
            break
        answers.append(known.get(fields[len(answers) - 1], ""))
    advice, _ = interactive([*answers, *[""] * 40])
    return advice, len(fields)


def test_interactive_mends_a_wrong_answer() -> None:
    done = CliRunner().invoke(advise, ["--interactive", "--json", "--draws", "0"], input="x\nfoo\n" + "\n" * 40)
    assert done.exit_code == 0
    assert "foo" in done.stderr


def test_questions_that_no_one_answers_end_with_a_sentence() -> None:
    command = [Path(sys.executable).with_name("tutelage"), "advise", "--interactive"]
    done = subprocess.run(command, input="x\n\n", capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the input ended before the questions did; run it in a terminal" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["catalog", "models"], ["advise", "--json"], ["estimate", "--model", "GPT-2"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str], situation: Path) -> None:
    command = [Path(sys.executable).with_name("tutelage"), *arguments, *([situation] if "advise" in arguments else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        told = process.stderr.read()
    assert "Traceback" not in told
    assert "error" not in told


def test_no_torch_and_no_libraries_of_training(situation: Path) -> None:
    code = (
        "import sys; from tutelage.cli.main import main\n"
        "try: main(['advise', sys.argv[1], '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'lightning', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(situation)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
