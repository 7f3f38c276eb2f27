"""Brings what a job made to this machine, as a run's folder: whole and verified, or not at all."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from tutelage_server.cli.calling import say
from tutelage_server.cli.files import progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tutelage_server.client.client import Client

Artifact = dict[str, Any]


def artifacts_of(client: Client, job_id: str) -> list[Artifact]:
    """The files that a job made, each with path, bytes and sha256.

    Raises:
        TutelageError: when a path leads out of its folder, which no server of ours would say.
    """
    from tutelage_server.client.client import segment

    found = list(client.pages(f"/v1/jobs/{segment(job_id.removeprefix('job:'))}/artifacts"))
    for each in found:
        _inside(each["path"])
    return found


def fetch_run(client: Client, job: dict[str, Any]) -> Path:
    """Bring all that a job made into a new folder below $TUTELAGE_RUNS or ./runs, and return it.

    Files arrive in a folder beside it, which a later try goes on with, and which gets its name at the end.

    Raises:
        ServerRefused, ConnectionLost
        TutelageError: when what arrives is not what was announced, or can't be written.
    """
    from tutelage.errors import TutelageError
    from tutelage.runs.listing import runs_root

    root = runs_root()
    try:
        return _fetched(client, job, root)
    except OSError as error:
        fix = "let $TUTELAGE_RUNS name a folder that you can write, or fetch with --out FOLDER"
        raise TutelageError.at(str(root), f"can't be written: {error.strerror}", fix) from None


def _fetched(client: Client, job: dict[str, Any], root: Path) -> Path:
    from tutelage.runs.files import sync_folder
    from tutelage.runs.listing import new_folder
    from tutelage_server.cli.settling import settle

    name = re.sub(r"[^A-Za-z0-9._-]", "-", job["name"]).strip(".-") or job["id"]
    unfinished = root / f".{job['id']}.fetching"
    unfinished.mkdir(parents=True, exist_ok=True)
    fetch_files(client, job["id"], artifacts_of(client, job["id"]), unfinished)
    while True:
        folder = new_folder(name, root)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # of two that fetch at once, one gets the name
            break
    try:
        settle(unfinished, folder, job.get("recipe") or {})
    except BaseException:
        folder.rmdir()
        raise
    unfinished.replace(folder)
    sync_folder(root)
    return folder


def fetch_files(client: Client, job_id: str, artifacts: list[Artifact], folder: Path) -> None:
    """Bring files into a folder; those that are there and right are left alone.

    Raises:
        ServerRefused, ConnectionLost
        TutelageError: when what arrives is not what was announced.
    """
    from tutelage_server.client.client import segment
    from tutelage_server.client.transfers import download

    with progress(sum(each["bytes"] for each in artifacts), "fetching") as done:
        for each in artifacts:
            to = folder / _inside(each["path"])
            if _is(to, each, done):
                continue
            place = f"/v1/jobs/{segment(job_id)}/artifacts/" + "/".join(map(segment, each["path"].split("/")))
            download(client, place, to, size=each["bytes"], sha256=each["sha256"], progress=done)


def show_fetched(folder: Path, job: dict[str, Any]) -> None:
    """Where a job's run lies now, and what to try with it."""
    from tutelage.cli.summary import print_summary
    from tutelage.errors import TutelageError
    from tutelage.runs.folder import RunFolder

    try:
        print_summary(RunFolder.open(folder))
    except TutelageError:  # a job that made no run, such as one that was never begun
        say(f"what {job['id']} made is in {folder}")


def _is(path: Path, artifact: Artifact, done: Callable[[int], None]) -> bool:
    from tutelage_server.client.transfers import describe

    if not path.is_file() or path.stat().st_size != artifact["bytes"]:
        return False
    if describe(path).sha256 != artifact["sha256"]:
        return False
    done(artifact["bytes"])
    return True


def _inside(path: str) -> PurePosixPath:
    """A relative path that stays below its folder.

    Raises:
        TutelageError: for any other.
    """
    from tutelage.errors import TutelageError

    pure = PurePosixPath(path)
    windows = PureWindowsPath(path)  # whatever this machine is, nothing that only another takes for a root
    if not pure.parts or ".." in windows.parts or pure.is_absolute() or windows.anchor or "\0" in path:
        raise TutelageError.at("artifacts", f"the server names a file {path!r}, which leads out of the folder")
    return pure
