"""Rows that say the same: exact and near duplicates, contradictions, and rows that the evaluation set holds too."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Evidence, Example, Finding, Flags
from tutelage_advisor.audit.minhash import Shingles

if TYPE_CHECKING:
    from collections.abc import Iterable


def key_of(text: str) -> int:
    """A 64-bit hash of a text but for its white space."""
    return int.from_bytes(blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=8).digest(), "little")


def row_key(example: Example) -> int:
    """A hash of all turns and their roles; other columns don't count."""
    return key_of("\x1e".join(f"{role}\x1f{text}" for role, text in example.turns))


class ExactDuplicates(DataCheck):
    """Rows whose turns are the same as an earlier row's, but for white space."""

    name = "exact-duplicates"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.first: dict[int, int] = {}
        self.flags = Flags()

    def look(self, example: Example) -> None:
        """The first of equal rows is kept."""
        earlier = self.first.setdefault(row_key(example), example.number)
        if earlier != example.number:
            self.flags.add(example, f"same as row {earlier}: {example.text}")

    def findings(self) -> Iterable[Finding]:
        """One finding for all copies."""
        if self.flags:
            yield self.flags.finding(
                self.name,
                severity="warning",
                message=f"{len(self.flags)} rows repeat an earlier row",
                advice="leave the copies out: they are learnt by heart; to weigh rows, use weights in the mix",
                fix="drop",
            )


class NearDuplicates(DataCheck):
    """Rows that share most of their words, in the same order, with an earlier row (MinHash)."""

    name = "near-duplicates"

    class Config(tutelage.Config):
        """How near is too near."""

        similarity: Annotated[float, msgspec.Meta(ge=0.5, le=1, description="Jaccard similarity of word pairs.")] = 0.7

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.shingles = Shingles()
        self.keys: set[int] = set()
        self.seen: list[tuple[int, str]] = []

    def look(self, example: Example) -> None:
        """Keep the row's words; exact copies are another check's."""
        key = row_key(example)
        if key not in self.keys:
            self.keys.add(key)
            self.shingles.add([*example.question_words, *example.answer_words])
            self.seen.append((example.number, example.place))

    def findings(self) -> Iterable[Finding]:
        """One finding that names the later row of each pair."""
        nearest: dict[int, tuple[int, float]] = {}
        for earlier, later, similarity in self.shingles.similar(self.config.similarity):
            if similarity > nearest.get(later, (0, 0.0))[1]:
                nearest[later] = (earlier, similarity)
        if nearest:
            ordered = sorted(nearest.items())
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"{len(nearest)} rows are nearly the same as an earlier row",
                advice="keep the best of each group: rows that differ in a word or two add little",
                rows=[self.seen[later][0] for later, _ in ordered],
                evidence=[
                    Evidence(*self.seen[later], f"{similarity:.0%} like row {self.seen[earlier][0]}")
                    for later, (earlier, similarity) in ordered[:5]
                ],
            )


class Contradictions(DataCheck):
    """The same prompt with different answers."""

    name = "contradictions"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.first: dict[int, tuple[int, int]] = {}
        self.differing: dict[int, set[int]] = {}
        self.flags = Flags()
        self.short = 0

    def look(self, example: Example) -> None:
        """Compare with the first answer to the same prompt, but for case, white space and final punctuation."""
        if not example.prompt.strip():
            return
        prompt, answer = key_of(example.prompt.casefold()), key_of(example.answer.casefold().strip(" .!\n\t\"'"))
        number, known = self.first.setdefault(prompt, (example.number, answer))
        if answer == known:
            return
        answers = self.differing.setdefault(prompt, set())
        if answer not in answers:
            answers.add(answer)
            self.short += len(example.answer_words) <= 8
            self.flags.add(example, f"answers row {number}'s prompt otherwise: {example.prompt} -> {example.answer}")

    def findings(self) -> Iterable[Finding]:
        """Short answers that differ are labels that disagree: an error. Long ones may be meant."""
        if self.flags:
            strict = self.short > len(self.flags) / 2
            rows = sorted({*self.flags.rows, *(self.first[prompt][0] for prompt in self.differing)})
            yield Finding(
                check=self.name,
                severity="error" if strict else "warning",
                message=f"{len(self.differing)} prompts have different answers, in {len(rows)} rows",
                advice="keep the right answer and leave the others out; good answers to an open question may stay",
                rows=rows,
                evidence=self.flags.evidence,
            )


class Leakage(DataCheck):
    """Rows that the evaluation set holds too, exactly or nearly: evaluation would then measure memory."""

    name = "leakage"

    class Config(tutelage.Config):
        """How near is too near."""

        similarity: Annotated[float, msgspec.Meta(ge=0.5, le=1, description="Jaccard similarity of word pairs.")] = 0.7

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.held_out: dict[int, str] = {}
        self.shingles = Shingles()
        self.places: list[str] = []
        self.seen: list[tuple[int, str]] = []
        self.exact = Flags()

    def look_held_out(self, example: Example) -> None:
        """Keep the prompts of the evaluation set."""
        self.held_out.setdefault(_prompt_key(example), example.place)
        self.shingles.add([*example.question_words, *example.answer_words])
        self.places.append(example.place)

    def look(self, example: Example) -> None:
        """Look the prompt up."""
        if not self.places:
            return
        place = self.held_out.get(_prompt_key(example))
        if place is not None:
            self.exact.add(example, f"same prompt as {place}: {example.prompt or example.text}")
            return
        self.shingles.add([*example.question_words, *example.answer_words])
        self.seen.append((example.number, example.place))

    def findings(self) -> Iterable[Finding]:
        """Exact leaks are safe to leave out; near ones are for a person to judge."""
        if self.exact:
            yield self.exact.finding(
                self.name,
                severity="error",
                message=f"{len(self.exact)} rows have a prompt that the evaluation set has too",
                advice="leave them out of training, else evaluation measures memory",
                fix="drop",
            )
        near = self._near() if self.places else {}
        if near:
            yield Finding(
                check=self.name,
                severity="error",
                message=f"{len(near)} rows are nearly the same as a row of the evaluation set",
                advice="leave them out of training, or out of the evaluation set",
                rows=[self.seen[row][0] for row in near],
                evidence=[Evidence(*self.seen[row], what) for row, what in list(near.items())[:5]],
            )

    def _near(self) -> dict[int, str]:
        near: dict[int, str] = {}
        count = len(self.places)
        for earlier, later, similarity in self.shingles.similar(self.config.similarity):
            if earlier < count <= later:
                near.setdefault(later - count, f"{similarity:.0%} like {self.places[earlier]}")
        return near


def _prompt_key(example: Example) -> int:
    return key_of((example.prompt or example.text).casefold())
