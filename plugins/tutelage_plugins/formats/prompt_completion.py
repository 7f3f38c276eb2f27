"""A prompt and what should follow it."""

from __future__ import annotations

from typing import Any

from tutelage.formats import Continuation, Conversation, DataFormat
from tutelage_plugins.formats._turns import conversation, kind_of, text_field


class PromptCompletion(DataFormat):
    """`prompt` and `completion`, both text or both lists of chat turns; only the completion is learnt."""

    name = "prompt_completion"
    columns = ("prompt", "completion")

    def matches(self, row: dict[str, Any]) -> bool:
        kinds = {type(row.get(column)) for column in self.columns}
        return kinds in ({str}, {list})

    def convert(self, row: dict[str, Any]) -> Continuation | Conversation:
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            before = [{**turn, "weight": 0} if _answers(turn) else turn for turn in prompt]
            return conversation(before + completion, row.get("tools"), "prompt + completion")
        if isinstance(prompt, list) or isinstance(completion, list):
            kinds = f"prompt is {kind_of(prompt)} and completion is {kind_of(completion)}"
            raise ValueError(f"{kinds}; both must be text or both chat turns")
        return Continuation(text_field(row, "prompt"), text_field(row, "completion"))


def _answers(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant"
