"""What can still be read of a row that no format accepts, so that checks can say what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"))


def readable_turns(row: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """The turns of a row, roles as they stand there, and the shape it seems to have (empty when it has none)."""
    for column in ("messages", "conversations"):
        if isinstance(row.get(column), list):
            return [_turn(item) for item in row[column]], column
    if "chosen" in row and "rejected" in row:
        return [*_side(row.get("prompt"), "user"), *_side(row["chosen"], "assistant")], "preference"
    for asked, answered in _PAIRS:
        if asked in row and answered in row:
            question = "\n".join(text for text in (plain(row[asked]), plain(row.get("input"))) if text)
            return [("user", question), ("assistant", plain(row[answered]))], f"{asked}/{answered}"
    if "text" in row:
        return [("text", plain(row["text"]))], "text"
    return [], ""


def text_of(turn: dict[str, Any]) -> str:
    """A turn's text; the calls of a turn that only calls tools."""
    text = plain(turn.get("content"))
    calls = turn.get("tool_calls")
    return text or (json.dumps(calls, ensure_ascii=False) if calls else "")


def plain(content: Any) -> str:
    """Text of a content that may be a string, null, or a list of parts of which some are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return "" if content is None else json.dumps(content, ensure_ascii=False)


def _turn(item: Any) -> tuple[str, str]:
    if not isinstance(item, dict):
        return "", plain(item)
    role = item.get("role", item.get("from"))
    role = role if isinstance(role, str) else ""
    return _ROLES.get(role, role), plain(item.get("value")) if "value" in item else text_of(item)


def _side(content: Any, role: str) -> list[tuple[str, str]]:
    """A prompt or an answer of a preference row: text, or a list of turns."""
    if isinstance(content, list):
        return [_turn(item) for item in content]
    return [(role, plain(content))] if content is not None else []
