"""Direct preference optimization: learn from preferred answers without a reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

import tutelage
from tutelage_plugins.phases._judgements import Repeats, repeated_judgements

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.data.batches import Batch
    from tutelage.data.preparing import Prepared
    from tutelage.data.rendering import Renderer, Tokens
    from tutelage.engine.context import StageContext
    from tutelage.errors import Problem

MEASURES = ("reward_chosen", "reward_rejected", "reward_margin", "accuracy", "log_prob_chosen", "log_prob_rejected")


class DPO(tutelage.TrainingPhase):
    """Direct preference optimization: preferred answers become likelier than the others, measured from a reference.

    A ranking of more than two answers counts as all its pairs of a better and a worse answer, which together count as
    much as one pair does (as in Ouyang et al. 2022, section 3.5); tied answers make no pair.
    """

    name = "dpo"
    takes = (tutelage.Ranking,)
    counts_tokens = False

    def learning_rate(self, context: StageContext, model: nn.Module) -> float:
        """A twentieth of the adapter's own (1e-5 with lora, 1e-6 with full): preferences are learnt at a slower pace.

        Rafailov et al. 2023, appendix B, train all weights with 1e-6.
        """
        return context.adapter.default_learning_rate / 20

    class Config(tutelage.Config):
        """What is to be learnt from a pair, and how far the model may move for it."""

        loss: Annotated[
            Literal["sigmoid", "ipo", "hinge"],
            Meta(
                description="sigmoid: DPO (Rafailov et al., 2023). ipo: moves each pair apart by a fixed amount, which "
                "does not overfit certain preferences (Azar et al., 2023). hinge: nothing beyond a margin (SLiC)."
            ),
        ] = "sigmoid"
        beta: Annotated[
            float, Meta(gt=0, le=100, description="What moving away from the reference costs: larger moves less.")
        ] = 0.1
        label_smoothing: Annotated[
            float, Meta(ge=0, lt=0.5, description="The share of preferences taken to be the wrong way round (cDPO).")
        ] = 0.0
        reference_free: Annotated[
            bool, Meta(description="Compare log-probabilities themselves, without a reference.")
        ] = False
        length_normalized: Annotated[
            bool | None,
            Meta(
                description="Compare log-probabilities per token, not of whole answers, so that length matters less; "
                "null does so for ipo alone, as its authors do. It wants a larger beta."
            ),
        ] = None
        sft_weight: Annotated[
            float,
            Meta(
                ge=0,
                description="Weight of the chosen answer's own loss per token, which keeps it likely "
                "(RPO; Pang et al., 2024, equation 1).",
            ),
        ] = 0.0
        repeats: Repeats = "refuse"

    @property
    def needs_reference(self) -> bool:
        return not self.config.reference_free

    def weight(self, tokens: Tokens) -> int:
        """Each preference counts the same."""
        return 1

    def example(self, record: tutelage.Record, renderer: Renderer) -> Tokens:
        """All answers to the prompt, each with its rank and how sure it is that a better-ranked one is better.

        Raises:
            ValueError: with a sentence, when the answers say nothing about what is preferred.
        """
        from tutelage.data.rendering import together

        assert isinstance(record, tutelage.Ranking)
        ranks, probability = record.ranks, 1.0 if record.probability is None else record.probability
        if probability < 0.5:
            ranks, probability = ranks[::-1], 1 - probability
        sequences = [renderer.answered(record.prompt, answer) for answer in record.answers]
        _refuse_useless(sequences, ranks)
        return together(sequences, [[rank, probability] for rank in ranks])

    def examine(self, prepared: Prepared) -> list[Problem]:
        """Name rows that judge answers which another row has judged already."""
        return [] if self.config.repeats == "keep" else repeated_judgements(prepared)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of all pairs, weighted so that each preference counts 1, and the measures of the same pairs."""
        import torch

        from tutelage.engine.forward import sequence_log_probabilities
        from tutelage.objectives.preferences import PAIR_LOSSES, smoothed
        from tutelage.objectives.ragged import index_of, lengths_of
        from tutelage.objectives.rankings import ordered_pairs

        config = self.config
        log_probs, counts = sequence_log_probabilities(model, batch)
        if batch.values is None or batch.groups is None:  # nothing to do on this device
            nothing = log_probs.sum()
            return nothing, dict.fromkeys(MEASURES, nothing.detach())
        group = index_of(batch.groups)
        better, worse = ordered_pairs(batch.values[:, 0], group)
        owner = group[better]
        share = 1 / lengths_of(owner, len(batch.groups) - 1)[owner]

        log_ratios = log_probs if config.reference_free else log_probs - batch.values[:, -1]
        normalized = config.loss == "ipo" if config.length_normalized is None else config.length_normalized
        compared = log_ratios / counts if normalized else log_ratios
        margin = compared[better] - compared[worse]
        probability = smoothed(batch.values[better, 1], config.label_smoothing)
        losses = PAIR_LOSSES[config.loss](margin, config.beta, probability)
        if config.sft_weight:
            losses = losses - config.sft_weight * (log_probs / counts)[better]

        rewards = config.beta * compared
        told = (
            rewards[better],
            rewards[worse],
            config.beta * margin,
            torch.heaviside(margin.detach(), margin.new_tensor(0.5)),
            log_probs[better],
            log_probs[worse],
        )
        measures = {name: (share * each).sum().detach() for name, each in zip(MEASURES, told, strict=True)}
        return (share * losses).sum(), measures


def _refuse_useless(sequences: list[Tokens], ranks: list[float]) -> None:
    """Tokens are compared, not texts: many chat templates drop the spaces around an answer."""
    if len(set(ranks)) < 2:
        raise ValueError("all its answers are tied, so there is no preference to learn; leave it out")
    ranked: dict[bytes, float] = {}
    for tokens, rank in zip(sequences, ranks, strict=True):
        if ranked.setdefault(tokens.ids.tobytes(), rank) != rank:
            raise ValueError(
                "a better and a worse answer are the same to the model; leave one out, or mark them as tied"
            )
