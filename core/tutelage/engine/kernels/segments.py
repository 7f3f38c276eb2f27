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

_BLOCK = 256
"Queries that are computed at a time: keys after the last of them are left out."


def short_segment_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], scale: float, window: int | None = None
) -> Tensor:
    """Causal attention, softmax(scale x query x key^T) x value (Vaswani et al. 2017, equation 1), within each segment.

    Products are computed in the inputs' dtype, but scores and their softmax in float32.

    Args:
        query: (heads, tokens, head_dim); key and value: (kv_heads, tokens, head_dim), each shared by a group of heads.
        bounds: where segments start and end, from 0 to `tokens`.
        window: how many tokens a query sees, itself included; None are all before it.
    Returns:
        (heads, tokens, head_dim).
    """
    attended: Tensor = _Segments.apply(query, key, value, tuple(bounds), scale, window)  # type: ignore[no-untyped-call]
    return attended


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: tuple[int, ...], scale: float, window: int | None
    ) -> Tensor:
        grouped = _grouped(query, key)
        groups, head_dim = grouped.shape[1], query.shape[-1]
        output = torch.empty_like(grouped)
        kept = []
        for first, start, end in _blocks(bounds, window):
            rows, keys = end - start, end - first
            scaled = (grouped[:, :, start:end].float() * scale).reshape(len(key), groups * rows, head_dim)
            scores = torch.bmm(scaled, key[:, first:end].float().transpose(1, 2)).view(len(key), groups, rows, keys)
            scores.masked_fill_(_hidden(rows, keys, window, query.device), float("-inf"))
            shares = scores.softmax(-1).to(query.dtype)
            seen = torch.bmm(shares.view(len(key), groups * rows, keys), value[:, first:end])
            output[:, :, start:end] = seen.view(len(key), groups, rows, head_dim)
            kept.append(shares)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, output, *kept)
            ctx.bounds, ctx.scale, ctx.window = bounds, scale, window
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
        for (first, start, end), shares in zip(_blocks(ctx.bounds, ctx.window), kept, strict=True):
            rows, keys = end - start, end - first
            wanted = given[:, :, start:end].reshape(len(key), groups * rows, head_dim)
            queries = grouped[:, :, start:end].reshape(len(key), groups * rows, head_dim)
            to_value[:, first:end] += torch.bmm(shares.view(len(key), groups * rows, keys).transpose(1, 2), wanted)
            to_shares = torch.bmm(wanted, value[:, first:end].transpose(1, 2)).view(shares.shape)
            to_scores = (to_shares - delta[:, :, start:end]).mul_(shares).mul_(ctx.scale).to(query.dtype)
            to_scores = to_scores.view(len(key), groups * rows, keys)
            to_query[:, :, start:end] = torch.bmm(to_scores, key[:, first:end]).view(len(key), groups, rows, head_dim)
            to_key[:, first:end] += torch.bmm(to_scores.transpose(1, 2), queries)
        return to_query.view(query.shape), to_key, to_value, None, None, None


def _grouped(heads: Tensor, key: Tensor) -> Tensor:
    """(heads, tokens, head_dim) as (kv_heads, group, tokens, head_dim), by the key that each head looks at."""
    return heads.reshape(len(key), -1, *heads.shape[1:])


def _blocks(bounds: Sequence[int], window: int | None) -> Iterator[tuple[int, int, int]]:
    """The first key, the first query and the end of both, of each block of queries."""
    for begin, finish in pairwise(bounds):
        for start in range(begin, finish, _BLOCK):
            first = begin if window is None else max(begin, start - window + 1)
            yield first, start, min(start + _BLOCK, finish)


def _hidden(rows: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """The keys that each of the last `rows` of `keys` tokens does not see, (rows, keys)."""
    distance = torch.arange(keys - rows, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return distance < 0 if window is None else (distance < 0) | (distance >= window)
