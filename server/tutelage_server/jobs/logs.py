"""A job's log: what its attempts wrote, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from anyio.to_thread import run_sync

from tutelage.runs.attempt import LOG
from tutelage_server.jobs.launching import job_folder
from tutelage_server.jobs.streaming import Feed
from tutelage_server.settings import Settings

BLOCK = 1 << 18
_FOLLOW_SECONDS = 0.5


class Log:
    """The logs of a job's attempts as one."""

    def __init__(self, settings: Settings, job_id: str) -> None:
        self._folder = job_folder(settings, job_id) / "attempts"

    def size(self) -> int:
        """How many bytes there are."""
        return sum(size for _, size in self._parts())

    def read(self, offset: int, most: int = BLOCK) -> bytes:
        """The bytes from an offset on, at most `most`; fewer where an attempt's log ends."""
        for path, size in self._parts():
            if offset < size:
                with path.open("rb") as file:
                    file.seek(offset)
                    return file.read(min(most, size - offset))
            offset -= size
        return b""

    def _parts(self) -> list[tuple[Path, int]]:
        found = []
        for path in self._folder.glob(f"*/{LOG}"):
            if path.parent.name.isdigit() and path.is_file() and not path.is_symlink():
                found.append((int(path.parent.name), path, path.stat().st_size))
        return [(path, size) for _, path, size in sorted(found)]


async def log_bytes(log: Log, first: int, end: int) -> AsyncGenerator[bytes, None]:
    """The bytes of a log between two offsets."""
    while first < end:
        block = await run_sync(log.read, first, min(BLOCK, end - first))
        if not block:
            return
        first += len(block)
        yield block


async def log_stream(feed: Feed, log: Log, job_id: str, key_id: str, offset: int) -> AsyncGenerator[bytes, None]:
    """A log from an offset on, as it grows, until its job has ended."""
    with feed.watching(job_id, key_id):
        while True:
            news = feed.news(job_id)  # before the log is read: what an ended job wrote is there
            while block := await run_sync(log.read, offset):
                offset += len(block)
                yield block
            if news.ended:
                return
            await asyncio.sleep(_FOLLOW_SECONDS)
