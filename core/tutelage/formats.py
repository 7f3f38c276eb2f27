"""What a row of a dataset means: the records that formats turn rows into, and the plugin base class."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import msgspec

from tutelage.plugin import Plugin


class Conversation(msgspec.Struct, frozen=True):
    """Chat turns, each a dict with `role` and `content` (and `tool_calls`, `name` … as chat templates expect)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


class Continuation(msgspec.Struct, frozen=True):
    """A prompt and what should follow. A model with a chat template sees it as one user and one assistant turn."""

    prompt: str
    completion: str
    gap: str = ""
    "What stands between them where there is no chat template to part them."


class Text(msgspec.Struct, frozen=True):
    """Plain text, all of it learnt."""

    text: str


Record = Conversation | Continuation | Text


class DataFormat(Plugin):
    """Plugin base: recognises rows of one shape and turns them into records.

    A dataset has one format: the one that recognises its first row, and every other row must convert.
    """

    columns: ClassVar[tuple[str, ...]]
    "The columns that make a row one of this format, for messages to people."

    @abstractmethod
    def matches(self, row: dict[str, Any]) -> bool:
        """Whether the row has this shape (by its keys and their types; cheap)."""

    @abstractmethod
    def convert(self, row: dict[str, Any]) -> Record:
        """Turn a row into a record.

        Raises:
            ValueError: with a sentence that says what is wrong with the row and names the field.
        """
