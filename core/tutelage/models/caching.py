"""A cache of keys and values with room for tokens to come, and attention of one new token over it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class RoomyLayer(DynamicLayer):
    """A layer of a cache that keeps room for tokens to come, instead of copying all of itself at each token.

    `keys` and `values` (rows, heads, tokens, head_dim) are views of larger tensors, which hold numbers everywhere.
    """

    def __init__(self) -> None:
        self._all_keys: Any = None
        self._all_values: Any = None
        self._length = 0
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def keys(self) -> Any:
        return None if self._all_keys is None else self._all_keys[:, :, : self._length]

    @keys.setter
    def keys(self, states: Any) -> None:
        self._all_keys = states
        self._length = 0 if states is None or states.dim() < 4 else states.shape[2]

    @property
    def values(self) -> Any:
        return None if self._all_values is None else self._all_values[:, :, : self._length]

    @values.setter
    def values(self, states: Any) -> None:
        self._all_values = states

    def get_seq_length(self) -> int:
        """How many tokens are held."""
        return self._length

    def update(
        self, key_states: Tensor, value_states: Tensor, *_arguments: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, new tokens, head_dim); all keys and values."""
        self.append(key_states, value_states)
        return self.keys, self.values

    def append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Append (rows, heads, new tokens, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return
        new = key_states.shape[2]
        if self._length + new > self._all_keys.shape[2]:
            keys, values = self.keys, self.values
            self._all_keys, self._all_values = (_with_room(each, self._length + new) for each in (keys, values))
        self._all_keys.narrow(2, self._length, new).copy_(key_states)
        self._all_values.narrow(2, self._length, new).copy_(value_states)
        self._length += new

    def with_room(self) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, room, head_dim), of which the first tokens are those of `keys` and `values`."""
        return self._all_keys, self._all_values

    def shorten(self, length: int) -> None:
        """Forget all but the first tokens."""
        self._length = min(self._length, length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take these rows; fewer than there were stay where they are, and only those that move are copied."""
        rows = len(beam_idx)
        if rows > len(self._all_keys):
            self.keys, self.values = self.keys[beam_idx], self.values[beam_idx]
            return
        moved = (beam_idx != torch.arange(rows, device=beam_idx.device)).nonzero()[:, 0]
        for states in (self.keys, self.values):
            states[moved] = states[beam_idx[moved]]
        self._all_keys, self._all_values = self._all_keys[:rows], self._all_values[:rows]


def _with_room(states: Tensor, length: int) -> Tensor:
    """A copy of (rows, heads, tokens, head_dim) with room for `length` tokens and some more."""
    rows, heads, known, size = states.shape
    roomy = states.new_zeros(rows, heads, length + length // 16 + 16, size)
    roomy[:, :, :known] = states
    return roomy


def cache_for(base: PreTrainedModel, *, whole: bool = False) -> DynamicCache:
    """An empty cache as the model's config asks for, whose plain layers have room to grow.

    Args:
        whole: have layers whose attention has a window keep what came before it too: their masks hide it.
    """
    kinds = (DynamicLayer, DynamicSlidingWindowLayer) if whole else (DynamicLayer,)
    cache = DynamicCache(config=base.config)
    cache.layers = [RoomyLayer() if type(layer) in kinds else layer for layer in cache.layers]
    return cache


def cache_options(base: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The arguments by which the model's forward takes and fills a cache."""
    name = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True, "return_dict": True}


def attend(
    place: tuple[RoomyLayer, dict[Any, Tensor]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    cap: float | None = None,
) -> Tensor:
    """Attention of one new token of each row over what a layer of the cache holds, to which its key is added.

    Query heads that share a head of keys are taken together, so that keys and values are read where they lie. On a CPU,
    two batched products over all of the layer's room take a third of the time of the flash kernel, which is made for
    many queries.

    Args:
        place: the layer; and what masks were turned into, for this and other layers of one step.
        query: (rows, heads, 1, head_dim); key and value (rows, kv_heads, 1, head_dim).
        mask: (rows, 1, 1, tokens): true where a token is seen, or numbers that are added to its score; or None.
        cap: scores s are cap tanh(s / cap) (Gemma Team 2024, "Gemma 2", section 2).
    Returns:
        (rows, 1, heads, head_dim).
    Raises:
        NotImplementedError: for a cap on other devices than a CPU.
    """
    layer, biases = place
    layer.append(key, value)
    rows, heads, _, size = query.shape
    keys, values = layer.with_room()
    shared, length = keys.shape[1], layer.get_seq_length()
    if not keys.is_cpu or keys.dtype not in (torch.float32, torch.bfloat16) or _by_head(mask):
        if cap is not None:
            raise NotImplementedError("soft-capping is for a CPU here")
        return _by_kernel(query, layer.keys, layer.values, mask, scale)
    name = (id(mask), shared, keys.shape[2], length)
    bias = biases.get(name)
    if bias is None:
        bias = biases[name] = _bias(mask, keys, length)
    together = query.reshape(rows * shared, heads // shared, size)
    scale = size**-0.5 if scale is None else scale
    if cap is None:
        scores = torch.baddbmm(bias, together, keys.flatten(0, 1).mT, alpha=scale)
    else:
        scores = torch.bmm(together * (scale / cap), keys.flatten(0, 1).mT).tanh() * cap + bias
    shares = scores.softmax(-1).to(values.dtype)  # under autocast, rotated queries and keys are in float32
    return torch.bmm(shares, values.flatten(0, 1)).view(rows, 1, heads, -1)


def _by_kernel(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    rows, heads, _, size = query.shape
    if not _by_head(mask):
        query = query.reshape(rows, keys.shape[1], -1, size)
    repeats = query.shape[1] != keys.shape[1]
    query, keys = query.to(values.dtype), keys.to(values.dtype)
    found = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=repeats)
    return found.reshape(rows, 1, heads, values.shape[-1])


def _by_head(mask: Tensor | None) -> bool:
    return mask is not None and mask.shape[1] != 1


def _bias(mask: Tensor | None, keys: Tensor, length: int) -> Tensor:
    """What is added to scores (rows * kv_heads, 1, room): minus infinity where nothing is to be seen."""
    rows, shared, room, _ = keys.shape
    bias = keys.new_full((rows, room), float("-inf"))
    if mask is None:
        bias[:, :length] = 0
    elif mask.dtype == torch.bool:
        bias[:, :length].masked_fill_(mask[:, 0, 0], 0)
    else:
        bias[:, :length] = mask[:, 0, 0]
    return bias.repeat_interleave(shared, dim=0)[:, None]
