"""Preflight: what can be known before the work is found out before the work, all of it at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.engine.context import model_of, prepare_data
from tutelage.engine.devices import Devices, choose_devices, micro_batch_tokens
from tutelage.errors import Problem, TutelageError
from tutelage.models import locating
from tutelage.models.loading import load_tokenizer, meta_model
from tutelage.phase import TrainingPhase
from tutelage.plugins import Host
from tutelage.recipe import Resolved, Stage

if TYPE_CHECKING:
    from torch import nn


class _Preflight:
    def __init__(self, resolved: Resolved, host: Host) -> None:
        self.resolved = resolved
        self.host = host
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.data: dict[str, Any] = {}

    def add(self, place: str, wrong: str, fix: str = "") -> None:
        self.problems.append(Problem(place=place, wrong=wrong, fix=fix))

    def attempt(self, work: Any, *arguments: Any, **options: Any) -> Any:
        """Do it; what it can't do becomes problems, and None."""
        try:
            return work(*arguments, **options)
        except TutelageError as error:
            self.problems += [problem for problem in error.problems if problem not in self.problems]
            return None

    def stage(self, stage: Stage) -> None:
        """Everything about one stage."""
        place = f"stages.{stage.name}"
        phase, adapter = self.resolved.phases[stage.name], self.resolved.adapters[stage.name]
        if phase.needs_data and stage.data is None:
            self.add(
                f"{place}.data",
                "missing",
                f"the phase {phase.name} needs data: name a file, a folder or hub:OWNER/NAME",
            )
        if missing := adapter.missing():
            self.add(f"{place}.adapter", missing)
        devices = self.attempt(choose_devices, stage.trainer, f"{place}.trainer")
        located = self.attempt(self._model, stage)
        if located is None:
            return
        tokenizer = self.attempt(load_tokenizer, located, self.resolved.recipe.tokenizer, self.resolved.base)
        model = self.attempt(meta_model, located)
        if model is not None and not missing:
            self.problems += adapter.check(model, f"{place}.adapter")
        if model is not None:
            self._context(stage, model)
        if tokenizer is not None and stage.data is not None and isinstance(phase, TrainingPhase):
            prepared = self.attempt(prepare_data, self.resolved, stage, located, tokenizer, self.host)
            if prepared is not None:
                self.data[stage.name] = msgspec.to_builtins(prepared.report)
        if model is not None and devices is not None:
            self._memory(stage, model, devices)

    def _model(self, stage: Stage) -> locating.Located | None:
        """The stage's model; for one that an earlier stage will make, that of the recipe, which has the same shape."""
        reference = model_of(self.resolved, stage, None)
        if reference.startswith("stage:"):
            reference = self.resolved.recipe.model
        place = f"stages.{stage.name}.model" if stage.model else "model"
        located = locating.locate(reference, self.resolved.base, place, self.host)
        locating.available(located, place)
        return locating.fetch(located, place)

    def _context(self, stage: Stage, model: nn.Module) -> None:
        described: Any = model
        window = getattr(described.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(window, int) and stage.trainer.max_length > window:
            wrong = f"{stage.trainer.max_length} tokens are more than the {window} that the model can see"
            self.add(f"stages.{stage.name}.trainer.max_length", wrong, f"use at most {window}")

    def _memory(self, stage: Stage, model: nn.Module, devices: Devices) -> None:
        needed, available = memory_needed(self.resolved, stage, model, devices), memory_available(devices)
        if needed > available:
            wrong = f"needs about {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are there"
            fix = "use adapter: lora or qlora, a smaller model, precision: bf16, or strategy: fsdp over more devices"
            self.add(f"stages.{stage.name}", wrong, fix)


def preflight(resolved: Resolved, host: Host, out: Path | None) -> tuple[list[Problem], list[str], dict[str, Any]]:
    """Check a resolved recipe against this machine, its models and its data.

    Returns:
        problems, notes, and each stage's data report as plain data.
    """
    found = _Preflight(resolved, host)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        fix = "name another folder, or go on with an unfinished run: tutelage resume"
        found.add(str(out), "is not an empty folder", fix)
    for index, tracker in enumerate(resolved.trackers):
        if missing := tracker.missing():
            found.add(f"trackers.{index}", missing)
    for stage in resolved.recipe.stages:
        found.stage(stage)
    _room(found, out)
    return found.problems, found.notes, found.data


def memory_needed(resolved: Resolved, stage: Stage, model: nn.Module, devices: Devices) -> float:
    """A low guess of the bytes that a device needs: weights, gradients, AdamW's moments, and a layer's activations.

    What learns takes 16 bytes a parameter in float32 (weight, gradient, two moments: Rajbhandari et al. 2020, ZeRO,
    section 3.1); what is frozen takes what it is stored in. It refuses what can't fit; the rehearsal finds the rest.
    """
    adapter = resolved.adapters[stage.name]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = 0.6 if adapter.loading(devices.frozen_dtype) else devices.frozen_dtype.itemsize
    state = parameters * (16.0 if adapter.artifact == "model" else held)
    if devices.strategy == "fsdp":
        state /= devices.count
    described: Any = model
    hidden = int(described.config.get_text_config().hidden_size)
    return state + 2.0 * hidden * min(micro_batch_tokens(stage.trainer, devices), stage.trainer.max_length)


def memory_available(devices: Devices) -> float:
    """Bytes that a device can give now."""
    import torch

    if devices.accelerator == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    import psutil

    return float(psutil.virtual_memory().available) / devices.count


def _room(found: _Preflight, out: Path | None) -> None:
    folder = (out or Path.cwd()).resolve()
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < 100 * 2**20:
        found.add(str(folder), "has less than 100 MiB of room left", "free some, or put the run elsewhere with --out")
