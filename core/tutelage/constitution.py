"""A constitution: principles in plain language by which a model judges and mends its own answers.

Constitutional AI (Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback") replaces people's labels of harm
by a list of principles. Here that list is a YAML file that people read, change and check.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tutelage.config import Config, convert_into, read_file
from tutelage.errors import Problem, TutelageError

Request = Literal["critique", "revision", "preference"]
ALIKE = 0.8
"Share of their words (of either) that two texts have in common to be called nearly the same."


class Principle(Config):
    """One thing that answers should be, and how a model is asked about it."""

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Names it in rows and reports.")]
    text: Annotated[str, Meta(description="The principle itself, for people.")]
    critique: Annotated[str, Meta(description="Asks the model what in its answer goes against the principle.")] = ""
    revision: Annotated[str, Meta(description="Asks the model to write its answer anew by the principle.")] = ""
    preference: Annotated[str, Meta(description="Asks which of two answers is better by the principle.")] = ""
    weight: Annotated[float, Meta(ge=0, le=1e6, description="How often it is drawn, beside the others; 0: never.")] = (
        1.0
    )
    source: Annotated[str, Meta(description="Which of the constitution's `sources` it follows.")] = ""


class Constitution(Config):
    """Principles, and where they come from."""

    name: Annotated[str, Meta(min_length=1, description="What the constitution is called.")]
    principles: Annotated[list[Principle], Meta(description="What answers should be.")] = []
    sources: Annotated[dict[str, str], Meta(description="Short names of texts that the principles follow.")] = {}

    def draw(self, count: int, seed: int, number: int) -> list[Principle]:
        """Draw principles by their weights, without repetition until all have been drawn.

        Args:
            number: of the prompt or pair that they are for. The same seed and number draw the same principles.
        """
        generator = random.Random(f"constitution/{seed}/{number}")
        drawn: list[Principle] = []
        left: list[Principle] = []
        while len(drawn) < count:
            left = left or [principle for principle in self.principles if principle.weight > 0]
            weights = [principle.weight for principle in left]
            drawn.append(left.pop(generator.choices(range(len(left)), weights)[0]))
        return drawn


class Doubt(msgspec.Struct, frozen=True):
    """What people should look at in a constitution, though it may be meant."""

    kind: Literal["similar", "contradictory", "unasked"]
    principles: list[str]
    problem: Problem


def load(path: Path, needs: Iterable[Request] = ()) -> Constitution:
    """Read a constitution.

    Args:
        needs: the requests that every principle must have.
    Raises:
        TutelageError: with every problem, each naming its place in the file.
    """
    problems: list[Problem] = []
    data = read_file(path)
    if not isinstance(data, dict):
        raise TutelageError.at(str(path), "is not a mapping", "a constitution has name, sources and principles")
    constitution = convert_into(problems, data, Constitution, "")
    if isinstance(constitution, Constitution):
        problems += check(constitution, needs)
    if problems:
        raise TutelageError(
            Problem(place=f"{path}: {problem.place}".removesuffix(": "), wrong=problem.wrong, fix=problem.fix)
            for problem in problems
        )
    result: Constitution = constitution
    return result


def dump(constitution: Constitution) -> str:
    """A constitution as the YAML that `load` reads."""
    from tutelage._yaml import dump as dump_yaml

    return dump_yaml(msgspec.to_builtins(constitution))


def check(constitution: Constitution, needs: Iterable[Request] = ()) -> list[Problem]:
    """What makes a constitution unusable: nothing to draw, empty or repeated principles, missing requests."""
    principles = constitution.principles
    if not principles:
        return [Problem(place="principles", wrong="there are none", fix="write at least one principle")]
    problems = [problem for index, principle in enumerate(principles) for problem in _own(principle, index, needs)]
    problems += _repeated(principles)
    for index, principle in enumerate(principles):
        if principle.source and principle.source not in constitution.sources:
            wrong = f"{principle.source!r} is not among the sources"
            problems.append(Problem(place=f"principles.{index}.source", wrong=wrong, fix="add it to sources"))
    if not any(principle.weight for principle in principles):
        wrong = "the weights sum to 0, so that no principle can be drawn"
        problems.append(Problem(place="principles", wrong=wrong, fix="give at least one a weight over 0"))
    return problems


def _own(principle: Principle, index: int, needs: Iterable[Request]) -> Iterator[Problem]:
    place = f"principles.{index}"
    if not _words(principle.text):
        yield Problem(place=f"{place}.text", wrong="is empty", fix="say what an answer should be")
    asked = {name for name in ("critique", "revision", "preference") if _words(getattr(principle, name))}
    wanted = set(needs)
    if not asked:
        wanted |= {"critique", "revision", "preference"}
    elif len(asked & {"critique", "revision"}) == 1:
        wanted |= {"critique", "revision"}  # one is of no use without the other
    for name in ("critique", "revision", "preference"):
        if name in wanted - asked:
            yield Problem(place=f"{place}.{name}", wrong="is missing", fix=f"principle {principle.id} needs it")


def _repeated(principles: list[Principle]) -> Iterator[Problem]:
    for (one, first), (other, second) in combinations(enumerate(principles), 2):
        if first.id == second.id:
            wrong = f"{second.id} is the id of principles.{one} already"
            yield Problem(place=f"principles.{other}.id", wrong=wrong, fix="give each its own")
        if _words(first.text) and _words(first.text) == _words(second.text):
            wrong = f"says the same as principles.{one} ({first.id})"
            yield Problem(
                place=f"principles.{other}.text", wrong=wrong, fix="remove one; weight says how much it counts"
            )


def doubts(constitution: Constitution) -> list[Doubt]:
    """What people should look at: principles that are nearly the same, contradict each other, or lack requests.

    Two principles are compared field by field (text with text, revision with revision, preference with preference;
    critiques speak of what is wrong, so they tell nothing). They are *similar* where they share most of their words,
    and *contradictory* where they do and one of them negates them, or where they pull to opposite ends of one of the
    `SCALES`: "be brief" against "be thorough". This reads English words, not meaning: it sees no contradiction in
    words that are not on the scales, none that follows only from several principles together, and it may take a
    figure of speech at its word. What it finds is a reason to look, not a verdict.
    """
    found = []
    for (one, first), (other, second) in combinations(enumerate(constitution.principles), 2):
        for field in ("text", "revision", "preference"):
            kind, why = _compared(getattr(first, field), getattr(second, field))
            if kind:
                wrong = f"{_SAID[kind]} principles.{one} ({first.id}): {why}"
                problem = Problem(place=f"principles.{other}.{field}", wrong=wrong, fix=_ADVICE[kind])
                found.append(Doubt(kind, [first.id, second.id], problem))
                break
    for index, principle in enumerate(constitution.principles):
        for field, phase in (("critique", "critique_revision"), ("preference", "ai_feedback")):
            if not _words(getattr(principle, field)):
                wrong, fix = (
                    f"is missing, so that phase {phase} can't use it",
                    "add it, or leave it so if that is meant",
                )
                problem = Problem(place=f"principles.{index}.{field}", wrong=wrong, fix=fix)
                found.append(Doubt("unasked", [principle.id], problem))
    return found


_SAID = {"similar": "is nearly the same as", "contradictory": "seems to contradict"}
_ADVICE = {
    "similar": "merge the two; a weight says how much one counts",
    "contradictory": "say in both when which of them holds, or remove one",
}

SCALES: dict[str, tuple[str, str]] = {
    "length": (
        "brief briefer briefly briefest short shorter shortest concise concisely terse succinct compact",
        "long longer longest lengthy thorough thoroughly detailed exhaustive exhaustively elaborate comprehensive",
    ),
    "refusing": ("refuse refuses refusing decline declines reject rejects", "comply complies obey obeys"),
    "formality": ("formal formally solemn", "informal informally casual casually chatty slangy"),
    "certainty": ("confident confidently certain assertive categorical", "tentative tentatively hesitant unsure"),
    "agreeing": (
        "agree agrees agreeing flatter flatters flattering",
        "disagree disagrees disagreeing contradict contradicts challenge challenges",
    ),
    "plainness": ("simple simply plain plainly", "technical technically sophisticated"),
    "politeness": ("polite politely courteous gentle gently", "rude rudely blunt bluntly harsh harshly"),
    "openness": ("reveal reveals disclose discloses", "conceal conceals hide hides withhold withholds"),
    "feeling": ("warm warmly emotional empathetic", "detached impersonal unemotional"),
    "humour": ("funny humorous playful joke jokes", "serious seriously earnest"),
    "moralising": ("moralise moralising moralize moralizing preach preaches preachy lecture lectures", ""),
}
"Word lists of the two ends of what an answer can be asked to be; negation turns a word to the other end."

_NEGATIONS = {
    *("no", "not", "never", "without", "avoid", "avoids", "avoiding", "less", "least", "nor", "neither"),
    *("cannot", "don't", "doesn't", "isn't", "aren't", "shouldn't", "mustn't", "won't", "stop", "remove", "removing"),
}
_COMMON_WORDS = """
a an and are as at be but by do does for from has have in is it its of on or so should such than that the their them
then there they this to what when where which who will with would answer answers please rewrite one more most
"""
_COMMON = frozenset(_COMMON_WORDS.split())
_REACH = 4
"How many words after it a negation turns."


def _compared(one: str, other: str) -> tuple[Literal["similar", "contradictory"] | None, str]:
    """How two texts of the same field relate, and why."""
    for scale in SCALES:
        ends = _end(one, scale), _end(other, scale)
        if ends[0] * ends[1] < 0:
            return "contradictory", f"they pull to opposite ends of {scale}"
    kept, other_kept = _content(one), _content(other)
    if not kept or not other_kept or len(kept & other_kept) < ALIKE * len(kept | other_kept):
        return None, ""
    if _negations(one) % 2 != _negations(other) % 2:
        return "contradictory", "the same words, negated in one of them"
    return "similar", "most of their words are the same"


def _end(text: str, scale: str) -> int:
    """Which end of a scale a text pulls to: -1 or 1; 0 where it names neither, or both."""
    low, high = (set(words.split()) for words in SCALES[scale])
    found = set()
    for clause in re.split(r"[.;:,!?()]|\b(?:but|rather|instead)\b", _plain(text)):
        words = _words(clause)
        for index, word in enumerate(words):
            if word in low or word in high:
                negated = sum(before in _NEGATIONS for before in words[max(0, index - _REACH) : index]) % 2
                found.add((1 if word in high else -1) * (-1 if negated else 1))
    return found.pop() if len(found) == 1 else 0


def _plain(text: str) -> str:
    """Without turns of phrase whose words mean something else."""
    return re.sub(r"\bas long as\b|\bno longer\b(?! than)|\bin the long run\b", " ", text.lower())


def _content(text: str) -> set[str]:
    return set(_words(text)) - _COMMON - _NEGATIONS


def _negations(text: str) -> int:
    return sum(word in _NEGATIONS for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower().replace("’", "'"))
