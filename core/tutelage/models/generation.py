"""Generates text with a model or an adapter: in batches, or piece by piece for a chat."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import TutelageError
from tutelage.models.loading import end_ids, load_model, load_tokenizer, quietly
from tutelage.models.locating import Located, fetch, locate
from tutelage.models.merging import with_adapter
from tutelage.models.prompts import Prompt, generate_ids, soft_tokens, token_ids
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
        seed: of the sampling; the process's own random state is left as it was.
    Raises:
        TutelageError: when a prompt has no tokens, does not fit the context, or needs a chat template that is missing.
    """
    import torch

    encoded = [
        encode(model, tokenizer, prompt, max_new_tokens, f"prompt {index}") for index, prompt in enumerate(prompts)
    ]
    options = _options(model, tokenizer, max_new_tokens, temperature, top_p)
    answers = [""] * len(prompts)
    with torch.random.fork_rng(), torch.no_grad(), quietly():
        torch.manual_seed(seed)
        by_length = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        for start in range(0, len(encoded), batch_size):
            rows = by_length[start : start + batch_size]
            for row, ids in zip(rows, generate_ids(model, [encoded[row] for row in rows], **options), strict=True):
                answers[row] = _text(tokenizer, ids, options)
    return answers


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
    ids = encode(model, tokenizer, prompt, max_new_tokens, "prompt")
    options = _options(model, tokenizer, max_new_tokens, temperature, top_p)
    streamer = _Streamer()

    def work() -> None:
        import torch

        try:
            with torch.random.fork_rng(), torch.no_grad(), quietly():
                torch.manual_seed(seed)
                generate_ids(model, [ids], **options, streamer=streamer, stopping_criteria=[streamer.stopping])
            streamer.items.put(None)
        except BaseException as error:  # carried over to the thread that reads
            streamer.items.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _pieces(tokenizer, streamer, options)
    finally:
        streamer.stopped.set()
        thread.join()


class _Streamer:
    """What transformers hands new tokens to, (batch,) at a time, after the prompt's."""

    def __init__(self) -> None:
        self.items: queue.Queue[int | BaseException | None] = queue.Queue()
        self.stopped = threading.Event()
        self._past_prompt = False

    def put(self, value: Any) -> None:
        if self._past_prompt:
            for token in value.reshape(-1).tolist():
                self.items.put(token)
        self._past_prompt = True

    def end(self) -> None:
        """Called after the last token."""

    def stopping(self, input_ids: Any, *_: Any, **__: Any) -> Any:
        import torch

        return torch.full((input_ids.shape[0],), self.stopped.is_set(), device=input_ids.device)


def _pieces(tokenizer: Any, streamer: _Streamer, options: dict[str, Any]) -> Iterator[str]:
    """Text as it grows; half a character (shown as the replacement mark) waits for its rest."""
    ids: list[int] = []
    shown = ""
    while (item := streamer.items.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        ids.append(item)
        text = _text(tokenizer, ids, options)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and text.startswith(shown) and text != shown:
            yield text[len(shown) :]
            shown = text
    rest = _text(tokenizer, ids, options)
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


def _options(model: Any, tokenizer: Any, max_new_tokens: int, temperature: float, top_p: float) -> dict[str, Any]:
    ends = sorted(end_ids(model, tokenizer))
    pad = tokenizer.pad_token_id
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": ends or None,
        "pad_token_id": pad if pad is not None else next(iter(ends), 0),
        "do_sample": temperature > 0,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    return options


def _text(tokenizer: Any, ids: list[int], options: dict[str, Any]) -> str:
    ends = set(options["eos_token_id"] or [])
    end = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    text: str = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
