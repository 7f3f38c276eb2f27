"""The plugin base classes of phases: what is learned or made."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from tutelage.errors import Problem
from tutelage.formats import Record
from tutelage.plugin import Plugin

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.data.batches import Batch
    from tutelage.data.rendering import Renderer, Tokens
    from tutelage.engine.context import StageContext
    from tutelage.recipe import Stage


class Artifact(msgspec.Struct):
    """What a stage leaves: `kind` is adapter, model, reward_model, dataset or report; `folder` is where it lies."""

    kind: str
    folder: Path
    metrics: dict[str, float] = {}


class Phase(Plugin):
    """Plugin base: runs a stage and returns what it made."""

    needs_data: ClassVar[bool] = True
    needs_chat_template: ClassVar[bool] = False

    def check(self, stage: Stage, place: str) -> list[Problem]:
        """What of this phase's config can't work in this stage (which `place` names), told before anything runs."""
        return []

    @abstractmethod
    def run(self, context: StageContext) -> Artifact:
        """Run the stage in this process (one of several, when it is distributed)."""


class TrainingPhase(Phase):
    """A phase that trains by gradient: it says what an example is and what its loss is; the engine does the rest.

    The engine computes a step's loss as the sum of `loss` over all its micro-batches on all devices, divided by the
    sum of the weights (`Tokens.weight`, learnt tokens unless the phase says otherwise) of the step's examples.
    """

    def example(self, record: Record, renderer: Renderer) -> Tokens:
        """Turn a record into token ids and the mask of those that are learnt.

        Raises:
            ValueError: with a sentence, when the record can't be learnt from.
        """
        return renderer.render(record)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a micro-batch, summed (never averaged) over its learnt tokens; a float32 scalar."""

    def run(self, context: StageContext) -> Artifact:
        from tutelage.engine.training import train_stage

        return train_stage(self, context)
