"""The entry point of `tutelage`: finds the command that was named, and turns errors into sentences and exit codes."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import sys
from typing import TYPE_CHECKING

import click

from tutelage.cli.commands import COMMANDS
from tutelage.libraries import own_process

if TYPE_CHECKING:
    from tutelage.plugins import Command


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is named, and never to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core's commands, then those of plugins."""
        return [*COMMANDS, *sorted(_plugin_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; an unknown name is answered with the nearest one."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if cmd_name in _plugin_commands():
            from tutelage.plugins import load_command

            loaded: click.Command = load_command(_plugin_commands()[cmd_name])
            return loaded
        if cmd_name.startswith("-") or ctx.resilient_parsing:
            return None
        from tutelage.config import did_you_mean

        raise click.UsageError(f"No such command {cmd_name!r}; {did_you_mean(cmd_name, self.list_commands(ctx))}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line for every command, without importing it."""
        plugins = _plugin_commands()
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        if plugins:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, plugins[name].help) for name in sorted(plugins)])


def _plugin_commands() -> dict[str, Command]:
    from tutelage.plugins import plugin_commands

    return {name: command for name, command in plugin_commands().items() if " " not in name}


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from tutelage import __version__

        click.echo(f"tutelage {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Decide how a language model should learn, then teach it.

    Start with `tutelage init`, then `tutelage train recipe.yaml`.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 something for the user to mend, 130 stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own_process()
    atexit.register(gc.freeze)  # collecting garbage from a process that ends would take a tenth of a short command
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no dash is no reason to fail
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(args=arguments, prog_name="tutelage", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SystemExit as error:  # click's own way out of a broken pipe, and of a completion
        return error.code if isinstance(error.code, int) else 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        from tutelage.cli.output import silence

        silence()
        return 1
    except Exception as error:
        from tutelage.cli.output import report_error

        return report_error(error, as_json="--json" in arguments)
