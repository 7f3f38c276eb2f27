"""A frozen linear layer with LoRA's update as one operation: no copy of its input, no product that nothing learns from.

PEFT casts the input of every adapted layer to float32 and back, and keeps each product for the backward pass. Here the
input is kept once, and updates are added in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.engine.kernels import Fused


def fuse_updates(model: nn.Module) -> nn.Module:
    """Have the LoRA layers of a PEFT model that can be computed as one operation computed so, from now on.

    A layer can where it adapts a frozen linear layer, 4-bit or not, without dropout, DoRA or other variants. Whatever
    else it is asked for (several adapters at once, merged weights, an adapter that is switched off) goes PEFT's way.

    Returns:
        the model.
    """
    for layer in model.modules():
        weight = _weight_of(layer)
        if weight is not None:
            layer.forward = Fused(_forward, layer, layer.forward, weight)
    return model


def low_rank_linear(
    input: Tensor, weight: Callable[[torch.dtype], Tensor], bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """input x weight^T + bias + scale x (input x down^T) x up^T (Hu et al. 2021, equation 3), in the input's dtype.

    Args:
        input: (…, in).
        weight: gives the frozen weight (out, in) in a dtype; it is asked for once in each direction.
        bias: (out,), frozen.
        down: (rank, in); up: (out, rank). Their gradients have their own dtypes.
    Returns:
        (…, out).
    """
    output: Tensor = _LowRank.apply(input, weight, bias, down, up, scale)  # type: ignore[no-untyped-call]
    return output


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Callable[[torch.dtype], Tensor],
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        narrow = rows @ down.to(rows.dtype).t()
        frozen = weight(rows.dtype)
        output = rows @ frozen.t() if bias is None else torch.addmm(bias.to(rows.dtype), rows, frozen.t())
        output.addmm_(narrow, up.to(rows.dtype).t(), alpha=scale)
        ctx.save_for_backward(rows, narrow, down, up)
        ctx.weight, ctx.scale, ctx.shape = weight, scale, input.shape
        return output.view(*input.shape[:-1], output.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        rows, narrow, down, up = ctx.saved_tensors
        given = given.reshape(-1, given.shape[-1]).to(rows.dtype)
        to_narrow = (given @ up.to(rows.dtype)).mul_(ctx.scale)
        to_input = to_down = to_up = None
        if ctx.needs_input_grad[0]:
            to_input = (given @ ctx.weight(rows.dtype)).addmm_(to_narrow, down.to(rows.dtype)).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            to_down = (to_narrow.t() @ rows).to(down.dtype)
        if ctx.needs_input_grad[4]:
            to_up = (given.t() @ narrow).to(up.dtype).mul_(ctx.scale)
        return to_input, None, None, to_down, to_up, None


def _forward(layer: Any, plain: Any, weight: Any, input: Tensor, *given: Any, **named: Any) -> Tensor:
    """A LoRA layer's forward."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    alone = len(active) == 1 and not (given or named or layer.disable_adapters or layer.merged)
    if not (alone and _is_plain(layer, active[0])):
        otherwise: Tensor = plain(input, *given, **named)
        return otherwise
    name, device = active[0], input.device.type
    base = layer.base_layer
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    updates = layer.lora_A[name].weight, layer.lora_B[name].weight
    return low_rank_linear(input.to(dtype), partial(weight, base), base.bias, *updates, layer.scaling[name])


def _is_plain(layer: Any, adapter: str) -> bool:
    """Whether an adapter's update is two products and nothing else."""
    plain: bool = isinstance(layer.lora_dropout[adapter], nn.Identity) and not layer.lora_bias[adapter]
    return plain and adapter not in layer.lora_variant


def _weight_of(layer: nn.Module) -> Callable[[nn.Module, torch.dtype], Tensor] | None:
    """How the frozen weight of a LoRA layer is had; None where the layer is of another kind, or learns itself."""
    from peft.tuners.lora.layer import Linear

    base: Any = getattr(layer, "base_layer", None)
    if base is None or any(parameter.requires_grad for parameter in base.parameters()):
        return None
    if type(layer) is Linear and type(base) is nn.Linear:
        return _plain_weight
    if type(layer).__name__ == "Linear4bit" and getattr(base.weight, "quant_state", None) is not None:
        return _dequantised_weight
    return None


def _plain_weight(base: Any, dtype: torch.dtype) -> Tensor:
    weight: Tensor = base.weight.detach().to(dtype)
    return weight


def _dequantised_weight(base: Any, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(base.weight.data, base.weight.quant_state)
    return weight.to(dtype)
