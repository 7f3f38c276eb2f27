"""Full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

import tutelage
from tutelage.config import did_you_mean, join
from tutelage.errors import Problem, TutelageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Full(tutelage.Adapter):
    """Full fine-tuning: every weight of the model learns."""

    name = "full"
    artifact = "model"
    default_learning_rate = 2e-5

    class Config(tutelage.Config):
        """Everything learns, but for what `freeze` names (which saves gradients and optimizer state)."""

        freeze: Annotated[
            list[str],
            Meta(description="Parameters that don't learn, by name; * stands for anything: ['model.layers.0.*']."),
        ] = []
        save: Annotated[
            Literal["float32", "bfloat16"],
            Meta(
                description="What the weights are stored in: float32, as they were learnt, or half the size, which "
                "rounds small changes away."
            ),
        ] = "float32"

    @property
    def save_dtype(self) -> torch.dtype:
        import torch

        return torch.bfloat16 if self.config.save == "bfloat16" else torch.float32

    def check(self, model: nn.Module, place: str) -> list[Problem]:
        names = [name for name, _ in model.named_parameters()]
        problems = [
            Problem(
                place=join(place, "freeze"), wrong=f"{pattern!r} matches no parameter", fix=did_you_mean(pattern, names)
            )
            for pattern in self.config.freeze
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
        if all(self._frozen(name) for name in names):
            problems.append(Problem(place=join(place, "freeze"), wrong="leaves nothing that learns", fix="freeze less"))
        return problems

    def _frozen(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.config.freeze)

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int] = ()
    ) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not self._frozen(name))
        embeddings: Any = model.get_input_embeddings()
        if new_tokens and not embeddings.weight.requires_grad:
            raise TutelageError.at(
                "adapter.freeze", "freezes the embeddings, but new tokens must learn", "leave them out of freeze"
            )
        whole: nn.Module = model.float()  # one dtype throughout, so that the model runs without autocast too
        return whole

    def save(self, model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        model.save_pretrained(str(folder), state_dict=weights)

    def load(self, base: PreTrainedModel, folder: Path) -> nn.Module:
        return type(base).from_pretrained(str(folder), dtype=base.dtype, use_safetensors=True)
