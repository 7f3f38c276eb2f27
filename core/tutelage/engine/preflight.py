"""Preflight: what can be known before the work is found out before the work, all of it at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tutelage.config import convert_into, item_label
from tutelage.data.preparing import Prepared, look_through, records
from tutelage.data.reading import HUB
from tutelage.engine.context import NEW, STAGE, foreseen_model, model_of, prepare_data, tokenizer_of
from tutelage.engine.devices import Devices, choose_devices, micro_batch_tokens
from tutelage.errors import Problem, TutelageError
from tutelage.formats import NAMES, Prompted, Ranking
from tutelage.libraries import MODELS, import_libraries
from tutelage.models import locating
from tutelage.models.loading import load_config, meta_model
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

    def __init__(self, found: _Findings, resolved: Resolved, stage: Stage, host: Host, here: bool) -> None:
        self.found = found
        self.here = here
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
        devices = None
        if self.here:
            devices = self.found.attempt(choose_devices, self.stage.trainer, f"{self.place}.trainer")
        located = self.found.attempt(foreseen_model, self.resolved, self.stage, self.host)
        tokenizer = model = None
        if located is not None:
            import_libraries(*MODELS)
        if located is not None and self.found.attempt(load_config, located) is not None:
            tokenizer = self.found.attempt(tokenizer_of, self.resolved, self.stage, located)
            model = self.found.attempt(meta_model, located, getattr(self.phase, "head", "language"))
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
        for index, part in enumerate(data.mix if data is not None else []):
            if part.weight != 1 and not isinstance(self.phase, TrainingPhase):
                wrong = f"the phase {self.phase.name} takes every row once"
                self.found.add(f"{self.place}.data.mix.{index}.weight", wrong, "leave the weight out")
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
        self.found.extend(self.phase.check_files(self.resolved.base, self.place))
        if self.phase.switches and not self.adapter.switches:
            wrong = f"the phase {self.phase.name} has several adapters on one base; {self.adapter.name} can't be one"
            self.found.add(f"{self.place}.adapter", wrong, "use lora, qlora or full")
        self._named()

    def _named(self) -> None:
        """What the stage names: models and data, earlier stages' among them."""
        self._earlier(f"{self.place}.model", self.stage.model)
        for field, reference in self.phase.references().items():
            self._earlier(f"{self.place}.phase.{field}", reference)
            if reference and not reference.startswith(STAGE):
                self._model(f"{self.place}.phase.{field}", reference)
        for field, source in data_sources(self.stage.data):
            self._earlier(f"{self.place}.data.{field}", source, self.phase.takes)
        for field, (source, takes) in self.phase.sources().items():
            self._earlier(f"{self.place}.phase.{field}", source, takes)
            if source and not source.startswith(STAGE):
                self._source(f"{self.place}.phase.{field}", source, takes)

    def _model(self, place: str, reference: str) -> None:
        """Refuse a model that is not there."""
        located = self.found.attempt(locating.locate, reference, self.resolved.base, place, self.host)
        if located is not None:
            self.found.attempt(locating.available, located, place)

    def _source(self, place: str, source: str, takes: tuple[type, ...]) -> None:
        """Refuse data that is not there, or of the wrong kind."""
        try:
            records(self.phase.name, takes, Data(train=source), self.resolved.base, self.host, place)
        except TutelageError as error:
            there = {f"{place}.train": place}
            found = [(there.get(each.place, each.place), each) for each in error.problems]
            self.found.extend([Problem(place=where, wrong=each.wrong, fix=each.fix) for where, each in found])

    def _earlier(self, place: str, reference: str, takes: tuple[type, ...] | None = None) -> None:
        """Refuse what names a stage that does not come earlier, or makes something else.

        Args:
            takes: the kinds of records that are wanted; None where a model is.
        """
        if not reference.startswith(STAGE):
            return
        stages, name = self.resolved.recipe.stages, reference.removeprefix(STAGE)
        earlier = {stage.name: self.resolved.phases[stage.name] for stage in stages[: stages.index(self.stage)]}
        known = f"earlier stages are {', '.join(earlier)}" if earlier else "there is no earlier stage"
        if name not in earlier:
            self.found.add(place, f"no earlier stage is called {name!r}", known)
        elif (takes is not None) != (earlier[name].makes == "dataset"):
            makes = earlier[name].makes.replace("_", " ")
            wanted = "a model" if takes is None else "data"
            self.found.add(place, f"the stage {name} makes a {makes}, where {wanted} is wanted", known)
        elif place.endswith(".reward_model") and earlier[name].makes != "reward_model":
            self.found.add(place, f"the stage {name} makes no reward model", "name a stage with the phase reward_model")
        elif takes and (gives := earlier[name].gives) and not any(issubclass(kind, takes) for kind in gives):
            fix = "put a stage ranking or ai_feedback between them" if Prompted in gives and Ranking in takes else known
            self.found.add(place, f"the stage {name} makes {_rows_of(gives)}, where {_rows_of(takes)} are wanted", fix)
        elif earlier[name].makes == "reward_model" and self._speaks(place):
            fix = "name a stage that makes a model"
            self.found.add(place, f"the stage {name} makes a reward model, which scores answers and gives none", fix)

    def _speaks(self, place: str) -> bool:
        """Whether the model that a place of the recipe names is to answer something."""
        field = place.removeprefix(f"{self.place}.")
        if field == "model":
            return self.phase.makes != "reward_model"
        return field == "phase.judge" or field.startswith("phase.models.")

    def _data(
        self, located: locating.Located | None, tokenizer: PreTrainedTokenizerBase | None, model: nn.Module | None
    ) -> None:
        if self.stage.data is None:
            return
        if any(source.startswith(STAGE) for _, source in data_sources(self.stage.data)):
            return  # what is not made yet can't be read
        if not isinstance(self.phase, TrainingPhase):
            phase, place, base = self.phase, f"{self.place}.data", self.resolved.base
            found = self.found.attempt(records, phase.name, phase.takes, self.stage.data, base, self.host, place)
            if found is not None and tokenizer is not None and model is not None:
                window = self._window(model)
                told = self.found.attempt(self.phase.examine_records, found, tokenizer, window, self.stage, self.place)
                self.found.extend(told or [])
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

    def _window(self, model: nn.Module) -> int | None:
        """How many tokens of an example the model can see, beside what the adapter puts before them."""
        described: Any = model
        window = getattr(described.config.get_text_config(), "max_position_embeddings", None)
        return window - self.adapter.tokens_added if isinstance(window, int) else None

    def _context(self, prepared: Prepared, model: nn.Module) -> None:
        """Refuse examples that the model can't see whole."""
        window = self._window(model)
        parts = [prepared.train, *([prepared.eval] if prepared.eval else [])]
        longest = max(parts, key=lambda part: int(part.longest.max(initial=0)))
        if window is None:
            return
        if window < 1 or longest.longest.max(initial=0) <= window:  # the adapter's own check tells of the former
            return
        index = int(longest.longest.argmax())
        wrong = f"{longest.place(index)} has {longest.longest[index]:,} tokens and the model can see {window:,}"
        fix = f"set trainer.max_length to at most {window:,}; what becomes of longer rows is data.too_long"
        self.found.add(f"{self.place}.trainer.max_length", wrong, fix)

    def _memory(self, model: nn.Module, devices: Devices) -> None:
        needed, available = memory_needed(self.resolved, self.stage, model, devices), memory_available(devices)
        if needed > available:
            wrong = f"needs about {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are there"
            others = "a smaller model, precision: bf16, or strategy: fsdp over more devices"
            new = model_of(self.resolved, self.stage, None) == NEW  # whose every weight must learn
            fix = f"use {others}" if new else f"use adapter: lora or qlora, {others}"
            self.found.add(self.place, wrong, fix)
        self.found.room_needed += room_needed(self.resolved, self.stage, model)


def preflight(
    resolved: Resolved, host: Host, out: Path | None, here: bool = True
) -> tuple[list[Problem], list[str], dict[str, Any]]:
    """Check a resolved recipe against this machine, its models and its data.

    Args:
        here: whether it is this machine that will train; if not, its devices and their memory are not looked at.
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
        _StageCheck(found, resolved, stage, host, here).run()
    _room(found, out)
    return found.problems, found.notes, found.data


def _rows_of(kinds: tuple[type, ...]) -> str:
    """Kinds of records as people call them: 'rows of ranked answers'."""
    return "rows of " + " or ".join(NAMES[kind] for kind in kinds)


def data_sources(data: Data | None) -> list[tuple[str, str]]:
    """Every source that a stage's data names, by its field."""
    if data is None:
        return []
    named = [("train", data.train), ("eval", data.eval)]
    named += [(f"mix.{index}.source", part.source) for index, part in enumerate(data.mix)]
    return [(field, source) for field, source in named if source]


def _governance(found: _Findings, resolved: Resolved, stage: Stage) -> None:
    """Ask the recipe's governance about every file and folder that a stage learns from or is measured on."""
    if resolved.governance is None or stage.data is None:
        return
    place = f"stages.{stage.name}.data"
    for field, source in data_sources(stage.data):
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
        if settings is not None and not any(source.startswith(STAGE) for _, source in data_sources(settings)):
            found.attempt(look_through, settings, base, host, f"{place}.data")
    for place, reference in models:
        if isinstance(reference, str) and reference not in ("", NEW) and not reference.startswith(STAGE):
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
        state /= devices.world
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
