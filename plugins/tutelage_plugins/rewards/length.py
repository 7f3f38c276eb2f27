"""How long an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

import tutelage

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext

Count = Annotated[int, Meta(ge=0, le=10_000_000)]


class Length(tutelage.Reward):
    """0 for an answer as long as it should be, down to -penalty for one that is far from it."""

    name = "length"

    class Config(tutelage.Config):
        """Give a target, or limits (one or both)."""

        unit: Annotated[
            Literal["words", "characters", "tokens"],
            Meta(description="What is counted; tokens are those of the stage's tokenizer."),
        ] = "words"
        target: Annotated[
            Count | None, Meta(description="The length that is best; the penalty grows with the distance from it.")
        ] = None
        least: Annotated[Count | None, Meta(description="Shorter answers are penalised.")] = None
        most: Annotated[Count | None, Meta(description="Longer answers are penalised.")] = None
        penalty: Annotated[
            float,
            Meta(gt=0, le=1e6, description="Taken off an answer that is wrong by the whole target or limit, or more."),
        ] = 1.0

        def __post_init__(self) -> None:
            limits = self.least is not None or self.most is not None
            if (self.target is not None) == limits:
                raise ValueError("give either a target, or limits (least, most or both)")
            if self.least is not None and self.most is not None and self.least > self.most:
                raise ValueError(f"least ({self.least}) is more than most ({self.most})")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._tokenizer: Any = None

    def load(self, context: StageContext) -> None:
        self._tokenizer = context.tokenizer

    def score(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        return [-self.config.penalty * self._wrongness(self._length(answer)) for answer in answers]

    def _length(self, answer: str) -> int:
        if self.config.unit == "words":
            return len(answer.split())
        if self.config.unit == "characters":
            return len(answer)
        return len(self._tokenizer(answer, add_special_tokens=False)["input_ids"])

    def _wrongness(self, length: int) -> float:
        """0 to 1: the distance from the nearest length that is right, as a share of that length."""
        least: int | None = self.config.least
        most: int | None = self.config.most
        if self.config.target is not None:
            least = most = self.config.target
        if least is not None and length < least:
            return (least - length) / least
        if most is not None and length > most:
            return min(1.0, (length - most) / max(1, most))
        return 0.0
