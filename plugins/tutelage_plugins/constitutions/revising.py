"""How a model is asked to criticise and to rewrite an answer, and what can be wrong with what it writes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tutelage.config import Config, convert, read_file
from tutelage.constitution import Principle
from tutelage.errors import TutelageError

DEFAULT = Path(__file__).with_name("revising.yaml")
"The template that is used where a recipe names none."

Messages = list[dict[str, Any]]
_RUN = 8
"So many words in a row, the same as in what the model was shown, are not its own."


class Example(Config):
    """A worked example: an answer, what is wrong with it, and a better one."""

    prompt: Annotated[str, Meta(min_length=1)]
    answer: Annotated[str, Meta(min_length=1)]
    critique_request: Annotated[str, Meta(min_length=1)]
    critique: Annotated[str, Meta(min_length=1)]
    revision_request: Annotated[str, Meta(min_length=1)]
    revision: Annotated[str, Meta(min_length=1)]


class Template(Config):
    """The words in which critiques and revisions are asked for, and examples that are shown first."""

    critique: Annotated[str, Meta(description="Holds {prompt}, {answer} and {request}.")]
    revision: Annotated[str, Meta(description="Holds {prompt}, {answer} and {request}, and {critique} if it is shown.")]
    examples: Annotated[list[Example], Meta(description="Shown before the request, in their order.")] = []
    system: Annotated[str, Meta(description="A system message that comes first; none where empty.")] = ""

    def digest(self) -> str:
        """Differs wherever the words do."""
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()

    def __post_init__(self) -> None:
        for field in ("critique", "revision"):
            missing = [
                f"{{{name}}}" for name in ("prompt", "answer", "request") if f"{{{name}}}" not in getattr(self, field)
            ]
            if missing:
                raise ValueError(f"{field} lacks {', '.join(missing)}, so that the model would not see it")

    def asking_critique(self, prompt: str, answer: str, principle: Principle, skip: int = 0) -> Messages:
        """The dialogue whose next turn is a critique of `answer`; the first `skip` examples are left out."""
        messages = self._opening()
        for each in self.examples[skip:]:
            asked = filled(self.critique, prompt=each.prompt, answer=each.answer, request=each.critique_request)
            messages += _turns(asked, each.critique)
        asked = filled(self.critique, prompt=prompt, answer=answer, request=principle.critique)
        return [*messages, _turns(asked)[0]]

    def asking_revision(self, prompt: str, answer: str, critique: str, principle: Principle, skip: int = 0) -> Messages:
        """The dialogue whose next turn is a revision of `answer`; the first `skip` examples are left out."""
        messages = self._opening()
        for each in self.examples[skip:]:
            asked = filled(
                self.revision,
                prompt=each.prompt,
                answer=each.answer,
                critique=each.critique,
                request=each.revision_request,
            )
            messages += _turns(asked, each.revision)
        asked = filled(self.revision, prompt=prompt, answer=answer, critique=critique, request=principle.revision)
        return [*messages, _turns(asked)[0]]

    def wording(self, principle: Principle) -> list[str]:
        """All that a model is shown besides the prompt, the answer and the critique."""
        shown = [self.system, self.critique, self.revision, principle.critique, principle.revision]
        for each in self.examples:
            shown += msgspec.structs.astuple(each)
        return shown

    def _opening(self) -> Messages:
        return [{"role": "system", "content": self.system}] if self.system else []


def load(path: Path) -> Template:
    """Read a template.

    Raises:
        TutelageError: with every problem, naming its place.
    """
    data = read_file(path)
    if not isinstance(data, dict):
        raise TutelageError.at(str(path), "is not a mapping", "a template has critique, revision and examples")
    return convert(data, Template, str(path))


def transcript(messages: Messages) -> str:
    """A prompt as text: what the user says, or who says what where there are several turns."""
    turns = [turn for turn in messages if turn["role"] != "system"]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def copies(text: str, shown: list[str]) -> bool:
    """Whether a text gives back what it was shown: eight words in a row of it, or the whole of a shorter one."""
    words = _words(text)
    runs = _runs(words)
    return any(seen == words or not runs.isdisjoint(_runs(seen)) for seen in map(_words, shown) if seen)


def same(text: str, other: str) -> bool:
    """Whether two texts have the same words."""
    return _words(text) == _words(other)


def filled(template: str, **values: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def _turns(asked: str, answered: str = "") -> Messages:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}
