"""Saves what a stage learnt, and proves that the plain library reads it as the model that was trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from tutelage.engine.checkpoints import learnt_weights, whole_weights
from tutelage.engine.context import StageContext
from tutelage.engine.kernels import as_the_libraries_compute
from tutelage.models.heads import prepare_scorer_base, score_head
from tutelage.models.saving import save_artifact
from tutelage.models.verifying import reference_of, verify
from tutelage.report import model_card

if TYPE_CHECKING:
    from torch import nn


def save_and_verify(
    context: StageContext, model: nn.Module, metrics: dict[str, float], prompt: list[int] | None = None
) -> Path:
    """Save the artifact (all processes of a sharded model take part) and compare it with the model in memory.

    Args:
        prompt: token ids to try the model on; None takes them from the stage's data.
    Raises:
        RunFailed: when what was read back differs.
    """
    adapter, devices = context.adapter, context.devices
    whole = adapter.artifact == "model"
    weights = None
    if devices.strategy == "fsdp":
        weights = whole_weights(model) if whole else learnt_weights(model)
    loading = adapter.loading(devices.frozen_dtype)
    scores = score_head(model) is not None
    as_the_libraries_compute(model)
    prompt = prompt or (_an_answer(context) if scores else _a_prompt(context))
    reference = reference_of(
        model,
        context.tokenizer,
        prompt,
        dtype=torch.float32 if whole else devices.frozen_dtype,
        loading=loading,
        weights=weights,
        save_dtype=adapter.save_dtype,
    )
    target = context.folder / adapter.artifact
    if int(os.environ.get("RANK", "0")) == 0:
        record = context.run.record
        kind = f"reward_{adapter.artifact}" if scores else adapter.artifact
        card = model_card(record, context.run.stage(context.stage.name), context.run.recipe, kind=kind, metrics=metrics)
        save_artifact(
            adapter,
            model,
            context.tokenizer,
            target,
            base_path=_scorer_base(context) if scores and not whole else context.model.path,
            card=card,
            weights=weights,
            save_dtype=adapter.save_dtype,
        )
        found = verify(target, reference, stop_prompt=None if scores else prompt)
        context.emit(
            "saved",
            folder=str(target),
            verified=True,
            largest_difference=found.largest_difference,
            tensors=found.tensors,
            stops_by_itself=found.stops,
            new_tokens=found.new_tokens,
        )
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
    return target


def _scorer_base(context: StageContext) -> str:
    """The folder of a base that plain peft can load a reward adapter onto."""
    pad: Any = context.tokenizer.pad_token_id
    folder = context.folder / "base_with_head"
    return prepare_scorer_base(context.model, folder, seed=context.stage.trainer.seed, pad=pad).path


def _an_answer(context: StageContext) -> list[int]:
    """The first sequence of the shortest example: what a reward model scores."""
    assert context.data is not None
    examples: Any = context.data.train
    ids: list[int] = examples[int(np.argmin(examples.lengths))].sequences()[0].ids.tolist()
    return ids


def _a_prompt(context: StageContext) -> list[int]:
    """What comes before the first learnt token of the shortest example: as real a prompt as there is."""
    assert context.data is not None
    examples: Any = context.data.train
    shortest = examples[int(np.argmin(examples.lengths))]
    before = int(np.argmax(shortest.learn)) or min(4, len(shortest.ids) - 1)
    ids: list[int] = shortest.ids[:before].tolist()
    return ids
