"""`tutelage completion`."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes `tutelage` in your SHELL.

    \b
    bash: eval "$(tutelage completion bash)"       in ~/.bashrc
    zsh:  eval "$(tutelage completion zsh)"        in ~/.zshrc
    fish: tutelage completion fish > ~/.config/fish/completions/tutelage.fish
    """
    from click.shell_completion import get_completion_class

    from tutelage.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "tutelage", "_TUTELAGE_COMPLETE").source())
