"""`tutelage files`: what a server keeps for you."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tutelage.cli.output import is_terminal, json_option, print_json, table
from tutelage_server.cli.calling import agreed, connect, each_of, say, server_option, when


@click.group()
def files() -> None:
    """List, send, fetch and remove files on a server. Files of the same content are kept once."""


@files.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, newest first.")
@server_option
@json_option
def list_files(limit: int, server: str, as_json: bool) -> None:
    """List your files, newest first."""
    from tutelage.runs.words import size

    with connect(server) as client:
        found = list(client.pages("/v1/files", limit))
    if as_json:
        print_json(found)
        return
    rows = [
        [file["id"], file["name"], size(file["bytes"]), file["status"], when(file["created_at"]), file["sha256"][:12]]
        for file in found
    ]
    table(["file", "name", "size", "status", "created (UTC)", "sha256"], rows, right={"size"}, folds={"file", "name"})


@files.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@server_option
@json_option
def put(paths: tuple[Path, ...], server: str, as_json: bool) -> None:
    """Send FILEs, unless the server has the same content already; after a lost connection they go on where they were.

    In a recipe a file is `file:ID`; `tutelage submit` sends what a recipe names by itself.
    """
    from tutelage_server.client.transfers import describe, held, upload

    described = [describe(path) for path in paths]
    found = []
    with connect(server) as client, progress(sum(file.bytes for file in described), "sending") as done:
        for file in described:
            there = held(client, file)
            if there is not None:
                done(file.bytes)
            found.append({**(there or upload(client, file, progress=done)), "sent": there is None})
    if as_json:
        print_json(found)
        return
    for path, stored in zip(paths, found, strict=True):
        click.echo(f"file:{stored['id']}\t{path}" + ("" if stored["sent"] else " (was there already)"))


@files.command()
@click.argument("file")
@click.option("--out", type=click.Path(path_type=Path), help="Where to; by default its own name, here.")
@server_option
@json_option
def get(file: str, out: Path | None, server: str, as_json: bool) -> None:
    """Fetch FILE, by its id; its checksum is verified, and a fetch that broke off goes on."""
    from tutelage.errors import TutelageError
    from tutelage_server.client.client import segment
    from tutelage_server.client.transfers import download

    place = f"/v1/files/{segment(file.removeprefix('file:'))}"
    with connect(server) as client:
        stored = client.get(place)
        to = out or Path(Path(stored["name"].replace("\\", "/")).name or stored["id"])
        if to.is_dir():
            to = to / (Path(stored["name"].replace("\\", "/")).name or stored["id"])
        if to.exists():
            raise TutelageError.at(str(to), "is there already", "name another place with --out")
        with progress(stored["bytes"], "fetching") as done:
            download(client, f"{place}/content", to, size=stored["bytes"], sha256=stored["sha256"], progress=done)
    if as_json:
        print_json({**stored, "path": str(to)})
    else:
        say(f"{to} ({stored['bytes']} bytes, checksum verified)")


@files.command("rm")
@click.argument("found", nargs=-1, required=True, metavar="FILE...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
@json_option
def remove(found: tuple[str, ...], yes: bool, server: str, as_json: bool) -> None:
    """Remove FILEs, by their ids."""
    from tutelage.errors import TutelageError
    from tutelage_server.client.client import segment

    if not yes and not agreed(f"Remove {len(found)} file{'s' if len(found) > 1 else ''}?", "tutelage files rm"):
        raise click.Abort

    def drop(file: str) -> str:
        client.delete(f"/v1/files/{segment(file.removeprefix('file:'))}")
        return file

    with connect(server) as client:
        removed, problems = each_of(found, drop)
    if as_json:
        print_json({"removed": removed})
    else:
        for file in removed:
            say(f"{file} is removed")
    if problems:
        raise TutelageError(problems)


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Bytes as they go: a bar with the time that is left on a terminal, else nothing; yields what is told of each."""
    if not is_terminal(sys.stderr) or not total:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(compact=True), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.advance(task, count)
