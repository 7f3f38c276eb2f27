"""Prompt tuning (a soft prompt), by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

import tutelage
from tutelage.config import join
from tutelage.errors import Problem, TutelageError
from tutelage_plugins.adapters._peft import PeftAdapter, learn_in_float32

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PromptTuning(PeftAdapter):
    """Prompt tuning: learns a few embeddings that stand before every input (Lester et al., 2021)."""

    name = "prompt"
    packs = False
    learns_tokens = False
    switches = False
    default_learning_rate = 3e-2

    class Config(tutelage.Config):
        """The soft prompt. Lester et al. (2021, section 3.2) find little gain beyond 20 virtual tokens, and starting
        from rows of the vocabulary better than from noise."""

        virtual_tokens: Annotated[
            int, Meta(ge=1, le=4096, description="How many embeddings stand before every input.")
        ] = 20
        init: Annotated[
            Literal["random", "text"],
            Meta(description="Start from rows of the vocabulary drawn at random, or from the embeddings of `text`."),
        ] = "random"
        text: Annotated[str, Meta(description="What the prompt starts as, repeated or cut to its length.")] = ""

        def __post_init__(self) -> None:
            if self.init == "text" and not self.text.strip():
                raise ValueError("init is text, but text is empty; say what the prompt starts as")
            if self.text and self.init != "text":
                raise ValueError("text is given, but init is random; set init: text")

    @property
    def tokens_added(self) -> int:
        virtual: int = self.config.virtual_tokens
        return virtual

    def check(self, model: nn.Module, place: str) -> list[Problem]:
        context = getattr(model.config, "max_position_embeddings", None)
        if isinstance(context, int) and self.config.virtual_tokens >= context:
            wrong = f"{self.config.virtual_tokens} leave no room in this model's context of {context} tokens"
            return [Problem(place=join(place, "virtual_tokens"), wrong=wrong, fix="use fewer")]
        return []

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int] = ()
    ) -> nn.Module:
        import torch
        from peft import PromptTuningConfig, TaskType, get_peft_model

        from tutelage.models.loading import quietly

        if new_tokens:
            raise TutelageError.at(
                "tokenizer.add",
                "prompt tuning learns no embeddings of new tokens",
                "use lora or full, or add no tokens",
            )
        wanted = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=self.config.virtual_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
        )
        with quietly():
            adapted: Any = get_peft_model(model, wanted)
        if self.config.init == "text":
            start = self._from_text(model, tokenizer)
            with torch.no_grad():
                adapted.prompt_encoder["default"].embedding.weight.copy_(start)
        return learn_in_float32(adapted)

    def _from_text(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """The embeddings of the text's tokens, (virtual_tokens, hidden)."""
        import torch

        ids: list[int] = tokenizer(self.config.text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise TutelageError.at("adapter.text", "has no tokens in this model's vocabulary", "write another text")
        count = self.config.virtual_tokens
        repeated = (ids * -(-count // len(ids)))[:count]
        embeddings: Any = model.get_input_embeddings()
        with torch.no_grad():
            start: Tensor = embeddings(torch.tensor(repeated, device=embeddings.weight.device))
        return start.float()
