"""Reward models: a score for an answer, learnt from what people preferred."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

import tutelage
from tutelage.errors import Problem
from tutelage.formats import Ranking, Record
from tutelage_plugins.phases._judgements import Repeats, repeated_judgements

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.data.batches import Batch, Examples
    from tutelage.data.preparing import Prepared
    from tutelage.data.rendering import Renderer, Tokens
    from tutelage.engine.learner import Learner
    from tutelage.recipe import Stage

RANK, PROBABILITY, MARGIN = range(3)
"Columns of what is said of each answer. The probability and the margin are a pair's, and the same for both."


class RewardModel(tutelage.TrainingPhase):
    """Reward model: learns to score answers in the order that people gave them."""

    name = "reward_model"
    takes = (Ranking,)
    makes = "reward_model"
    head = "score"
    counts_tokens = False

    class Config(tutelage.Config):
        """How rankings are learnt. Each ranking weighs the same, whatever the number of its answers."""

        loss: Annotated[
            Literal["plackett-luce", "bradley-terry"],
            Meta(
                description="Rankings of more than two answers: the likelihood of the whole order (Plackett-Luce), or "
                "the mean over all pairs (Bradley-Terry, as Ouyang et al. 2022). For pairs both are the same."
            ),
        ] = "plackett-luce"
        centring: Annotated[
            float,
            Meta(
                ge=0,
                description="How strongly scores are pulled to a mean of 0 (Eisenstein et al. 2023 use 0.01); "
                "preferences alone leave it open.",
            ),
        ] = 0.0
        repeats: Repeats = "refuse"

    def check(self, stage: Stage, place: str) -> list[Problem]:
        if stage.adapter.get("kind") != "prompt":
            return []
        wrong = (
            "a soft prompt is given to the model as embeddings, and transformers then reads the score of a padded "
            "answer at its padding"
        )
        return [Problem(place=f"{place}.adapter", wrong=wrong, fix="use lora, qlora or full")]

    def weight(self, tokens: Tokens) -> int:
        return 1

    def example(self, record: Record, renderer: Renderer) -> Tokens:
        """A ranking as its answers after their prompt, best first, each with its rank, probability and margin.

        Raises:
            ValueError: with a sentence, when it does not say what is preferred to what.
        """
        from tutelage.data.rendering import together

        assert isinstance(record, Ranking)
        _refuse_broken(record)
        answers, ranks, probability = record.answers, record.ranks, record.probability
        if probability is not None:  # that the first is the better one
            ranks = [1.0, 1.0] if probability == 0.5 else [1.0, 2.0] if probability > 0.5 else [2.0, 1.0]
            probability = max(probability, 1 - probability)
        best_first = sorted(zip(ranks, answers, strict=True), key=lambda item: item[0])
        ranked = [(rank, renderer.answered(record.prompt, answer)) for rank, answer in best_first]
        ranked = _without_copies(ranked)
        pair = [1.0 if probability is None else probability, record.margin or 0.0]
        return together([tokens for _, tokens in ranked], [[rank, *pair] for rank, _ in ranked])

    def examine(self, prepared: Prepared) -> list[Problem]:
        """Name rows that judge answers which another row has judged already."""
        return [] if self.config.repeats == "keep" else repeated_judgements(prepared)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over rankings: the loss; and how many pairs of each are in order, by how much, and the mean score."""
        from tutelage.engine.forward import sequence_scores
        from tutelage.objectives.ragged import index_of, mean_by
        from tutelage.objectives.rankings import centring_loss, ordered_pairs

        scores = sequence_scores(model, batch)
        if not batch.sequences:
            nothing = scores.new_zeros(())
            return scores.sum(), {"accuracy": nothing, "score_difference": nothing, "score": nothing}
        assert batch.groups is not None
        assert batch.values is not None
        offsets, values = batch.groups, batch.values
        group, groups = index_of(offsets), len(offsets) - 1
        each = self._each(scores, offsets, values)
        if self.config.centring:
            each = each + self.config.centring * centring_loss(scores, group, groups)
        known = scores.detach()
        better, worse = ordered_pairs(values[:, RANK], group)
        differences = known[better] - known[worse]
        right = 0.5 * (1 + differences.sign())
        tied = groups - group[better].unique().numel()
        return each.sum(), {
            "accuracy": mean_by(right, group[better], groups).sum() + 0.5 * tied,
            "score_difference": mean_by(differences, group[better], groups).sum(),
            "score": mean_by(known, group, groups).sum(),
        }

    def _each(self, scores: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        """The loss of each ranking, (rankings,)."""
        import torch

        from tutelage.objectives.ragged import index_of
        from tutelage.objectives.rankings import bradley_terry_loss, plackett_luce_loss

        group, groups = index_of(offsets), len(offsets) - 1
        first, last = offsets[:-1], offsets[1:] - 1
        pairs = bradley_terry_loss(
            scores[first], scores[last], margin=values[first, MARGIN], probability=_likely(values, first, last)
        )
        several = (offsets[1:] - offsets[:-1]) > 2
        if not several.any():
            return pairs
        if self.config.loss == "plackett-luce":
            rankings = plackett_luce_loss(scores, values[:, RANK], group, groups)
        else:
            rankings = _mean_over_pairs(scores, values, group, groups)
        return torch.where(several, rankings, pairs)

    def conclude(self, learner: Learner, held_out: Examples | None) -> dict[str, Any]:
        """What the model makes of held-out rankings."""
        from tutelage_plugins.phases._held_out import judged, report_on

        if held_out is None or not len(held_out):
            learner.notice("no rankings were held out, so nothing is known of how the model scores new answers")
            return {}
        return report_on(judged(learner, held_out))


def _likely(values: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The probability that the first of each pair is the better one; a tie is even."""
    import torch

    tied = values[first, RANK] == values[last, RANK]
    return torch.where(tied, 0.5, values[first, PROBABILITY])


def _mean_over_pairs(scores: Tensor, values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Bradley-Terry over all pairs of a ranking, ties as even, (rankings,) (Ouyang et al. 2022, equation 1)."""
    import torch

    from tutelage.objectives.ragged import mean_by
    from tutelage.objectives.rankings import bradley_terry_loss

    # Answers lie best first, so a pair's earlier one is never worse.
    first, second = torch.triu(group[:, None] == group[None, :], diagonal=1).nonzero(as_tuple=True)
    each = bradley_terry_loss(scores[first], scores[second], probability=_likely(values, first, second))
    return mean_by(each, group[first], groups)


def _refuse_broken(record: Ranking) -> None:
    """Raises ValueError with a sentence when a ranking does not say what it must."""
    if len(record.answers) < 2:
        raise ValueError(f"has {len(record.answers)} answers; a ranking needs two or more")
    if len(record.ranks) != len(record.answers):
        raise ValueError(f"has {len(record.ranks)} ranks for {len(record.answers)} answers; each answer needs a rank")
    if not all(map(math.isfinite, record.ranks)):
        raise ValueError("a rank is not a finite number")
    if record.probability is None and len(set(record.ranks)) == 1:
        raise ValueError("all its answers have the same rank; there is nothing to prefer")
    of_pairs = record.probability is not None or record.margin is not None
    if of_pairs and len(record.answers) > 2:
        raise ValueError("has a probability or a margin, which only a pair of answers can have")


def _without_copies(ranked: list[tuple[float, Tokens]]) -> list[tuple[float, Tokens]]:
    """Each answer once; tokens are compared, as some chat templates drop the spaces around an answer.

    Raises:
        ValueError: when the same answer has two ranks, or nothing is left to compare.
    """
    known: dict[bytes, tuple[float, Tokens]] = {}
    for rank, tokens in ranked:
        if known.setdefault(tokens.ids.tobytes(), (rank, tokens))[0] != rank:
            raise ValueError("an answer has two ranks, for two of its answers are the same to the model")
    if len(known) < 2:
        raise ValueError("all its answers are the same; there is nothing to prefer")
    return list(known.values())


# Judgements that were made twice
