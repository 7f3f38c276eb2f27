"""Answers that teach the wrong thing: empty, cut off, refusals, boilerplate."""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, Annotated
from zlib import crc32

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Example, Finding, Flags
from tutelage_advisor.audit.checks.shape import empty_answer

if TYPE_CHECKING:
    from collections.abc import Iterable


class EmptyAnswer(DataCheck):
    """Answers (or texts) with nothing in them."""

    name = "empty-answer"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags = Flags()

    def look(self, example: Example) -> None:
        """Look at every answer of the row."""
        if empty_answer(example):
            self.flags.add(example, f"{example.prompt} -> (nothing)")

    look_broken = look

    def findings(self) -> Iterable[Finding]:
        """One finding for all of them."""
        if self.flags:
            yield self.flags.finding(
                self.name,
                severity="error",
                message=f"{len(self.flags)} rows have an empty answer: they teach the model to say nothing",
                advice="write the answers, or leave the rows out",
                fix="drop",
            )


class CutAnswer(DataCheck):
    """Answers that stop in the middle: an open bracket or code fence, or a sentence without its end."""

    name = "cut-answer"

    class Config(tutelage.Config):
        """How regular the other answers' ends must be."""

        ending_share: Annotated[
            float,
            msgspec.Meta(
                gt=0, le=1, description="An open end counts when at least this share of answers ends properly."
            ),
        ] = 0.8

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.certain = Flags()
        self.open_ended = Flags()
        self.sentences = 0
        self.hanging = re.compile(
            r"(?:[,;:(\[{/&+=-]|\b(?:and|or|but|the|a|an|of|to|in|for|with|by|as|is|are|because))$"
        )
        self.proper = re.compile(r"[^\w\s,\-–—(\[{/&+=]$")
        self.list_like = re.compile(r"^\s*(?:[-*•+]|\d+[.)]|#+|\||>)\s?")

    def look(self, example: Example) -> None:
        """Look at how the last answer ends."""
        answer = example.answer.rstrip()
        if not answer:
            return
        if answer.count("```") % 2 or _open_json(answer):
            self.certain.add(example, answer)
            return
        last_line = answer.rpartition("\n")[2]
        if len(example.answer_words) < 5 or answer[0] in "{[<" or "```" in answer or self.list_like.match(last_line):
            return
        self.sentences += 1
        if not self.proper.search(answer) or self.hanging.search(answer):
            self.open_ended.add(example, answer)

    def findings(self) -> Iterable[Finding]:
        """What is certainly cut is an error; sentences without an end are a warning."""
        if self.certain:
            yield self.certain.finding(
                self.name,
                severity="error",
                message=f"{len(self.certain)} answers end with an open bracket or code fence",
                advice="raise the limit on length of what wrote them, and make these answers again",
            )
        properly = 1 - len(self.open_ended) / self.sentences if self.sentences else 0.0
        if self.open_ended and properly >= self.config.ending_share:
            yield self.open_ended.finding(
                self.name,
                severity="warning",
                message=f"{len(self.open_ended)} answers stop inside a sentence; {properly:.0%} end properly",
                advice="read some: cut answers teach the model to stop anywhere; finish them or leave them out",
            )


class Refusals(DataCheck):
    """Answers that refuse: few may be meant, many teach the model to refuse."""

    name = "refusals"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags = Flags()
        self.seen = 0
        self.hints = frozenset(
            (
                "can",
                "cannot",
                "unable",
                "able",
                "won",
                "will",
                "comfortable",
                "must",
                "sorry",
                "apologize",
                "apologise",
                "afraid",
                "ai",
                "against",
            )
        )
        not_able = r"(?:can(?:no|')t|can not|won't|will not|(?: am|'m) (?:unable|not able) to| am not comfortable)"
        deed = (
            r"(?:assist|help|comply|fulfil|provide|answer|do that|do this|discuss|generate|create|write|engage|continue"
            r"|support|share)"
        )
        self.refusing = re.compile(
            rf"\bi\s?{not_able}\b(?:\s\w+){{0,3}}?\s{deed}|\bi must (?:respectfully )?(?:decline|refuse)\b"
            rf"|\b(?:sorry|apologi[sz]e|afraid)\b[^.!?]{{0,30}}\b(?:can(?:no|')t|can not|unable|not able|won't)\b"
            r"|\bas an ai(?: language)?(?: model)?,? i (?:can(?:no|')t|can not|am not|am unable|do not|don't)\b"
            r"|\b(?:goes )?against my (?:guidelines|programming|policy)",
        )

    def look(self, example: Example) -> None:
        """Look at the start of every answer, where a refusal stands."""
        self.seen += 1
        if self.hints.isdisjoint(example.words):
            return
        for answer in example.answers:
            if self.refusing.search(answer[:300].lower().replace("’", "'")):
                self.flags.add(example, answer)
                return

    def findings(self) -> Iterable[Finding]:
        """A warning from 1% of rows on; below that, a note."""
        if self.flags:
            share = len(self.flags) / self.seen
            yield self.flags.finding(
                self.name,
                severity="warning" if share >= 0.01 else "note",
                message=f"{len(self.flags)} answers ({share:.1%}) refuse",
                advice="keep those that you want the model to refuse, and answer or leave out the others",
            )


class Boilerplate(DataCheck):
    """Phrases that many answers begin or end with, and those that give away a language model."""

    name = "boilerplate"

    class Config(tutelage.Config):
        """When a phrase is boilerplate."""

        share: Annotated[float, msgspec.Meta(gt=0, le=1, description="Share of answers that begin or end with it.")] = (
            0.05
        )
        least: Annotated[int, msgspec.Meta(ge=2, description="In how many answers, at the least.")] = 10

    _REMEMBERED = 50_000

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.stock = Flags()
        self.edges = {"begin": array("I"), "end": array("I")}
        self.numbers = array("Q")
        self.phrases: dict[int, str] = {}
        self.stock_phrase = re.compile(
            r"as an? (?:ai|artificial intelligence|large language model)\b(?: language)?(?: model)?(?: assistant)?,"
            r"|i hope th(?:is|at) helps|let me know if you (?:have|need)|feel free to (?:ask|reach out)"
            r"|my (?:knowledge|training) (?:cutoff|cut-off|data)\b"
        )
        self.stock_start = re.compile(r"(?:sure|certainly|of course|absolutely)[!,.]? ?(?:here|i)\b")
        self.hints = frozenset(("ai", "artificial", "language", "hope", "know", "feel", "knowledge", "training"))

    def look(self, example: Example) -> None:
        """Look at the last answer's first and last sentence."""
        answer = example.answer.strip()
        said = answer.lower()
        hinted = not self.hints.isdisjoint(example.words)
        if self.stock_start.match(said) or (hinted and self.stock_phrase.search(said)):
            self.stock.add(example, answer)
        self.numbers.append(example.number)
        for edge, phrase in (("begin", _first_sentence(answer)), ("end", _last_sentence(answer))):
            # An answer that is nothing but the phrase is a label or a duplicate, not boilerplate.
            alone = len(answer) - len(phrase) < 20 or len(phrase) < 8
            key = 0 if alone else crc32(phrase.lower().encode("utf-8", "replace")) or 1
            self.edges[edge].append(key)
            if key and len(self.phrases) < self._REMEMBERED:
                self.phrases.setdefault(key, phrase)

    def findings(self) -> Iterable[Finding]:
        """One for stock phrases, one for each shared beginning or end."""
        if self.stock:
            yield self.stock.finding(
                self.name,
                severity="warning" if len(self.stock) >= 0.01 * len(self.numbers) else "note",
                message=f"{len(self.stock)} answers hold stock phrases of language models",
                advice="cut the phrases from the answers: the model will repeat them everywhere",
            )
        for edge, keys in self.edges.items():
            yield from self._shared(edge, keys)

    def _shared(self, edge: str, keys: array[int]) -> Iterable[Finding]:
        import numpy as np

        values, counts = np.unique(np.frombuffer(keys, dtype=np.uint32), return_counts=True)
        least = max(self.config.least, self.config.share * len(keys))
        for at in np.argsort(-counts, kind="stable")[:10].tolist():
            key, count = int(values[at]), int(counts[at])
            if key == 0 or count < least:
                continue
            rows = [number for number, found in zip(self.numbers, keys, strict=True) if found == key]
            phrase = self.phrases.get(key, "…")
            yield Finding(
                check=self.name,
                severity="warning",
                message=f"{count} answers ({count / len(keys):.0%}) {edge} with {phrase!r}",
                advice="cut it, unless every answer in production should have it",
                rows=rows,
            )


def _first_sentence(text: str) -> str:
    found = re.match(r"[^.!?:\n]{1,100}[.!?:\n]", text)
    return found.group().strip() if found else ""


def _last_sentence(text: str) -> str:
    found = re.search(r"(?:[.!?:]\s|\n)([^.!?\n]{1,100}[.!?]*)$", text[-110:])
    return found.group(1).strip() if found else ""


def _open_json(answer: str) -> bool:
    """Whether an answer begins as JSON and has more brackets opened than closed outside its strings."""
    if answer[0] not in "{[" or not re.match(r"\{\s*\"|\[\s*[\[{\"\d]", answer):
        return False
    bare = re.sub(r'"(?:[^"\\]|\\.)*"?', "", answer)
    return bare.count("{") + bare.count("[") > bare.count("}") + bare.count("]")
