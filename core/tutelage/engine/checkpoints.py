"""Checkpoints: what learnt so far, the optimizer's state and the step, so that a run goes on as if never stopped.

A checkpoint is a folder `step-00000050` of safetensors and JSON; nothing in it is pickled. It is written beside and
renamed when complete, so a folder of that name is always whole, whenever the process dies. Everything else that
decides a step (data order, learning rate, random numbers) follows from the seed and the step's number, and is not
stored.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from tutelage.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

LEARNT = "learnt.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"


class Progress(msgspec.Struct, kw_only=True):
    """How far training is: what a checkpoint stores beside tensors."""

    step: int = 0
    micro_batch_tokens: int = 0
    best_eval: float | None = None
    "The lowest so far of what evaluations are judged by (negated, where higher is better)."
    evaluations_without_gain: int = 0
    finished: bool = False
    "Whether training is over (all steps done, or stopped early); only saving remains."
    metrics: dict[str, float] = {}
    "Of the last step, and of the last evaluation."
    state: dict[str, float] = {}
    "What a phase keeps from one step to the next."


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint below `folder`, if any."""
    found = [entry for entry in folder.glob("step-*") if re.fullmatch(r"step-\d+", entry.name)]
    return max(found, key=lambda entry: int(entry.name.removeprefix("step-")), default=None)


def read_progress(checkpoint: Path) -> Progress:
    """The progress that a checkpoint stores."""
    return msgspec.json.decode((checkpoint / PROGRESS).read_bytes(), type=Progress)


def save(
    folder: Path, name: str, model: nn.Module, optimizer: Optimizer, progress: Progress, *, keep: int, is_writer: bool
) -> Path:
    """Write a checkpoint; all processes of a sharded run take part, one writes. Of older ones, `keep` stay."""
    learnt = learnt_weights(model, wanted=is_writer)
    moments = {
        f"{key}.{name}": _whole(value, is_writer)
        for name, parameter in _learning(model)
        for key, value in optimizer.state[parameter].items()
    }
    target = folder / name
    if is_writer:
        beside = folder / f".{name}.partial"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            save_file(learnt, beside / LEARNT)
            save_file(moments, beside / OPTIMIZER)
            (beside / PROGRESS).write_bytes(msgspec.json.encode(progress))
            _replace(beside, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise unwritable(folder, error) from error
        _prune(folder, keep)
    _barrier()
    return target


def unwritable(folder: Path, error: Exception) -> RunFailed:
    """What a person is told when a checkpoint can't be written; those before it are whole."""
    fix = "free some room or lower trainer.keep_checkpoints, then go on with tutelage resume"
    return RunFailed.at(str(folder), f"a checkpoint can't be written: {error}", fix)


def restore(checkpoint: Path, model: nn.Module, optimizer: Optimizer | None) -> None:
    """Put a checkpoint's weights (and optimizer state, where one is given) back; each process takes its own share."""
    with safe_open(checkpoint / LEARNT, framework="pt") as learnt, torch.no_grad():
        known = set(learnt.keys())
        if missing := [name for name, _ in _learning(model) if name not in known]:
            wrong = f"lacks {len(missing)} of the weights that learn here, such as {missing[0]}"
            raise RunFailed.at(str(checkpoint), wrong, "it is not this stage's, or is damaged: remove it, and resume")
        for name, parameter in _learning(model):
            parameter.copy_(_share(learnt.get_tensor(name), parameter))
    if optimizer is None:
        return
    with safe_open(checkpoint / OPTIMIZER, framework="pt") as moments:
        parameters = dict(_learning(model))
        for stored in moments.keys():  # noqa: SIM118 - it is no dict
            key, _, name = stored.partition(".")
            parameter = parameters[name]
            value = _share(moments.get_tensor(stored), parameter)
            if key == "step" and optimizer.defaults.get("fused"):  # the fused kernel counts steps on the device
                value = value.to(parameter.device)
            optimizer.state[parameter][key] = value


def learnt_weights(model: nn.Module, *, wanted: bool = True) -> dict[str, Tensor]:
    """Every weight that learns, by name, whole and on the CPU. All processes of a sharded model take part.

    Args:
        wanted: whether this process uses them; if not, it takes part but keeps nothing.
    """
    return {name: _whole(parameter, wanted) for name, parameter in _learning(model)}


def whole_weights(model: nn.Module, *, wanted: bool = True) -> dict[str, Tensor]:
    """The whole state dict, frozen weights too, as `learnt_weights` has them."""
    return {name: _whole(value, wanted) for name, value in model.state_dict().items()}


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of each weight only."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _whole(tensor: Tensor, wanted: bool = True) -> Tensor:
    """A tensor gathered from all its shards, on the CPU; nothing where it is not wanted."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor.cpu().contiguous()
    gathered = tensor.full_tensor()  # may still be on its way, in a buffer larger than itself
    return gathered.to("cpu", copy=True).contiguous() if wanted else torch.empty(0)


def _share(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's part of a whole tensor, laid out as the parameter is."""
    if isinstance(parameter, DTensor) and tensor.dim() > 0:
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor.to(parameter.device), mesh, placements, src_data_rank=None)
    return tensor.to(parameter.device) if tensor.dim() > 0 else tensor


def _replace(beside: Path, target: Path) -> None:
    for file in beside.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if target.exists():  # the same step again, after a resume: put the old one out of the way in one move
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        beside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        beside.rename(target)
    directory = os.open(target.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _prune(folder: Path, keep: int) -> None:
    steps = sorted(entry for entry in folder.glob("step-*") if entry.is_dir())
    for entry in steps[:-keep]:
        doomed = entry.with_name(f".{entry.name}.old")
        entry.rename(doomed)
    for left in folder.glob(".step-*"):  # by this and by processes that were killed
        shutil.rmtree(left, ignore_errors=True)


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
