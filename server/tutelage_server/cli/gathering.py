"""What a recipe names on this machine, and how it gets to a server: by content, and only what is missing there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from tutelage.references import Reference
    from tutelage_server.client.client import Client
    from tutelage_server.client.transfers import LocalFile


class Gathered(msgspec.Struct, kw_only=True):
    """A recipe, and the files of this machine that it names."""

    recipe: dict[str, Any]
    base: Path
    files: dict[tuple[str | int, ...], LocalFile]
    "By the paths in the recipe that name them."


def gather(source: Path, overrides: list[str]) -> Gathered:
    """Read a recipe and every file of this machine that it names, for its hash.

    Raises:
        TutelageError: with all that is not there, or can't be sent.
    """
    from tutelage.errors import Problem, TutelageError
    from tutelage.plugins import host
    from tutelage.recipe import load
    from tutelage.references import named_in
    from tutelage_server.client.transfers import describe

    data, base = load(source, overrides)
    problems: list[Problem] = []
    files: dict[tuple[str | int, ...], LocalFile] = {}
    read: dict[Path, LocalFile] = {}
    for reference in named_in(data, host()).references:
        try:
            path = local_path(reference, base)
            if path is not None:
                read.setdefault(path, describe(path))
                files[reference.path] = read[path]
        except TutelageError as error:
            problems += error.problems
    if problems:
        raise TutelageError(problems)
    return Gathered(recipe=data, base=base, files=files)


def local_path(reference: Reference, base: Path) -> Path | None:
    """The file of this machine that a reference means, or None where it means something else.

    Raises:
        TutelageError: naming the place, where it means a folder, or a file that is not there.
    """
    from tutelage.errors import TutelageError

    value = reference.value
    path = base / Path(value).expanduser()
    if reference.kind == "output":
        return None
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        fix = "name its files one by one (data: mix), or a single .gguf file (model)"
        raise TutelageError.at(reference.place, f"{value} is a folder, and files alone are sent to a server", fix)
    if ":" in value or (reference.kind == "model" and path.suffix.lower() != ".gguf"):
        return None  # `stage:NAME`, `hub:NAME`, `file:ID`, a hub name: the server knows what it is
    raise TutelageError.at(reference.place, f"there is no file {path}")


def check_limits(client: Client, files: list[LocalFile]) -> None:
    """Refuse files that the server would, before anything is sent.

    Raises:
        TutelageError: when one is too large.
    """
    from tutelage.errors import Problem, TutelageError
    from tutelage.runs.words import size

    limits = client.get("/v1/me")["limits"]
    most = limits["file_bytes"]
    problems = [
        Problem(place=str(file.path), wrong=f"has {size(file.bytes)}, and this server takes files up to {size(most)}")
        for file in files
        if file.bytes > most
    ]
    if problems:
        raise TutelageError(problems)


def missing(client: Client, files: list[LocalFile]) -> tuple[dict[str, str], list[LocalFile]]:
    """Ids of the server's files with the same content, by hash, and those files that it lacks (each content once)."""
    from tutelage_server.client.transfers import held

    known: dict[str, str] = {}
    lacking: dict[str, LocalFile] = {}
    for file in {file.sha256: file for file in files}.values():
        stored = held(client, file)
        if stored is not None:
            known[file.sha256] = stored["id"]
        else:
            lacking[file.sha256] = file
    return known, list(lacking.values())


def sent_recipe(gathered: Gathered, ids: dict[str, str]) -> dict[str, Any]:
    """The recipe with the server's files instead of this machine's; `ids` are by hash."""
    from tutelage.references import renamed

    return renamed(gathered.recipe, {path: f"file:{ids[file.sha256]}" for path, file in gathered.files.items()})
