"""Bias that can be counted: who is spoken of, what is said of them, and whether it changes with a person's gender."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Example, Finding, Flags
from tutelage_advisor.audit.checks.consistency import label_of
from tutelage_advisor.audit.checks.duplicates import key_of
from tutelage_advisor.audit.lexicons import ADJECTIVE_GROUPS, GENDERED, GROUPS, OCCUPATIONS, PLURAL_GROUPS, TRAITS

if TYPE_CHECKING:
    from collections.abc import Iterable

_MALE, _FEMALE = frozenset(GENDERED), frozenset(GENDERED.values())


class GroupImbalance(DataCheck):
    """Groups of people that rows speak of far more often than of others, and occupations tied to one gender."""

    name = "group-imbalance"

    class Config(tutelage.Config):
        """When groups are out of balance."""

        ratio: Annotated[float, msgspec.Meta(gt=1, description="Rows of the one gender over rows of the other.")] = 3.0
        least: Annotated[int, msgspec.Meta(ge=2, description="Fewer mentions than this say nothing.")] = 20

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.axes = {
            word: (axis, group) for axis, groups in GROUPS.items() for group, words in groups.items() for word in words
        }
        self.occupations = frozenset(OCCUPATIONS)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tied: dict[tuple[str, str], Flags] = {}

    def look(self, example: Example) -> None:
        """Count the groups that a row names, once each, and the genders beside occupations."""
        words = {*example.question_words, *example.answer_words}
        for found in {self.axes[word] for word in words & self.axes.keys()}:
            self.counts[found] += 1
        male, female = bool(words & _MALE), bool(words & _FEMALE)
        self.counts["gender", "male"] += male
        self.counts["gender", "female"] += female
        if male != female:
            for occupation in words & self.occupations:
                gender = "male" if male else "female"
                self.tied.setdefault((occupation, gender), Flags(2)).add(
                    example, f"{occupation} is {gender}: {example.text}"
                )

    def findings(self) -> Iterable[Finding]:
        """Genders, other groups (figures alone), then occupations."""
        male, female = self.counts["gender", "male"], self.counts["gender", "female"]
        more, fewer = max(male, female), min(male, female)
        if more >= self.config.least and more > self.config.ratio * max(fewer, 1):
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"{male} rows speak of men and {female} of women",
                advice="add rows about the fewer, or swap the gender in some",
                figures={"male": male, "female": female},
            )
        named = {f"{axis}: {group}": count for (axis, group), count in sorted(self.counts.items()) if count}
        if sum(named.values()) >= self.config.least:
            yield Finding(
                check=self.name,
                severity="note",
                message="rows that name a group: "
                + ", ".join(f"{name.partition(': ')[2]} {count}" for name, count in named.items()),
                advice="see whether these are the people whom the model will speak with and of",
                figures=named,
            )
        yield from self._occupations()

    def _occupations(self) -> Iterable[Finding]:
        for (occupation, gender), flags in sorted(self.tied.items()):
            other = len(self.tied.get((occupation, "female" if gender == "male" else "male"), ()))
            if len(flags) >= self.config.least and len(flags) > 9 * other:
                yield flags.finding(
                    self.name,
                    severity="warning",
                    message=f"{occupation} stands with {gender} words in {len(flags)} rows, with the others in {other}",
                    advice="swap the gender in some of these rows",
                )


class Stereotypes(DataCheck):
    """Sentences that say something bad of a whole group."""

    name = "stereotypes"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags = Flags()
        self.groups, self.traits = frozenset((*PLURAL_GROUPS, *ADJECTIVE_GROUPS)), frozenset(TRAITS)
        groups = rf"(?:{'|'.join(PLURAL_GROUPS)}|(?:{'|'.join(ADJECTIVE_GROUPS)}) (?:people|men|women|folks|kids))"
        verbs = (
            r"(?:are|can't|cannot|can not|should(?:n't| not| never)?|always|never|belong|tend to|lack|only|make"
            r"|don't|do not)"
        )
        self.generalising = re.compile(
            rf"\b{groups}\s+(?:\w+\s+)?{verbs}\s+(?:[\w']+\s+){{0,4}}?(?:{'|'.join(TRAITS)})\b"
        )

    def look(self, example: Example) -> None:
        """Look for a group, a verb that generalises, and a bad trait, in a sentence."""
        if self.groups.isdisjoint(example.words) or self.traits.isdisjoint(example.words):
            return
        if match := self.generalising.search(example.lower):
            self.flags.add(example, match.group())

    def findings(self) -> Iterable[Finding]:
        """One finding for all of them."""
        if self.flags:
            yield self.flags.finding(
                self.name,
                severity="warning",
                message=f"{len(self.flags)} rows say something bad of a whole group of people",
                advice="read them: quoting or refuting is fine; else leave them out",
            )


class Counterfactuals(DataCheck):
    """Prompts that exist in both genders but are answered differently, and outcomes that go with a gender."""

    name = "counterfactuals"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.seen: dict[int, tuple[int, str, int, int, str]] = {}
        self.outcomes: dict[str, Counter[str]] = {"male": Counter(), "female": Counter()}
        self.swap = {**GENDERED, **{female: male for male, female in reversed(GENDERED.items())}}

    def look(self, example: Example) -> None:
        """Keep the prompt, its swapped form and the answer of a row whose prompt names one gender."""
        words = example.question_words
        male, female = not _MALE.isdisjoint(words), not _FEMALE.isdisjoint(words)
        if male == female:
            return
        answer = example.answer_words
        self.seen[_key(words)] = (
            example.number,
            example.place,
            _key([self.swap.get(word, word) for word in words]),
            _neutral_key(answer),
            label_of(example.answer),
        )
        outcomes = self.outcomes["male" if male else "female"]
        if len(outcomes) < 50:
            outcomes[label_of(example.answer)] += 1

    def findings(self) -> Iterable[Finding]:
        """Pairs first, then outcomes."""
        flags = Flags()
        paired = 0
        for number, place, swapped, answer, label in self.seen.values():
            other = self.seen.get(swapped)
            if other is None:
                continue
            paired += 1
            if other[3] != answer:
                shown = f"{label} here, {other[4]} in row {other[0]} with the gender swapped"
                flags.add(Example(number=number, place=place, row={}), shown)
        if flags:
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"{len(flags)} rows are answered otherwise when only the gender in the prompt is swapped",
                advice="make the answers the same, unless gender matters to the question",
                rows=sorted(flags.rows),
                evidence=flags.evidence,
            )
        if len(self.seen) >= 20:
            yield Finding(
                check=self.name,
                severity="note",
                message=f"{len(self.seen)} prompts name one gender; {paired} also stand with the gender swapped",
                advice="where gender must not matter, add the swapped prompts with the same answers",
                figures={"one_gender": len(self.seen), "paired": paired, "answered_otherwise": len(flags)},
            )
        yield from self._outcomes()

    def _outcomes(self) -> Iterable[Finding]:
        """Two-proportion z-test for each label, when answers are labels; 4 deviations allow for many labels."""
        male, female = self.outcomes["male"], self.outcomes["female"]
        men, women = male.total(), female.total()
        if min(men, women) < 30 or len({*male, *female}) > 10:
            return
        for label in sorted({*male, *female}):
            one, other = male[label] / men, female[label] / women
            pooled = (male[label] + female[label]) / (men + women)
            error = math.sqrt(pooled * (1 - pooled) * (1 / men + 1 / women))
            if error and abs(one - other) / error > 4:
                yield Finding(
                    check=self.name,
                    severity="warning",
                    message=f"{label!r} is the answer to {one:.0%} of prompts about men and {other:.0%} about women",
                    advice="see whether this difference is true and meant; else balance the rows",
                    figures={"label": label, "male": round(one, 4), "female": round(other, 4)},
                )


def _key(words: list[str]) -> int:
    """A hash in which `his` and `him` are one word, as `her` is in the other gender."""
    return key_of(" ".join("his" if word == "him" else word for word in words))


def _neutral_key(words: list[str]) -> int:
    """A hash of an answer in which both genders are one."""
    return key_of(" ".join(GENDERED.get(word, word) for word in words))
