"""`tutelage chat`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from tutelage.cli.models import load, sampling_options
from tutelage.cli.output import print_problems

HELP = "/reset begins anew, /system TEXT sets the system message (and begins anew), /quit or Ctrl-D ends"
Messages = list[dict[str, str]]
Answer = Callable[[Messages], Iterator[str]]


@click.command()
@click.argument("model")
@click.option("--beside-base", is_flag=True, help="Show what the base model answers, too.")
@sampling_options
def chat(
    model: str,
    beside_base: bool,
    system: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> None:
    """Talk with MODEL: a model, an adapter, or a run. Answers appear as they are written.

    Commands: /reset begins anew, /system TEXT sets the system message, /quit ends. Ctrl-C stops an answer.
    """
    from tutelage.errors import TutelageError
    from tutelage.models.generation import stream

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    loaded, tokenizer = load(model)
    if not tokenizer.chat_template:
        fix = "use tutelage generate, which takes plain text"
        raise TutelageError.at(model, "has no chat template, so it can't tell turns apart", fix)
    voices: dict[str, Answer] = {"": lambda messages: stream(loaded, tokenizer, messages, **options)}
    if beside_base:
        base, base_tokenizer = _base(model)
        voices = {"tuned": voices[""], "base": lambda messages: stream(base, base_tokenizer, messages, **options)}
    click.echo(HELP, err=True)
    converse(voices, system)


def converse(voices: dict[str, Answer], system: str = "") -> None:
    """Ask, answer, and go on until the input ends. Each voice remembers its own answers."""
    histories: dict[str, Messages] = {}
    while True:
        if not histories:
            start = [{"role": "system", "content": system}] if system else []
            histories = {name: list(start) for name in voices}
        text = _ask()
        if text is None or text == "/quit":
            return
        if text == "/reset":
            histories = {}
        elif text.split(" ")[0] == "/system":
            system, histories = text.removeprefix("/system").strip(), {}
        elif text.startswith("/"):
            click.echo(HELP, err=True)
        elif text:
            for name, answer in voices.items():
                _tell(name, answer, histories[name], text)


def _tell(name: str, answer: Answer, history: Messages, text: str) -> None:
    """Print one voice's answer piece by piece; Ctrl-C cuts it short and keeps what was said."""
    from tutelage.errors import TutelageError

    history.append({"role": "user", "content": text})
    if name:
        click.echo(click.style(f"{name}: ", bold=True), nl=False)
    said = ""
    pieces = answer(history)
    try:
        for piece in pieces:
            said += piece
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    except TutelageError as error:
        history.pop()
        print_problems(error.problems)
        return
    finally:
        pieces.close()  # type: ignore[attr-defined]
    click.echo()
    history.append({"role": "assistant", "content": said})


def _ask() -> str | None:
    """The next line of a person (with editing and history where the terminal can) or of a pipe; None at its end."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - importing it gives input() line editing
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _base(model: str) -> tuple[Any, Any]:
    """The base model of an adapter or a run.

    Raises:
        TutelageError: when what was named is a whole model and no run, so that its base is not known.
    """
    from tutelage.cli.models import reference_of
    from tutelage.errors import TutelageError
    from tutelage.models.generation import load_for_generation
    from tutelage.models.loading import base_of
    from tutelage.models.locating import fetch, locate
    from tutelage.plugins import host
    from tutelage.runs.folder import RECORD, RunFolder

    reference = reference_of(model)
    located = fetch(locate(reference, Path.cwd(), "model", host()))
    if located.kind == "adapter":
        return load_for_generation(base_of(Path(located.path)).path, host())
    if (Path(reference) / RECORD).is_file():
        run = RunFolder.open(Path(reference))
        return load_for_generation(str(run.recipe["model"]), host(), base=Path(run.record.base))
    raise TutelageError.at("--beside-base", f"{model} is a whole model; what it was made from is not known")
