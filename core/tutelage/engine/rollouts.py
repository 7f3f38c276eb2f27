"""What a policy answered in one iteration: tokens, rewards, and what was measured of each token.

Everything of tokens is a flat vector over the new tokens of all answers, answer after answer, on the CPU; `sequence`
says which answer each belongs to. All processes hold the same rollout, each having computed its share of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tutelage.data.rendering import Tokens
from tutelage.objectives.ragged import sum_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tutelage.formats import Prompted


@dataclass
class Rollout:
    """Answers to prompts. It is a store of examples (prompt and answer, of which the answer is learnt)."""

    prompts: list[Prompted]
    "Of each answer."
    group: Tensor
    "Which of the iteration's prompts an answer belongs to, (answers,) int64."
    examples: list[Tokens]
    places: list[str]
    texts: list[str]
    "The answers, without the token that ended them."
    finished: Tensor
    "Whether an answer ended by itself, (answers,) bool."
    given: dict[str, Tensor] = field(default_factory=dict)
    "What each reward gave, (answers,) float32; `reward` is their weighted sum."
    log_probs: Tensor | None = None
    "Of each new token under the policy that drew it, (tokens,) float32."
    reference: Tensor | None = None
    "Of each new token under the reference."
    entropy: Tensor | None = None
    "Of the distribution that each new token was drawn from, in nats."
    values: Tensor | None = None
    "What the value model expected before each new token."
    advantages: Tensor | None = None
    returns: Tensor | None = None
    learnt: NDArray[np.int64] | None = None
    "The answers that are learnt from; None are all."

    def __post_init__(self) -> None:
        self.lengths: NDArray[np.int64] = np.array([len(each) for each in self.examples], dtype=np.int64)
        self.weights: NDArray[np.int64] = np.array([each.weight for each in self.examples], dtype=np.int64)
        self.counts = torch.from_numpy(self.weights)
        "New tokens of each answer, (answers,) int64."
        self._starts = np.concatenate([[0], np.cumsum(self.weights)])
        self.sequence = torch.repeat_interleave(torch.arange(len(self)), self.counts)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Tokens:
        return self.examples[index]

    def place(self, index: int) -> str:
        """Where an answer's prompt comes from, for messages."""
        return self.places[index]

    def where(self, answers: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Where the tokens of these answers stand in a flat vector, in the answers' order."""
        spans = [np.arange(self._starts[answer], self._starts[answer + 1]) for answer in answers]
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *spans]))

    def part(self, answers: Sequence[int] | NDArray[np.int64]) -> Part:
        """What was measured of the tokens of some answers."""
        where, counts = self.where(answers), self.counts[[int(answer) for answer in answers]]
        names = ("log_probs", "reference", "values", "advantages", "returns")
        vectors: dict[str, Any] = {name: whole[where] for name in names if (whole := getattr(self, name)) is not None}
        vectors.setdefault("log_probs", torch.full((len(where),), math.nan))
        sequence = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return Part(sequence=sequence, answers=len(counts), **vectors)

    def shown(self, count: int) -> list[dict[str, Any]]:
        """A few answers from the worst to the best, for people."""
        rewards = self.given["reward"]
        order = torch.argsort(rewards, stable=True)
        places = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return [
            {
                "prompt": self.prompts[index].prompt,
                "answer": self.texts[index],
                "reward": float(rewards[index]),
                "tokens": int(self.counts[index]),
                "finished": bool(self.finished[index]),
            }
            for index in order[places].tolist()
        ]


@dataclass
class Part:
    """The tokens of some of a rollout's answers: what losses are computed from. Vectors are (tokens,)."""

    sequence: Tensor
    answers: int
    log_probs: Tensor
    "Under the policy that drew them; NaN as long as they are not measured."
    advantages: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def to(self, device: torch.device) -> Part:
        """The same on another device."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in tensors.items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def mean_with_error(values: Tensor, group: Tensor) -> tuple[float, float]:
    """The mean of what answers scored, and its standard error; answers to one prompt are not independent of each other.

    Args:
        values: (answers,).
        group: (answers,) the prompt of each.
    Returns:
        mean, and error: over prompts of their means where there are several, else over the answers.
    """
    wide = values.double()
    mean = float(wide.mean())
    groups = int(group.max()) + 1
    if groups < 2:
        group, groups = torch.arange(len(wide)), len(wide)
    if groups < 2:
        return mean, math.inf
    sums = sum_by(wide - mean, group, groups)  # a prompt with more answers counts for more
    return mean, float((sums**2).sum().sqrt()) / len(wide) * math.sqrt(groups / (groups - 1))
