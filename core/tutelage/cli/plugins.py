"""`tutelage plugins`."""

from __future__ import annotations

import click

from tutelage.cli.output import json_option, print_json


@click.command()
@click.option("--trace", is_flag=True, help="With the whole trace of what is switched off.")
@json_option
def plugins(trace: bool, as_json: bool) -> None:
    """List installed plugins: what each brings, its version, and why a broken one is switched off."""
    from tutelage.plugins import KINDS, host

    found = host()
    if as_json:
        print_json(found.infos)
        return
    for info in found.infos:
        origin = f" ({info.distribution} {info.version})" if info.distribution else ""
        click.echo(click.style(f"{info.name}{origin}", bold=True))
        if info.error:
            click.echo(f"  {click.style('switched off', fg='red')}: {info.error}")
            if trace:
                click.echo("".join(f"    {line}\n" for line in info.trace.splitlines()), nl=False)
        for kind, names in info.provides.items():
            for name in names:
                known = kind in KINDS
                summary = found.classes(kind)[name].summary() if known else found.commands[name].help
                click.echo(f"  {kind} {name}: {summary}")
    if not found.infos:
        click.echo("no plugins are installed", err=True)
