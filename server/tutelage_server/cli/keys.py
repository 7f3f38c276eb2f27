"""`tutelage keys`: over HTTP, or by `--local` directly in a server's store, for the operator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json, table
from tutelage_server.cli.calling import connect, say, server_option, when

if TYPE_CHECKING:
    from tutelage_server.store.store import Store

SCOPES = ("advise", "submit", "read", "rank", "admin")


def store_option(command: Any) -> Any:
    """Add `--local`, which names a server's folder or settings."""
    text = "The folder of a server on this machine (or its settings file): its store is used without asking the server."
    return click.option("--local", type=click.Path(path_type=Path, exists=True), metavar="FOLDER", help=text)(command)


@click.group()
def keys() -> None:
    """Make, list and revoke keys. That takes a key with the scope admin, or --local and the server's own folder."""


@keys.command("list")
@store_option
@server_option
@json_option
def list_keys(local: Path | None, server: str, as_json: bool) -> None:
    """List the keys of your tenant (of all tenants with --local); the keys themselves are never shown again."""
    if local is not None:
        found = _listed(local)
    else:
        with connect(server) as client:
            found = list(client.pages("/v1/keys"))
    if as_json:
        print_json(found)
        return
    columns = ["key", "name", "scopes", "created (UTC)", "expires", "revoked", "last used"]
    rows = [
        [
            key["id"],
            key["name"],
            ", ".join(key["scopes"]),
            *(when(key.get(field)) for field in ("created_at", "expires_at", "revoked_at", "last_used_at")),
        ]
        for key in found
    ]
    if local is not None:
        columns.insert(1, "tenant")
        for row, key in zip(rows, found, strict=True):
            row.insert(1, key["tenant"])
    table(columns, rows, folds={"key", "name", "scopes"})


@keys.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What it may; all but admin by default."
)
@click.option("--days", type=click.IntRange(1, 3650), help="Days until it expires; never by default.")
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Instead of the server's own limit.")
@click.option("--tenant", default="", help="Whose key it is, where you are the operator; a new name makes a tenant.")
@store_option
@server_option
@json_option
def make(
    name: str,
    scopes: tuple[str, ...],
    days: int | None,
    requests_per_minute: int | None,
    tenant: str,
    local: Path | None,
    server: str,
    as_json: bool,
) -> None:
    """Make a key called NAME, and print it: this once.

    A key belongs to a tenant; tenants see nothing of each other. Only the server's operator makes keys of others.
    """
    from datetime import UTC, timedelta

    wanted = list(scopes) or [scope for scope in SCOPES if scope != "admin"]
    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    if local is not None:
        made = _made(local, tenant or "default", name, wanted, expires, requests_per_minute)
    else:
        body = {
            "name": name,
            "scopes": wanted,
            "expires_at": expires,
            "requests_per_minute": requests_per_minute,
            "tenant": tenant or None,
        }
        with connect(server) as client:
            made = client.post("/v1/keys", {field: value for field, value in body.items() if value is not None})
    if as_json:
        print_json(made)
        return
    click.echo(made["key"])
    say(f"{made['id']} may {', '.join(made['scopes'])}; it is shown this once. Its owner runs: tutelage login URL")


@keys.command()
@click.argument("key")
@store_option
@server_option
@json_option
def revoke(key: str, local: Path | None, server: str, as_json: bool) -> None:
    """Revoke KEY, by its id (`tutelage keys list`): it works no more, at most seconds from now."""
    from tutelage_server.client.client import segment

    if local is not None:
        _revoked(local, key)
    else:
        with connect(server) as client:
            client.delete(f"/v1/keys/{segment(key)}")
    if as_json:
        print_json({"revoked": key})
    else:
        say(f"{key} is revoked")


def check_names(key: str, tenant: str) -> None:
    """Refuse names that the server would refuse over HTTP.

    Raises:
        TutelageError
    """
    from tutelage.errors import TutelageError

    for place, name in (("the key's name", key), ("--tenant", tenant)):
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise TutelageError.at(place, f"is {name[:120]!r}", "give 1 to 100 printable characters")


@contextlib.contextmanager
def _store(local: Path) -> Iterator[Store]:
    """The store of a server's folder or settings file.

    Raises:
        TutelageError: when no server ever kept one there.
    """
    from tutelage.errors import TutelageError
    from tutelage_server.settings import load_settings
    from tutelage_server.store.migrations import upgrade
    from tutelage_server.store.store import Store

    settings = load_settings(home=local) if local.is_dir() else load_settings(local)
    if not settings.database and not (settings.folder / "tutelage.db").is_file():
        fix = f"name the folder of `tutelage serve --home {local}`, or its settings file"
        raise TutelageError.at(str(local), "holds no server's store", fix)
    store = Store(settings.database_url)
    try:
        upgrade(store)
        yield store
    finally:
        store.close()


def _listed(local: Path) -> list[dict[str, Any]]:
    from sqlalchemy import select

    from tutelage_server.store.tables import Key, Tenant

    with _store(local) as store, store.reading() as session:
        rows = session.execute(select(Key, Tenant.name).join(Tenant, Tenant.id == Key.tenant_id).order_by(Key.id))
        return [_shown(key, tenant) for key, tenant in rows]


def _made(
    local: Path, tenant: str, name: str, scopes: list[str], expires: datetime | None, requests: int | None
) -> dict[str, Any]:
    from tutelage_server.accounts.keys import make_key, tenant_named

    check_names(name, tenant)
    with _store(local) as store, store.writing() as session:
        owner = tenant_named(session, tenant)
        key, text = make_key(session, owner.id, name, scopes, expires, requests)
        return {**_shown(key, tenant), "key": text}


def _revoked(local: Path, key_id: str) -> None:
    from tutelage.errors import TutelageError
    from tutelage_server.accounts.keys import revoke_key
    from tutelage_server.store.tables import Key

    with _store(local) as store, store.writing() as session:
        key = session.get(Key, key_id)
        if key is None:
            raise TutelageError.at(key_id, "there is no such key", "see: tutelage keys list --local FOLDER")
        revoke_key(session, key.tenant_id, key_id)


def _shown(key: Any, tenant: str) -> dict[str, Any]:
    """A key as HTTP shows it, and its tenant's name."""
    times = ("created_at", "expires_at", "revoked_at", "last_used_at")
    shown = {name: value.isoformat() if (value := getattr(key, name)) else None for name in times}
    rate = key.requests_per_minute
    return {
        "id": key.id,
        "tenant": tenant,
        "name": key.name,
        "scopes": key.scopes,
        "requests_per_minute": rate,
        **shown,
    }
