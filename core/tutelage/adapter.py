"""The plugin base class of adapters: which parameters learn, and how what they learnt is kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tutelage.errors import Problem
from tutelage.plugin import Plugin

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Adapter(Plugin):
    """Plugin base: attaches to a loaded model, and saves in the ecosystem's own format (a PEFT or an HF folder)."""

    artifact: ClassVar[Literal["adapter", "model"]] = "adapter"
    "What `save` leaves: a PEFT adapter folder, or a whole HF model folder."
    packs: ClassVar[bool] = True
    "Whether several examples may share one row (false where the adapter adds tokens to every row)."
    shards: ClassVar[bool] = True
    "Whether FSDP can share the model out among devices."
    learns_tokens: ClassVar[bool] = True
    "Whether it can learn the embeddings of new special tokens."
    switches: ClassVar[bool] = True
    "Whether it can be switched off, or for another one on the same base, between two passes."
    default_learning_rate: ClassVar[float] = 2e-4
    "Used where the recipe names none."

    @property
    def save_dtype(self) -> torch.dtype | None:
        """What a whole model's weights are stored in; None stores them as they are."""
        return None

    @property
    def tokens_added(self) -> int:
        """How many positions of the model's context it takes from every example."""
        return 0

    def check(self, model: nn.Module, place: str) -> list[Problem]:
        """What of the config does not fit this model (built on the meta device, without weights)."""
        return []

    def missing(self) -> str:
        """Why this adapter can't work here (a package or device that is missing, with how to get it), or ''."""
        return ""

    def loading(self, dtype: torch.dtype) -> dict[str, Any]:
        """Further keyword arguments for `from_pretrained` of a base held in `dtype`, e.g. a quantization config."""
        return {}

    @abstractmethod
    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[int] = ()
    ) -> nn.Module:
        """Freeze what does not learn, add what does, and return the model to train.

        Args:
            new_tokens: ids of special tokens whose embeddings (and output rows) learn besides all else.
        Raises:
            TutelageError: when the model, its tokens and the config don't go together.
        """

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, weights: dict[str, Any] | None = None) -> None:
        """Write what was learnt into `folder` as safetensors. `weights` are given where the model is sharded."""

    @abstractmethod
    def load(self, base: PreTrainedModel, folder: Path) -> nn.Module:
        """Read what `save` wrote, by the plain library alone. `base` is the model that `attach` was given."""
