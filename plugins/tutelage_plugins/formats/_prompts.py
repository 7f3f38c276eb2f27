"""Prompts and answers as rows of preference data spell them: text, or messages."""

from __future__ import annotations

from typing import Any

from tutelage.formats import Prompt
from tutelage_plugins.formats._turns import kind_of, message


def prompt_of(value: Any, field: str) -> Prompt:
    """Text or messages that end with someone other than the assistant.

    Raises:
        ValueError: with a sentence that names the field.
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{field} is empty")
        return value
    messages = _messages(value, field)
    if messages[-1].get("role") == "assistant":
        raise ValueError(f"{field} ends with the assistant's turn, where a prompt ends with the user's")
    return messages


def answer_of(value: Any, field: str, prompt: Prompt | None = None) -> str:
    """An answer: text, one assistant turn, or a whole conversation that begins with the prompt.

    Raises:
        ValueError: with a sentence that names the field.
    """
    if isinstance(value, str):
        answer = value
    else:
        messages = _messages(value, field)
        last = messages[-1]
        if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
            raise ValueError(f"{field} does not end with an assistant's turn of text")
        before = messages[:-1]
        if before and before != prompt:
            raise ValueError(f"{field} has turns before its answer that are not the prompt's")
        answer = last["content"]
    if not answer.strip():
        raise ValueError(f"{field} is empty")
    return answer


def _messages(value: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field} is {kind_of(value)}, not text or a list of messages")
    return [message(turn, f"{field}[{index}]") for index, turn in enumerate(value)]
