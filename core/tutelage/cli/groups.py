"""Groups of commands that plugins may add to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tutelage.plugins import Command


class OpenGroup(click.Group):
    """A group of core's, with the commands that plugins bring for it: `Command("data fix", ...)` joins `data`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core's commands, then those of plugins."""
        return [*super().list_commands(ctx), *sorted(self._brought())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command of a plugin when it is named."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in (brought := self._brought()):
            return own
        from tutelage.plugins import load_command

        command: click.Command = load_command(brought[cmd_name])
        return command

    def _brought(self) -> dict[str, Command]:
        from tutelage.plugins import plugin_commands

        prefix = f"{self.name} "
        found = plugin_commands().items()
        return {name.removeprefix(prefix): command for name, command in found if name.startswith(prefix)}
