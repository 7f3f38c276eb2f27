"""The demo: a small model learns to turn expense notes into strict JSON, and is asked before and after.

    python examples/demo/demo.py [--seed 0] [--out FOLDER]

What it does is what `tutelage train` and `tutelage generate` do. It exits with 1 when the tuned model gets less than
80% of the held-out notes exactly right.
"""

from __future__ import annotations

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
from tutelage.cli.output import is_terminal, print_problems
from tutelage.cli.summary import loss_plot
from tutelage.cli.views import view
from tutelage.models.generation import generate, load_for_generation
from tutelage.plugins import host
from tutelage.runs.folder import RunFolder
from tutelage.runs.history import StageHistory, read_history
from tutelage.runs.listing import new_folder
from tutelage.runs.words import duration, number

HERE = Path(__file__).parent
MODEL = "starter:smollm2-135m-instruct"
EXAMPLE = "Paid Jackson Taxi $12.50 for a ride to the airport on 3 May 2024."
SHOWN = 3
GOAL = 0.8
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
    before = answers(MODEL, rows)
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
    after = answers(str(result.artifact), rows)
    for row, answer in list(zip(rows, after, strict=True))[:SHOWN]:
        mark = "right" if is_exact(row, answer) else f"wrong; right is {row[2]['content']}"
        click.echo(f"note     {row[1]['content']}\nanswer   {shortened(answer)}\n         {mark}\n")

    run = RunFolder.open(result.folder)
    tell(run, read_history(run)["tune"], rows, before, after, time.perf_counter() - started)
    share = exact(rows, after) / len(rows)
    if share < GOAL:
        click.echo(f"error: only {share:.0%} are exactly right, and {GOAL:.0%} were expected", err=True)
        sys.exit(1)


def answers(model: str, rows: list[list[dict[str, str]]]) -> list[str]:
    """What a model answers to each conversation's system prompt and note."""
    loaded, tokenizer = load_for_generation(model, host())
    asked: list[Any] = [row[:2] for row in rows]
    return generate(loaded, tokenizer, asked, max_new_tokens=LONGEST_RECORD, batch_size=30)


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
