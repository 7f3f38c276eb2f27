"""`tutelage generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from tutelage.cli.models import load, messages_of, sampling_options
from tutelage.cli.output import json_option, print_json


@click.command()
@click.argument("model")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be given several times.")
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="A prompt a line, or JSONL with `prompt` or `messages`; - reads what is piped in.",
)
@sampling_options
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts at a time.")
@json_option
def generate(
    model: str,
    prompts: tuple[str, ...],
    file: Path | None,
    system: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    batch_size: int,
    as_json: bool,
) -> None:
    """Answer prompts with MODEL: a model, an adapter, or a run (its folder or name).

    With --json a line for each prompt: {"prompt": …, "answer": …}.
    """
    asked = [messages_of(system, text) for text in prompts] + (_read(file, system) if file else [])
    if not asked:
        raise click.UsageError("give --prompt or --prompts")
    loaded, tokenizer = load(model)
    from tutelage.models.generation import generate as answer

    answers = answer(
        loaded,
        tokenizer,
        asked,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
    )
    for prompt, text in zip(asked, answers, strict=True):
        if as_json:
            print_json({"prompt": prompt, "answer": text})
            continue
        if len(asked) > 1:
            click.echo(click.style(f"> {prompt if isinstance(prompt, str) else prompt[-1]['content']}", dim=True))
        click.echo(text)


def _read(file: Path, system: str) -> list[Any]:
    """The prompts of a file.

    Raises:
        TutelageError: with the line that can't be used.
    """
    from tutelage.errors import TutelageError

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise TutelageError.at(str(file), f"can't be read: {said}") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if file.suffix in (".jsonl", ".json"):
        return [_prompt(line, f"{file} line {number}", system) for number, line in lines]
    return [messages_of(system, line) for _, line in lines]


def _prompt(line: str, place: str, system: str) -> Any:
    import json

    from tutelage.errors import TutelageError

    try:
        row = json.loads(line)
    except ValueError as error:
        raise TutelageError.at(place, f"is not JSON: {error}", "write one JSON object a line") from None
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return messages_of(system, row["prompt"])
    if isinstance(row, dict) and _are_messages(row.get("messages")):
        before = [{"role": "system", "content": system}] if system else []
        return [*before, *row["messages"]]
    raise TutelageError.at(place, "has neither prompt nor messages", 'write {"prompt": "…"} or {"messages": […]}')


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )
