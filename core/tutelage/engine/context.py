"""A stage made ready: its plugins, its base model, its tokenizer and its data, before any process group starts."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.adapter import Adapter
from tutelage.data.preparing import Prepared, prepare
from tutelage.data.preparing import fingerprints as read_fingerprints
from tutelage.data.preparing import records as read_records
from tutelage.engine.devices import Devices, choose_devices
from tutelage.errors import TutelageError
from tutelage.formats import Record
from tutelage.models import locating
from tutelage.models.loading import base_key, end_ids, load_config, load_tokenizer, new_token_ids, prepare_base
from tutelage.phase import Phase, TrainingPhase
from tutelage.plugins import Host
from tutelage.recipe import Data, Recipe, Resolved, Stage
from tutelage.runs.folder import RunFolder
from tutelage.tracker import Tracker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class StageContext:
    """All that a phase needs to run its stage."""

    run: RunFolder
    recipe: Recipe
    stage: Stage
    phase: Phase
    adapter: Adapter
    trackers: list[Tracker]
    model: locating.Located
    "The base model, present on this machine."
    tokenizer: PreTrainedTokenizerBase
    data: Prepared | None
    devices: Devices
    base: Path
    "The folder that relative paths of the recipe start from."
    new_tokens: list[int]
    "Ids of the special tokens that the recipe adds."
    micro_batch_limit: int = 0
    "The most tokens in a micro-batch, where more ran out of memory before; 0 sets no limit."

    host: Host | None = None
    new: bool = False
    "Whether the model starts from random weights."

    @property
    def folder(self) -> Path:
        """Where the stage keeps its checkpoints, metrics and artifact."""
        return self.run.stage_folder(self.stage.name)

    def emit(self, event: str, **fields: Any) -> None:
        """Tell of something in the run's events."""
        self.run.event(event, stage=self.stage.name, **fields)

    def records(self, source: str = "", takes: tuple[type, ...] = ()) -> list[tuple[str, Record]]:
        """The records of the stage's data (or of another `source`, named as `data.train` is), each with its place.

        Args:
            takes: the kinds of records that are wanted; those that the phase takes by default.
        Raises:
            TutelageError: with every problem found in the source and its rows.
        """
        assert self.host is not None
        data = self.stage.data
        if source:
            data = Data(train=source)
        if data is None:
            return []
        place = f"stages.{self.stage.name}.data"
        wanted = takes or self.phase.takes
        return read_records(self.phase.name, wanted, data_of(data, self.run), self.base, self.host, place)

    def fingerprints(self) -> dict[str, str]:
        """Of the contents of each source of the stage's data, by what the recipe calls it."""
        if self.data is not None:
            return self.data.fingerprints
        if self.stage.data is None or self.host is None:
            return {}
        data = data_of(self.stage.data, self.run)
        return read_fingerprints(data, self.base, self.host, f"stages.{self.stage.name}.data")

    def locate(self, reference: str, place: str) -> locating.Located:
        """A model by any reference, `stage:NAME` among them, present on this machine.

        Raises:
            TutelageError: when there is no such model.
        """
        assert self.host is not None
        if reference.startswith(STAGE):
            reference = str(artifact_of(self.run, reference))
        return locating.fetch(locating.locate(reference, self.base, place, self.host), place)


STAGE = "stage:"
"What an earlier stage made is named by."

NEW = "new"
"The model of a recipe that starts from random weights."

DATASET = "data.jsonl"
"The file in a dataset's folder."


def artifact_of(run: RunFolder, reference: str) -> Path:
    """The folder that a finished stage, named as `stage:NAME`, left."""
    return run.path / run.stage(reference.removeprefix(STAGE)).artifact


def data_of(data: Data, run: RunFolder) -> Data:
    """A stage's data with what earlier stages made named by its path."""
    found = copy.deepcopy(data)
    for part in (found, *found.mix):
        for field in ("train", "eval", "source"):
            if getattr(part, field, "").startswith(STAGE):
                setattr(part, field, str(artifact_of(run, getattr(part, field)) / DATASET))
    return found


def model_of(resolved: Resolved, stage: Stage, run: RunFolder | None) -> str:
    """The reference of the model that a stage starts from; a stage not yet run is given as `stage:NAME`.

    Raises:
        TutelageError: when it names a stage that is not an earlier one.
    """
    stages = resolved.recipe.stages
    earlier = [other.name for other in stages[: stages.index(stage)]]
    reference = stage.model
    if not reference:
        models = [name for name in earlier if resolved.phases[name].makes == "model"]
        reference = f"{STAGE}{models[-1]}" if models else resolved.recipe.model
    if not reference.startswith(STAGE):
        return reference
    name = reference.removeprefix(STAGE)
    if name not in earlier:
        known = f"earlier stages are {', '.join(earlier)}" if earlier else "there is no earlier stage"
        raise TutelageError.at(f"stages.{stage.name}.model", f"no earlier stage is called {name!r}", known)
    if run is None:
        return reference
    return str(run.path / run.stage(name).artifact)


def make_ready(run: RunFolder, resolved: Resolved, stage: Stage, host: Host) -> StageContext:
    """Fetch a stage's model, and prepare its data into the cache that all processes share.

    Raises:
        TutelageError: when the model can't be had or the data can't be used.
    """
    reference = model_of(resolved, stage, run)
    if reference == NEW:
        located = _new_model(resolved, stage, host, run)
    else:
        located = locating.fetch(locating.locate(reference, resolved.base, "model", host), "model")
    tokenizer = tokenizer_of(resolved, stage, located)
    adapter = resolved.adapters[stage.name]
    if adapter.artifact == "adapter" and resolved.phases[stage.name].makes in ("model", "reward_model"):
        made_of = base_key(located, tokenizer, stage.trainer.seed)
        located = prepare_base(located, tokenizer, run.path / "bases" / made_of, stage.trainer.seed)
    return StageContext(
        run=run,
        recipe=resolved.recipe,
        stage=stage,
        phase=resolved.phases[stage.name],
        adapter=adapter,
        trackers=resolved.trackers,
        model=located,
        tokenizer=tokenizer,
        data=prepare_data(resolved, stage, located, tokenizer, host, run),
        devices=choose_devices(stage.trainer, f"stages.{stage.name}.trainer"),
        base=resolved.base,
        new_tokens=new_token_ids(tokenizer, resolved.recipe.tokenizer),
        host=host,
        new=reference == NEW,
    )


def foreseen_model(resolved: Resolved, stage: Stage, host: Host) -> locating.Located:
    """What a stage will start from, for checks before the run; of a model that is not made yet, one of its shape.

    Raises:
        TutelageError: when it can't be had.
    """
    while (reference := model_of(resolved, stage, None)).startswith(STAGE):
        name = reference.removeprefix(STAGE)
        stage = next(other for other in resolved.recipe.stages if other.name == name)
    if reference == NEW:
        return _new_model(resolved, stage, host, None)
    place = f"stages.{stage.name}.model" if stage.model else "model"
    located = locating.locate(reference, resolved.base, place, host)
    locating.available(located, place)
    return locating.fetch(located, place)


def _new_model(resolved: Resolved, stage: Stage, host: Host, run: RunFolder | None) -> locating.Located:
    phase, folder = resolved.phases[stage.name], None
    if run is not None:
        folder = run.stage_folder(stage.name) / "start"
        if stage.data is not None:
            stage = msgspec.structs.replace(stage, data=data_of(stage.data, run))
    return phase.starting_model(stage, resolved.base, host, folder)


def tokenizer_of(resolved: Resolved, stage: Stage, located: locating.Located) -> PreTrainedTokenizerBase:
    """A stage's tokenizer; where sequences are scored, it pads with a token that ends none.

    Raises:
        TutelageError: when there is no usable tokenizer or chat template.
    """
    tokenizer = load_tokenizer(located, resolved.recipe.tokenizer, resolved.base)
    if getattr(resolved.phases[stage.name], "head", "language") == "score":
        from tutelage.models.heads import choose_pad

        choose_pad(tokenizer, end_ids(load_config(located), tokenizer))
    return tokenizer


def prepare_data(
    resolved: Resolved,
    stage: Stage,
    located: locating.Located,
    tokenizer: PreTrainedTokenizerBase,
    host: Host,
    run: RunFolder | None = None,
) -> Prepared | None:
    """A training stage's data as tokens, from the cache where they are there already.

    Args:
        run: where earlier stages' datasets lie, if the data names any.

    Raises:
        TutelageError: when the data can't be used.
    """
    phase = resolved.phases[stage.name]
    if not isinstance(phase, TrainingPhase) or stage.data is None:
        return None
    prepared = prepare(
        phase,
        stage.data if run is None else data_of(stage.data, run),
        resolved.base,
        tokenizer,
        max_length=stage.trainer.max_length,
        seed=stage.trainer.seed,
        host=host,
        place=f"stages.{stage.name}.data",
        end_ids=end_ids(load_config(located), tokenizer),
    )
    if problems := phase.examine(prepared):
        raise TutelageError(problems)
    return prepared
