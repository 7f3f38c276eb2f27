"""The plugin base class of trackers, which send a run's metrics somewhere while it goes on."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from tutelage.plugin import Plugin


class Tracker(Plugin):
    """Plugin base: told when a stage starts, of every logged step, and when the stage ends."""

    @classmethod
    def missing(cls) -> str:
        """Why this tracker can't be used here (a package that is not installed, with how to get it), or ''."""
        return ""

    @abstractmethod
    def start(self, folder: Path, name: str, settings: dict[str, Any], resumed_from: int) -> None:
        """A stage starts or goes on. `folder` is the stage's own; steps after `resumed_from` will be logged (again)."""

    @abstractmethod
    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of one optimizer step (keys such as `loss`, `eval_loss`, `learning_rate`)."""

    @abstractmethod
    def finish(self, state: str) -> None:
        """The stage ended as `state`: succeeded, failed or stopped."""
