"""Supervised fine-tuning: learn to answer as the examples do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tutelage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.data.batches import Batch


class SFT(tutelage.TrainingPhase):
    """Supervised fine-tuning: the likelihood of the answers, given what comes before them."""

    name = "sft"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Negative log-likelihood of the learnt tokens, summed (Ouyang et al. 2022, section 3.5)."""
        from tutelage.engine.forward import learnt_loss

        return learnt_loss(model, batch)
