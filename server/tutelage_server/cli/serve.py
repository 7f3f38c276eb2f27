"""`tutelage serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json
from tutelage_server.cli.keys import check_names

if TYPE_CHECKING:
    from tutelage_server.settings import Settings
    from tutelage_server.store.store import Store


@click.command()
@click.option("--settings", "file", type=click.Path(path_type=Path), help="A YAML, TOML or JSON file of settings.")
@click.option("--home", type=click.Path(path_type=Path), help="Where the store, files and runs are kept.")
@click.option("--database", help="postgresql+psycopg://… instead of the SQLite file below home.")
@click.option("--host", help="The address to listen on; 127.0.0.1 by default.")
@click.option("--port", type=int, help="The port to listen on; 8790 by default, 0 takes a free one.")
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM file of a TLS certificate.")
@click.option("--certificate-key", type=click.Path(path_type=Path), help="PEM file of its private key.")
@click.option("--allow-plain-http", is_flag=True, default=None, help="Listen on a public address without TLS.")
@click.option("--no-dispatcher", is_flag=True, help="Answer requests only; another server runs the jobs.")
@click.option("--make-key", "key_name", metavar="NAME", help="Make a key with every scope, print it, and end.")
@click.option("--tenant", help="With --make-key: the tenant it is for; the operator's by default.")
@json_option
def serve(
    file: Path | None,
    no_dispatcher: bool,
    key_name: str | None,
    tenant: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve advice and jobs over HTTP.

    On this machine alone (127.0.0.1) no set-up is needed: the first start makes a key, prints it and keeps it for
    `tutelage submit` and the other commands.
    """
    from tutelage_server.serving import check_address, open_store
    from tutelage_server.settings import load_settings

    settings = load_settings(file, **options)
    if key_name is None and tenant is not None:
        raise click.UsageError("--tenant belongs to --make-key")
    if key_name is not None:
        check_names(key_name, tenant or settings.operator)
        _make_key(open_store(settings), key_name, tenant or settings.operator, as_json)
        return
    check_address(settings)
    _serve(settings, open_store(settings), not no_dispatcher, as_json)


def _make_key(store: Store, name: str, tenant: str, as_json: bool) -> None:
    from tutelage_server.accounts.keys import make_key, tenant_named

    with store.writing() as session:
        key, text = make_key(session, tenant_named(session, tenant).id, name)
    store.close()
    if as_json:
        print_json({"id": key.id, "tenant": tenant, "key": text})
    else:
        click.echo(text)


def _serve(settings: Settings, store: Store, dispatcher: bool, as_json: bool) -> None:
    import logging

    from tutelage_server.serving import first_key, listen, serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for chatty in ("httpx", "alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    listening, url = listen(settings)
    key = first_key(settings, store)
    if key is not None:
        keep(url, key)

    def started() -> None:
        if as_json:
            print_json({"url": url, "first_key": key})
            return
        click.echo(f"Serving on {url}; what it offers: {url}/docs; Ctrl-C ends it, and jobs go on.")
        if key is not None:
            click.echo(f"First key, shown only now: {key}")

    serve(settings, store, listening, dispatcher, started)


def keep(url: str, key: str) -> None:
    """Let this user's commands find the server; that they can't is no reason not to serve."""
    from tutelage.cli.output import print_problems
    from tutelage.errors import TutelageError
    from tutelage_server.cli.calling import say
    from tutelage_server.client.servers import read_known, remember

    try:
        before = read_known().default
        name = remember(url, key)
        if before not in ("", name):
            say(f"Your commands call it from now on; back to the one before: tutelage login {before} --kept")
    except TutelageError as error:
        print_problems(error.problems)
