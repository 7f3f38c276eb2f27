"""From a recipe to what can be estimated of it: one request for each stage that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec

from tutelage.config import convert
from tutelage.errors import TutelageError
from tutelage.plugins import host
from tutelage.recipe import Resolved, Stage, Trainer, load, resolve
from tutelage_advisor.catalog import Catalog
from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.estimating import Estimate, estimate
from tutelage_advisor.estimates.models import architecture_of
from tutelage_advisor.estimates.request import AdapterName, EstimateRequest

CHARACTERS_PER_TOKEN = 4
GPU_MICRO_BATCH = 8192
"Tokens that the engine computes at a time on a GPU, where the recipe leaves it open."
LARGEST_COUNTED = 500_000_000


class RecipeEstimate(msgspec.Struct, kw_only=True):
    """Estimates of a recipe's stages, and their sums."""

    name: str
    stages: dict[str, Estimate]
    peak_gib: float
    fits: bool | None
    hours: float | None
    usd: float | None


def estimate_recipe(source: Path, hardware: dict[str, Any], catalog: Catalog, overrides: list[str]) -> RecipeEstimate:
    """Estimate every stage of a recipe that trains.

    Args:
        hardware: `gpu`, `gpus`, `nodes`, `usd_per_gpu_hour` and other fields of a request that a recipe does not have.
        overrides: as `tutelage train --set` takes them.
    Raises:
        TutelageError: when the recipe is not valid, or an adapter of it can't be estimated.
    """
    data, base = load(source, overrides)
    resolved = resolve(data, base, host())
    stages: dict[str, Estimate] = {}
    for stage in resolved.recipe.stages:
        request = request_of(stage, resolved, hardware)
        made = architecture_of(request.model, catalog, f"stages.{stage.name}.model")
        request, notes = _as_the_engine_targets(request, made, resolved.adapters[stage.name].config)
        stages[stage.name] = estimate(request, catalog, made)
        stages[stage.name].assumptions += [*notes, *_data_notes(stage, resolved)]
    hours = [stage.hours for stage in stages.values()]
    dollars = [stage.usd for stage in stages.values()]
    fits = [stage.fits for stage in stages.values()]
    return RecipeEstimate(
        name=resolved.recipe.name,
        stages=stages,
        peak_gib=max(stage.memory.peak_gib for stage in stages.values()),
        fits=None if None in fits else all(fits),
        hours=None if None in hours else sum(value for value in hours if value is not None),
        usd=None if None in dollars else sum(value for value in dollars if value is not None),
    )


def request_of(stage: Stage, resolved: Resolved, hardware: dict[str, Any]) -> EstimateRequest:
    """The request for one stage."""
    kind = str(stage.adapter.get("kind", "lora"))
    place = f"stages.{stage.name}.adapter.kind"
    if kind not in get_args(AdapterName):
        known = ", ".join(get_args(AdapterName))
        raise TutelageError.at(place, f"what the adapter {kind} needs is not known here", f"estimates are for {known}")
    trainer = stage.trainer
    gpus = trainer.devices if isinstance(trainer.devices, int) else hardware.get("gpus", 1)
    fields: dict[str, Any] = {
        **hardware,
        "model": _base_model(stage, resolved),
        "adapter": kind,
        "gpus": gpus,
        "strategy": "ddp" if trainer.strategy == "auto" and gpus > 1 else trainer.strategy,
        "seq_len": trainer.max_length,
        "micro_batch": max(1, _micro_batch_tokens(trainer, gpus * hardware.get("nodes", 1)) // trainer.max_length),
        "tokens_per_step": trainer.tokens_per_step,
        "precision": trainer.precision,
        "checkpointing": trainer.activation_checkpointing,
        "compile": trainer.compile,
    }
    config = resolved.adapters[stage.name].config
    for name in ("rank", "targets", "dropout", "virtual_tokens"):
        if hasattr(config, name):
            fields[name] = getattr(config, name)
    fields.update(_amount(stage, resolved, trainer))
    return convert(fields, EstimateRequest, f"stages.{stage.name}")


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


def _base_model(stage: Stage, resolved: Resolved) -> str:
    """The base model that a stage starts from; what an earlier stage made has the shape of its own base."""
    named = stage.model or resolved.recipe.model
    if named.startswith("stage:"):
        earlier = next((other for other in resolved.recipe.stages if other.name == named.removeprefix("stage:")), None)
        return _base_model(earlier, resolved) if earlier is not None and earlier is not stage else resolved.recipe.model
    here = resolved.base / named
    return str(here) if here.exists() else named


def _micro_batch_tokens(trainer: Trainer, devices: int) -> int:
    if trainer.tokens_per_micro_batch != "auto":
        return trainer.tokens_per_micro_batch
    return min(GPU_MICRO_BATCH, max(trainer.max_length, -(-trainer.tokens_per_step // devices)))


def _amount(stage: Stage, resolved: Resolved, trainer: Trainer) -> dict[str, Any]:
    """Examples, their mean length and epochs; nothing where the data can't be counted cheaply."""
    if trainer.max_steps is not None:
        return {"examples": trainer.max_steps, "tokens_per_example": float(trainer.tokens_per_step), "epochs": 1.0}
    counted = _counted(stage, resolved)
    if counted is None:
        return {}
    rows, characters = counted
    mean = min(float(trainer.max_length), characters / rows / CHARACTERS_PER_TOKEN)
    return {"examples": rows, "tokens_per_example": max(1.0, mean), "epochs": trainer.epochs or 3.0}


def _counted(stage: Stage, resolved: Resolved) -> tuple[int, int] | None:
    """Rows and bytes of a JSONL file."""
    path = resolved.base / stage.data.train if stage.data and stage.data.train else None
    if path is None or path.suffix != ".jsonl" or not path.is_file() or path.stat().st_size > LARGEST_COUNTED:
        return None
    with path.open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    return (rows, path.stat().st_size) if rows else None


def _data_notes(stage: Stage, resolved: Resolved) -> list[str]:
    if stage.trainer.max_steps is not None:
        return []
    if _counted(stage, resolved) is None:
        return ["the data was not counted (only JSONL files up to 500 MB are), so nothing is said of time and cost"]
    return [f"{CHARACTERS_PER_TOKEN} bytes of the data file make a token"]
