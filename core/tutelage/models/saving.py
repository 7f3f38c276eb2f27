"""Writes what was learnt as the ecosystem's own folders, whole or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.adapter import Adapter
from tutelage.models.loading import end_ids, quietly

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


def save_artifact(
    adapter: Adapter,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base_path: str,
    card: str = "",
    weights: dict[str, Any] | None = None,
    save_dtype: torch.dtype | None = None,
) -> Path:
    """Save what an adapter learnt, with its tokenizer, chat template, generation config and model card.

    Args:
        base_path: the folder or hub name of the base, for `AutoPeftModelForCausalLM.from_pretrained(folder)` (or, of a
            reward model, `AutoPeftModelForSequenceClassification`).
        card: the README.md.
        weights: the model's gathered state dict, where the model in memory is sharded.
        save_dtype: what the floating-point weights of a whole model are stored as; None stores them as they are. What a
            PEFT adapter learnt is always stored as it is.
    Returns:
        `folder`, which is replaced where it exists.
    """
    whole = adapter.artifact == "model"
    if whole and save_dtype is not None:
        weights = cast_weights(model.state_dict() if weights is None else weights, save_dtype)
    with write_folder(folder) as unfinished, quietly():
        adapter.save(model, unfinished, weights)
        if whole and save_dtype is not None:
            _amend(unfinished / "config.json", dtype=str(save_dtype).removeprefix("torch."))
        if (unfinished / "adapter_config.json").is_file():
            _amend(unfinished / "adapter_config.json", base_model_name_or_path=base_path)
        tokenizer.save_pretrained(str(unfinished))
        save_generation_config(model, tokenizer, unfinished)
        if card:
            (unfinished / "README.md").write_text(card, encoding="utf-8")
    return folder


def save_whole(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save a plain Hugging Face model with its tokenizer, chat template and generation config."""
    with write_folder(folder) as unfinished, quietly():
        model.save_pretrained(str(unfinished))
        tokenizer.save_pretrained(str(unfinished))
        save_generation_config(model, tokenizer, unfinished)
    return folder


def cast_weights(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same state dict with floating-point tensors in `dtype`; tensors that were one (tied weights) stay one."""
    made: dict[tuple[Any, ...], Tensor] = {}

    def cast(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        key = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        return made.setdefault(key, tensor.detach().to(dtype))

    return {name: cast(tensor) for name, tensor in weights.items()}


def save_generation_config(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write generation_config.json, with every token that ends an answer and one to pad with. Of a reward model, which
    generates nothing, there is none."""
    from transformers import GenerationConfig

    from tutelage.models.heads import score_head

    if score_head(model) is not None:
        return
    config = copy.deepcopy(getattr(model, "generation_config", None) or GenerationConfig())
    ends = sorted(end_ids(model, tokenizer))
    if ends:
        config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if config.pad_token_id is None:
        pad: Any = tokenizer.pad_token_id
        config.pad_token_id = pad if pad is not None else next(iter(ends), None)
    # Written directly: `save_pretrained` refuses sampling settings that published models do have.
    config.to_json_file(str(folder / "generation_config.json"))


@contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` to write into, and put it in `target`'s place when all of it is on disk.

    After a crash, `target` is what it was, or absent where it was being replaced at that instant.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_file():
                _sync(path)
        _sync(unfinished)
        if target.exists():
            replaced = target.with_name(f".{target.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
            unfinished.rename(target)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _amend(path: Path, **values: Any) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.update(values)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
