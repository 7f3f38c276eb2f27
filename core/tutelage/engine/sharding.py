"""FSDP2: each device holds a share of every weight, gradient and optimizer state (Zhao et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import fully_shard

from tutelage.engine.forward import base_of

if TYPE_CHECKING:
    from torch import nn


def shard(model: nn.Module, mesh: Any) -> None:
    """Shard every decoder layer, then what remains, over the mesh's data-parallel devices, in place."""
    data = mesh["data_parallel"]
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=data)
    # Else an evaluation, which no backward pass follows, would leave what remains gathered: a checkpoint written then
    # would find parameters that the optimizer doesn't know, and lose their moments.
    fully_shard(model, mesh=data, reshard_after_forward=True)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: those of the classes that transformers says must not be split."""
    kinds = set(getattr(base_of(model), "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]
