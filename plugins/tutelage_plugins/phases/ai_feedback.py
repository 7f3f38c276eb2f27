"""AI feedback: a model says which of two answers is better by the principles of a constitution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

import tutelage
from tutelage.errors import Problem
from tutelage.formats import Prompted, Ranking, Record
from tutelage.marks import DATA, FILE, MODEL
from tutelage_plugins.constitutions import asking, constitution_of, named_or, problems_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tutelage.constitution import Constitution
    from tutelage.engine.context import StageContext

CAUTIOUS = 0.6
"The largest probability after a chain of thought, which makes a model too sure (Bai et al. 2022, section 4.1)."


class AIFeedbackConfig(tutelage.Config):
    """Who judges, by what, and how."""

    constitution: Annotated[
        str, FILE, Meta(description="A YAML file of principles; the one that ships where empty.")
    ] = ""
    template: Annotated[
        str, FILE, Meta(description="A YAML file with the words of the question; the one that ships where empty.")
    ] = ""
    judge: Annotated[str, MODEL, Meta(description="The model that judges; the stage's own where empty.")] = ""
    principles: Annotated[
        int,
        Meta(ge=1, le=100, description="How many principles each pair is judged by; their labels are averaged."),
    ] = 4
    pairs: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)] | Literal["all"],
        Meta(description="How many pairs of a prompt's answers are judged, drawn by the seed; or all."),
    ] = "all"
    chain_of_thought: Annotated[bool, Meta(description="Let the model reason before each verdict.")] = False
    reasoning_tokens: Annotated[int, Meta(ge=1, le=100_000, description="Longest reasoning, in tokens.")] = 128
    temperature: Annotated[
        float, Meta(ge=0, le=10, description="Of the reasoning; 0 takes the likeliest token each time.")
    ] = 0.5
    top_p: Annotated[
        float, Meta(gt=0, le=1, description="Draw among the likeliest tokens that make up this share.")
    ] = 0.9
    clamp: Annotated[
        Annotated[float, Meta(gt=0.5, le=1)] | None,
        Meta(description="Largest probability of a verdict; null: 0.6 after a chain of thought, else 1."),
    ] = None
    min_confidence: Annotated[
        float, Meta(ge=0.5, lt=1, description="Pairs whose chosen answer is less probable than this are left out.")
    ] = 0.5
    human: Annotated[
        str, DATA, Meta(description="Pairs that people judged (format preference), to measure the judge against.")
    ] = ""
    batch_size: Annotated[int, Meta(ge=1, le=4096, description="How many questions are asked at a time.")] = 8


class AIFeedback(tutelage.Phase):
    """A model prefers one of two answers by a constitution's principles: makes preference data with soft labels.

    The labelling of Constitutional AI's second half (Bai et al. 2022, section 4): of each pair of answers to a prompt,
    the model is asked by several principles, with the answers in both orders, which is better; what its probabilities
    of "(A)" and "(B)" say is averaged. Takes what the phase `comparisons` makes, rankings, or preference pairs.
    """

    name = "ai_feedback"
    takes = (Prompted, Ranking)
    makes = "dataset"
    gives = (Ranking,)
    Config = AIFeedbackConfig
    config: AIFeedbackConfig

    @property
    def clamp(self) -> float:
        """The largest probability that a verdict may give to an answer."""
        if self.config.clamp is not None:
            return float(self.config.clamp)
        return CAUTIOUS if self.config.chain_of_thought else 1.0

    def references(self) -> dict[str, str]:
        return {"judge": self.config.judge} if self.config.judge else {}

    def sources(self) -> dict[str, tuple[str, tuple[type, ...]]]:
        return {"human": (self.config.human, (Ranking,))} if self.config.human else {}

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
        """Rows without two answers."""
        from tutelage_plugins.constitutions.preferring import pairs_of

        pairs_of(records, self.config.pairs, stage.trainer.seed)
        return []

    def run(self, context: StageContext) -> tutelage.Artifact:
        """Make the dataset."""
        from tutelage_plugins.constitutions.preferring import prefer

        constitution, template = self._constitution(context.base), self._template(context.base)
        return prefer(context, self.config, self.clamp, constitution, template)

    def _constitution(self, base: Path) -> Constitution:
        return constitution_of(self.config.constitution, base, ("preference",))

    def _template(self, base: Path) -> asking.Template:
        return asking.load(named_or(self.config.template, asking.DEFAULT, base))
