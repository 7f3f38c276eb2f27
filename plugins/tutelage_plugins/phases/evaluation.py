"""Evaluation: what each stage's model answers to the same held-out prompts, and what a judge finds of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

import tutelage
from tutelage.errors import Problem, RunFailed
from tutelage.formats import Continuation, Conversation, Prompted, Record, Text
from tutelage.marks import DATA, MODEL, asks_for
from tutelage.reward import Weighted, rewards_of, total, unscorable
from tutelage.runs.files import write_atomically
from tutelage_plugins.phases._evaluating import Answered, Read, compare, gather, sections

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tutelage.engine.context import StageContext
    from tutelage.recipe import Stage

START = "start"
"The name of the recipe's own model among those that are compared."


class Evaluation(tutelage.Phase):
    """Compares models: the same held-out prompts, answered by each, judged side by side."""

    name = "evaluation"
    takes = (Prompted, Conversation, Continuation)
    makes = "report"

    class Config(tutelage.Config):
        """Who answers, who judges, and what else is measured.

        The judge should be one that no stage learnt from. KL is the mean over answers of the sum over their tokens of
        the divergence of the model's whole distribution from the first model's, in nats (a Rao-Blackwellised estimate,
        Amini et al. 2025, "Better Estimation of the KL Divergence Between Language Models", equation 9).
        """

        models: Annotated[
            list[str],
            MODEL,
            Meta(
                description="What is compared, the first being what others are held against: `stage:NAME`, or any "
                "model. By default the recipe's model, unless it is new, and every earlier stage that makes a model."
            ),
        ] = []
        judge: Annotated[
            list[Any], asks_for("reward"), Meta(description="Rewards that judge the answers: `[{kind: length, …}, …]`.")
        ] = []
        max_new_tokens: Annotated[int, Meta(ge=1, le=100_000, description="Longest answer, in tokens.")] = 128
        temperature: Annotated[
            float, Meta(ge=0, le=10, description="0 takes the likeliest token each time, and then no KL is told.")
        ] = 1.0
        top_p: Annotated[float, Meta(gt=0, le=1, description="Draw from the likeliest tokens of this share.")] = 1.0
        kl: Annotated[bool, Meta(description="Whether to tell each model's KL from the first.")] = True
        text: Annotated[
            str,
            DATA,
            Meta(description="Plain general text, to see by its perplexity what skill was lost; a data file."),
        ] = ""
        text_tokens: Annotated[int, Meta(ge=64, description="How much of that text is read, in tokens.")] = 8192
        prompts: Annotated[int, Meta(ge=2, description="At most so many prompts, the first ones.")] = 200
        batch_size: Annotated[int, Meta(ge=1, le=4096, description="Answers drawn at a time.")] = 16

    def references(self) -> dict[str, str]:
        found = {f"models.{index}": model for index, model in enumerate(self.config.models)}
        for index, each in enumerate(self._judge([])):
            found |= {f"judge.{index}.{field}": value for field, value in each.reward.references().items()}
        return found

    def sources(self) -> dict[str, tuple[str, tuple[type, ...]]]:
        return {"text": (self.config.text, (Text,))} if self.config.text else {}

    def check(self, stage: Stage, place: str) -> list[Problem]:
        problems: list[Problem] = []
        self._judge(problems, f"{place}.phase.judge")
        return problems

    def examine_records(
        self,
        records: list[tuple[str, Record]],
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        stage: tutelage.Stage,
        place: str,
    ) -> list[Problem]:
        """Rows that the judge can't judge by."""
        from tutelage.engine.prompting import prompted

        asked = [(where, prompted(record)) for where, record in records[: self.config.prompts]]
        return unscorable(self._judge([]), asked)

    def run(self, context: StageContext) -> tutelage.Artifact:
        from tutelage.engine.prompting import prompted

        records = [prompted(record) for _, record in context.records()][: self.config.prompts]
        if len(records) < 2:
            raise RunFailed.at(f"stages.{context.stage.name}.data", "holds fewer than two prompts", "give more")
        models = self._models(context)
        folder = gather(self.config, context, models, records)
        judges = self._judge([])
        for each in judges:
            each.reward.load(context)
        made = [msgspec.json.decode(line) for line in (folder / "data.jsonl").read_bytes().splitlines()]
        answered = [msgspec.convert(row, Answered) for row in made if "answer" in row]
        reads = [msgspec.convert(row, Read) for row in made if "nll" in row]
        self._judged(judges, records, answered)
        told = compare(list(models), records, answered, reads, context.stage.trainer.seed)
        if int(os.environ.get("RANK", "0")) == 0:
            write_atomically(folder / "comparison.json", msgspec.json.format(msgspec.json.encode(told)).decode())
            for section in sections(told, [each.name for each in judges]):
                context.emit("section", **section)
        return tutelage.Artifact("report", folder, told.metrics())

    def _judged(self, judges: Sequence[Weighted], records: list[Prompted], answered: list[Answered]) -> None:
        if judges:
            prompts = [records[each.prompt] for each in answered]
            totals, given = total(judges, prompts, [each.answer for each in answered])
            for index, each in enumerate(answered):
                each.reward = totals[index]
                each.rewards = {name: scores[index] for name, scores in given.items()}

    def _models(self, context: StageContext) -> dict[str, str]:
        """References of what is compared, by the name that each is called; the recipe's own model is ''."""
        if self.config.models:
            return {model.removeprefix("stage:"): model for model in self.config.models}
        from tutelage.engine.context import NEW
        from tutelage.plugins import host

        stages = context.recipe.stages
        earlier = stages[: [stage.name for stage in stages].index(context.stage.name)]
        phases: dict[str, Any] = host().classes("phase")
        made = [stage.name for stage in earlier if phases[stage.phase["kind"]].makes == "model"]
        start = {} if context.recipe.model == NEW else {START: context.recipe.model}
        return {**start, **{name: f"stage:{name}" for name in made}}

    def _judge(self, problems: list[Problem], place: str = "judge") -> list[Weighted]:
        from tutelage.plugins import host

        return rewards_of(self.config.judge, host(), place, problems)
