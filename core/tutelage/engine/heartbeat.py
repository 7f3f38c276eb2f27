"""Who stalls: every process says how far it is, and one that gets no further is named with its stack.

All processes of a distributed step wait for the slowest, so when nobody gets further, the one that is least far is
the one that stalls. Its stack is written by faulthandler's own thread, which needs neither the interpreter's lock nor
a living main thread.
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEFAULT_SECONDS = 45.0


EVALUATION = 1_000_000_000
"An evaluation's micro-batches are numbered from here: they come after those of their step."

COMPILING = 200.0
"Seconds that a micro-batch may take which torch.compile meets for the first time."

AT_REST = 3600.0
"Seconds that a checkpoint may take to write."


def patience() -> float:
    """Seconds without any progress after which a process is said to stall."""
    return float(os.environ.get("TUTELAGE_STALL_SECONDS", DEFAULT_SECONDS))


def allowed(slowest: float) -> float:
    """The same for a process whose slowest micro-batch so far took so many seconds: slow is not stalled."""
    return max(patience(), 3 * slowest)


class Heartbeat:
    """A process's own sign of life, a small file that is rewritten at each micro-batch."""

    def __init__(self, folder: Path, rank: int, *, slowest: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"rank-{rank}.json"
        self._stack = (folder / f"rank-{rank}.stack").open("a")
        self._rank = rank
        self._last = 0.0
        self._slowest = slowest
        self._at = 0, 0

    def beat(self, step: int, micro_batch: int) -> None:
        """The process reached this half (forward, then backward) of a micro-batch of this step."""
        now = time.time()
        if self._last:
            self._slowest = max(self._slowest, now - self._last)
        self._last = now
        self._at = step, micro_batch
        self._tell(now, allowed(self._slowest))

    def took(self, seconds: float) -> None:
        """What lies between two beats has taken so long, and may again."""
        self._slowest = max(self._slowest, seconds)

    def rest(self) -> None:
        """What comes before the next beat may take long without being stalled."""
        self._last = 0.0
        self._tell(time.time(), AT_REST)

    def _tell(self, now: float, seconds: float) -> None:
        step, micro_batch = self._at
        state = {
            "rank": self._rank,
            "pid": os.getpid(),
            "step": step,
            "micro_batch": micro_batch,
            "time": now,
            "allowed": seconds,
        }
        beside = self._file.with_suffix(".tmp")
        beside.write_text(json.dumps(state))
        beside.replace(self._file)
        self._stack.truncate(0)  # of a pause that was none
        faulthandler.dump_traceback_later(seconds * 0.8, file=self._stack)

    def stop(self) -> None:
        """The loop is over: nothing is expected of this process any more."""
        faulthandler.cancel_dump_traceback_later()
        self._file.unlink(missing_ok=True)
        self._stack.close()


class Watch:
    """A thread that looks at all heartbeats in a folder and reports processes that stall, each once per step."""

    def __init__(self, folder: Path, report: Callable[..., Any]) -> None:
        self._folder = folder
        self._report = report
        self._done = threading.Event()
        self._reported: set[tuple[int, int, int]] = set()
        self._thread = threading.Thread(target=self._run, name="tutelage-watch", daemon=True)

    def __enter__(self) -> Watch:
        for left in self._folder.glob("rank-*"):  # by processes that were killed
            left.unlink()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(min(2.0, patience() / 4)):
            self.look()

    def look(self) -> None:
        """Report who stalls now, if anybody does."""
        states = [state for file in self._folder.glob("rank-*.json") if (state := _read(file))]
        if not states or time.time() - max(state["time"] for state in states) < max(
            state["allowed"] for state in states
        ):
            return
        least = min((state["step"], state["micro_batch"]) for state in states)
        for state in states:
            key = (state["rank"], state["step"], state["micro_batch"])
            if (state["step"], state["micro_batch"]) == least and key not in self._reported:
                self._reported.add(key)
                stack = _text(self._folder / f"rank-{state['rank']}.stack")
                seconds = round(time.time() - state["time"])
                self._report("stalled", rank=state["rank"], step=state["step"], seconds=seconds, stack=stack)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return state


def _text(file: Path) -> str:
    try:
        return file.read_text() or "(the process could not write its stack; is it stopped, or swapped out?)"
    except OSError:
        return ""
