"""Metrics for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

import tutelage
from tutelage.marks import OUTPUT
from tutelage_plugins.trackers._packages import missing_package


class TensorBoard(tutelage.Tracker):
    """TensorBoard files; look at them with `tensorboard --logdir runs`."""

    name = "tensorboard"

    class Config(tutelage.Config):
        """Where the files go."""

        folder: Annotated[
            str, OUTPUT, Meta(description="Where to write; by default `tensorboard` in the stage's folder.")
        ] = ""

    @classmethod
    def missing(cls) -> str:
        """Says how to get TensorBoard where it is not installed."""
        return missing_package("tensorboard", "tensorboard")

    def start(self, folder: Path, name: str, settings: dict[str, Any], resumed_from: int) -> None:
        """Open the files; what an earlier process wrote after `resumed_from` is purged from view."""
        from torch.utils.tensorboard import SummaryWriter

        where = Path(self.config.folder) / name if self.config.folder else folder / "tensorboard"
        purge = resumed_from + 1 if where.is_dir() else None
        self._writer: Any = SummaryWriter(str(where), purge_step=purge)
        self._writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```", resumed_from + 1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write scalars under their names, to disk at once: a kill loses none, and a resume does not leave a gap."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def finish(self, state: str) -> None:
        """Close the files."""
        self._writer.close()
