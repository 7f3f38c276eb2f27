"""From a recipe to what can be estimated of it: one request for each stage, what people do, and the sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec

from tutelage.config import convert
from tutelage.errors import TutelageError
from tutelage.phase import Phase
from tutelage.plugins import host
from tutelage.recipe import Resolved, Stage, Trainer, load, resolve
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.costs.upfront import PEOPLE_PER_HOUR
from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.building import new_config
from tutelage_advisor.estimates.estimating import Estimate, estimate
from tutelage_advisor.estimates.models import architecture_of, from_config
from tutelage_advisor.estimates.request import MAKING, AdapterName, EstimateRequest, PhaseName
from tutelage_advisor.estimates.rows import CHARACTERS_PER_TOKEN, Rows, rows_of
from tutelage_advisor.estimates.staging import UNKNOWN, amount, made_by, phase_fields

GPU_MICRO_BATCH = 8192
"Tokens that the engine computes at a time on a GPU, where the recipe leaves it open."
NEW = "new"
"What a recipe calls a model with random weights."
MINUTES_AN_ANSWER = 0.5
"Minutes in which a person reads and ranks one more answer. Judgement."


class People(msgspec.Struct, kw_only=True):
    """What a stage asks of people."""

    judgements: int
    hours: float
    usd: float


class RecipeEstimate(msgspec.Struct, kw_only=True):
    """Estimates of a recipe's stages, and the sums of what machines take; people come on top."""

    name: str
    stages: dict[str, Estimate]
    peak_gib: float
    fits: bool | None
    hours: float | None
    usd: float | None
    people: dict[str, People]
    "Stages that wait for people to rank."


def estimate_recipe(source: Path, hardware: dict[str, Any], catalog: Catalog, overrides: list[str]) -> RecipeEstimate:
    """Estimate every stage of a recipe.

    Args:
        hardware: `gpu`, `gpus`, `nodes`, `usd_per_gpu_hour` and other fields of a request that a recipe does not have.
        overrides: as `tutelage train --set` takes them.
    Raises:
        TutelageError: when the recipe is not valid, or an adapter of it can't be estimated.
    """
    data, base = load(source, overrides)
    resolved = resolve(data, base, host())
    stages: dict[str, Estimate] = {}
    people: dict[str, People] = {}
    made: dict[str, Rows | None] = {}
    shapes: dict[str, Architecture] = {}
    for stage in resolved.recipe.stages:
        phase = resolved.phases[stage.name]
        rows = _rows(stage, resolved, made)
        made[stage.name] = made_by(phase, rows)
        if phase.name == "ranking":
            if rows is not None and phase.config.simulated is None:
                people[stage.name] = _ranked(phase, rows)
            continue
        request = request_of(stage, resolved, hardware, rows)
        if request.model not in shapes:
            shapes[request.model] = _shape(request.model, stage, resolved, catalog)
        shape = shapes[request.model]
        request, notes = _as_the_engine_targets(request, shape, resolved.adapters[stage.name].config)
        stages[stage.name] = estimate(request, catalog, shape)
        stages[stage.name].assumptions += [*notes, *_notes(stage, phase, rows)]
    return _summed(resolved.recipe.name, stages, people)


def _summed(name: str, stages: dict[str, Estimate], people: dict[str, People]) -> RecipeEstimate:
    hours = [stage.hours for stage in stages.values()]
    dollars = [stage.usd for stage in stages.values()]
    fits = [stage.fits for stage in stages.values()]
    return RecipeEstimate(
        name=name,
        stages=stages,
        peak_gib=max((stage.memory.peak_gib for stage in stages.values()), default=0.0),
        fits=None if None in fits else all(fits),
        hours=None if None in hours else sum(value for value in hours if value is not None),
        usd=None if None in dollars else sum(value for value in dollars if value is not None),
        people=people,
    )


def _ranked(phase: Phase, rows: Rows) -> People:
    judgements = round(rows.count * phase.config.overlap * (1 + (phase.config.gold_share if phase.config.gold else 0)))
    hours = judgements * max(2, rows.answers) * MINUTES_AN_ANSWER / 60
    return People(judgements=judgements, hours=hours, usd=hours * PEOPLE_PER_HOUR)


def _rows(stage: Stage, resolved: Resolved, made: dict[str, Rows | None]) -> Rows | None:
    """What a stage's data holds: of files as measured, of earlier stages as they will make it."""
    if stage.data is None:
        return None
    sources = [(stage.data.train, 1.0)] if stage.data.train else [(part.source, part.weight) for part in stage.data.mix]
    found = []
    for source, weight in sources:
        if source.startswith("stage:"):
            rows = made.get(source.removeprefix("stage:"))
        else:
            rows = rows_of(source, resolved.base, host(), stage.data.format)
        if rows is None:
            return None
        found.append(msgspec.structs.replace(rows, count=max(1, round(rows.count * weight))))
    first = max(found, key=lambda rows: rows.count)
    return msgspec.structs.replace(first, count=sum(rows.count for rows in found))


def _shape(model: str, stage: Stage, resolved: Resolved, catalog: Catalog) -> Architecture:
    if model != NEW:
        return architecture_of(model, catalog, f"stages.{stage.name}.model")
    config: Any = resolved.phases[stage.name].config
    place = f"stages.{stage.name}.phase"
    if not hasattr(config, "architecture"):
        raise TutelageError.at(place, "starts from a new model that no earlier stage makes", "begin with pretrain")
    sizes = (config.parameters, config.shape, config.vocabulary, stage.trainer.max_length)
    return from_config(new_config(config.architecture, *sizes, place), place)


def request_of(stage: Stage, resolved: Resolved, hardware: dict[str, Any], rows: Rows | None) -> EstimateRequest:
    """The request for one stage."""
    phase = resolved.phases[stage.name]
    kind = str(stage.adapter.get("kind", "lora"))
    place = f"stages.{stage.name}.adapter.kind"
    if phase.name in MAKING:
        kind = "full"  # the model as it is
    if kind not in get_args(AdapterName):
        known = ", ".join(get_args(AdapterName))
        raise TutelageError.at(place, f"what the adapter {kind} needs is not known here", f"estimates are for {known}")
    trainer = stage.trainer
    gpus = trainer.devices if isinstance(trainer.devices, int) else hardware.get("gpus", 1)
    fields: dict[str, Any] = {
        **hardware,
        "model": _model_of(stage, phase, resolved),
        "phase": phase.name if phase.name in get_args(PhaseName) else "sft",
        "adapter": kind,
        "gpus": gpus,
        "strategy": "ddp" if trainer.strategy == "auto" and gpus > 1 else trainer.strategy,
        "seq_len": trainer.max_length,
        "tokens_per_step": None if phase.name in MAKING else trainer.tokens_per_step,
        "precision": trainer.precision,
        "optimizer": trainer.optimizer,
        "checkpointing": trainer.activation_checkpointing,
        "compile": trainer.compile is True,
    }
    config = resolved.adapters[stage.name].config
    for name in ("rank", "targets", "dropout", "virtual_tokens"):
        if hasattr(config, name):
            fields[name] = getattr(config, name)
    fields.update(phase_fields(stage, phase, rows or UNKNOWN))
    micro = _micro_batch_tokens(trainer, gpus * hardware.get("nodes", 1))
    fields.setdefault("micro_batch", max(1, micro // fields["seq_len"]))
    fields.update(amount(stage, phase, rows, resolved))
    return convert(fields, EstimateRequest, f"stages.{stage.name}")


def _model_of(stage: Stage, phase: Phase, resolved: Resolved) -> str:
    """The model that does a stage's work: a judge of its own where one is named, else what the stage starts from."""
    judge = str(getattr(phase.config, "judge", "") or "") if phase.name == "ai_feedback" else ""
    return _base_model(judge or stage.model, stage, resolved)


def _as_the_engine_targets(
    request: EstimateRequest, made: Architecture, config: Any
) -> tuple[EstimateRequest, list[str]]:
    """The engine spells `all-linear` out as the names of the linear layers, so that fused experts are not adapted."""
    if request.adapter not in ("lora", "qlora"):
        return request, []
    notes = ["the layers that `layers` leaves out are counted as adapted"] if getattr(config, "layers", None) else []
    targets = request.targets
    if isinstance(targets, str) and targets != "all-linear" and not targets.replace("_", "").isalnum():
        notes.append(f"the pattern {targets} is taken for all-linear")
        targets = "all-linear"
    if targets == "all-linear":
        targets = list(dict.fromkeys(linear.name for linear in made.linears if linear.kind != "head"))
    return msgspec.structs.replace(request, targets=targets), notes


def _base_model(named: str, stage: Stage, resolved: Resolved) -> str:
    """The base model that a reference means; what an earlier stage made has the shape of its own base."""
    named = named or resolved.recipe.model
    if named.startswith("stage:"):
        earlier = next((other for other in resolved.recipe.stages if other.name == named.removeprefix("stage:")), None)
        if earlier is None or earlier is stage:
            return resolved.recipe.model
        return _base_model(earlier.model, earlier, resolved)
    here = resolved.base / named
    return str(here) if here.exists() else named


def _micro_batch_tokens(trainer: Trainer, devices: int) -> int:
    if trainer.tokens_per_micro_batch != "auto":
        return trainer.tokens_per_micro_batch
    step = -(-trainer.tokens_per_step // devices)
    return min(GPU_MICRO_BATCH, max(trainer.max_length, step + step // 8))


def _notes(stage: Stage, phase: Phase, rows: Rows | None) -> list[str]:
    found = []
    if phase.name not in get_args(PhaseName):
        found.append(f"what the phase {phase.name} does is not known here; it is estimated as sft")
    if rows is None and stage.data is not None and stage.trainer.max_steps is None:
        found.append(
            "the data was not measured (it is on the hub, too large or not readable), so nothing is said of time"
        )
    elif rows is not None and stage.data is not None and not stage.data.train.startswith("stage:"):
        found.append(f"{CHARACTERS_PER_TOKEN} characters of the data make a token")
    return found
