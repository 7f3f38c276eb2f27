"""The demo: a small model learns to turn expense notes into strict JSON, and is asked before and after.

    python examples/demo/demo.py [--seed 0] [--out FOLDER]

What it does is what `tutelage train`, `tutelage generate` and, at its end, `tutelage advise` do. It exits with 1 when
the tuned model gets less than 80% of the held-out notes exactly right.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

import tutelage
import tutelage_advisor
from tutelage.cli.output import is_terminal, print_problems
from tutelage.cli.summary import loss_plot
from tutelage.cli.views import view
from tutelage.config import read_file
from tutelage.models.generation import generate, load_for_generation
from tutelage.plugins import host
from tutelage.runs.folder import RunFolder
from tutelage.runs.history import StageHistory, read_history
from tutelage.runs.listing import new_folder
from tutelage.runs.words import duration, number
from tutelage_advisor.cli.page import brief

HERE = Path(__file__).parent
MODEL = "starter:smollm2-135m-instruct"
EXAMPLE = "Paid Jackson Taxi $12.50 for a ride to the airport on 3 May 2024."
SHOWN = 3
GOAL = 0.8
WORKED = 4
"Examples that a prompt would show a model that was not trained."
LONGEST_RECORD = 72
"Tokens that an answer may have; the longest record has about 60."


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of data order and weights.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; by default a new one below ./runs.")
def main(seed: int, out: Path | None) -> None:
    """Ask, train, ask again, and tell what came of it."""
    started = time.perf_counter()
    rows = [json.loads(line)["messages"] for line in (HERE / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    folder = out or new_folder("demo")

    say(f"1. Ask SmolLM2-135M-Instruct for the records of {len(rows)} expense notes that it never saw")
    before, _ = answers(MODEL, rows)
    for row, answer in list(zip(rows, before, strict=True))[:SHOWN]:
        click.echo(f"note     {row[1]['content']}\nanswer   {shortened(answer)}\n")
    click.echo(score(rows, before))

    say("2. Train it with LoRA: tutelage train examples/demo/recipe.yaml")
    try:
        with view(as_json=False) as show:
            result = tutelage.train(HERE / "recipe.yaml", [f"stages.tune.trainer.seed={seed}"], folder, show)
    except tutelage.TutelageError as error:
        print_problems(error.problems)
        sys.exit(error.exit_code)

    say("3. Ask the tuned model the same")
    after, tokenizer = answers(str(result.artifact), rows)
    for row, answer in list(zip(rows, after, strict=True))[:SHOWN]:
        mark = "right" if is_exact(row, answer) else f"wrong; right is {row[2]['content']}"
        click.echo(f"note     {row[1]['content']}\nanswer   {shortened(answer)}\n         {mark}\n")

    run = RunFolder.open(result.folder)
    tell(run, read_history(run)["tune"], rows, before, after, time.perf_counter() - started)
    advise(rows, before, after, tokenizer)
    share = exact(rows, after) / len(rows)
    if share < GOAL:
        click.echo(f"error: only {share:.0%} are exactly right, and {GOAL:.0%} were expected", err=True)
        sys.exit(1)


def answers(model: str, rows: list[list[dict[str, str]]]) -> tuple[list[str], Any]:
    """What a model answers to each conversation's system prompt and note; and its tokenizer."""
    loaded, tokenizer = load_for_generation(model, host())
    asked: list[Any] = [row[:2] for row in rows]
    return generate(loaded, tokenizer, asked, max_new_tokens=LONGEST_RECORD, batch_size=30), tokenizer


def parsed(answer: str) -> Any:
    """The record of an answer, or None where it is not JSON."""
    try:
        return json.loads(answer)
    except ValueError:
        return None


def is_exact(row: list[dict[str, str]], answer: str) -> bool:
    """Whether an answer is JSON with exactly the keys and values of the row's record."""
    return bool(parsed(answer) == json.loads(row[2]["content"]))


def exact(rows: list[list[dict[str, str]]], answered: list[str]) -> int:
    """How many answers are exactly right."""
    return sum(is_exact(row, answer) for row, answer in zip(rows, answered, strict=True))


def score(rows: list[list[dict[str, str]]], answered: list[str]) -> str:
    """Both counts as a line."""
    valid = sum(isinstance(parsed(answer), dict) for answer in answered)
    return f"{valid} of {len(rows)} answers are JSON; {exact(rows, answered)} match exactly"


def tell(
    run: RunFolder,
    history: StageHistory,
    rows: list[list[dict[str, str]]],
    before: list[str],
    after: list[str],
    seconds: float,
) -> None:
    """The result, what it cost, and what to try next."""
    say("You have trained a model")
    if is_terminal(sys.stdout):
        click.echo(f"{loss_plot(history)}\n")
    click.echo(f"before       {score(rows, before)}")
    click.echo(f"after        {score(rows, after)}")
    click.echo(f"time         {duration(seconds)}, of which {duration(history.seconds or 0)} training")
    click.echo(f"speed        {number(round(history.tokens_per_second or 0))} tokens/s")
    click.echo(f"peak memory  {history.peak_memory or 0:.2f} GiB")
    click.echo(f"run folder   {run.path}")
    click.echo("try next")
    for command in next_commands(run.path, rows[0][0]["content"]):
        click.echo(f"  {command}")


def advise(rows: list[list[dict[str, str]]], before: list[str], after: list[str], tokenizer: Any) -> None:
    """What the advisor says of this very task, given what was measured here."""
    with (HERE / "train.jsonl").open(encoding="utf-8") as file:
        examples = [json.loads(line)["messages"] for line in itertools.islice(file, WORKED)]
    worked = [turn for example in examples for turn in example[1:]]
    share = exact(rows, before) / len(rows)
    tuned = mean_tokens(tokenizer, [row[:2] for row in rows])
    prompted = mean_tokens(tokenizer, [[row[0], *worked, row[1]] for row in rows])
    situation: dict[str, Any] = read_file(HERE / "situation.yaml")
    situation["base_capability"] = "weak" if share < 1 / 3 else "partial" if share < GOAL else "strong"
    situation["traffic"] |= {"prompt_tokens": prompted, "tuned_prompt_tokens": tuned}

    say("Was that the right thing to do? tutelage advise, on this task as it was measured here")
    click.echo(brief(tutelage_advisor.advise(situation)))
    click.echo(
        f"Measured: {exact(rows, before)} of {len(rows)} notes exactly right before, with this short prompt, and "
        f"{exact(rows, after)} after.\nA prompt with {WORKED} worked examples takes {prompted} tokens and the tuned "
        f"model's {tuned}: {prompted - tuned} are saved on every note.\n"
        f"Change what is assumed in {os.path.relpath(HERE / 'situation.yaml')}, and ask `tutelage advise` again."
    )


def mean_tokens(tokenizer: Any, conversations: list[list[dict[str, str]]]) -> int:
    """Tokens of a conversation up to where the assistant begins, on average."""
    asked = [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for turns in conversations
    ]
    return round(sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in asked) / len(asked))


def next_commands(run: Path, system: str) -> list[str]:
    """Three commands that work from here."""
    own, found = Path(sys.executable).with_name("tutelage"), shutil.which("tutelage")
    program = "tutelage" if found and Path(found) == own else os.path.relpath(own)
    model = os.path.relpath(run)
    return [
        shlex.join([program, "generate", model, "--system", system, "--prompt", EXAMPLE]),
        shlex.join([program, "chat", model, "--beside-base", "--system", system]),
        shlex.join([program, "merge", model, "--out", f"{model}-merged"]),
    ]


def shortened(answer: str) -> str:
    """An answer on one line."""
    line = " ".join(answer.split())
    return line if len(line) <= 160 else f"{line[:159]}…"


def say(title: str) -> None:
    """A heading."""
    width = min(shutil.get_terminal_size().columns, 100)
    click.echo(f"\n{click.style(title, bold=True)}\n{'─' * min(len(title), width)}")


if __name__ == "__main__":
    main()
