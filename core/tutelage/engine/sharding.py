"""FSDP2: each device holds a share of every weight, gradient and optimizer state (Zhao et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import FSDPModule, fully_shard

from tutelage.engine.forward import base_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


def shard(model: nn.Module, mesh: Any) -> None:
    """Shard every decoder layer, then what remains, over the mesh's data-parallel devices, in place."""
    data = mesh["data_parallel"]
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=data)
    # Else an evaluation, which no backward pass follows, would leave what remains gathered: a checkpoint written then
    # would find parameters that the optimizer doesn't know, and lose their moments.
    fully_shard(model, mesh=data, reshard_after_forward=True)


def reduce_on_last(model: nn.Module, last: bool) -> None:
    """Let the gradients of a sharded model travel with a step's last micro-batch alone, where they are small.

    Until then each device holds them whole. All of full training's would undo the sharding; an adapter's are mostly
    less than one layer, which is whole on each device while it computes, so that much memory is there to be had.
    """
    if not isinstance(model, FSDPModule):
        return
    learnt = _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
    layers = [module for module in model.modules() if isinstance(module, FSDPModule) and module is not model]
    layer = max((_bytes(layer.parameters()) for layer in layers), default=0)
    model.set_requires_gradient_sync(last or learnt > layer)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    """What parameters take when they are whole."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: those of the classes that transformers says must not be split."""
    kinds = set(getattr(base_of(model), "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]
