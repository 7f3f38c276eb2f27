"""Whether an answer has a pattern in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

import tutelage

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext


class Regex(tutelage.Reward):
    """One score for answers in which a regular expression matches, another for those in which it doesn't.

    Patterns are those of the `regex` package (https://pypi.org/project/regex/), which can give up: an answer that the
    pattern takes too long on counts as one that it doesn't match, and is told of.
    """

    name = "regex"

    class Config(tutelage.Config):
        """What is looked for."""

        pattern: Annotated[str, Meta(min_length=1, description="The regular expression; . matches newlines too.")]
        whole: Annotated[bool, Meta(description="It must match the whole answer, not some part of it.")] = False
        ignore_case: Annotated[bool, Meta(description="Letters match whatever their case.")] = False
        found: Annotated[float, Meta(description="The score of an answer that matches.")] = 1.0
        missing: Annotated[float, Meta(description="The score of one that doesn't.")] = 0.0
        seconds: Annotated[float, Meta(gt=0, le=60, description="How long the pattern may take on an answer.")] = 1.0

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._context: StageContext | None = None
        self._compiled: Any = None

    def missing(self) -> str:
        import regex

        try:
            self._pattern()
        except regex.error as error:
            return f"pattern {self.config.pattern!r} is no regular expression: {error}"
        return ""

    def load(self, context: StageContext) -> None:
        self._context = context

    def score(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        return [self.config.found if self._matches(answer) else self.config.missing for answer in answers]

    def _matches(self, answer: str) -> bool:
        pattern = self._pattern()
        try:
            look = pattern.fullmatch if self.config.whole else pattern.search
            return look(answer, timeout=self.config.seconds) is not None
        except TimeoutError:
            if self._context is not None:
                said = (
                    f"reward {self.name}: {self.config.pattern!r} takes too long on an answer, which so doesn't match"
                )
                self._context.emit("notice", text=said)
            return False

    def _pattern(self) -> Any:
        import regex

        if self._compiled is None:
            flags = regex.DOTALL | (regex.IGNORECASE if self.config.ignore_case else 0)
            self._compiled = regex.compile(self.config.pattern, flags)
        return self._compiled
