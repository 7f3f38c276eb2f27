"""Whether the prompts are those of production (`--against`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Evidence, Example, Finding, excerpt
from tutelage_advisor.audit.vectors import Sample, nearest, vectors

if TYPE_CHECKING:
    from collections.abc import Iterable


class UnlikeProduction(DataCheck):
    """Prompts unlike those of production, and production's that no row resembles."""

    name = "unlike-production"

    class Config(tutelage.Config):
        """How unlike is too unlike."""

        share: Annotated[
            float,
            msgspec.Meta(
                gt=0.05, lt=1, description="Share of prompts that are allowed to resemble none; 5% are by chance."
            ),
        ] = 0.15
        sample: Annotated[int, msgspec.Meta(ge=100, description="Prompts of each set that are compared.")] = 5_000

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.ours, self.theirs = Sample(self.config.sample), Sample(self.config.sample)
        self.our_system = self.their_system = 0

    def look_production(self, example: Example) -> None:
        """Keep a sample of production's prompts."""
        self.theirs.add(example.question_words or example.answer_words, (example.place, excerpt(example.text)))
        self.their_system += any(role == "system" for role, _ in example.turns)

    def look(self, example: Example) -> None:
        """Keep a sample of the set's prompts."""
        if self.theirs.seen:
            words = example.question_words or example.answer_words
            self.ours.add(words, (example.number, example.place, " ".join(words[:25])))
            self.our_system += any(role == "system" for role, _ in example.turns)

    def findings(self) -> Iterable[Finding]:
        """Words first, then lengths, then whether a system prompt is there."""
        if len(self.ours.words) < 20 or len(self.theirs.words) < 20:
            return
        yield from self._words()
        yield from self._lengths()
        ours, theirs = self.our_system / self.ours.seen, self.their_system / self.theirs.seen
        if abs(ours - theirs) > 0.2:
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"{ours:.0%} of rows have a system prompt, {theirs:.0%} of production's prompts",
                advice="train with the system prompt that production uses",
            )

    def _words(self) -> Iterable[Finding]:
        """A prompt resembles a set if its nearest there is as near as 95% of that set's prompts are to each other."""
        import numpy as np

        ours, theirs = vectors(self.ours, self.theirs)
        near_ours, near_theirs = nearest(theirs, ours), nearest(ours, theirs)
        uncovered = np.flatnonzero(near_ours < np.quantile(nearest(theirs, theirs, same=True), 0.05))
        strange = np.flatnonzero(near_theirs < np.quantile(nearest(ours, ours, same=True), 0.05))
        if uncovered.size > self.config.share * len(theirs):
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"{uncovered.size / len(theirs):.0%} of production's prompts resemble no row",
                advice="collect rows like these prompts",
                evidence=[Evidence(0, *self.theirs.labels[at]) for at in uncovered[:5].tolist()],
                figures={"uncovered_share": round(uncovered.size / len(theirs), 4)},
            )
        if strange.size > self.config.share * len(ours):
            labels = [self.ours.labels[at] for at in strange.tolist()]
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"{strange.size / len(ours):.0%} of rows resemble none of production's prompts",
                advice="leave them out, or weigh them down in the mix",
                rows=sorted(label[0] for label in labels),
                evidence=[Evidence(*label) for label in labels[:5]],
                figures={"unlike_share": round(strange.size / len(ours), 4)},
            )

    def _lengths(self) -> Iterable[Finding]:
        """The Kolmogorov-Smirnov distance of the two distributions of length."""
        import numpy as np

        ours, theirs = (np.sort([words.size for words in sample.words]) for sample in (self.ours, self.theirs))
        grid = np.union1d(ours, theirs)
        distance = np.abs(
            np.searchsorted(ours, grid, "right") / len(ours) - np.searchsorted(theirs, grid, "right") / len(theirs)
        ).max()
        if distance > 0.3:
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"prompts have {int(np.median(ours))} words (median), production's {int(np.median(theirs))}",
                advice="make the lengths of prompts those of production",
                figures={"length_distance": round(float(distance), 3)},
            )
