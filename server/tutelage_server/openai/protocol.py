"""What the server and an answering process tell each other: JSON objects, one a line."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Message(msgspec.Struct, kw_only=True, tag_field="kind"):
    pass


class Load(_Message, tag="load"):
    """The first line to an answering process: what it holds."""

    model: str
    "What a recipe's `model` may be: a folder of a model or an adapter, or what a source knows."
    base: str
    "The folder that a relative path starts from."
    checkpoint: str = ""
    "A checkpoint's folder, whose weights take the place of the adapter's own."
    device: str = "cpu"
    threads: int = 1


class Ask(_Message, tag="ask"):
    """Messages to answer, once for each seed."""

    id: str
    messages: list[dict[str, Any]]
    seeds: list[int]
    max_tokens: int | None
    "None: as many as the context has room for."
    most_tokens: int
    "What `max_tokens` None may not go beyond."
    temperature: float
    top_p: float
    stop: list[str]


class Leave(_Message, tag="leave"):
    """Nobody waits for the answers to a question any more."""

    id: str


class Loaded(_Message, tag="loaded"):
    """The model is there; questions are welcome."""


class Failed(_Message, tag="failed"):
    """The model can't be had; the process ends."""

    problem: str


class Began(_Message, tag="began"):
    """A question was understood."""

    id: str
    prompt_tokens: int


class Piece(_Message, tag="piece"):
    """Text of an answer goes on."""

    id: str
    index: int
    text: str


class Ended(_Message, tag="ended"):
    """An answer has ended; when all of a question's have, nothing more comes."""

    id: str
    index: int
    reason: Literal["stop", "length"]
    tokens: int


class Refused(_Message, tag="refused"):
    """A question can't be answered; nothing more comes."""

    id: str
    problem: str
    code: str
    mine: bool = False
    "Whether the process is to blame, not the question."


ToProcess = Load | Ask | Leave
FromProcess = Loaded | Failed | Began | Piece | Ended | Refused
