"""The words in which a model is asked which of two answers is better."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from tutelage.config import Config, convert, read_file
from tutelage.errors import TutelageError
from tutelage_plugins.constitutions.revising import filled

DEFAULT = Path(__file__).with_name("preferring.yaml")
"The template that is used where a recipe names none."


class Question(msgspec.Struct, frozen=True):
    """Which of two answers is better, the first (A) or the second (B)?"""

    prompt: str
    first: str
    second: str
    request: str
    seed: int
    "Of the reasoning, where there is any."


class Template(Config):
    """How a model is asked for its preference, and how its answer begins."""

    question: Annotated[str, Meta(description="Holds {prompt}, {first}, {second} and {request}.")]
    answer: Annotated[str, Meta(min_length=1, description="How the model's answer begins, before (A) or (B).")]
    reasoning: Annotated[str, Meta(description="How the model's reasoning begins, where it is to reason first.")] = ""

    def asked(self, question: Question) -> str:
        """A question as the model gets it."""
        return filled(
            self.question,
            prompt=question.prompt,
            first=question.first,
            second=question.second,
            request=question.request,
        )

    def digest(self) -> str:
        """Differs wherever the words do."""
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()

    def __post_init__(self) -> None:
        missing = [name for name in ("{prompt}", "{first}", "{second}", "{request}") if name not in self.question]
        if missing:
            raise ValueError(f"question lacks {', '.join(missing)}, so that the model would not see it")


def load(path: Path) -> Template:
    """Read a template.

    Raises:
        TutelageError: with every problem, naming its place.
    """
    data = read_file(path)
    if not isinstance(data, dict):
        raise TutelageError.at(str(path), "is not a mapping", "a template has question and answer")
    return convert(data, Template, str(path))
