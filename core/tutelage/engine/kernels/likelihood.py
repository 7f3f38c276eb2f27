"""The likelihood of tokens from the last hidden states, without ever holding all of their logits.

Logits are computed some rows at a time, and turned into the gradient at once, as Liger's fused loss does (Hsu et al.
2024, "Liger Kernel", section 3.2). A row's loss depends on that row alone, so its gradient is known up to a factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def token_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood (nats) of each token under softmax(logits / temperature), with a frozen output layer.

    Args:
        hidden: (n, hidden) what the output layer is given, in the dtype to compute in.
        weight: (vocabulary, hidden); bias: (vocabulary,).
        targets: (n,) token ids.
        entropy: whether it is wanted.
    Returns:
        losses (n,), and the entropy (nats) of the distribution that each was predicted by, without gradient (n,), or 0
        where it is not wanted; both in float32.
    """
    given = (hidden, weight, bias, targets, temperature, entropy)
    losses, entropies = _TokenLosses.apply(*given)  # type: ignore[no-untyped-call]
    return losses, entropies


def summed_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The sum of the tokens' negative log-likelihoods (nats), float32, with an output layer that may learn.

    Args:
        hidden: (n, hidden), in the dtype to compute in; weight: (vocabulary, hidden), in any; targets: (n,).
    """
    total: Tensor = _SummedLosses.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return total


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        weight = weight.to(hidden.dtype)
        losses = hidden.new_empty(len(targets), dtype=torch.float32)
        entropies = torch.zeros_like(losses)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk, logits in _logits(hidden, weight, bias):
            for part, found in _log_probs(chunk, logits, temperature):
                losses[part] = -found.gather(1, targets[part, None])[:, 0]
                shares = found
                if entropy:
                    shares = found.exp()
                    entropies[part] = -found.mul_(shares).nan_to_num_(0.0).sum(1)
                elif to_hidden is not None:
                    shares = found.exp_()
                if to_hidden is not None:
                    logits[_within(part, chunk)] = _less_targets(shares, targets[part])
            if to_hidden is not None:
                to_hidden[chunk] = (logits @ weight).div_(temperature)
        if to_hidden is not None:
            ctx.save_for_backward(to_hidden)
        ctx.mark_non_differentiable(entropies)
        return losses, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (to_hidden,) = ctx.saved_tensors
        return (to_hidden * given[:, None]).to(to_hidden.dtype), None, None, None, None, None


class _SummedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        cast = weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for chunk, logits in _logits(hidden, cast, None, whole=to_weight is not None):
            for part, found in _log_probs(chunk, logits):
                total -= found.gather(1, targets[part, None]).sum()
                if to_hidden is not None or to_weight is not None:
                    logits[_within(part, chunk)] = _less_targets(found.exp_(), targets[part])
            if to_hidden is not None:
                to_hidden[chunk] = logits @ cast
            if to_weight is not None:
                to_weight += logits.t() @ hidden[chunk]
        ctx.save_for_backward(to_hidden, to_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight = ctx.saved_tensors
        return (
            None if to_hidden is None else to_hidden * given.to(to_hidden.dtype),
            None if to_weight is None else to_weight.mul_(given),
            None,
        )


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *, whole: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """The logits (rows, vocabulary) of some rows at a time, in `hidden`'s dtype: as many as a product is good for.

    Args:
        whole: whether the weight learns: its gradient is large, and on a CPU added to as seldom as memory allows.
    """
    rows = max(16, (2**27 if hidden.is_cuda else 2**25 if whole else 2**23) // len(weight))
    bias = None if bias is None else bias.to(hidden.dtype)
    for start in range(0, len(hidden), rows):
        chunk = slice(start, min(start + rows, len(hidden)))
        yield chunk, F.linear(hidden[chunk], weight, bias)


def _log_probs(chunk: slice, logits: Tensor, temperature: float = 1.0) -> Iterator[tuple[slice, Tensor]]:
    """The log-probabilities (rows, vocabulary) by logits, in float32, and which rows of all they are.

    On a CPU they are as few rows at a time as stay in its cache for all that is done with them.
    """
    rows = max(1, 2**19 // logits.shape[1]) if logits.is_cpu else len(logits)
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows].float()
        log_probs = torch.log_softmax(part if temperature == 1.0 else part / temperature, -1)
        yield slice(chunk.start + start, chunk.start + start + len(part)), log_probs


def _within(part: slice, chunk: slice) -> slice:
    return slice(part.start - chunk.start, part.stop - chunk.start)


def _less_targets(shares: Tensor, targets: Tensor) -> Tensor:
    """The gradient of losses by their logits: probabilities (n, vocabulary), changed in place, less 1 at the target."""
    return shares.scatter_add_(1, targets[:, None], shares.new_full((len(targets), 1), -1.0))
