"""Preflight: what can be known before the work is found out before the work, all of it at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tutelage.config import convert_into, item_label
from tutelage.data.preparing import Prepared, look_through
from tutelage.data.reading import HUB
from tutelage.engine.context import model_of, prepare_data
from tutelage.engine.devices import Devices, choose_devices, micro_batch_tokens
from tutelage.errors import Problem, TutelageError
from tutelage.models import locating
from tutelage.models.loading import load_config, load_tokenizer, meta_model
from tutelage.phase import TrainingPhase
from tutelage.plugins import Host
from tutelage.recipe import Data, Resolved, Stage, mappings, spelled_out
from tutelage.runs.listing import runs_root

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
_LEAST_ROOM = 100.0 * 2**20
"For records, events, metrics and reports, and for what adapters learn."


class _Findings:
    """Problems as they are found; whatever is looked at next is looked at all the same."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.data: dict[str, Any] = {}
        self.room_needed = _LEAST_ROOM
        "Bytes that the run will write."

    def add(self, place: str, wrong: str, fix: str = "") -> None:
        self.extend([Problem(place=place, wrong=wrong, fix=fix)])

    def extend(self, problems: list[Problem]) -> None:
        """What two stages have in common is told once."""
        self.problems += [problem for problem in problems if problem not in self.problems]

    def attempt(self, work: Callable[..., T], *arguments: Any) -> T | None:
        """Do it; what it can't do becomes problems, and None."""
        try:
            return work(*arguments)
        except TutelageError as error:
            self.extend(error.problems)
            return None


class _StageCheck:
    """Everything about one stage."""

    def __init__(self, found: _Findings, resolved: Resolved, stage: Stage, host: Host) -> None:
        self.found = found
        self.resolved = resolved
        self.stage = stage
        self.host = host
        self.place = f"stages.{stage.name}"
        self.phase, self.adapter = resolved.phases[stage.name], resolved.adapters[stage.name]

    def run(self) -> None:
        """Add what is wrong to the findings."""
        self._settings()
        missing = self.adapter.missing()
        if missing:
            self.found.add(f"{self.place}.adapter", missing)
        devices = self.found.attempt(choose_devices, self.stage.trainer, f"{self.place}.trainer")
        located = self.found.attempt(self._locate)
        tokenizer = model = None
        if located is not None and self.found.attempt(load_config, located) is not None:
            tokens, base = self.resolved.recipe.tokenizer, self.resolved.base
            tokenizer = self.found.attempt(load_tokenizer, located, tokens, base)
            model = self.found.attempt(meta_model, located)
        if model is not None and not missing:
            self.found.extend(self.adapter.check(model, f"{self.place}.adapter"))
        self._data(located, tokenizer, model)
        if model is not None and devices is not None:
            self._memory(model, devices)

    def _settings(self) -> None:
        """What in the recipe does not go together."""
        trainer, data = self.stage.trainer, self.stage.data
        if self.phase.needs_data and data is None:
            fix = f"the phase {self.phase.name} needs data: name a file, a folder or hub:OWNER/NAME"
            self.found.add(f"{self.place}.data", "missing", fix)
        if trainer.patience and data is not None and not (data.eval or data.eval_split):
            fix = "give data.eval or data.eval_split, or leave patience out"
            self.found.add(f"{self.place}.trainer.patience", "there is nothing to evaluate on", fix)
        if trainer.packing is True and not self.adapter.packs:
            wrong = f"the adapter {self.adapter.name} puts its own tokens before every example"
            self.found.add(f"{self.place}.trainer.packing", wrong, "use packing: auto, or another adapter")
        if trainer.strategy == "fsdp" and not self.adapter.shards:
            wrong = f"a model with the adapter {self.adapter.name} can't be shared out among devices"
            self.found.add(f"{self.place}.trainer.strategy", wrong, "use strategy: ddp, or another adapter")
        if self.resolved.recipe.tokenizer.add and not self.adapter.learns_tokens:
            wrong = f"the adapter {self.adapter.name} of the stage {self.stage.name} learns no embeddings of new tokens"
            self.found.add("tokenizer.add", wrong, "use lora or full, or add no tokens")
        self.found.extend(self.phase.check(self.stage, self.place))

    def _locate(self) -> locating.Located:
        """The stage's model; where an earlier stage will make it, what that one starts from, which has its shape."""
        stage = self.stage
        while (reference := model_of(self.resolved, stage, None)).startswith("stage:"):
            name = reference.removeprefix("stage:")
            stage = next(other for other in self.resolved.recipe.stages if other.name == name)
        place = f"stages.{stage.name}.model" if stage.model else "model"
        located = locating.locate(reference, self.resolved.base, place, self.host)
        locating.available(located, place)
        return locating.fetch(located, place)

    def _data(
        self, located: locating.Located | None, tokenizer: PreTrainedTokenizerBase | None, model: nn.Module | None
    ) -> None:
        if self.stage.data is None or not isinstance(self.phase, TrainingPhase):
            return
        if located is None or tokenizer is None:  # rows can be read all the same
            self.found.attempt(look_through, self.stage.data, self.resolved.base, self.host, f"{self.place}.data")
            return
        if self.phase.needs_chat_template and not tokenizer.chat_template:
            wrong = f"{located.path} has none, and the phase {self.phase.name} needs one"
            self.found.add("tokenizer.chat_template", wrong, "name a Jinja file")
        prepared = self.found.attempt(prepare_data, self.resolved, self.stage, located, tokenizer, self.host)
        if prepared is not None:
            self.found.data[self.stage.name] = msgspec.to_builtins(prepared.report)
            if model is not None:
                self._context(prepared, model)

    def _context(self, prepared: Prepared, model: nn.Module) -> None:
        """Refuse examples that the model can't see whole."""
        described: Any = model
        window = getattr(described.config.get_text_config(), "max_position_embeddings", None)
        parts = [prepared.train, *([prepared.eval] if prepared.eval else [])]
        longest = max(parts, key=lambda part: int(part.lengths.max(initial=0)))
        if not isinstance(window, int):
            return
        window -= self.adapter.tokens_added
        if window < 1 or longest.lengths.max(initial=0) <= window:  # the adapter's own check tells of the former
            return
        index = int(longest.lengths.argmax())
        wrong = f"{longest.place(index)} has {longest.lengths[index]:,} tokens and the model can see {window:,}"
        fix = f"set trainer.max_length to at most {window:,}; what becomes of longer rows is data.too_long"
        self.found.add(f"{self.place}.trainer.max_length", wrong, fix)

    def _memory(self, model: nn.Module, devices: Devices) -> None:
        needed, available = memory_needed(self.resolved, self.stage, model, devices), memory_available(devices)
        if needed > available:
            wrong = f"needs about {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are there"
            fix = "use adapter: lora or qlora, a smaller model, precision: bf16, or strategy: fsdp over more devices"
            self.found.add(self.place, wrong, fix)
        self.found.room_needed += room_needed(self.resolved, self.stage, model)


def preflight(resolved: Resolved, host: Host, out: Path | None) -> tuple[list[Problem], list[str], dict[str, Any]]:
    """Check a resolved recipe against this machine, its models and its data.

    Returns:
        problems, notes, and each stage's data report as plain data.
    """
    found = _Findings()
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        fix = "name another folder, or go on with an unfinished run: tutelage resume"
        found.add(str(out), "is not an empty folder", fix)
    for index, tracker in enumerate(resolved.trackers):
        if missing := tracker.missing():
            found.add(f"trackers.{index}", missing)
    for stage in resolved.recipe.stages:
        _governance(found, resolved, stage)
        _StageCheck(found, resolved, stage, host).run()
    _room(found, out)
    return found.problems, found.notes, found.data


def _governance(found: _Findings, resolved: Resolved, stage: Stage) -> None:
    """Ask the recipe's governance about every file and folder that a stage learns from or is measured on."""
    if resolved.governance is None or stage.data is None:
        return
    place = f"stages.{stage.name}.data"
    named = [("train", stage.data.train), ("eval", stage.data.eval)]
    named += [(f"mix.{index}.source", part.source) for index, part in enumerate(stage.data.mix)]
    for field, source in named:
        path = resolved.base / Path(source).expanduser()
        if source.startswith(HUB):
            wrong = f"{source} lies elsewhere, so nobody can have signed it as it is"
            found.add(f"{place}.{field}", wrong, "keep a copy here and have it reviewed")
        elif source and path.exists():
            found.extend(resolved.governance.check(path, f"{place}.{field}"))


def preflight_of_parts(data: dict[str, Any], base: Path, host: Host) -> list[Problem]:
    """What is wrong with the models and the data that a recipe names which can't be resolved itself.

    So that a person who mistyped one field hears of a missing file in the same go.
    """
    found = _Findings()
    data = spelled_out(data)
    models = [("model", data.get("model"))]
    for index, stage in enumerate(mappings(data.get("stages"))):
        place = f"stages.{item_label(stage, index)}"
        models.append((f"{place}.model", stage.get("model")))
        settings = convert_into([], stage.get("data"), Data, f"{place}.data")
        if settings is not None:
            found.attempt(look_through, settings, base, host, f"{place}.data")
    for place, reference in models:
        if isinstance(reference, str) and reference and not reference.startswith("stage:"):
            located = found.attempt(locating.locate, reference, base, place, host)
            if located is not None:
                found.attempt(locating.available, located, place)
    return found.problems


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


def room_needed(resolved: Resolved, stage: Stage, model: nn.Module) -> float:
    """A low guess of the bytes that a stage writes.

    Where every weight learns, a checkpoint has it and two moments in float32, one checkpoint more than is kept is there
    while the newest is written, and the artifact has the weights. What an adapter writes is small beside that.
    """
    if resolved.adapters[stage.name].artifact != "model":
        return 0.0
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4.0 * parameters * (3 * (stage.trainer.keep_checkpoints + 1) + 1)


def _room(found: _Findings, out: Path | None) -> None:
    folder = (out or runs_root()).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < found.room_needed:
        wrong = f"has {free / 2**30:.1f} GiB of room left and the run will need about {found.room_needed / 2**30:.1f}"
        fix = "free some, put the run elsewhere with --out, or lower trainer.keep_checkpoints"
        found.add(str(folder), wrong, fix)
