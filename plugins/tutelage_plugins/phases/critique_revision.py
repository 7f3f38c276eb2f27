"""Critique and revision: a model mends its own answers by the principles of a constitution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

import tutelage
from tutelage.errors import Problem
from tutelage.formats import Continuation, Conversation, Prompted, Record
from tutelage.marks import FILE
from tutelage_plugins.constitutions import constitution_of, named_or, problems_of, revising

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tutelage.constitution import Constitution
    from tutelage.engine.context import StageContext


class CritiqueRevisionConfig(tutelage.Config):
    """How answers are drawn and revised."""

    constitution: Annotated[
        str, FILE, Meta(description="A YAML file of principles; the one that ships where empty.")
    ] = ""
    template: Annotated[
        str, FILE, Meta(description="A YAML file with the words of the requests; the one that ships where empty.")
    ] = ""
    rounds: Annotated[
        int, Meta(ge=1, le=16, description="How often an answer is revised, each time by another principle.")
    ] = 1
    first: Annotated[
        Literal["own", "given"],
        Meta(description="What is revised: an answer that the model draws, or the one in the data."),
    ] = "own"
    max_new_tokens: Annotated[
        int, Meta(ge=1, le=100_000, description="Longest answer and longest revision, in tokens.")
    ] = 256
    critique_tokens: Annotated[int, Meta(ge=1, le=100_000, description="Longest critique, in tokens.")] = 128
    temperature: Annotated[
        float, Meta(ge=0, le=10, description="Of the sampling; 0 takes the likeliest token each time.")
    ] = 0.5
    top_p: Annotated[
        float, Meta(gt=0, le=1, description="Draw among the likeliest tokens that make up this share.")
    ] = 0.9
    batch_size: Annotated[int, Meta(ge=1, le=4096, description="How many prompts are worked on at a time.")] = 8
    allow_cut: Annotated[
        bool,
        Meta(description="Take answers that were cut at max_new_tokens; who learns from them learns not to end."),
    ] = False


class CritiqueRevision(tutelage.Phase):
    """Answers prompts, then criticises and revises its answers by a constitution: makes data for sft.

    The supervised half of Constitutional AI (Bai et al. 2022, section 3): for each prompt an answer is drawn; in each
    round a principle is drawn by its weight, the model is asked what in the answer goes against it, and to write the
    answer anew. A row holds the prompt with the last answer as `messages`, the `first` answer, and all `steps`.
    """

    name = "critique_revision"
    takes = (Prompted, Conversation, Continuation)
    makes = "dataset"
    gives = (Conversation,)
    needs_chat_template = True
    Config = CritiqueRevisionConfig
    config: CritiqueRevisionConfig

    def check_files(self, base: Path, place: str) -> list[Problem]:
        """What is wrong with the files that the settings name, told before anything runs."""
        return [*problems_of(self._constitution, base), *problems_of(self._template, base)]

    def examine_records(
        self,
        records: list[tuple[str, Record]],
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        stage: tutelage.Stage,
        place: str,
    ) -> list[Problem]:
        """Prompts that can't be answered."""
        from tutelage_plugins.constitutions.mending import fitting
        from tutelage_plugins.constitutions.writing import Window

        fitting(records, Window(tokenizer, window), self.config, stage)
        return []

    def run(self, context: StageContext) -> tutelage.Artifact:
        """Make the dataset."""
        from tutelage_plugins.constitutions.mending import mend

        return mend(context, self.config, self._constitution(context.base), self._template(context.base))

    def _constitution(self, base: Path) -> Constitution:
        return constitution_of(self.config.constitution, base, ("critique", "revision"))

    def _template(self, base: Path) -> revising.Template:
        return revising.load(named_or(self.config.template, revising.DEFAULT, base))
