"""Keeps a value model as reward models are kept: a model of one score, which says what is expected at a last token."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from tutelage.engine.shared import VALUE, Actors
from tutelage.models.heads import choose_pad, load_scorer, prepare_scorer_base
from tutelage.models.loading import SCORE, end_ids, quietly, resize_for, rows_needed
from tutelage.models.saving import write_folder

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext


def save_critic(actors: Actors, context: StageContext, folder: Path) -> Path:
    """Write the value model with its head as a PEFT folder, or whole where all its weights learnt."""
    tokenizer = copy.deepcopy(context.tokenizer)
    base: Any = actors.get_base_model()
    pad = choose_pad(tokenizer, end_ids(base, tokenizer))
    if rows_needed(tokenizer) > base.get_input_embeddings().weight.shape[0]:  # it would have no embedding
        tokenizer, pad = copy.deepcopy(context.tokenizer), min(end_ids(base, context.tokenizer), default=0)
    with write_folder(folder) as unfinished, quietly():
        if actors.value is None:
            _save_adapter(actors, context, unfinished, pad)
        else:
            _save_whole(actors, context, unfinished, pad)
        tokenizer.save_pretrained(str(unfinished))
    return folder


def _save_adapter(actors: Actors, context: StageContext, folder: Path, pad: int) -> None:
    from peft import get_peft_model_state_dict

    policy: Any = actors.policy
    base = prepare_scorer_base(context.model, context.folder / "critic_base", seed=0, pad=pad)
    settings = copy.deepcopy(policy.peft_config[VALUE])
    settings.task_type, settings.modules_to_save, settings.inference_mode = "SEQ_CLS", ["score"], True
    settings.base_model_name_or_path = base.path
    settings.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(policy, adapter_name=VALUE, save_embedding_layers=False)
    assert actors.value_head is not None
    weights[f"base_model.model.{SCORE}"] = actors.value_head.weight
    kept = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _save_whole(actors: Actors, context: StageContext, folder: Path, pad: int) -> None:
    model: Any = load_scorer(context.model, dtype=torch.float32, seed=0, pad=pad)
    resize_for(model, context.tokenizer)
    assert actors.value is not None
    assert actors.value_head is not None
    trunk: Any = model.base_model
    trunk.load_state_dict({name: weight.cpu() for name, weight in actors.value.state_dict().items()})
    model.score.weight.data.copy_(actors.value_head.weight.detach().cpu())
    model.save_pretrained(str(folder))
