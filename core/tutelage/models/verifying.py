"""Reads a saved artifact back with plain transformers and peft, and compares it with the model that was trained."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.errors import RunFailed
from tutelage.models.loading import SCORE, is_reward_model, keep_packing, quietly
from tutelage.models.locating import Located
from tutelage.models.prompts import Prompt, generate_ids, token_ids

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

_LONGEST_PROBE = 256
# Read back in the same dtype on the same device, logits differ by little more than the order of additions (float32), or
# by a few units in the last place (bfloat16 keeps 8 bits). Weights that are rounded to be stored move them more.
EXACT, CLOSE, ROUNDED = 1e-4, 2.0**-6, 2.0**-4
"Allowed differences of logits, as shares of the largest."


class Reference(msgspec.Struct, kw_only=True):
    """What the trained model in memory gives, to hold against what is read back."""

    text: str
    "The probe as text, with what the tokenizer and its chat template make of it."
    text_ids: list[int]
    chat_template: Any
    prompt_ids: list[int]
    logits: Any
    "(tokens, vocabulary), or (tokens, 1) of a reward model, float32, on the CPU."
    tensors: dict[str, str]
    "A digest of every tensor that is saved, by its name."
    dtype: Any
    "That from_pretrained is given; for frozen weights the one they were trained with."
    saved_dtype: Any
    "That the weights of a whole model are stored in, where it is another; else None."
    loading: dict[str, Any]
    device: str


class Verification(msgspec.Struct, kw_only=True):
    """What reading an artifact back showed."""

    largest_difference: float
    "Between logits in memory and logits read back."
    tolerance: float
    tensors: int
    "How many saved tensors were compared, bit by bit."
    prompt_tokens: int
    stops: bool | None = None
    "Whether generation from the given prompt ended by itself; None if it was not tried."
    new_tokens: int = 0
    "How many tokens that took (or how many were allowed)."


def reference_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probe: Prompt,
    *,
    dtype: torch.dtype,
    loading: dict[str, Any] | None = None,
    weights: dict[str, Any] | None = None,
    save_dtype: torch.dtype | None = None,
) -> Reference:
    """Run the probe through the trained model, and take a digest of every tensor that will be saved.

    Args:
        probe: text, messages or token ids; at most its first 256 tokens are used.
        dtype: of the base's weights in memory (what they were loaded with).
        loading: the adapter's further arguments of `from_pretrained`, so that a quantised base is read back as one.
        weights: the gathered state dict, where the model is sharded.
        save_dtype: as `save_artifact` is given.
    """
    prompt_ids = token_ids(tokenizer, probe)[:_LONGEST_PROBE]
    text: Any = tokenizer.decode(prompt_ids)
    whole = not hasattr(model, "peft_config")
    with _head_as_read_back(model, dtype):
        logits = logits_of(model, prompt_ids)
    return Reference(
        text=text,
        text_ids=token_ids(tokenizer, text),
        chat_template=tokenizer.chat_template,
        prompt_ids=prompt_ids,
        logits=logits,
        tensors=_digests(model, weights, save_dtype if whole else None, dtype),
        dtype=dtype,
        saved_dtype=save_dtype if whole and save_dtype != dtype else None,
        loading=loading or {},
        device=str(next(model.parameters()).device),
    )


def verify(
    folder: Path, reference: Reference, *, stop_prompt: Prompt | None = None, stop_within: int = 128
) -> Verification:
    """Load `folder` as a stranger would, and compare token ids, saved tensors and logits with the reference.

    Args:
        stop_prompt: a training prompt from which generation is tried; not stopping is told, and is no error.
        stop_within: how many new tokens it may take.
    Raises:
        RunFailed: naming what differs, and by how much.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = _read(folder, AutoTokenizer.from_pretrained, str(folder))
    _same_tokenizer(folder, reference, tokenizer)
    model = read_back(folder, dtype=reference.dtype, **reference.loading).to(reference.device)
    _same_tensors(folder, reference, _digests(model, None, reference.saved_dtype))
    relative = _tolerance(reference.dtype, reference.saved_dtype)
    found = logits_of(model, reference.prompt_ids)
    difference, tolerance = compare(folder, reference.logits, found, relative)
    if is_reward_model(_located(folder)):
        compare(folder, *_pooled_and_last(model, tokenizer, reference.prompt_ids), EXACT)
    verification = Verification(
        largest_difference=difference,
        tolerance=tolerance,
        tensors=len(reference.tensors),
        prompt_tokens=len(reference.prompt_ids),
    )
    if stop_prompt is not None:
        verification.stops, verification.new_tokens = _stops(folder, model, tokenizer, stop_prompt, stop_within)
    return verification


def read_back(folder: Path, **loading: Any) -> Any:
    """A saved model or adapter, loaded by the plain libraries alone.

    Raises:
        RunFailed: when they can't.
    """
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    located = _located(folder)
    loader: Any
    if is_reward_model(located):
        adapted = located.kind == "adapter"
        loader = AutoPeftModelForSequenceClassification if adapted else AutoModelForSequenceClassification
    else:
        loader = AutoPeftModelForCausalLM if located.kind == "adapter" else AutoModelForCausalLM
    return keep_packing(_read(folder, loader.from_pretrained, str(folder), use_safetensors=True, **loading))


def _located(folder: Path) -> Located:
    return Located("adapter" if (folder / "adapter_config.json").is_file() else "model", str(folder))


def compare(folder: Path, expected: Tensor, found: Tensor, relative: float) -> tuple[float, float]:
    """The largest difference between logits, and what is allowed: `relative` times the largest logit (or 1).

    Raises:
        RunFailed: when the difference is larger than that.
    """
    if expected.shape != found.shape:
        raise RunFailed.at(
            str(folder), f"logits read back have shape {tuple(found.shape)}, not {tuple(expected.shape)}"
        )
    differences = (expected - found).abs()
    largest = float(differences.max())
    allowed = relative * max(1.0, float(expected.abs().max()))
    if not largest <= allowed:
        token = int(differences.amax(dim=-1).argmax())
        wrong = f"read back from disk, its logits differ by {largest:.3g} at token {token} (allowed: {allowed:.3g})"
        raise RunFailed.at(str(folder), wrong, "what was saved is not what was trained; don't use it")
    return largest, allowed


def _read(folder: Path, load: Any, *arguments: Any, **options: Any) -> Any:
    try:
        with quietly():
            return load(*arguments, **options)
    except Exception as error:  # safetensors, tokenizers, transformers and peft each raise their own
        message = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise RunFailed.at(
            str(folder), f"can't be read back: {message}", "what was saved is broken; don't use it"
        ) from error


def logits_of(model: Any, ids: list[int]) -> Tensor:
    """The logits of a prompt's tokens, (tokens, vocabulary), float32 on the CPU; a soft prompt's own are left out.

    Of a reward model they are the scores that it would give at each token, (tokens, 1).
    """
    import torch

    from tutelage.models.heads import score_head

    was_training = model.training
    model.eval()
    caught: list[Tensor] = []
    head = score_head(model)
    handle = head.register_forward_hook(lambda *given: caught.append(given[-1])) if head else None
    try:
        with torch.no_grad():
            batch = torch.tensor([ids], device=next(model.parameters()).device)
            logits: Tensor = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits
    finally:
        model.train(was_training)
        if handle is not None:
            handle.remove()
    return (caught[0] if caught else logits)[0, -len(ids) :].float().cpu()


def _pooled_and_last(model: Any, tokenizer: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Scores of a sequence and of its first half in one padded batch: those at each one's last token, and those that
    transformers takes, (2, 1) each. They are equal to the bit unless it takes an end for padding."""
    import torch

    from tutelage.models.heads import pooled_scores, score_head

    model.eval()
    # What pads may stand within a sequence, where it begins a turn, say; but none ends with it.
    halves = range(max(1, len(ids) // 2), len(ids) + 1)
    half = next((length for length in halves if ids[length - 1] != tokenizer.pad_token_id), len(ids))
    rows = [ids, ids[:half]]
    caught: list[Tensor] = []
    head: Any = score_head(model)
    handle = head.register_forward_hook(lambda *given: caught.append(given[-1]))
    with torch.no_grad():
        pooled = pooled_scores(model, rows, tokenizer.pad_token_id, next(model.parameters()).device)
    handle.remove()
    last = torch.stack([scores[len(row) - 1] for scores, row in zip(caught[0], rows, strict=True)])
    return last.float().cpu(), pooled[:, None].cpu()


@contextmanager
def _head_as_read_back(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """With an adapter's score head rounded as peft rounds it when it reads it beside a base in `dtype`; it learns, and
    is stored, in float32."""
    from tutelage.models.heads import score_head

    head: Any = score_head(model) if hasattr(model, "peft_config") else None
    if head is None:
        yield
        return
    learnt = head.weight.detach().clone()
    try:
        head.weight.data.copy_(learnt.to(dtype))
        yield
    finally:
        head.weight.data.copy_(learnt)


def _digests(
    model: Any, weights: dict[str, Any] | None, save_dtype: torch.dtype | None, dtype: torch.dtype | None = None
) -> dict[str, str]:
    """SHA-256 of every tensor that an artifact of this model holds, by its name in the loaded model.

    An adapter's score head is stored in float32 and rounded by peft to the base's `dtype` when it is read back.
    """
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        saved = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
        return {name: _digest(tensor, dtype if name.endswith(SCORE) else None) for name, tensor in saved.items()}
    saved = model.state_dict() if weights is None else weights
    return {name: _digest(tensor, save_dtype) for name, tensor in saved.items()}


def _digest(tensor: Tensor, save_dtype: torch.dtype | None) -> str:
    import torch

    if save_dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(save_dtype)
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()


def _same_tokenizer(folder: Path, reference: Reference, tokenizer: Any) -> None:
    ids = token_ids(tokenizer, reference.text)
    fix = "what was saved is not what was trained; don't use it"
    if ids != reference.text_ids:
        pairs = enumerate(zip(reference.text_ids, ids, strict=False))
        shorter = min(len(ids), len(reference.text_ids))
        at = next((index for index, (one, other) in pairs if one != other), shorter)
        wrong = f"its tokenizer, read back, turns the same prompt into other tokens (from token {at} on)"
        raise RunFailed.at(str(folder), wrong, fix)
    if tokenizer.chat_template != reference.chat_template:
        raise RunFailed.at(str(folder), "its chat template, read back, is another", fix)


def _same_tensors(folder: Path, reference: Reference, found: dict[str, str]) -> None:
    names = reference.tensors.keys() | found.keys()
    differing = sorted(name for name in names if reference.tensors.get(name) != found.get(name))
    if differing:
        count = f"{len(differing)} of its {len(names)} tensors"
        wrong = f"{count}, read back from disk, differ from those trained: {differing[0]}"
        raise RunFailed.at(str(folder), wrong, "what was saved is not what was trained; don't use it")


def _tolerance(dtype: torch.dtype, saved_dtype: torch.dtype | None) -> float:
    import torch

    if saved_dtype is not None:  # how far rounding moves logits is up to the model; digests of
        return math.inf  # the rounded tensors have shown that nothing else differs
    return EXACT if dtype == torch.float32 else CLOSE


def _stops(folder: Path, model: Any, tokenizer: Any, prompt: Prompt, within: int) -> tuple[bool, int]:
    """Generate greedily from a prompt with the ends that the folder names, and see whether one comes."""
    import torch

    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    ends = settings.get("eos_token_id")
    ends = {ends} if isinstance(ends, int) else set(ends or [])
    ids = token_ids(tokenizer, prompt, answering=True)
    model.eval()
    with torch.no_grad(), quietly():
        new = generate_ids(
            model,
            [ids],
            max_new_tokens=within,
            do_sample=False,
            eos_token_id=sorted(ends) or None,
            pad_token_id=settings.get("pad_token_id") or 0,
        )[0]
    return bool(new) and new[-1] in ends, len(new)
