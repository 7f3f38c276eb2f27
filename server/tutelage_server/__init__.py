"""The server: the advisor over HTTP, jobs on the machines that a team has, and the commands that call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.plugins import Command, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["register_commands"]


@hookimpl
def register_commands(register: Callable[[Command], None]) -> None:
    """Bring the server's commands to `tutelage`."""
    for name, target, text in (
        ("serve", "serve:serve", "Serve advice and jobs over HTTP."),
        ("login", "login:login", "Keep a server's address and key for later commands."),
        ("submit", "submit:submit", "Send a recipe to a server, which runs it."),
        ("jobs", "jobs:jobs", "See and steer the jobs of a server."),
        ("files", "files:files", "See, send and fetch the files of a server."),
        ("keys", "keys:keys", "Make, list and revoke keys."),
        ("doctor", "doctor:doctor", "See what works here and what is missing."),
    ):
        register(Command(name, f"tutelage_server.cli.{target}", text))
