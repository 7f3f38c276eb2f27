"""What the chat-like formats share: checking turns and bringing them into the one shape that chat templates expect."""

from __future__ import annotations

import json
from typing import Any

from tutelage.formats import Conversation

ROLES = ("system", "developer", "user", "assistant", "tool")


def conversation(turns: list[Any], tools: Any, field: str) -> Conversation:
    """Check turns (`role`, `content`, …) found in `field` and make a conversation of them.

    Raises:
        ValueError: naming the turn and what is wrong with it.
    """
    if not turns:
        raise ValueError(f"{field} is empty; a conversation needs at least one turn")
    messages = [message(turn, f"{field}[{index}]") for index, turn in enumerate(turns)]
    if not any(turn["role"] == "assistant" for turn in messages):
        raise ValueError(f"{field} has no assistant turn; there is nothing to learn")
    return Conversation(messages, tool_list(tools))


def message(turn: Any, place: str) -> dict[str, Any]:
    """One turn without its empty fields, its content as text and its tool calls' arguments as mappings."""
    if not isinstance(turn, dict):
        raise ValueError(f"{place} is {kind_of(turn)}, not an object with role and content")
    clean = {key: value for key, value in turn.items() if value is not None}
    role = clean.get("role")
    if role not in ROLES:
        raise ValueError(f"{place}.role is {role!r}; known roles are {', '.join(ROLES)}")
    if "content" in clean:
        clean["content"] = _text(clean["content"], f"{place}.content")
    if calls := clean.get("tool_calls"):
        if not isinstance(calls, list):
            raise ValueError(f"{place}.tool_calls is {kind_of(calls)}, not a list of calls")
        clean["tool_calls"] = [_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)]
        clean.setdefault("content", "")
    elif "content" not in clean:
        raise ValueError(f"{place}.content is missing")
    elif role == "assistant" and not clean["content"].strip():
        raise ValueError(f"{place}.content is empty; an assistant turn must say something")
    if clean.get("weight", 1) not in (0, 1):
        raise ValueError(f"{place}.weight is {clean['weight']!r}; it must be 0 (not learnt) or 1")
    return clean


def tool_list(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as JSON schemas, from a list or from JSON text."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise ValueError("tools is text, but not JSON; it must be a list of tool descriptions") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools must be a list of objects, each the description of a tool")
    return tools


def text_field(row: dict[str, Any], field: str) -> str:
    """A field that must hold some text."""
    value = row.get(field)
    if not isinstance(value, str):
        raise ValueError(f"{field} is {kind_of(value)}, not text")
    if not value.strip():
        raise ValueError(f"{field} is empty")
    return value


def kind_of(value: Any) -> str:
    """What JSON calls a value, for sentences."""
    if value is None:
        return "missing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _text(content: Any, place: str) -> str:
    """Content as one string; lists of text parts (`{type: text, text: …}`) are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{place} is {kind_of(content)}, not text")
    parts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ValueError(f"{place} holds something other than text; only text can be learnt")
        parts.append(part["text"])
    return "".join(parts)


def _call(call: Any, place: str) -> dict[str, Any]:
    """A tool call with its arguments as a mapping, which chat templates expect; data often holds them as JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place} names no function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise ValueError(f"{place}.arguments is text, but not JSON") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{place}.arguments is {kind_of(arguments)}, not an object")
    rest = {
        key: value for key, value in call.items() if key not in ("function", "name", "arguments") and value is not None
    }
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": arguments}}
