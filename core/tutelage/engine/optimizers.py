"""Optimizers by name: AdamW, and Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from tutelage.engine.forward import base_of
from tutelage.models.heads import ScoreHead

if TYPE_CHECKING:
    from torch import nn

    from tutelage.recipe import Trainer


def make_optimizer(model: nn.Module, settings: Trainer, learning_rate: float) -> Optimizer:
    """The optimizer that a recipe asks for, over all that learns in `model`.

    AdamW decays matrices other than embeddings only (Loshchilov & Hutter 2019, Algorithm 2). Muon (Jordan 2024) takes
    the matrices that are neither embeddings nor the output layer, with updates scaled to the root mean square that
    AdamW's have (0.2 times the square root of the larger side; Liu et al. 2025, "Muon is scalable for LLM training",
    section 2.2), so that one learning rate and one weight decay serve both.
    """
    outer = _embeddings_and_output(model)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if settings.optimizer == "muon" and parameter.dim() == 2 and id(parameter) not in outer:
            hidden.append(parameter)
        elif parameter.dim() >= 2 and id(parameter) not in embeddings:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    adamw = AdamW(
        [group for group in groups if group["params"]] or [{"params": []}],
        lr=learning_rate,
        betas=settings.betas,
        fused=_fusable(decayed + plain) or None,
    )
    if not hidden:
        return adamw
    muon = Muon(hidden, lr=learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
    return _Together(muon, adamw)


def _fusable(parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel can update them all: on a GPU, or whole and in float32 on a CPU."""
    if all(parameter.is_cuda for parameter in parameters):
        return True
    plain = (parameter for parameter in parameters if not isinstance(parameter, DTensor))
    return sum(parameter.is_cpu and parameter.dtype == torch.float32 for parameter in plain) == len(parameters)


class _Together(Optimizer):
    """Two optimizers as one: their groups and their state are shared, and each updates its own parameters."""

    def __init__(self, matrices: Optimizer, rest: Optimizer) -> None:
        self._parts = (matrices, rest)
        groups: list[dict[str, Any]] = [group for part in self._parts for group in part.param_groups if group["params"]]
        super().__init__(groups, dict(rest.defaults))
        for part in self._parts:
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        """Update all parameters."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss


def _embeddings_and_output(model: nn.Module) -> set[int]:
    """The ids of the weights that turn tokens into vectors, and vectors into tokens or scores."""
    base: Any = base_of(model)
    ends = torch.nn.Embedding | ScoreHead
    found = {id(module.weight) for module in model.modules() if isinstance(module, ends)}
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if output is not None:
        found.update(id(parameter) for parameter in output.parameters())
    return found
