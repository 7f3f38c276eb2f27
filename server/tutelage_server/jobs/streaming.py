"""Streams events to many clients with few questions to the store.

All streams of a process share one poller: as long as there is a stream, it asks the store every half second how many
events the watched jobs have, in one query. A stream whose job has more than it sent gets a page of them, and streams at
the same place share the page. Nothing is queued for a client that reads slowly. A client that leaves takes nothing with
it: jobs don't know of streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator

import msgspec
from anyio.to_thread import run_sync
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream
from sqlalchemy import select

from tutelage_server.jobs.events import events_after
from tutelage_server.jobs.schemas import EventShown, show_event
from tutelage_server.jobs.states import TERMINAL
from tutelage_server.problems import refused
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Job

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
MOST_STREAMS = 500
"Of one key."
_PAGE = 500
_log = logging.getLogger(__name__)


class News(msgspec.Struct, frozen=True):
    """What the poller saw of a job: the number of its last event, and whether it has ended."""

    events: int = 0
    ended: bool = False


class Feed:
    """What streams of one process share. Used in one event loop at a time."""

    def __init__(self, store: Store, poll: float = POLL_SECONDS, heartbeat: float = HEARTBEAT_SECONDS) -> None:
        self.heartbeat = heartbeat
        self.queries = 0
        "Asked of the store so far."
        self._store, self._poll = store, poll
        self._watched: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._news: dict[str, News] = {}
        self._pages: dict[tuple[str, int], asyncio.Task[list[EventShown]]] = {}
        self._tick = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._watched.total()

    @contextlib.contextmanager
    def watching(self, job_id: str, key_id: str) -> Iterator[None]:
        """Keep a job watched while a stream is open.

        Raises:
            Refused: 429 when a key has too many.
        """
        if self._keys[key_id] >= MOST_STREAMS:
            wrong = f"has {MOST_STREAMS} streams open"
            raise refused(429, "the key", wrong, "close some", code="too_many_streams", headers={"retry-after": "5"})
        self._watched[job_id] += 1
        self._keys[key_id] += 1
        if self._poller is None or self._poller.done():
            self._tick = asyncio.Event()
            self._poller = asyncio.get_running_loop().create_task(self._run())
        try:
            yield
        finally:
            self._watched[job_id] -= 1
            self._keys[key_id] -= 1
            self._watched += Counter()  # drops zeros
            self._keys += Counter()
            if job_id not in self._watched:
                self._news.pop(job_id, None)
            if not self._watched and self._poller is not None:
                self._poller.cancel()
                self._poller = None
                self._pages.clear()

    def news(self, job_id: str) -> News:
        """What is known of a watched job now."""
        return self._news.get(job_id, News())

    async def wait(self, job_id: str, known: int) -> News | None:
        """The news of a job that has more events than `known`, or has ended; None when none came for a heartbeat's
        time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.heartbeat
        while True:
            news = self._news.get(job_id)
            if news is not None and (news.events > known or news.ended):
                return news
            try:
                await asyncio.wait_for(self._tick.wait(), max(0.0, until - loop.time()))
            except TimeoutError:
                return None

    async def page(self, job_id: str, after: int) -> list[EventShown]:
        """A job's events that come after a number, at most 500; streams that want the same share the answer.

        Raises:
            StoreUnavailable
        """
        task = self._pages.get((job_id, after))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read(job_id, after))
            task.add_done_callback(_retrieved)
            self._pages[job_id, after] = task
        return await asyncio.shield(task)

    async def _read(self, job_id: str, after: int) -> list[EventShown]:
        def read() -> list[EventShown]:
            with self._store.reading() as session:
                return [show_event(event) for event in events_after(session, job_id, after, _PAGE)]

        self.queries += 1
        return await run_sync(read)

    async def _run(self) -> None:
        while True:
            jobs = list(self._watched)
            try:
                self.queries += 1
                self._news.update(await run_sync(self._look, jobs))
            except StoreUnavailable:
                pass  # streams stay open and go on when it is back
            except Exception:
                _log.exception("the events of jobs can't be read")
            self._pages.clear()
            tick, self._tick = self._tick, asyncio.Event()
            tick.set()
            await asyncio.sleep(self._poll)

    def _look(self, jobs: list[str]) -> dict[str, News]:
        found: dict[str, News] = {}
        with self._store.reading() as session:
            for start in range(0, len(jobs), 500):
                some = select(Job.id, Job.events, Job.state).where(Job.id.in_(jobs[start : start + 500]))
                for job_id, events, state in session.execute(some):
                    found[job_id] = News(events, state in TERMINAL)
        return found


async def event_stream(feed: Feed, job_id: str, key_id: str, after: int) -> AsyncGenerator[bytes, None]:
    """A job's events after a number as server-sent events, until its last one was sent."""
    with feed.watching(job_id, key_id):
        yield b"retry: 2000\n\n"
        while True:
            news = await feed.wait(job_id, after)
            if news is None:
                yield b": still here\n\n"
                continue
            if news.events <= after:  # it has ended, and all of it was sent
                return
            try:
                events = await feed.page(job_id, after)
            except StoreUnavailable:
                await asyncio.sleep(feed.heartbeat / 10)
                continue
            if events:
                after = events[-1].number
                yield b"".join(_message(event) for event in events)


def _message(event: EventShown) -> bytes:
    kind = event.kind.replace("\n", " ").replace("\r", " ")
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, kind.encode(), msgspec.json.encode(event))


def _retrieved(task: asyncio.Task[list[EventShown]]) -> None:
    """Take a task's exception, which all who waited for it may have left before."""
    if not task.cancelled():
        task.exception()


def streamed(content: AsyncGenerator[bytes, None], media_type: str, **headers: str) -> Stream:
    """A streamed answer whose generator is closed at its end, also when its client left while a part was sent."""
    return Stream(content, media_type=media_type, headers=headers, background=BackgroundTask(content.aclose))
