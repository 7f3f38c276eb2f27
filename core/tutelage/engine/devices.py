"""What the machine can do, and what a stage therefore uses: kind and number of devices, precision, strategy."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from dataclasses import dataclass
from typing import Literal

import torch

from tutelage.errors import Problem, TutelageError
from tutelage.recipe import Trainer

NODES = "TUTELAGE_NODES"
"The variable in which a launcher says on how many machines a run is; `trainer.devices` counts those of each."


@dataclass(frozen=True)
class Devices:
    """The choice for one stage."""

    accelerator: Literal["cpu", "cuda", "mps"]
    count: int
    strategy: Literal["single", "ddp", "fsdp"]
    precision: Literal["bf16", "fp32"]
    nodes: int = 1
    "Machines, each with `count` devices."

    @property
    def world(self) -> int:
        """Devices of all machines."""
        return self.nodes * self.count

    @property
    def frozen_dtype(self) -> torch.dtype:
        """In which frozen weights are held."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def lightning_precision(self) -> Literal["bf16-mixed", "32-true"]:
        """What Lightning calls this precision."""
        return "bf16-mixed" if self.precision == "bf16" else "32-true"


def choose_devices(settings: Trainer, place: str) -> Devices:
    """Resolve `auto` and refuse what this machine can't do.

    Raises:
        TutelageError: with every problem, each naming its place below `place`.
    """
    problems: list[Problem] = []
    accelerator = _accelerator(settings, place, problems)
    available = {"cpu": os.cpu_count() or 1, "cuda": torch.cuda.device_count(), "mps": 1}[accelerator]
    count = settings.devices
    if count == "auto":
        count = available if accelerator == "cuda" else 1
    elif count > max(1, available):
        wrong = f"{count} devices are asked for and this machine has {available} ({accelerator})"
        problems.append(Problem(place=f"{place}.devices", wrong=wrong, fix=f"use at most {available}, or auto"))
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    nodes = int(os.environ.get(NODES, "1"))
    if nodes * count > 1:
        strategy = "fsdp" if settings.strategy == "fsdp" else "ddp"
    elif settings.strategy == "fsdp":
        wrong = "fsdp shards a model over devices and there is one device"
        problems.append(Problem(place=f"{place}.strategy", wrong=wrong, fix="use more devices, or strategy: auto"))
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if _fast_bf16(accelerator) else "fp32"
    elif precision == "bf16" and accelerator == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        wrong = f"{torch.cuda.get_device_name()} has no bfloat16"
        problems.append(Problem(place=f"{place}.precision", wrong=wrong, fix="use precision: fp32, or auto"))
    if problems:
        raise TutelageError(problems)
    return Devices(accelerator, count, strategy, precision, nodes)


def _accelerator(settings: Trainer, place: str, problems: list[Problem]) -> Literal["cpu", "cuda", "mps"]:
    present: list[Literal["cpu", "cuda", "mps"]] = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if settings.accelerator == "auto":
        return present[0]
    if settings.accelerator not in present:
        wrong = f"this machine has no {settings.accelerator} device that torch {torch.__version__} can use"
        problems.append(Problem(place=f"{place}.accelerator", wrong=wrong, fix=f"use {' or '.join(present)}, or auto"))
        return "cpu"
    return settings.accelerator


def _fast_bf16(accelerator: str) -> bool:
    """Whether bfloat16 products are faster here than float32 ones."""
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return accelerator == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def micro_batch_tokens(settings: Trainer, devices: Devices) -> int:
    """How many tokens a device computes at a time, when the recipe leaves it open.

    On a CPU about 1,000 tokens already run at full rate and more only cost memory; a GPU wants more to fill it, and
    halves the number by itself when its memory does not suffice. A step that is a little longer than planned, as steps
    of whole examples are, is still computed at once.
    """
    if settings.tokens_per_micro_batch != "auto":
        return settings.tokens_per_micro_batch
    most = 8192 if devices.accelerator == "cuda" else 1024 + 1024 // 8
    step = -(-settings.tokens_per_step // devices.world)
    return min(most, max(settings.max_length, step + step // 8))


def peak_memory_gib(accelerator: str) -> float:
    """The most memory that this process has used: of its GPU, else of the machine, in GiB."""
    if accelerator == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource
    import sys

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**30 if sys.platform == "darwin" else used / 2**20


def give_memory_back() -> None:
    """Give the system the memory that nothing uses any more: glibc keeps what a step's activations had."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:
        trim(0)
