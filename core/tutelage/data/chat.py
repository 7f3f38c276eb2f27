"""What a model's chat template makes of a conversation, and where in it the assistant's turns lie.

A template with `{% generation %}` says itself what is generated. Any other is asked to render the turns before an
assistant turn as it does for inference: what the whole conversation has after exactly that text is what the model is to
write. A template that renders a turn otherwise than it prompts for it is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Span(msgspec.Struct):
    """A turn in a rendered conversation: it starts after `before` characters and has ended by character `limit`."""

    turn: int
    before: int
    limit: int
    after: str
    "The conversation rendered up to and with this turn."


class ChatTemplate:
    """The chat template of a tokenizer. All methods raise ValueError with a sentence where a conversation won't do."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer

    def check(self, messages: Messages, tools: list[dict[str, Any]] | None) -> None:
        """Refuse a conversation with something in it that the template has no words for."""
        source = self._source(tools)
        for needed, has in (("tools", bool(tools)), ("tool_calls", any(turn.get("tool_calls") for turn in messages))):
            if has and needed not in source:
                raise ValueError(
                    f"has {needed}, which the model's chat template would leave out; give one that writes them "
                    "by tokenizer.chat_template"
                )

    def marks(self, tools: list[dict[str, Any]] | None) -> bool:
        """Whether the template says itself what is generated."""
        return _GENERATION.search(self._source(tools)) is not None

    def text(self, messages: Messages, tools: list[dict[str, Any]] | None = None, prompt: bool = False) -> str:
        """A conversation as text; with `prompt`, as inference has it when the assistant's turn comes."""
        text: str = self._apply(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
        return text

    def span(self, messages: Messages, tools: list[dict[str, Any]] | None, whole: str, turn: int) -> Span:
        """Where a turn lies in the whole conversation's text."""
        if turn == 0:
            raise ValueError("starts with an assistant turn, which nothing prompts; put a user turn before it")
        before = self.text(messages[:turn], tools, prompt=True)
        after = whole if turn == len(messages) - 1 else self.text(messages[: turn + 1], tools)
        if not whole.startswith(before):
            raise ValueError(_rewritten(turn, earlier=turn != last_answer(messages)))
        limit = len(after) if whole.startswith(after) else _common(whole, after)
        if limit <= len(before):
            raise ValueError(_rewritten(turn, earlier=True))
        _check_said(messages[turn], turn, whole[len(before) : limit])
        return Span(turn, len(before), limit, after)

    def marked(
        self, messages: Messages, tools: list[dict[str, Any]] | None, learnt: list[int]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """By a template that marks what is generated: the ids, and start and end of each run of generated tokens."""
        encoded = self._apply(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        text = self.text(messages, tools)
        for turn in learnt:
            _check_said(messages[turn], turn, text)
        changes = np.diff(np.array([0, *encoded["assistant_masks"], 0], dtype=np.int8))
        starts, ends = np.flatnonzero(changes == 1).tolist(), np.flatnonzero(changes == -1).tolist()
        if not starts:
            raise ValueError("the chat template marks nothing in it as generated; there is nothing to learn")
        return encoded["input_ids"], list(zip(starts, ends, strict=True))

    def _source(self, tools: list[dict[str, Any]] | None) -> str:
        if not self._tokenizer.chat_template:
            raise ValueError(
                "is a conversation, but the model has no chat template; give one by tokenizer.chat_template"
            )
        source: str = self._tokenizer.get_chat_template(None, tools)
        return source

    def _apply(self, messages: Messages, **options: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(messages, **options)
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the chat template refuses it: {error}") from None


def last_answer(messages: Messages) -> int:
    """The index of the last assistant turn."""
    return max(index for index, message in enumerate(messages) if message.get("role") == "assistant")


def _rewritten(turn: int, earlier: bool) -> str:
    wrong = f"the chat template writes turn {turn + 1} otherwise than it prompts for it"
    if earlier:
        return f"{wrong} (templates that take reasoning out of earlier turns do); set data.learn_from to last"
    return (
        f"{wrong} (templates that prompt for reasoning do); write the answer with its reasoning, or give another "
        "template by tokenizer.chat_template"
    )


def _check_said(message: dict[str, Any], turn: int, rendered: str) -> None:
    """Refuse a turn of which the template leaves out what it says, as templates made for images do with plain text.

    Only the last line is looked for: templates may move reasoning and trim spaces.
    """
    lines = str(message.get("content") or "").strip().splitlines()
    if lines and lines[-1].strip() not in rendered:
        raise ValueError(
            f"the chat template leaves out what turn {turn + 1} says; give another by tokenizer.chat_template"
        )


def _common(first: str, second: str) -> int:
    """How many characters two texts have in common at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
