"""Runs a model token by token over a batch whose rows may be repeated or leave, with a cache of keys and values."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from tutelage.errors import TutelageError
from tutelage.models.caching import cache_for, cache_options
from tutelage.models.prompts import soft_tokens, with_soft_prompt

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from tutelage.models.shortcut import Shortcut


class State:
    """What a model has seen of a batch: the cache of keys and values, and the logits of what comes next.

    Attributes:
        logits: (rows, vocabulary) in float32.
    """

    def __init__(
        self, model: nn.Module, prompts: list[list[int]], *, pad: int, room: int, shortcut: Shortcut | None = None
    ) -> None:
        """Take the prompts in.

        Args:
            pad: the id that fills shorter prompts up; it is masked.
            room: how many tokens may follow.
            shortcut: of this model, for the tokens that follow.
        """
        self._base = base_of(model)
        self._shortcut = shortcut
        self._cache: Any = cache_for(self._base, whole=shortcut is not None)
        known = inspect.signature(self._base.forward).parameters
        self._options = cache_options(self._base, self._cache)
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
        with _whole_rows(self._base.get_output_embeddings()):
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

        def step() -> Tensor:
            return self._forward({"input_ids": tokens[:, None]}, self._positions)

        self.logits = step() if self._shortcut is None else self._shortcut.step(self._cache, step)

    def _forward(self, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
        if self._takes_positions:
            inputs["position_ids"] = positions
        output: Any = self._base(**inputs, attention_mask=self._mask[:, : self._width], **self._options)
        logits: Tensor = output.logits[:, -1].float()
        return logits


@contextlib.contextmanager
def _whole_rows(head: Any) -> Iterator[None]:
    """Give the output layer rows that lie side by side: the last ones of prompts don't, and in bfloat16 a CPU computes
    such a product about a hundred times slower."""
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, given: tuple(each.contiguous() for each in given))
    try:
        yield
    finally:
        handle.remove()


def base_of(model: nn.Module) -> PreTrainedModel:
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

    base: Any = base_of(model)
    attention, was_training = base.config._attn_implementation, model.training
    model.eval()
    try:
        if attention == SEGMENTS:
            base.set_attn_implementation("sdpa")
        yield
    finally:
        base.set_attn_implementation(attention)
        model.train(was_training)
