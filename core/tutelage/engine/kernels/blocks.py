"""The norms and gates of decoder blocks as one operation each: fewer passes over memory, and less of it kept.

Eager RMSNorm keeps its input in float32 and twice more; a gated layer keeps what its activation gave. Here both are
computed anew in the backward pass from what they were given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.engine.kernels import Fused


def fuse_blocks(model: nn.Module) -> nn.Module:
    """Have a model's RMSNorms and gated layers computed as one operation each from now on, where they are such.

    Whether a module is one is tried on itself: by what it makes of random numbers, not by its name.

    Returns:
        the model.
    """
    for module in model.modules():
        if (norm := _norm_of(module)) is not None:
            module.forward = norm
        elif _is_gated(module):
            module.forward = Fused(_gated, module)
    return model


# Norms


def rms_norm(input: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """input / sqrt(mean(input^2) + epsilon) x (weight + offset) (Zhang & Sennrich 2019, equation 4).

    Args:
        input: (…, hidden); the mean is taken in float32.
        weight: (hidden,).
        offset: what is added to the weight: 1 in Gemma, which then multiplies in float32.
    Returns:
        (…, hidden) in the input's dtype, or the weight's where that is wider and there is no offset.
    """
    output: Tensor = _RmsNorm.apply(input, weight, epsilon, offset)  # type: ignore[no-untyped-call]
    return output


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        size = torch.linalg.vector_norm(input, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (size.square_().div_(input.shape[-1]).add_(epsilon)).rsqrt_()
        ctx.save_for_backward(input, weight, inverse)
        ctx.offset = offset
        normed: Tensor
        if offset:
            normed = (input * inverse).mul_(weight.float() + offset)
            return normed.to(input.dtype)
        normed = torch.mul(input, inverse, out=torch.empty_like(input))
        return normed.mul_(weight) if weight.dtype == normed.dtype else normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, inverse = ctx.saved_tensors
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (given.float() * input * inverse).flatten(0, -2).sum(0).to(weight.dtype)
        weighted = given.float() * (weight.float() + ctx.offset)
        inner = (weighted * input).sum(-1, keepdim=True)
        shrink = inner.mul_(inverse.pow(3)).div_(input.shape[-1])
        to_input = torch.addcmul(weighted.mul_(inverse), input.float(), shrink, value=-1)
        return to_input.to(input.dtype), to_weight, None, None


def _normed(module: Any, epsilon: float, offset: float, input: Tensor) -> Tensor:
    return rms_norm(input, module.weight, epsilon, offset)


def _norm_of(module: Any) -> Callable[..., Tensor] | None:
    """What computes a module that is an RMSNorm, or None."""
    weight = getattr(module, "weight", None)
    epsilon = next((value for name in ("variance_epsilon", "eps", "epsilon") if (value := _number(module, name))), None)
    named = [name for name, _ in module.named_parameters()]
    if (
        epsilon is None
        or named != ["weight"]
        or weight is None
        or weight.dim() != 1
        or isinstance(module, nn.LayerNorm)
    ):
        return None
    for offset in (0.0, 1.0):
        made = Fused(_normed, module, epsilon, offset)
        if _same(module, made, len(weight)):
            return made
    return None


def _number(module: Any, name: str) -> float | None:
    value = getattr(module, name, None)
    return float(value) if isinstance(value, float | int) else None


# Gates


def gate(activation: Callable[[Tensor], Tensor], gate: Tensor, value: Tensor) -> Tensor:
    """activation(gate) x value (Shazeer 2020, "GLU Variants Improve Transformer", equation 5), all of one shape."""
    output: Tensor = _Gate.apply(activation, gate, value)  # type: ignore[no-untyped-call]
    return output


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Callable[[Tensor], Tensor], gate: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value)
        ctx.activation = activation
        return activation(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        gate, value = ctx.saved_tensors
        with torch.enable_grad():
            again = gate.detach().requires_grad_()
            opened = ctx.activation(again)
        (to_gate,) = torch.autograd.grad(opened, again, given * value)
        return None, to_gate, opened.detach_().mul_(given)


def _gated(module: Any, input: Tensor) -> Tensor:
    output: Tensor = module.down_proj(gate(module.act_fn, module.gate_proj(input), module.up_proj(input)))
    return output


def _is_gated(module: Any) -> bool:
    children = dict(module.named_children())
    if children.keys() != {"gate_proj", "up_proj", "down_proj", "act_fn"} or not callable(module.act_fn):
        return False
    return _same(module, partial(_gated, module), getattr(module.gate_proj, "in_features", 0))


@torch.no_grad()
def _same(module: Any, made: Callable[[Tensor], Tensor], width: int) -> bool:
    """Whether both make the same of random numbers, in the module's own dtype."""
    weight = next(module.parameters())
    if not width or weight.device.type == "meta" or not weight.dtype.is_floating_point:
        return False
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(3, width, generator=generator).to(weight.device, weight.dtype)
    try:
        expected, found = module(probe), made(probe)
    except (RuntimeError, TypeError, AttributeError):
        return False
    rounding = 1e-5 if weight.dtype == torch.float32 else 1e-2
    return found.dtype == expected.dtype and torch.allclose(found, expected, rtol=rounding, atol=rounding)
