"""Attention within short segments of one packed row, on a CPU.

PyTorch's own kernel for CPUs is made for long rows: over examples of a few hundred tokens it takes three to four times
as long as the plain products. These keep the probabilities for the backward pass, so rows of long segments, where
that would cost memory, are left to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 1024
"Tokens of the longest segment that this is faster for."

Place = tuple[int, int, int, int]
"Of a block: its first query, the end of its queries, its first key, the end of its keys."

_BLOCK = 128
"Queries that are computed at a time: keys after the last of them are left out."


def short_segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Sequence[int],
    scale: float,
    window: int | None = None,
    key_bounds: Sequence[int] | None = None,
) -> Tensor:
    """Causal attention, softmax(scale x query x key^T) x value (Vaswani et al. 2017, equation 1), within each segment.

    Products are computed in the inputs' dtype, but scores and their softmax in float32.

    Args:
        query: (heads, tokens, head_dim); key and value: (kv_heads, keys, head_dim), each shared by a group of heads.
        bounds: where segments start and end, from 0 to `tokens`.
        window: how many tokens a query sees, itself included; None are all before it.
        key_bounds: where the keys of each segment start and end, the last of them its own; None where it has no others.
    Returns:
        (heads, tokens, head_dim).
    """
    places = tuple(_blocks(bounds, key_bounds or bounds, window))
    attended: Tensor = _Segments.apply(query, key, value, places, scale, window)  # type: ignore[no-untyped-call]
    return attended


def gathered(values: Tensor, index: Tensor) -> Tensor:
    """The tokens `index` (n,) of `values` (..., tokens, head_dim); gradients of a token are summed in float32."""
    taken: Tensor = _Gathered.apply(values, index)  # type: ignore[no-untyped-call]
    return taken


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = values.shape
        return values.index_select(-2, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = given.new_zeros(ctx.shape, dtype=torch.float32)
        return total.index_add_(-2, index, given.float()).to(given.dtype), None


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, places: tuple[Place, ...], scale: float, window: int | None
    ) -> Tensor:
        grouped = _grouped(query, key)
        groups, head_dim = grouped.shape[1], query.shape[-1]
        output = torch.empty_like(grouped)
        kept = []
        for start, end, first, last in places:
            rows, keys = end - start, last - first
            scaled = (grouped[:, :, start:end].float() * scale).reshape(len(key), groups * rows, head_dim)
            scores = torch.bmm(scaled, key[:, first:last].float().transpose(1, 2)).view(len(key), groups, rows, keys)
            late = scores if window is not None else scores[..., keys - rows :]  # a token sees all keys before these
            late.masked_fill_(hidden_keys(rows, late.shape[-1], window, query.device), float("-inf"))
            shares = scores.softmax(-1).to(query.dtype)
            seen = torch.bmm(shares.view(len(key), groups * rows, keys), value[:, first:last])
            output[:, :, start:end] = seen.view(len(key), groups, rows, head_dim)
            kept.append(shares)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, output, *kept)
            ctx.places, ctx.scale = places, scale
        return output.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, as Dao et al. 2022 (FlashAttention), appendix B.2, write them out."""
        query, key, value, output, *kept = ctx.saved_tensors
        grouped, given = _grouped(query, key), _grouped(given, key)
        groups, head_dim = grouped.shape[1], query.shape[-1]
        to_query, to_key, to_value = torch.empty_like(grouped), torch.zeros_like(key), torch.zeros_like(value)
        delta = (given.float() * output.float()).sum(-1, keepdim=True)
        for (start, end, first, last), shares in zip(ctx.places, kept, strict=True):
            rows, keys = end - start, last - first
            wanted = given[:, :, start:end].reshape(len(key), groups * rows, head_dim)
            queries = grouped[:, :, start:end].reshape(len(key), groups * rows, head_dim)
            to_value[:, first:last] += torch.bmm(shares.view(len(key), groups * rows, keys).transpose(1, 2), wanted)
            to_shares = torch.bmm(wanted, value[:, first:last].transpose(1, 2)).view(shares.shape)
            to_scores = (to_shares - delta[:, :, start:end]).mul_(shares).mul_(ctx.scale).to(query.dtype)
            to_scores = to_scores.view(len(key), groups * rows, keys)
            to_query[:, :, start:end] = torch.bmm(to_scores, key[:, first:last]).view(len(key), groups, rows, head_dim)
            to_key[:, first:last] += torch.bmm(to_scores.transpose(1, 2), queries)
        return to_query.view(query.shape), to_key, to_value, None, None, None


def _grouped(heads: Tensor, key: Tensor) -> Tensor:
    """(heads, tokens, head_dim) as (kv_heads, group, tokens, head_dim), by the key that each head looks at."""
    return heads.reshape(len(key), -1, *heads.shape[1:])


def _blocks(bounds: Sequence[int], key_bounds: Sequence[int], window: int | None) -> Iterator[Place]:
    """Queries in blocks: not all of a segment's scores are held at once, and keys that a block can't see are spared."""
    for (begin, finish), (first_key, end_key) in zip(pairwise(bounds), pairwise(key_bounds), strict=True):
        shift = end_key - finish
        for start in range(begin, finish, _BLOCK):
            end = min(start + _BLOCK, finish)
            first = first_key if window is None else max(first_key, start + shift - window + 1)
            yield start, end, first, end + shift


def hidden_keys(rows: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """The keys that each of the last `rows` of `keys` tokens does not see, (rows, keys)."""
    distance = torch.arange(keys - rows, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return distance < 0 if window is None else (distance < 0) | (distance >= window)
