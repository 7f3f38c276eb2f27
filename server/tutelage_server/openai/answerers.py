"""The answering processes of a server: started when a model is asked, shared by its askers, ended when idle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from tutelage_server.openai.protocol import (
    Ask,
    Began,
    Ended,
    Failed,
    FromProcess,
    Leave,
    Load,
    Loaded,
    Piece,
    Refused,
    ToProcess,
)
from tutelage_server.problems import refused
from tutelage_server.settings import Answering

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TUTELAGE_CACHE", "HF_HOME", "HF_HUB_CACHE", "LD_LIBRARY_PATH")
"Variables that an answering process gets: none of the server's secrets."
_GRACE = 5.0
_LINE = 2**24
"Longest line that is read from a process, in bytes."


class Answerer:
    """A process that answers with one model."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[str, asyncio.Queue[FromProcess]] = {}
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())
        self.used = time.monotonic()
        self.users = 0

    @classmethod
    async def start(cls, order: Load, *, offline: bool) -> Answerer:
        """Start a process that loads a model; `loaded` tells when it is there."""
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(order.threads)}
        if offline:
            environment |= {"HF_HUB_OFFLINE": "1"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tutelage_server.openai.answering"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            limit=_LINE,
            start_new_session=True,  # an interrupt at the terminal is for the server, which ends it
        )
        answerer = cls(process)
        answerer._send(order)
        return answerer

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for it."""
        return self.users > 0 or not self._loaded.done()

    @property
    def is_alive(self) -> bool:
        """Whether the process can still be asked."""
        return not self._reader.done()

    async def loaded(self, seconds: float) -> None:
        """Wait until the model is there.

        Raises:
            Refused: 503 when it can't be had, or takes too long.
        """
        try:
            await asyncio.wait_for(asyncio.shield(self._loaded), seconds)
        except TimeoutError:
            self.kill()
            wrong = f"was not loaded within {seconds:g} s"
            raise refused(503, "the model", wrong, "try again later", code="model_not_loaded") from None

    async def answers(self, ask: Ask, silent_seconds: float) -> AsyncGenerator[Began | Piece | Ended, None]:
        """The replies to a question. Closing the iterator ends the work on it.

        Raises:
            Refused: 400 when the question can't be answered, 503 when the process fails.
        """
        replies: asyncio.Queue[FromProcess] = asyncio.Queue()
        self._waiting[ask.id] = replies
        left = len(ask.seeds)
        try:
            self._send(ask)
            while left:
                try:
                    reply = await asyncio.wait_for(replies.get(), silent_seconds)
                except TimeoutError:
                    self.kill()
                    raise _failed(f"said nothing for {silent_seconds:g} s") from None
                if isinstance(reply, Refused):
                    if reply.mine:
                        raise _failed(reply.problem)
                    raise refused(400, "messages", reply.problem, code=reply.code)
                if isinstance(reply, Failed):
                    raise _failed(reply.problem)
                if isinstance(reply, Began | Piece | Ended):
                    left -= isinstance(reply, Ended)
                    yield reply
        finally:
            del self._waiting[ask.id]
            if left:
                self._send(Leave(id=ask.id))

    def kill(self) -> None:
        """End the process now."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """End the process, and wait until it is gone."""
        self.kill()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _send(self, message: ToProcess) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")

    async def _read(self) -> None:
        """Hand out what the process says until it ends."""
        assert self._process.stdout is not None
        decoder = msgspec.json.Decoder(FromProcess)
        last = "its process ended"
        with contextlib.suppress(ValueError, ConnectionError):
            async for line in self._process.stdout:
                reply = decoder.decode(line)
                if isinstance(reply, Failed):
                    last = reply.problem
                elif isinstance(reply, Loaded):
                    self._loaded.set_result(None)
                elif reply.id in self._waiting:
                    self._waiting[reply.id].put_nowait(reply)
        try:
            await asyncio.wait_for(self._process.wait(), _GRACE)
        except TimeoutError:  # it says nothing any more, and lives
            self.kill()
            await self._process.wait()
        if not self._loaded.done():
            wrong = f"can't be loaded: {last}"
            self._loaded.set_exception(refused(503, "the model", wrong, code="model_not_loaded"))
            self._loaded.exception()  # somebody may not wait for it any more
        for replies in self._waiting.values():
            replies.put_nowait(Failed(problem=last))


class Answerers:
    """All answering processes of this server, by what they hold."""

    def __init__(self, settings: Answering, *, offline: bool) -> None:
        self._settings = settings
        self._offline = offline
        self._open: dict[tuple[str, str], Answerer] = {}
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    async def answers(
        self, model: str, base: Path, checkpoint: str, ask: Ask
    ) -> AsyncGenerator[Began | Piece | Ended, None]:
        """Replies of a model to a question.

        Raises:
            Refused: 400 for the question's sake; 503 when all processes are busy, or the model can't be had.
        """
        answerer = await self._take(model, base, checkpoint)
        try:
            await answerer.loaded(self._settings.load_seconds)
            async with contextlib.aclosing(answerer.answers(ask, self._settings.silent_seconds)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            answerer.users -= 1
            answerer.used = time.monotonic()

    async def forget(self, folder: Path) -> None:
        """End the processes that hold a model below a folder, which is deleted."""
        for key in [key for key in self._open if Path(key[0]).is_relative_to(folder)]:
            await self._open.pop(key).close()

    async def close(self) -> None:
        """End all processes."""
        if self._keeper is not None:
            self._keeper.cancel()
        for answerer in self._open.values():
            await answerer.close()
        self._open.clear()

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [answerer.pid for answerer in self._open.values()]

    async def _take(self, model: str, base: Path, checkpoint: str) -> Answerer:
        async with self._lock:
            self._open = {key: one for key, one in self._open.items() if one.is_alive}
            if (found := self._open.get((model, checkpoint))) is not None:
                found.users += 1
                return found
            if len(self._open) >= self._settings.models:
                await self._make_room()
            order = Load(model=model, base=str(base), checkpoint=checkpoint)
            order.device, order.threads = self._settings.device, self._settings.threads
            made = self._open[model, checkpoint] = await Answerer.start(order, offline=self._offline)
            made.users += 1
            if self._keeper is None:
                self._keeper = asyncio.create_task(self._end_idle())
            return made

    async def _make_room(self) -> None:
        """End the process that was idle for longest.

        Raises:
            Refused: 503 when all are busy.
        """
        idle = [key for key, one in self._open.items() if not one.is_busy]
        if not idle:
            most = self._settings.models
            wrong = (
                f"all {most} models that may be asked at a time are busy" if most else "this server answers no chats"
            )
            headers = {"retry-after": "5"} if most else {"x-should-retry": "false"}
            raise refused(503, "chats", wrong, "try again in a moment", code="overloaded", headers=headers)
        longest = min(idle, key=lambda key: self._open[key].used)
        await self._open.pop(longest).close()

    async def _end_idle(self) -> None:
        while True:
            await asyncio.sleep(min(10.0, self._settings.idle_seconds / 2))
            async with self._lock:
                limit = time.monotonic() - self._settings.idle_seconds
                for key, one in list(self._open.items()):
                    if not one.is_alive or (not one.is_busy and one.used < limit):
                        await self._open.pop(key).close()


def _failed(problem: str) -> Exception:
    return refused(503, "the model", f"could not answer: {problem}", "try again", code="model_failed")
