"""Generates text with a model or an adapter: in batches, or piece by piece for a chat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import TutelageError
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.models.locating import Located, fetch, locate
from tutelage.models.merging import with_adapter
from tutelage.models.prompts import Prompt, soft_tokens, token_ids
from tutelage.plugins import Host
from tutelage.recipe import Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def load_for_generation(
    reference: str, host: Host, *, base: Path | None = None, dtype: torch.dtype | str = "auto", device: str = "auto"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model and tokenizer of any reference: a model, an adapter (on top of its base) or a run.

    Args:
        base: the folder that relative paths start from; the current one by default.
        device: such as "cpu" or "cuda:0"; "auto" takes an accelerator where there is one.
    Raises:
        TutelageError: when there is no such model.
    """
    import torch

    located = fetch(locate(reference, base or Path.cwd(), "model", host))
    tokenizer = load_tokenizer(located, Tokens(), Path.cwd())
    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        device = str(found) if found is not None else "cpu"
    return load_located(located, dtype).to(device).eval(), tokenizer


def load_located(located: Located, dtype: torch.dtype | str) -> Any:
    """A model that is on this machine; an adapter stays one, on top of its base."""
    from tutelage.models.loading import base_of

    if located.kind != "adapter":
        return load_model(located, dtype=dtype)
    folder = Path(located.path)
    return with_adapter(load_model(base_of(folder), dtype=dtype), folder)


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
) -> list[str]:
    """Answer prompts, in their order.

    A text is put as a user's turn where the tokenizer has a chat template, and continued as it is where not. Prompts
    are batched by length and padded on the left. Special tokens that the model learnt to write are kept; the one that
    ends an answer is not.

    Args:
        temperature: 0 takes the likeliest token each time.
        seed: of the sampling: each answer has random numbers of its own, by its place; the process's own random state
            is left as it was.
    Raises:
        TutelageError: when a prompt has no tokens, does not fit the context, or needs a chat template that is missing;
            or the adapter is of a kind that can't be sampled from.
    """
    from tutelage.models.sampling import ends_of, sample, seed_of

    encoded = [
        encode(model, tokenizer, prompt, max_new_tokens, f"prompt {index}") for index, prompt in enumerate(prompts)
    ]
    rule: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    rule |= ends_of(model, tokenizer)
    seeds = [seed_of(seed, index) for index in range(len(prompts))]
    drawn = sample(model, encoded, seeds=seeds, batch_size=batch_size, log_probs=False, **rule)
    return [_text(tokenizer, each.ids, rule["ends"]) for each in drawn]


def stream(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    max_new_tokens: int = 1024,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Answer one prompt piece by piece, as `generate` would; closing the iterator stops the model.

    Raises:
        TutelageError: as `generate` does.
    """
    from tutelage.models.sampling import draw, ends_of, seed_of

    ids = encode(model, tokenizer, prompt, max_new_tokens, "prompt")
    rule: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    rule |= ends_of(model, tokenizer)
    steps = draw(model, ids, seeds=[seed_of(seed, 0)], **rule)
    yield from _pieces(tokenizer, (token for step in steps for _, token in step), rule["ends"])


def _pieces(tokenizer: Any, tokens: Iterable[int], ends: frozenset[int]) -> Iterator[str]:
    """Text as it grows; half a character (shown as the replacement mark) waits for its rest."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = _text(tokenizer, ids, ends)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and text.startswith(shown) and text != shown:
            yield text[len(shown) :]
            shown = text
    rest = _text(tokenizer, ids, ends)
    if rest.startswith(shown) and rest != shown:
        yield rest[len(shown) :]


def encode(model: Any, tokenizer: Any, prompt: Prompt, max_new_tokens: int, place: str) -> list[int]:
    """A prompt as token ids, that leave room for an answer.

    Raises:
        TutelageError: naming `place`, when it is empty, does not fit, or needs a chat template that is missing.
    """
    if isinstance(prompt, str) and tokenizer.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict) and not tokenizer.chat_template:
        raise TutelageError.at(
            place, "the model has no chat template, so it can't answer messages", "give it plain text"
        )
    ids = token_ids(tokenizer, prompt, answering=True)
    if not ids:
        raise TutelageError.at(place, "is empty", "give the model something to go on from")
    context = getattr(model.config, "max_position_embeddings", None)
    length = len(ids) + soft_tokens(model)
    if isinstance(context, int) and length + max_new_tokens > context:
        wrong = f"its {length} tokens and {max_new_tokens} new ones are more than the model's context of {context}"
        raise TutelageError.at(place, wrong, "shorten it, or ask for fewer new tokens")
    return ids


def _text(tokenizer: Any, ids: list[int], ends: frozenset[int]) -> str:
    end = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    text: str = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
