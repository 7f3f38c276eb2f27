"""Asks a model which of two answers is better by a principle, and reads the odds from its probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from tutelage.models.decoding import State, ready
from tutelage.models.sampling import ends_of
from tutelage_plugins.constitutions.asking import Question, Template
from tutelage_plugins.constitutions.writing import Writer

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = (" (A)", " (B)")


class Verdict(msgspec.Struct, frozen=True):
    """The probability that the answer shown first is better, and the reasoning that led to it."""

    first: float
    reasoning: str = ""


class Judge:
    """A model that is asked which of two answers is better.

    Args:
        reasoning: most tokens of reasoning before each verdict; 0 for none.
        clamp: the largest probability that a verdict may give to either answer.
    """

    def __init__(self, writer: Writer, template: Template, *, reasoning: int, clamp: float, batch_size: int) -> None:
        self._writer = writer
        self._template = template
        self._reasoning = reasoning
        self._clamp = clamp
        self._batch_size = batch_size
        self._ends = ends_of(writer.model, writer.tokenizer)
        self._options = _parted([self._tokens(template.answer + option) for option in OPTIONS])
        self._began = self._tokens(template.reasoning) if reasoning and template.reasoning else []
        self._gap = self._tokens("\n\n") if reasoning else []

    @property
    def room(self) -> int:
        """Tokens that come after a question."""
        beginning, options = self._options
        return len(beginning) + max(map(len, options)) + len(self._began) + self._reasoning + len(self._gap)

    def verdicts(self, questions: list[Question]) -> list[Verdict]:
        """Ask each question once.

        The probability is that of option (A) beside that of (B), normalised over the two: with l the log-probability
        of an option's tokens after all that comes before, exp l(A) / (exp l(A) + exp l(B)) (Bai et al. 2022,
        section 4.1). Tokens that both options end in are left out.
        """
        asked = [self._writer.window.ids(self._template.asked(question)) for question in questions]
        thoughts = [""] * len(questions)
        if self._reasoning:
            seeds = [question.seed for question in questions]
            asked = [ids + self._began for ids in asked]
            drawn = self._writer.draw(asked, seeds, self._reasoning)
            asked = [
                ids + (each.ids[:-1] if each.finished else each.ids) + self._gap
                for ids, each in zip(asked, drawn, strict=True)
            ]
            thoughts = [self._writer.text(each) for each in drawn]
        chances = [min(max(chance, 1 - self._clamp), self._clamp) for chance in self._chances(asked)]
        return [Verdict(chance, thought) for chance, thought in zip(chances, thoughts, strict=True)]

    def _chances(self, asked: list[list[int]]) -> list[float]:
        """For each dialogue, the probability of the first option beside the second."""
        beginning, options = self._options
        wanted = [
            [(tuple(ids + beginning + option[:place]), token) for place, token in enumerate(option)]
            for ids in asked
            for option in options
        ]
        rows = sorted({row for option in wanted for row, _ in option}, key=lambda row: (-len(row), row))
        tokens = sorted({token for option in options for token in option})
        known: dict[tuple[tuple[int, ...], int], float] = {}
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            for row, found in zip(batch, self._next(batch, tokens).tolist(), strict=True):
                known |= {(row, token): value for token, value in zip(tokens, found, strict=True)}
        scores = [sum(known[step] for step in option) for option in wanted]
        return torch.tensor(scores, dtype=torch.float64).view(-1, 2).softmax(-1)[:, 0].tolist()

    def _next(self, rows: list[tuple[int, ...]], tokens: list[int]) -> Tensor:
        """Log-probabilities (rows, tokens) of some tokens to come next."""
        with ready(self._writer.model), torch.no_grad():
            state = State(self._writer.model, [list(row) for row in rows], pad=self._ends["pad"], room=1)
            return state.logits.log_softmax(-1)[:, tokens].double().cpu()

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._writer.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _parted(options: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """What all options begin with, and where they differ: without what they end in alike."""
    shortest = min(map(len, options))
    same = [len({option[place] for option in options}) == 1 for place in range(shortest)]
    start = same.index(False)
    ends = [len({option[-1 - place] for option in options}) == 1 for place in range(shortest - start)]
    kept = ends.index(False) if False in ends else 0
    return options[0][:start], [option[start : len(option) - kept] for option in options]
