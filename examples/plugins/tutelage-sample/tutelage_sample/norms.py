"""An adapter: only the normalisation layers learn (Zhao et al., 2023, "Tuning LayerNorm in Attention")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

import tutelage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Norms(tutelage.Adapter):
    """Only the normalisation layers learn: a few thousand numbers."""

    name = "norms"
    artifact = "model"
    learns_tokens = False
    default_learning_rate = 1e-3

    class Config(tutelage.Config):
        """What learns besides the norms' weights."""

        biases: Annotated[bool, Meta(description="Let every bias learn too.")] = False

    def check(self, model: nn.Module, place: str) -> list[tutelage.Problem]:
        """A model without norms has nothing to learn here."""
        if any(self._learns(name) for name, _ in model.named_parameters()):
            return []
        return [tutelage.Problem(place=place, wrong="the model has no normalisation layers", fix="use another adapter")]

    def attach(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        new_tokens: Sequence[int] = (),
    ) -> nn.Module:
        """Freeze all else; one dtype throughout, so that the model runs without autocast too."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._learns(name))
        whole: nn.Module = model.float()
        return whole

    def save(self, model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        """Write a plain Hugging Face model."""
        model.save_pretrained(str(folder), state_dict=weights)

    def load(self, base: PreTrainedModel, folder: Path) -> nn.Module:
        """Read it back."""
        return type(base).from_pretrained(str(folder), dtype=base.dtype, use_safetensors=True)

    def _learns(self, name: str) -> bool:
        *_, layer, kind = name.split(".")
        return "norm" in layer.lower() or layer.startswith("ln_") or (self.config.biases and kind == "bias")
