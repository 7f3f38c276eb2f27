"""Metrics for Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

import tutelage
from tutelage.runs.files import write_atomically
from tutelage_plugins.trackers._packages import missing_package, remembered, unreachable

if TYPE_CHECKING:
    from pathlib import Path


class WandB(tutelage.Tracker):
    """Weights & Biases; a resumed stage goes on in the same W&B run."""

    name = "wandb"

    class Config(tutelage.Config):
        """Where the run appears. Log in with `wandb login`; keys never stand in a recipe."""

        project: Annotated[str, Meta(min_length=1, description="The project.")] = "tutelage"
        entity: Annotated[str, Meta(description="User or team; by default the one that is logged in.")] = ""
        mode: Annotated[
            Literal["online", "offline"], Meta(description="offline keeps everything here until `wandb sync`.")
        ] = "online"

    @classmethod
    def missing(cls) -> str:
        """Says how to get W&B's package where it is not installed."""
        return missing_package("wandb", "wandb")

    def start(self, folder: Path, name: str, settings: dict[str, Any], resumed_from: int) -> None:
        """Open a W&B run, or the one that this stage had before.

        W&B's own step only rises, so ours is a metric of its own and steps that are repeated draw over themselves.
        """
        import wandb

        known = folder / "wandb-id"
        identity = remembered(known)
        try:
            self._run: Any = wandb.init(
                project=self.config.project,
                entity=self.config.entity or None,
                mode=self.config.mode,
                name=name,
                id=identity or None,
                resume="allow" if identity else None,
                config=settings,
                dir=str(folder),
            )
        except (wandb.errors.Error, OSError) as error:
            raise unreachable(self.name, error) from error
        write_atomically(known, self._run.id)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Send metrics with their step."""
        self._run.log({**metrics, "step": step})

    def finish(self, state: str) -> None:
        """Mark the W&B run as finished or failed."""
        self._run.finish(exit_code=0 if state == "succeeded" else 1)
