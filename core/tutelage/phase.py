"""The plugin base classes of phases: what is learned or made."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage.formats import Continuation, Conversation, Record, Text
from tutelage.plugin import Plugin

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from tutelage.data.batches import Batch, Examples
    from tutelage.data.preparing import Prepared
    from tutelage.data.rendering import Renderer, Tokens
    from tutelage.data.store import Selection
    from tutelage.data.windows import Windows
    from tutelage.engine.context import StageContext
    from tutelage.engine.learner import Learner
    from tutelage.models.locating import Located
    from tutelage.plugins import Host
    from tutelage.recipe import Stage


class Artifact(msgspec.Struct):
    """What a stage leaves: `kind` is adapter, model, reward_model, dataset or report; `folder` is where it lies.

    A dataset is a file `data.jsonl` in its folder.
    """

    kind: str
    folder: Path
    metrics: dict[str, float] = {}


class Phase(Plugin):
    """Plugin base: runs a stage and returns what it made."""

    needs_data: ClassVar[bool] = True
    needs_chat_template: ClassVar[bool] = False
    takes: ClassVar[tuple[type, ...]] = (Conversation, Continuation, Text)
    "The kinds of records that it works on."
    makes: ClassVar[Literal["model", "reward_model", "dataset", "report"]] = "model"
    "A later stage starts, where it names nothing else, from the last earlier one that makes a model."

    gives: ClassVar[tuple[type, ...]] = ()
    "The kinds of records of the dataset that it makes, if it makes one; none where that is not known before."

    switches: ClassVar[bool] = False
    "Whether it has several adapters take turns on one base."
    default_adapter: ClassVar[str] = ""
    "The adapter of a stage that names none, where that is not the recipe's own default."
    default_trainer: ClassVar[dict[str, Any]] = {}
    "Trainer settings of a stage that names none, where those differ from the recipe's own defaults."

    def references(self) -> dict[str, str]:
        """What the phase's settings name that an earlier stage may make (`stage:NAME`), by field."""
        return {}

    def sources(self) -> dict[str, tuple[str, tuple[type, ...]]]:
        """Data that the phase's settings name besides the stage's own, with the kinds of records wanted, by field."""
        return {}

    def check(self, stage: Stage, place: str) -> list[Problem]:
        """What of this phase's config can't work in this stage (which `place` names), told before anything runs."""
        return []

    def examine_records(
        self,
        records: list[tuple[str, Record]],
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        stage: Stage,
        place: str,
    ) -> list[Problem]:
        """What of a stage's records, each with its place, can't work; of phases whose data is no `Prepared`.

        Args:
            window: the tokens that the model can see, where that is limited.
        Raises:
            TutelageError: with problems that are told as those returned are.
        """
        return []

    def starting_model(self, stage: Stage, base: Path, host: Host, folder: Path | None) -> Located:
        """Make the model that a stage starts from where the recipe's model is `new`.

        Args:
            base: the folder that relative paths start from.
            folder: where the model goes; None for its config and its tokenizer alone, in the cache, for checks.
        Raises:
            TutelageError: when the phase can't make one, or not from these settings.
        """
        wrong = f"new is a model with random weights, and the phase {self.name} starts from a model that can speak"
        raise TutelageError.at(f"stages.{stage.name}.model", wrong, "name a model, or begin with the phase pretrain")

    def check_files(self, base: Path, place: str) -> list[Problem]:
        """What is wrong with the files that this phase's config names; `base` is where relative paths start from."""
        return []

    def learning_rate(self, context: StageContext, model: nn.Module) -> float:
        """The peak learning rate of a stage that names none: its adapter's."""
        return context.adapter.default_learning_rate

    @abstractmethod
    def run(self, context: StageContext) -> Artifact:
        """Run the stage in this process (one of several, when it is distributed)."""


class TrainingPhase(Phase):
    """A phase that trains by gradient: it says what an example is and what its loss is; the engine does the rest.

    The engine computes a step's loss as the sum of `loss` over all its micro-batches on all devices, divided by the
    sum of the weights of the step's examples.
    """

    head: ClassVar[Literal["language", "score"]] = "language"
    "What the model ends in: the vocabulary, or one number a sequence."

    counts_tokens: ClassVar[bool] = True
    "Whether the loss is a mean over tokens of their negative log-likelihoods, so that a perplexity can be told."

    bounds_rows: ClassVar[bool] = True
    "Whether `trainer.max_length` bounds each row; where not, `arrange` makes examples of that length of rows."

    def arrange(self, rows: Selection, renderer: Renderer, max_length: int) -> Selection | Windows:
        """The examples that steps are made of: rows as they are, unless the phase makes others of them.

        Raises:
            ValueError: with a sentence, when there is nothing to learn from.
        """
        return rows

    def measures(self, metrics: dict[str, float], held_out: Examples) -> dict[str, float]:
        """What else there is to tell of an evaluation, given its `eval_` metrics."""
        return {}

    @property
    def needs_reference(self) -> bool:
        """Whether each sequence's log-probability under the starting model is wanted, as the last column of values."""
        return False

    def weight(self, tokens: Tokens) -> int:
        """What an example counts for in a step's mean; its learnt tokens by default."""
        return tokens.weight

    def example(self, record: Record, renderer: Renderer) -> Tokens:
        """Turn a record into token ids and the mask of those that are learnt.

        Raises:
            ValueError: with a sentence, when the record can't be learnt from.
        """
        return renderer.render(record)

    def examine(self, prepared: Prepared) -> list[Problem]:
        """What is wrong with a stage's examples taken together, each of which is right by itself."""
        return []

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, summed (never averaged) over its examples; a float32 scalar.

        Returns:
            the loss, or the loss and further measures to log, which are summed and divided as the loss is. Their names
            are the same for every batch, an empty one (`batch.sequences == 0`) too, whose loss is 0 and has a gradient.
        """

    def conclude(self, learner: Learner, held_out: Examples | None) -> dict[str, Any]:
        """What there is to tell of the model when it has learnt, before it is saved; numbers become metrics."""
        return {}

    def run(self, context: StageContext) -> Artifact:
        from tutelage.engine.training import train_stage

        return train_stage(self, context)
