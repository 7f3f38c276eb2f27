"""The format of ShareGPT exports, which Vicuna (Chiang et al. 2023) made common."""

from __future__ import annotations

import json
from typing import Any

from tutelage.formats import Conversation, DataFormat
from tutelage_plugins.formats._turns import conversation, kind_of

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class ShareGPT(DataFormat):
    """`conversations: [{from: human, value: …}, {from: gpt, value: …}, …]`; also `system` and `tools`."""

    name = "sharegpt"
    columns = ("conversations",)

    def matches(self, row: dict[str, Any]) -> bool:
        turns = row.get("conversations")
        return isinstance(turns, list) and all(
            isinstance(turn, dict) and ("from" in turn or "role" in turn) for turn in turns[:1]
        )

    def convert(self, row: dict[str, Any]) -> Conversation:
        turns = row.get("conversations")
        if not isinstance(turns, list):
            raise ValueError(f"conversations is {kind_of(turns)}, not a list of turns")
        messages = [_message(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
        system = row.get("system")
        if isinstance(system, str) and system.strip():
            if messages and messages[0].get("role") == "system":
                raise ValueError("has a system column and a system turn too; keep one of them")
            return conversation(
                [{"role": "system", "content": system}, *messages], row.get("tools"), "system + conversations"
            )
        return conversation(messages, row.get("tools"), "conversations")


def _message(turn: Any, place: str) -> dict[str, Any]:
    """A turn with `role` and `content`; turns that have them already are kept."""
    if not isinstance(turn, dict):
        raise ValueError(f"{place} is {kind_of(turn)}, not an object with from and value")
    if "from" not in turn:
        return turn
    speaker, value = turn["from"], turn.get("value")
    if not isinstance(value, str):
        raise ValueError(f"{place}.value is {kind_of(value)}, not text")
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": _calls(value, place)}
    if speaker not in SPEAKERS:
        raise ValueError(f"{place}.from is {speaker!r}; known are {', '.join([*SPEAKERS, 'function_call'])}")
    weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    return {"role": SPEAKERS[speaker], "content": value, **weight}


def _calls(value: str, place: str) -> list[Any]:
    """Tool calls from JSON text: one `{name, arguments}` or a list of them."""
    try:
        calls = json.loads(value)
    except ValueError:
        raise ValueError(f"{place}.value is a function call, but not JSON") from None
    return calls if isinstance(calls, list) else [calls]
