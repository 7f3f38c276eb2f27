"""Whether an answer is the reference answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

import tutelage


class Matches(tutelage.Reward):
    """1 for an answer that equals (or contains) the reference answer of its row, 0 for any other.

    Both are compared as words: without case, surrounding punctuation, and differences of spacing and of Unicode forms
    (NFKC). So `The answer is 4.` contains `4`, and `14` does not.
    """

    name = "matches"

    class Config(tutelage.Config):
        """How they are compared."""

        how: Annotated[
            Literal["equals", "contains", "ends"],
            Meta(description="The answer equals the reference, contains it, or ends with it."),
        ] = "equals"
        exact: Annotated[bool, Meta(description="Compare characters as they are, but for space at both ends.")] = False
        right: Annotated[float, Meta(description="The score of an answer that matches.")] = 1.0
        wrong: Annotated[float, Meta(description="The score of one that doesn't.")] = 0.0

    def lacks(self, prompt: tutelage.Prompted) -> str:
        return "" if prompt.answer.strip() else "has no reference answer to compare with"

    def score(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        return [
            self.config.right if self._matches(answer, _reference(prompt)) else self.config.wrong
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _matches(self, answer: str, reference: str) -> bool:
        if self.config.exact:
            answer, reference = answer.strip(), reference.strip()
        else:
            answer, reference = f" {_words(answer)} ", f" {_words(reference)} "
        if self.config.how == "equals":
            return answer == reference
        return answer.endswith(reference) if self.config.how == "ends" else reference in answer


def _reference(prompt: tutelage.Prompted) -> str:
    if not prompt.answer.strip():
        asked = str(prompt.prompt)[-80:]
        fix = "add an answer to each row of the data, or use another reward"
        raise tutelage.RunFailed.at("reward matches", f"the prompt {asked!r} has no reference answer", fix)
    return prompt.answer


def _words(text: str) -> str:
    """Words apart by one space each, without case and without punctuation around them; as it is if it has none."""
    words = [_bare(word) for word in unicodedata.normalize("NFKC", text).casefold().split()]
    return " ".join(word for word in words if word) or text.strip()


def _bare(word: str) -> str:
    kept = [at for at, character in enumerate(word) if not unicodedata.category(character).startswith("P")]
    return word[kept[0] : kept[-1] + 1] if kept else ""
