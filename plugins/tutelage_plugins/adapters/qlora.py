"""QLoRA, by PEFT and bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tutelage_plugins.adapters.lora import Lora

if TYPE_CHECKING:
    import torch


class QLora(Lora):
    """QLoRA: LoRA beside a base held in 4 bits (NF4 with double quantisation; Dettmers et al., 2023)."""

    name = "qlora"
    shards = False

    def missing(self) -> str:
        if find_spec("bitsandbytes") is None:
            return "bitsandbytes is not installed; run: pip install 'tutelage[qlora]'"
        return ""

    def loading(self, dtype: torch.dtype) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        return {"quantization_config": quantization}
