"""Scores by a trained reward model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

import tutelage
from tutelage.marks import MODEL

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext
    from tutelage.models.heads import Scorer


class Model(tutelage.Reward):
    """Scores by a reward model: what the phase reward_model makes, or any with one label of transformers."""

    name = "model"

    class Config(tutelage.Config):
        """Which model scores."""

        model: Annotated[
            str, MODEL, Meta(min_length=1, description="`stage:NAME`, `run:NAME`, a folder or a hub name.")
        ]
        batch_size: Annotated[int, Meta(ge=1, le=4096, description="Answers that are scored at a time.")] = 16

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._scorer: Scorer | None = None

    def references(self) -> dict[str, str]:
        return {"model": self.config.model}

    def load(self, context: StageContext) -> None:
        from tutelage.models.heads import load_scorer_for_use

        located = context.locate(self.config.model, f"stages.{context.stage.name}: reward model")
        device: str = context.devices.accelerator
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self._scorer = load_scorer_for_use(located, device=device)

    def score(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        assert self._scorer is not None
        return self._scorer.score([each.prompt for each in prompts], answers, self.config.batch_size)
