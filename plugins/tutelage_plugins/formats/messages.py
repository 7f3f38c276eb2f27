"""Chat conversations in the form that chat APIs use."""

from __future__ import annotations

from typing import Any

from tutelage.formats import Conversation, DataFormat
from tutelage_plugins.formats._turns import conversation, kind_of


class Messages(DataFormat):
    """Chat turns: `messages: [{role, content}, …]`, with system and tool turns; `tools` where there are any.

    An assistant turn with `weight: 0` is seen but not learnt.
    """

    name = "messages"
    columns = ("messages",)

    def matches(self, row: dict[str, Any]) -> bool:
        turns = row.get("messages")
        return isinstance(turns, list) and all(isinstance(turn, dict) and "role" in turn for turn in turns[:1])

    def convert(self, row: dict[str, Any]) -> Conversation:
        turns = row.get("messages")
        if not isinstance(turns, list):
            raise ValueError(f"messages is {kind_of(turns)}, not a list of turns")
        return conversation(turns, row.get("tools"), "messages")
