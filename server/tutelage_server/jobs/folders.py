"""What is written into jobs' folders as they come to be, and what is cleared away of those that never did."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from sqlalchemy import select

from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Job

_UNBORN_SECONDS = 86_400


def staging_folder(settings: Settings, job_id: str) -> Path:
    """Where a job's folder is written before there is such a job."""
    return settings.folder / "jobs" / f".{job_id}.new"


def write_secrets(path: Path, secrets: dict[str, str]) -> None:
    """Write secrets so that their owner alone can read them, from the first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(secrets))
        file.flush()
        os.fsync(file.fileno())


def share_file(one: Path, other: Path, path: str) -> None:
    """Make a file of one folder, and the record of its review, one of another folder too."""
    for each in (path, f"{path}.review"):
        if (one / each).exists():
            os.link(one / each, other / each)


def forget_unborn(store: Store, settings: Settings, older: float = _UNBORN_SECONDS) -> int:
    """Remove folders that no job has, left by a crash while it was taken in; those that are younger stay.

    Returns:
        how many there were.
    """
    old = list(_older(settings.folder / "jobs", older))
    names = [path.name for path in old if not path.name.startswith(".")]
    known: set[str] = set()
    with store.reading() as session:
        for start in range(0, len(names), 500):
            known.update(session.scalars(select(Job.id).where(Job.id.in_(names[start : start + 500]))))
    unborn = [path for path in old if path.name not in known]
    for path in unborn:
        shutil.rmtree(path, ignore_errors=True)
    return len(unborn)


def _older(jobs: Path, seconds: float) -> Iterator[Path]:
    """Folders that were made so long ago; jobs come and go meanwhile."""
    for path in jobs.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > seconds:
                yield path
