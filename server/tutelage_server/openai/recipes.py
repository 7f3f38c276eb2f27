"""From what an OpenAI client asks for to a recipe."""

from __future__ import annotations

from typing import Any

import msgspec

from tutelage_server.openai.schemas import CreateJob, DpoHyperparameters, Hyperparameters, Integration
from tutelage_server.openai.validating import Examples
from tutelage_server.problems import refused
from tutelage_server.settings import Settings

STAGE = "tune"
EPOCHS = 3
LARGEST_AUTO_BATCH = 32
STEPS_PER_EPOCH = 32
"With a batch size of `auto`, an epoch has about so many steps, or more where batches would exceed the largest."
RATES = {"supervised": 2e-4, "dpo": 1e-5}
"Learning rates of a multiplier of 1: those of the phases sft and dpo with LoRA."
BETA = 0.1
LONGEST_EXAMPLE = 2048


class Chosen(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Hyperparameters after `auto` was settled."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    beta: float | None = None


def method_of(asked: CreateJob) -> str:
    """`supervised` or `dpo`.

    Raises:
        Refused: 400 when another method is asked for, or settings are given for a method that is not.
    """
    if asked.method is None:
        return "supervised"
    if asked.method.type == "reinforcement":
        fix = "submit a recipe with the phase grpo or ppo to /v1/jobs"
        raise refused(400, "method.type", "reinforcement is not offered here", fix, code="unsupported_method")
    if asked.hyperparameters is not None:
        raise refused(400, "hyperparameters", "is given beside method", "give it in method alone", code="invalid_value")
    for name in ("supervised", "dpo", "reinforcement"):
        if name != asked.method.type and getattr(asked.method, name) is not None:
            wrong = f"is given, and method.type is {asked.method.type}"
            raise refused(400, f"method.{name}", wrong, "give one of them", code="invalid_value")
    return asked.method.type


def hyperparameters_of(asked: CreateJob) -> Hyperparameters:
    """What was asked for, `auto` where nothing was."""
    method = asked.method
    if method is not None and method.type == "dpo":
        return method.dpo.hyperparameters if method.dpo else DpoHyperparameters()
    if method is not None and method.supervised:
        return method.supervised.hyperparameters
    return asked.hyperparameters or Hyperparameters()


def choose(asked: Hyperparameters, examples: Examples) -> Chosen:
    """Settle `auto`."""
    batch = min(LARGEST_AUTO_BATCH, max(1, examples.count // STEPS_PER_EPOCH))
    chosen = Chosen(
        n_epochs=EPOCHS if asked.n_epochs == "auto" else asked.n_epochs,
        batch_size=batch if asked.batch_size == "auto" else asked.batch_size,
        learning_rate_multiplier=1.0 if asked.learning_rate_multiplier == "auto" else asked.learning_rate_multiplier,
    )
    if isinstance(asked, DpoHyperparameters):
        chosen.beta = BETA if asked.beta == "auto" else asked.beta
    return chosen


def base_model(asked: CreateJob, settings: Settings) -> str:
    """The recipe's `model` for the one that was asked for.

    Raises:
        Refused: 404 naming those that there are.
    """
    if asked.model not in settings.openai_models:
        known = ", ".join(sorted(settings.openai_models)) or "none"
        wrong = f"the model {asked.model} does not exist or can't be tuned"
        raise refused(404, "model", wrong, f"models here are: {known}", code="model_not_found")
    return settings.openai_models[asked.model]


def trackers_of(integrations: list[Integration] | None, settings: Settings) -> list[dict[str, Any]]:
    """The recipe's trackers.

    Raises:
        Refused: 400 when the operator does not let metrics leave the server, or something can't be honoured.
    """
    for number, each in enumerate(integrations or []):
        place = f"integrations[{number}]"
        if "tracker:wandb" in settings.deny_plugins:
            fix = "leave it out; metrics are in the job's events and its result file"
            raise refused(400, place, "this server sends no metrics to Weights & Biases", fix, code="unsupported_value")
        if each.wandb.tags or each.wandb.name:
            wrong = "tags and name of a run at Weights & Biases can't be set here"
            raise refused(400, place, wrong, "leave them out", code="unsupported_value")
    return [
        {"kind": "wandb", "project": each.wandb.project, "entity": each.wandb.entity or ""}
        for each in integrations or []
    ]


def recipe_of(asked: CreateJob, method: str, chosen: Chosen, examples: Examples, seed: int, settings: Settings) -> Any:
    """The recipe of a job, as plain data, with its files as `file:ID`.

    A step takes `batch_size` examples of mean length, in tokens: steps are measured in tokens here.

    Raises:
        Refused: 400 or 404, as `base_model` and `trackers_of` do.
    """
    phase: dict[str, Any] = {"kind": "sft"} if method == "supervised" else {"kind": "dpo", "beta": chosen.beta}
    data = {"train": f"file:{asked.training_file}", "format": "messages" if method == "supervised" else "preference"}
    if asked.validation_file:
        data["eval"] = f"file:{asked.validation_file}"
    stage = {
        "name": STAGE,
        "phase": phase,
        "adapter": {"kind": "lora"},
        "data": {**data, "too_long": "cut"} if method == "supervised" else data,
        "trainer": {
            "epochs": float(chosen.n_epochs),
            "learning_rate": RATES[method] * chosen.learning_rate_multiplier,
            "tokens_per_step": max(64, round(chosen.batch_size * examples.mean_tokens)),
            "max_length": LONGEST_EXAMPLE,
            "checkpoint_every": max(1, min(50, examples.count // chosen.batch_size)),
            "keep_checkpoints": 3,
            "seed": seed,
        },
    }
    recipe = {"name": "fine-tune", "model": base_model(asked, settings), "stages": [stage]}
    trackers = trackers_of(asked.integrations, settings)
    return {**recipe, "trackers": trackers} if trackers else recipe
