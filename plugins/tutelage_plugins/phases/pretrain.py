"""Pretraining: learn a language from text, from random weights or from where a model stands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

import tutelage
from tutelage.formats import Text
from tutelage.marks import MODEL
from tutelage.scaling import amount

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tutelage.data.batches import Batch, Examples
    from tutelage.data.rendering import Renderer
    from tutelage.data.store import Selection
    from tutelage.data.windows import Windows
    from tutelage.engine.context import StageContext
    from tutelage.models.locating import Located
    from tutelage.plugins import Host
    from tutelage.recipe import Stage


class Pretrain(tutelage.TrainingPhase):
    """Pretraining: the likelihood of every token of a text, in windows that are full."""

    name = "pretrain"
    takes = (Text,)
    bounds_rows = False
    default_adapter = "full"
    default_trainer: ClassVar[dict[str, Any]] = {
        "epochs": 1,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "final_learning_rate": 0.1,
        "tokens_per_step": 16384,
    }

    class Config(tutelage.Config):
        """Most of it says what model to make, where the recipe's model is `new`.

        A stage that names nothing else has `adapter: full`, and in `trainer` one epoch, weight_decay 0.1, betas 0.9 and
        0.95, final_learning_rate 0.1 and 16384 tokens_per_step.
        """

        architecture: Annotated[
            str, Meta(description="Of a new model: any causal language model of transformers, by its `model_type`.")
        ] = "llama"
        parameters: Annotated[
            str | int,
            Meta(description="Of a new model: how many in all (`10M`); depth and width follow from a published rule."),
        ] = ""
        shape: Annotated[
            dict[str, Any],
            Meta(description="Of a new model: fields of its config that are settled: `{hidden_size: 256, …}`."),
        ] = {}
        vocabulary: Annotated[
            int,
            Meta(ge=259, le=1_000_000, description="Of a new model: tokens that its tokenizer learns from the data."),
        ] = 8192
        tokenizer: Annotated[
            str, MODEL, Meta(description="Of a new model: a tokenizer to take instead, a folder's or any model's.")
        ] = ""
        chat: Annotated[
            bool, Meta(description="Give a tokenizer that is learnt a chat template (ChatML), for stages that follow.")
        ] = False
        across_documents: Annotated[
            bool, Meta(description="Whether a document may see those before it in its window; false keeps them apart.")
        ] = True
        z_loss: Annotated[
            float,
            Meta(
                ge=0,
                le=1,
                description="Weight of the squared log of the softmax's normaliser, which keeps logits small (1e-4 in "
                "Chowdhery et al., 2022); 0 leaves it out.",
            ),
        ] = 0.0

        def __post_init__(self) -> None:
            if self.parameters:
                amount(self.parameters)
            if self.parameters and "hidden_size" in self.shape:
                raise ValueError("give either parameters or shape.hidden_size, not both")

    def starting_model(self, stage: Stage, base: Path, host: Host, folder: Path | None) -> Located:
        from tutelage_plugins.phases._new_model import new_model

        return new_model(self.config, stage, base, host, folder)

    def learning_rate(self, context: StageContext, model: nn.Module) -> float:
        """For a new model by its size; one that can speak goes on at its adapter's."""
        from tutelage.engine.forward import base_of
        from tutelage.models.architectures import without_embeddings
        from tutelage.scaling import learning_rate

        if not context.new:
            return super().learning_rate(context, model)
        return learning_rate(without_embeddings(base_of(model)))

    def arrange(self, rows: Selection, renderer: Renderer, max_length: int) -> Windows:
        from tutelage.data.windows import Windows

        end = None if self.config.across_documents else renderer.tokenizer.eos_token_id
        return Windows(rows, max_length, apart=end, text_bytes=renderer.text_bytes)

    def measures(self, metrics: dict[str, float], held_out: Examples) -> dict[str, float]:
        """Bits per byte: the text's negative log-likelihood in bits over its bytes (Gao et al. 2020, section 3.1).

        Unlike a perplexity, it can be compared between models with different tokenizers.
        """
        from tutelage.data.windows import Windows

        if not isinstance(held_out, Windows):
            return {}
        nats = metrics["eval_loss"] * int(held_out.weights.sum())
        return {"eval_bits_per_byte": nats / math.log(2) / max(1, held_out.bytes)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Negative log-likelihood of every token, summed (Radford et al. 2018, equation 1)."""
        from tutelage.engine.forward import learnt_logits, learnt_loss, summed_cross_entropy

        if not (self.config.z_loss and model.training):
            return learnt_loss(model, batch)
        logits, targets = learnt_logits(model, batch)
        loss: Tensor = summed_cross_entropy(logits, targets)
        squares = [part.float().logsumexp(-1).square().sum() for part in logits.split(1024)]
        loss = loss + self.config.z_loss * sum(squares)
        return loss
