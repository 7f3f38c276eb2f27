"""A stage made ready: its plugins, its base model, its tokenizer and its data, before any process group starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.adapter import Adapter
from tutelage.data.preparing import Prepared, prepare
from tutelage.engine.devices import Devices, choose_devices
from tutelage.errors import TutelageError
from tutelage.models import locating
from tutelage.models.loading import end_ids, load_config, load_tokenizer, new_token_ids, prepare_base
from tutelage.phase import Phase, TrainingPhase
from tutelage.plugins import Host
from tutelage.recipe import Recipe, Resolved, Stage
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

    @property
    def folder(self) -> Path:
        """Where the stage keeps its checkpoints, metrics and artifact."""
        return self.run.stage_folder(self.stage.name)

    def emit(self, event: str, **fields: Any) -> None:
        """Tell of something in the run's events."""
        self.run.event(event, stage=self.stage.name, **fields)


def model_of(resolved: Resolved, stage: Stage, run: RunFolder | None) -> str:
    """The reference of the model that a stage starts from; a stage not yet run is given as `stage:NAME`.

    Raises:
        TutelageError: when it names a stage that is not an earlier one.
    """
    stages = resolved.recipe.stages
    earlier = [other.name for other in stages[: stages.index(stage)]]
    reference = stage.model
    if not reference:
        reference = f"stage:{earlier[-1]}" if earlier else resolved.recipe.model
    if not reference.startswith("stage:"):
        return reference
    name = reference.removeprefix("stage:")
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
    located = locating.fetch(locating.locate(reference, resolved.base, "model", host), "model")
    tokenizer = load_tokenizer(located, resolved.recipe.tokenizer, resolved.base)
    adapter = resolved.adapters[stage.name]
    if adapter.artifact == "adapter":
        located = prepare_base(located, tokenizer, run.stage_folder(stage.name) / "base", stage.trainer.seed)
    return StageContext(
        run=run,
        recipe=resolved.recipe,
        stage=stage,
        phase=resolved.phases[stage.name],
        adapter=adapter,
        trackers=resolved.trackers,
        model=located,
        tokenizer=tokenizer,
        data=prepare_data(resolved, stage, located, tokenizer, host),
        devices=choose_devices(stage.trainer, f"stages.{stage.name}.trainer"),
        base=resolved.base,
        new_tokens=new_token_ids(tokenizer, resolved.recipe.tokenizer),
    )


def prepare_data(
    resolved: Resolved, stage: Stage, located: locating.Located, tokenizer: PreTrainedTokenizerBase, host: Host
) -> Prepared | None:
    """A training stage's data as tokens, from the cache where they are there already.

    Raises:
        TutelageError: when the data can't be used.
    """
    phase = resolved.phases[stage.name]
    if not isinstance(phase, TrainingPhase) or stage.data is None:
        return None
    return prepare(
        phase,
        stage.data,
        resolved.base,
        tokenizer,
        max_length=stage.trainer.max_length,
        seed=stage.trainer.seed,
        host=host,
        place=f"stages.{stage.name}.data",
        end_ids=end_ids(load_config(located), tokenizer),
    )
