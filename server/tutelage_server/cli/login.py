"""`tutelage login`."""

from __future__ import annotations

import sys

import click

from tutelage.cli.output import json_option, print_json


@click.command()
@click.argument("url")
@click.option("--key", help="The key; asked for otherwise, or read from stdin, where other users can't see it.")
@click.option("--kept", is_flag=True, help="Take the key that is kept for URL (or for the server of this name).")
@click.option("--name", default="", help="What to call the server; its host and port by default.")
@click.option("--keep-default", is_flag=True, help="Do not make it the server that commands call by default.")
@json_option
def login(url: str, key: str | None, kept: bool, name: str, keep_default: bool, as_json: bool) -> None:
    """Keep a server's URL and key for later commands, after trying them. The last one is the default from then on; with
    --kept one that was kept is made it again.

    They are kept in ~/.config/tutelage/servers.json ($TUTELAGE_CONFIG names another folder), readable by you alone.
    """
    from urllib.parse import urlsplit

    from tutelage.errors import TutelageError
    from tutelage_server.client.client import LOCAL_HOSTS, Client
    from tutelage_server.client.servers import KnownServer, config_file, find_server, read_known, remember

    if kept:
        known = read_known().servers
        called = next((each for each in known if url == each or _address(url) == known[each].url), "")
        found = known[called] if called else find_server(url)
        url, key, name = found.url, found.key, name or called
    else:
        url = _address(url)
    if key is None:
        key = click.prompt("key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    key = key.strip()
    if not key:
        raise TutelageError.at("--key", "is empty", "give the key that the server's operator made: tutelage keys make")
    with Client(KnownServer(url=url, key=key)) as client:
        if urlsplit(url).scheme == "http" and urlsplit(url).hostname not in LOCAL_HOSTS:
            click.echo("warning: the key travels readable to all on the way; use https where you can", err=True)
        me = client.get("/v1/me")
    name = remember(url, key, name, default=not keep_default)
    if as_json:
        print_json({"server": name, "url": url, "file": config_file(), "me": me})
        return
    click.echo(f"{name} is kept in {config_file()}; go on with: tutelage submit RECIPE")


def _address(url: str) -> str:
    """A URL of what may be a host and port alone: this machine's servers seldom have TLS, others should."""
    from urllib.parse import urlsplit

    from tutelage_server.client.client import LOCAL_HOSTS

    if "://" in url:
        return url.rstrip("/")
    try:
        here = urlsplit(f"//{url}").hostname in LOCAL_HOSTS
    except ValueError:  # what it is not is said where it is called
        here = False
    return f"{'http' if here else 'https'}://{url.rstrip('/')}"
