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
    """Plain text, all of it learnt: a document, or a piece of a long one."""

    text: str
    starts: bool = True
    "Whether a document starts here, not in a row before."
    ends: bool = True
    "Whether it ends here, and does not go on in the next row."


Prompt = str | list[dict[str, Any]]
"""What is to be answered: text (a user's turn where the model has a chat template, else continued as it is), or
messages of which the last is not the assistant's."""


class Prompted(msgspec.Struct, frozen=True):
    """A prompt alone, for phases that answer it themselves."""

    prompt: Prompt
    answer: str = ""
    "A reference answer, where the row has one."
    fields: dict[str, Any] = {}
    "The row's other columns."


class Ranking(msgspec.Struct, frozen=True):
    """Answers to one prompt, ordered by preference. A pair of a chosen and a rejected answer is a ranking of two."""

    prompt: Prompt
    answers: list[str]
    ranks: list[float]
    "One for each answer; 1 is best, and equal ranks are ties."
    probability: float | None = None
    "Of two answers only: how probable it is that the first is preferred, where that is not certain."
    margin: float | None = None
    "Of two answers only: by how much the chosen one is better, on the scale of rewards."


Record = Conversation | Continuation | Text | Prompted | Ranking

NAMES: dict[type, str] = {
    Conversation: "a conversation",
    Continuation: "a prompt with its completion",
    Text: "plain text",
    Prompted: "a prompt alone",
    Ranking: "ranked answers",
}
"What each kind of record is called, for messages to people."


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
