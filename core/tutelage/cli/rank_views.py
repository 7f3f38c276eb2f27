"""How ranking is shown to a person or a program, and what they type."""

from __future__ import annotations

import getpass
import sys
from typing import Protocol

import click

from tutelage.cli.output import is_terminal, print_json

HELP = (
    "order the answers best to worst, = between ties: b a=c d\n"
    "bad: all are bad   skip: can't say   undo: take the last answer back\n"
    "? TEXT: a comment on this question   quit: stop (all you said is kept)"
)


class View(Protocol):
    """How a session is shown."""

    def question(self, number: int, total: int, prompt: str, answers: dict[str, str]) -> None:
        """The question, its answers lettered in the order of this person."""

    def said(self, what: str, text: str) -> None:
        """What became of a line that the person typed."""


class Lines:
    """For people: panels on a terminal, plain lines elsewhere."""

    def question(self, number: int, total: int, prompt: str, answers: dict[str, str]) -> None:
        click.echo(f"\n{number} of {total}")
        if not is_terminal(sys.stdout):
            for name, text in {"prompt": prompt, **answers}.items():
                click.echo(f"{name}: {text}")
            return
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        console = Console(highlight=False)
        console.print(Panel(Text(prompt), title="prompt", title_align="left", border_style="cyan"))
        for name, text in answers.items():
            console.print(Panel(Text(text), title=name, title_align="left"))

    def said(self, what: str, text: str) -> None:
        click.echo(text)


class JsonLines:
    """For programs: a JSON object a line; answers are read as a person would type them."""

    def question(self, number: int, total: int, prompt: str, answers: dict[str, str]) -> None:
        print_json({"question": {"number": number, "of": total, "prompt": prompt, "answers": answers}})

    def said(self, what: str, text: str) -> None:
        print_json({what: text})


def login_name() -> str:
    """The name of this machine's user, for who ranks.

    Raises:
        TutelageError: when it is not known.
    """
    from tutelage.errors import TutelageError

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise TutelageError.at("--person", "your login name is not known", "say who you are") from None


def harmless(text: str) -> str:
    """Text without control characters, which could make a terminal show something else."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def read_line() -> str | None:
    """The next line of a person or of a pipe; None at its end, or when the terminal is gone."""
    terminal = sys.stdin.isatty()
    if terminal:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - importing it gives input() line editing
    try:
        return input("best to worst> " if terminal else "").strip()
    except (EOFError, OSError):
        return None
