"""What the adapters that PEFT implements share: their files, and the dtype of what they learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import tutelage
from tutelage.models.locating import refuse_pickles

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class PeftAdapter(tutelage.Adapter):
    """Saves and loads PEFT folders (`adapter_config.json`, `adapter_model.safetensors`)."""

    def save(self, model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        further = {} if weights is None else {"state_dict": weights}
        # The base's own embeddings never belong in the adapter: rows that learn are saved as such. Of several adapters
        # on one base, the one that learns is saved.
        model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"], **further)

    def load(self, base: PreTrainedModel, folder: Path) -> nn.Module:
        from peft import PeftModel

        from tutelage.models.loading import quietly

        refuse_pickles(folder, str(folder), "adapter_model.safetensors")
        with quietly():
            loaded: nn.Module = PeftModel.from_pretrained(base, str(folder))
        return loaded


def learn_in_float32(model: nn.Module) -> nn.Module:
    """Hold every parameter that learns in float32; frozen ones stay in the dtype they were loaded in."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
