"""Merges an adapter into its base: a plain Hugging Face model that needs no peft."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import RunFailed, TutelageError
from tutelage.models.loading import (
    adapter_settings,
    base_of,
    is_reward_model,
    keep_packing,
    load_config,
    load_tokenizer,
    load_unquantised,
    quietly,
)
from tutelage.models.locating import Located, refuse_pickles
from tutelage.models.prompts import token_ids
from tutelage.models.saving import save_whole
from tutelage.models.verifying import CLOSE, EXACT, ROUNDED, compare, logits_of, read_back
from tutelage.recipe import Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "Read back from disk, 2 + 3 = 5: the same words must give the same logits.\n- déjà vu\n"


def merge(
    adapter_folder: Path, out: Path, *, dtype: torch.dtype | str = "auto", quantize: bool = False, probe: str = _PROBE
) -> Path:
    """Write the plain Hugging Face model that an adapter and its base make together, and prove it by reading it back.

    The base is loaded unquantised, also where the adapter was trained beside 4 bits. All is computed in float32, which
    takes 4 bytes of memory a parameter, and rounded to `dtype` once at the end.

    Args:
        dtype: of the weights that are written; "auto" keeps the base's.
        quantize: write 4-bit weights (NF4, by bitsandbytes) instead: smaller, and no longer exactly what was trained.
        probe: the text whose logits are compared.
    Raises:
        TutelageError: when the adapter can't be merged, or `out` exists.
        RunFailed: when the merged model's logits differ from base + adapter by more than rounding.
    """
    import torch

    if out.exists():
        raise TutelageError.at(str(out), "exists already", "name another folder")
    settings = adapter_settings(adapter_folder)
    if settings.get("peft_type") == "PROMPT_TUNING":
        raise _soft_prompt()
    base = base_of(adapter_folder)
    tokenizer = load_tokenizer(Located("adapter", str(adapter_folder)), Tokens(), adapter_folder)
    ids = token_ids(tokenizer, probe) + _learnt_tokens(settings)
    scores = is_reward_model(Located("adapter", str(adapter_folder)))
    if scores and quantize:
        raise TutelageError.at("merge", "a reward model is not written in 4 bits", "leave quantize out")
    adapted = _adapted(adapter_folder, torch.float32)
    expected = logits_of(adapted, ids)
    model: Any = merge_into(adapted)
    del adapted
    compare(out, expected, logits_of(model, ids), EXACT)
    stored = (load_config(base).dtype or torch.float32) if dtype == "auto" else dtype
    for parameter in model.parameters():  # not `model.to`, which would round buffers such as RoPE's frequencies too
        parameter.data = parameter.data.to(stored)
    if quantize:
        _save_quantised(model, tokenizer, out, ids)
        return out
    rounded = logits_of(model, ids)
    save_whole(model, tokenizer, out)
    del model
    try:
        exact = EXACT if not scores or stored == torch.float32 else CLOSE  # in memory, scores are not rounded
        compare(out, rounded, logits_of(read_back(out, dtype=stored), ids), exact)
        # In float32: so only the rounding of the weights is compared, not that of all that is computed with them.
        found = logits_of(read_back(out, dtype=torch.float32), ids)
        compare(out, expected, found, EXACT if stored == torch.float32 else ROUNDED)
    except RunFailed:
        shutil.rmtree(out)
        raise
    return out


def _save_quantised(model: Any, tokenizer: PreTrainedTokenizerBase, out: Path, ids: list[int]) -> None:
    """Write a model in 4 bits, and prove that what is read back equals what was written."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=model.dtype
    )
    with tempfile.TemporaryDirectory() as folder, quietly():
        model.save_pretrained(folder)
        small: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=model.dtype, quantization_config=quantization, use_safetensors=True
        )
    keep_packing(small)
    expected = logits_of(small, ids)
    save_whole(small, tokenizer, out)
    compare(out, expected, logits_of(read_back(out), ids), CLOSE)


def _learnt_tokens(settings: dict[str, Any]) -> list[int]:
    """The ids of tokens that learnt with the adapter."""
    rows = settings.get("trainable_token_indices") or {}
    return sorted({token for ids in rows.values() for token in ids} if isinstance(rows, dict) else rows)


def _soft_prompt() -> TutelageError:
    wrong = "a soft prompt stands before the input and can't become part of the weights"
    return TutelageError.at("merge", wrong, "use it as an adapter")


def merged_model(folder: Path, *, dtype: torch.dtype | str, **loading: Any) -> PreTrainedModel:
    """The base of an adapter's folder with the adapter merged in, in memory.

    Raises:
        TutelageError: when the adapter can't be merged or loaded.
    """
    return merge_into(_adapted(folder, dtype, **loading))


def _adapted(folder: Path, dtype: torch.dtype | str, **loading: Any) -> Any:
    """An adapter's folder over its unquantised base."""
    from tutelage.models.heads import adapted_scorer

    if is_reward_model(Located("adapter", str(folder))):
        return adapted_scorer(folder, dtype=dtype, **loading)
    return with_adapter(load_unquantised(base_of(folder), dtype, **loading), folder)


def with_adapter(base: PreTrainedModel, folder: Path) -> Any:
    """The base with an adapter's folder on top, as peft loads it.

    Raises:
        TutelageError: when the adapter does not fit this base.
    """
    from peft import PeftModel

    refuse_pickles(folder, "model", "adapter_model.safetensors")
    try:
        with quietly():
            return PeftModel.from_pretrained(base, str(folder))
    except (ValueError, RuntimeError, TypeError) as error:
        message = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))[:300]
        raise TutelageError.at("model", f"the adapter {folder} does not fit its base: {message}") from error


def merge_into(adapted: Any) -> PreTrainedModel:
    """Merge a PEFT model's adapter into its base, which is returned. Weights are computed in float32, and rounded once.

    Raises:
        TutelageError: when this kind of adapter can't become part of the weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if adapted.active_peft_config.is_prompt_learning:
        raise _soft_prompt()
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            weight: Any = layer.get_base_layer().weight
            dtype = weight.dtype
            layer.float()
            layer.merge(safe_merge=True)
            layer.get_base_layer().to(dtype)
    model: PreTrainedModel = adapted.unload()
    return model
