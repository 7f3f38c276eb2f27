"""Runs a model token by token over a batch whose rows may be repeated or leave, with a cache of keys and values."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tutelage.errors import TutelageError
from tutelage.models.prompts import soft_tokens, with_soft_prompt

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class State:
    """What a model has seen of a batch: the cache of keys and values, and the logits of what comes next.

    Attributes:
        logits: (rows, vocabulary) in float32.
    """

    def __init__(self, model: nn.Module, prompts: list[list[int]], *, pad: int, room: int) -> None:
        self._base = _base_of(model)
        self._cache: Any = _cache_for(self._base)
        known = inspect.signature(self._base.forward).parameters
        self._options: dict[str, Any] = {
            "cache" if "cache" in known else "past_key_values": self._cache,
            "use_cache": True,
            "return_dict": True,
        }
        if "logits_to_keep" in known:
            self._options["logits_to_keep"] = 1
        self._takes_positions = "position_ids" in known
        longest = max(map(len, prompts))
        device = next(self._base.parameters()).device
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
        inputs: dict[str, Tensor] = {"input_ids": ids}
        if soft_tokens(model):
            embeddings, mask = with_soft_prompt(model, ids, mask)
            inputs = {"inputs_embeds": embeddings}
        self._width = mask.shape[1]
        self._mask = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._positions = positions[:, -1:]
        self.logits = self._forward(inputs, positions)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows, which may be fewer, or some of them several times."""
        if rows == list(range(len(self.logits))):
            return
        order = torch.tensor(rows, device=self.logits.device)
        self.logits, self._mask, self._positions = self.logits[order], self._mask[order], self._positions[order]
        self._cache.reorder_cache(order)

    def advance(self, tokens: Tensor) -> None:
        """Take one more token (rows,) into each row."""
        self._width += 1
        self._positions = self._positions + 1
        self.logits = self._forward({"input_ids": tokens[:, None]}, self._positions)

    def _forward(self, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
        if self._takes_positions:
            inputs["position_ids"] = positions
        output: Any = self._base(**inputs, attention_mask=self._mask[:, : self._width], **self._options)
        logits: Tensor = output.logits[:, -1].float()
        return logits


class RoomyLayer(DynamicLayer):
    """A layer of a cache that keeps room for tokens to come, instead of copying all of itself at each token.

    `keys` and `values` (rows, heads, tokens, head_dim) are views of larger tensors.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._all_keys: Any = None
        self._all_values: Any = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_arguments: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, new tokens, head_dim); all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._all_keys = self.keys = key_states
            self._all_values = self.values = value_states
            return self.keys, self.values
        rows, _, length, _ = self.keys.shape
        end = length + key_states.shape[-2]
        if end > self._all_keys.shape[-2]:
            self._all_keys, self._all_values = _with_room(self.keys, end), _with_room(self.values, end)
        self.keys, self.values = self._all_keys[:rows, :, :end], self._all_values[:rows, :, :end]
        self.keys[:, :, length:] = key_states
        self.values[:, :, length:] = value_states
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take these rows; fewer than there were stay where they are, and only those that move are copied."""
        rows = len(beam_idx)
        if rows > len(self.keys):
            self._all_keys = self.keys = self.keys[beam_idx]
            self._all_values = self.values = self.values[beam_idx]
            return
        moved = (beam_idx != torch.arange(rows, device=beam_idx.device)).nonzero()[:, 0]
        for states in (self.keys, self.values):
            states[moved] = states[beam_idx[moved]]
        self.keys, self.values = self.keys[:rows], self.values[:rows]


def _with_room(states: Tensor, length: int) -> Tensor:
    """A copy of (rows, heads, tokens, head_dim) with room for `length` tokens and a quarter more."""
    rows, heads, known, size = states.shape
    roomy = states.new_empty(rows, heads, length + length // 4 + 32, size)
    roomy[:, :, :known] = states
    return roomy


def _cache_for(base: PreTrainedModel) -> DynamicCache:
    """An empty cache as the model's config asks for, whose plain layers have room to grow."""
    cache = DynamicCache(config=base.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model, which has an adapter's layers in it; a soft prompt is put before it by hand.

    Raises:
        TutelageError: for PEFT's kinds of prompts that are not virtual tokens.
    """
    wrapped: Any = model
    settings = getattr(model, "active_peft_config", None)
    if settings is not None and settings.is_prompt_learning and settings.peft_type != "PROMPT_TUNING":
        wrong = f"an adapter of the kind {settings.peft_type} can't be sampled from"
        raise TutelageError.at("model", wrong, "merge it, or use lora or prompt")
    base: PreTrainedModel = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    return base


@contextlib.contextmanager
def ready(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, with an attention that knows a cache, which that of packed training does not."""
    from tutelage.engine.attention import SEGMENTS

    base: Any = _base_of(model)
    attention, was_training = base.config._attn_implementation, model.training
    model.eval()
    try:
        if attention == SEGMENTS:
            base.set_attn_implementation("sdpa")
        yield
    finally:
        base.set_attn_implementation(attention)
        model.train(was_training)
