"""One forward pass of a language model over a batch, with logits for learnt tokens only.

Most of a small model's work is the output layer. Prompts are not learnt, so their logits are never computed where the
model can leave them out (transformers' `logits_to_keep`).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from tutelage.data.batches import Batch


def learnt_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits that predict the learnt tokens of a batch, and those tokens.

    Returns:
        logits (learnt, vocabulary) in the model's dtype, and targets (learnt,).
    """
    if batch.bounds is not None:
        return _packed_logits(model, batch)
    keep = batch.targets.any(dim=0).nonzero().squeeze(1)
    positions = keep - 1
    inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if keeps_logits(model) and not _adds_tokens(model):
        logits = model(**inputs, logits_to_keep=positions).logits
    else:
        logits = model(**inputs).logits[:, -batch.ids.shape[1] :][:, positions]
    wanted = batch.targets[:, keep]
    return logits[wanted], batch.ids[:, keep][wanted]


def _packed_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    bounds = batch.bounds
    assert bounds is not None
    longest = int((bounds[1:] - bounds[:-1]).max())
    inputs: dict[str, Any] = {
        "input_ids": batch.ids,
        "position_ids": batch.positions,
        "use_cache": False,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    keep = batch.targets[0].nonzero().squeeze(1)
    if keeps_logits(model):
        logits = model(**inputs, logits_to_keep=keep - 1).logits[0]
    else:
        logits = model(**inputs).logits[0, keep - 1]
    return logits, batch.ids[0, keep]


def summed_cross_entropy(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """The negative log-likelihood of `targets` (n,) under `logits` (n, vocabulary), summed, in float32.

    Chunks bound the size of the float32 copy of the logits.
    """
    if not len(targets):
        return 0.0 * logits.sum().float()  # an empty share of a step still belongs to the graph
    total = logits.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        total = total + F.cross_entropy(logits[part].float(), targets[part], reduction="sum")
    return total


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model within an adapter's wrapper, or the model itself."""
    wrapped: Any = model
    base: PreTrainedModel = wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped
    return base


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep`."""
    forward: Any = type(base_of(model)).forward
    return "logits_to_keep" in inspect.signature(forward).parameters


def _adds_tokens(model: nn.Module) -> bool:
    """Whether the adapter puts virtual tokens before every row (PEFT's prompt learning)."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))
