"""What a training step computes most, in fewer passes over memory than the libraries take: each equals the plain way.

Nothing here asks for a model by name: what a kernel needs is looked for on the model, and where it lacks, the plain
way is taken. `tests/core/engine/test_kernels.py` holds each against that way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class Fused(partial[Any]):
    """What stands on a module in place of its forward."""


def as_the_libraries_compute(model: nn.Module) -> dict[nn.Module, Fused]:
    """Take every `Fused` off: what a model computes is then, to the bit, what plain transformers and PEFT compute.

    Returns:
        what stood on which module, to be put back as its `forward`.
    """
    forwards = {module: vars(module).get("forward") for module in model.modules()}
    fused = {module: forward for module, forward in forwards.items() if isinstance(forward, Fused)}
    for module in fused:
        del module.forward
    return fused
