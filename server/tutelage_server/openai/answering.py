"""`python -m tutelage_server.openai.answering`: a process that holds one model and answers questions put to it.

Lines of `openai.protocol` come on standard input and go to standard output. Questions share the model token by token.
The process ends when its input does, whatever it does at that time: so it never outlives the server.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from tutelage.errors import TutelageError
from tutelage_server.openai.protocol import (
    Ask,
    Began,
    Ended,
    Failed,
    FromProcess,
    Leave,
    Load,
    Loaded,
    Piece,
    Refused,
    ToProcess,
)

CONTEXT_FULL = "context_length_exceeded"
Replies = Iterator[list[FromProcess]]


class Voice:
    """One answer as it grows: its tokens become text, which is held back where it may be the start of a stop string."""

    def __init__(self, tokenizer: Any, stop: list[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._settled, self._shown = 0, 0
        self._held = ""
        self.tokens = 0
        self.ended: Literal["stop", "length", ""] = ""

    def take(self, token: int, *, is_end: bool) -> str:
        """Take a token; the text that may be shown now."""
        self.tokens += 1
        if is_end:
            return self.finish("stop")
        self._ids.append(token)
        self._held += self._grown()
        if found := [position for text in self._stop if (position := self._held.find(text)) >= 0]:
            self.ended = "stop"
            return self._held[: min(found)]
        wait = max((_overlap(self._held, text) for text in self._stop), default=0)
        shown = self._held[: len(self._held) - wait]
        self._held = self._held[len(shown) :]
        return shown

    def finish(self, reason: Literal["stop", "length"]) -> str:
        """No token comes any more; the text that was held back."""
        self.ended = reason
        return self._held + self._grown(whole=True)

    def _grown(self, whole: bool = False) -> str:
        """Text that the newest tokens add; half a character waits for its rest. Only a few last tokens are decoded."""
        before = self._decode(self._ids[self._settled : self._shown])
        now = self._decode(self._ids[self._settled :])
        if len(now) <= len(before) or (now.endswith("\N{REPLACEMENT CHARACTER}") and not whole):
            return ""
        self._settled, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text are the first of a stop string, which is not whole yet."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def replies(model: Any, tokenizer: Any, ask: Ask) -> Replies:
    """Answer a question step by step; each step's replies are yielded together."""
    from tutelage.models.sampling import draw, ends_of

    try:
        ids, room = _prompt(model, tokenizer, ask)
    except TutelageError as error:
        code = CONTEXT_FULL if "context" in str(error) else "invalid_messages"
        yield [Refused(id=ask.id, problem=str(error), code=code)]
        return
    except Exception as error:  # a chat template may refuse in any way it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        wrong = f"the model's chat template can't write these messages: {reason}"
        yield [Refused(id=ask.id, problem=wrong, code="invalid_messages")]
        return
    yield [Began(id=ask.id, prompt_tokens=len(ids))]
    ends: Any = ends_of(model, tokenizer)
    voices = [Voice(tokenizer, ask.stop) for _ in ask.seeds]
    options = {"temperature": ask.temperature, "top_p": ask.top_p, "seeds": ask.seeds, **ends}
    for step in draw(model, ids, max_new_tokens=room, **options):
        told: list[FromProcess] = []
        for index, token in step:
            voice = voices[index]
            if not voice.ended:
                text = voice.take(token, is_end=token in ends["ends"])
                told += _told(ask.id, index, voice, text)
        yield told
        if all(voice.ended for voice in voices):
            return
    yield [
        reply
        for index, voice in enumerate(voices)
        if not voice.ended
        for reply in _told(ask.id, index, voice, voice.finish("length"))
    ]


def _told(id: str, index: int, voice: Voice, text: str) -> list[FromProcess]:
    told: list[FromProcess] = [Piece(id=id, index=index, text=text)] if text else []
    if voice.ended:
        told.append(Ended(id=id, index=index, reason=voice.ended, tokens=voice.tokens))
    return told


def _prompt(model: Any, tokenizer: Any, ask: Ask) -> tuple[list[int], int]:
    """The prompt's token ids, and how many may follow.

    Raises:
        TutelageError: when it does not fit the context, or the model has no chat template.
    """
    from tutelage.models.generation import encode
    from tutelage.models.prompts import soft_tokens

    ids = encode(model, tokenizer, list(ask.messages), ask.max_tokens or 1, "")
    if ask.max_tokens:
        return ids, ask.max_tokens
    context = getattr(model.config, "max_position_embeddings", None)
    room = context - len(ids) - soft_tokens(model) if isinstance(context, int) else ask.most_tokens
    return ids, min(room, ask.most_tokens)


def load(order: Load) -> tuple[Any, Any]:
    """The model and the tokenizer.

    Raises:
        TutelageError: when there is no such model, or it has no chat template.
    """
    import torch

    from tutelage.models.generation import load_for_generation
    from tutelage.plugins import host

    torch.set_num_threads(order.threads)
    model, tokenizer = load_for_generation(order.model, host(), base=Path(order.base), device=order.device)
    if not tokenizer.chat_template:
        raise TutelageError.at("the model", "has no chat template, so it can't tell turns apart", "tune another base")
    if order.checkpoint:
        _put_back(model, Path(order.checkpoint))
    return model, tokenizer


def _put_back(model: Any, checkpoint: Path) -> None:
    """Give an adapter the weights that it had at a checkpoint."""
    import torch
    from safetensors import safe_open

    from tutelage.engine.checkpoints import LEARNT

    parameters = dict(model.named_parameters())
    with safe_open(checkpoint / LEARNT, framework="pt") as learnt, torch.no_grad():
        for name in learnt.keys():  # noqa: SIM118 - it is no dict
            if name not in parameters:
                raise TutelageError.at("the checkpoint", f"has {name}, which the model lacks", "ask the tuned model")
            parameters[name].copy_(learnt.get_tensor(name))


def serve(model: Any, tokenizer: Any, orders: queue.Queue[ToProcess], tell: Any) -> None:
    """Answer questions for ever: each in turn gets a token for each of its answers."""
    open_questions: dict[str, Replies] = {}
    while True:
        while not open_questions or not orders.empty():
            order = orders.get()
            if isinstance(order, Ask):
                open_questions[order.id] = replies(model, tokenizer, order)
            elif isinstance(order, Leave):
                open_questions.pop(order.id, None)
        for id, question in list(open_questions.items()):
            try:
                told = next(question, None)
            except Exception as error:
                told = [Refused(id=id, problem=f"{type(error).__name__}: {error}"[:500], code="failed", mine=True)]
                del open_questions[id]
            if told is None:
                open_questions.pop(id, None)
            for reply in told or []:
                tell(reply)


def _listen(source: BinaryIO, orders: queue.Queue[ToProcess]) -> None:
    decoder = msgspec.json.Decoder(ToProcess)
    for line in source:
        orders.put(decoder.decode(line))
    os._exit(0)


def main() -> None:
    """The process."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not come between replies
    orders: queue.Queue[ToProcess] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()

    def tell(reply: FromProcess) -> None:
        answers.write(msgspec.json.encode(reply) + b"\n")

    order = orders.get()
    if not isinstance(order, Load):
        raise SystemExit("the first line must say what to load")
    try:
        model, tokenizer = load(order)
    except TutelageError as error:
        tell(Failed(problem=str(error)))
        return
    except Exception as error:
        tell(Failed(problem=f"{type(error).__name__}: {error}"[:500]))
        raise
    tell(Loaded())
    serve(model, tokenizer, orders, tell)


if __name__ == "__main__":
    main()
