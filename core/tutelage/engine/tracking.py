"""The trackers of a stage: told when it starts, of every step, and how it ended, whatever ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import RunStopped
from tutelage.tracker import Tracker


class Trackers:
    """A stage's trackers. One that can't start is an error; one that fails later is dropped, and training goes on."""

    def __init__(self, trackers: Sequence[Tracker], notice: Callable[[str], None]) -> None:
        self._trackers = trackers
        self._notice = notice
        self._started: list[Tracker] = []

    def start(self, folder: Path, name: str, settings: dict[str, Any], resumed_from: int) -> None:
        """The stage starts or goes on."""
        for tracker in self._trackers:
            tracker.start(folder, name, settings, resumed_from)
            self._started.append(tracker)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a step."""
        self._tell(lambda tracker: tracker.log(step, metrics))

    @contextlib.contextmanager
    def told_the_end(self) -> Iterator[None]:
        """Tells trackers that started how what happens within ended."""
        state = "failed"
        try:
            yield
            state = "succeeded"
        except (RunStopped, KeyboardInterrupt):
            state = "stopped"
            raise
        finally:
            self._tell(lambda tracker: tracker.finish(state))

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._started):
            try:
                tell(tracker)
            except Exception as error:  # a service far away must not cost a run its work
                self._started.remove(tracker)
                self._notice(f"the tracker {tracker.name} failed and is told no more: {type(error).__name__}: {error}")
