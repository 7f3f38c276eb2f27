"""Answers that don't keep the form of the others: JSON that mostly parses, other keys, labels spelt in two ways."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Example, Finding, Flags

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_LABELS = 500


class AnswerFormat(DataCheck):
    """Answers of another form than most: prose among JSON, JSON that doesn't parse, other keys or types."""

    name = "answer-format"

    class Config(tutelage.Config):
        """When a form is the set's own."""

        share: Annotated[float, msgspec.Meta(gt=0.5, le=1, description="Share of answers that must keep a form.")] = 0.7

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.forms: dict[str, Flags] = {}
        self.keys: dict[tuple[str, ...], Flags] = {}
        self.types: dict[str, dict[str, Flags]] = {}

    def look(self, example: Example) -> None:
        """Parse the last answer, if it looks like JSON."""
        form, value = form_of(example.answer.strip())
        self.forms.setdefault(form, Flags()).add(example, example.answer)
        if not isinstance(value, dict):
            return
        keys = tuple(sorted(value))
        if keys in self.keys or len(self.keys) < _MOST_LABELS:
            self.keys.setdefault(keys, Flags()).add(example, f"keys {', '.join(keys)}")
        for key, item in value.items():
            kind = _KINDS.get(type(item))
            if kind and (key in self.types or len(self.types) < _MOST_LABELS):
                self.types.setdefault(key, {}).setdefault(kind, Flags()).add(example, f"{key} is a {kind}: {item!r}")

    def findings(self) -> Iterable[Finding]:
        """First the form, then the keys, then the types of values."""
        seen = sum(map(len, self.forms.values()))
        json_like = sum(len(flags) for form, flags in self.forms.items() if form != "text")
        if not seen or json_like < self.config.share * seen:
            return
        form = max((name for name in self.forms if name not in ("text", "broken JSON")), key=self._count, default="")
        if not form:
            return
        for other, flags in self.forms.items():
            if other != form:
                yield self._finding(flags, f"are {other}, while {self._count(form)} are {form}")
        if form == "JSON object":
            yield from self._odd_keys()

    def _count(self, form: str) -> int:
        return len(self.forms[form])

    def _odd_keys(self) -> Iterable[Finding]:
        objects = sum(map(len, self.keys.values()))
        most = max(self.keys, key=lambda keys: len(self.keys[keys]))
        if len(self.keys[most]) >= self.config.share * objects:
            for keys, flags in self.keys.items():
                if keys != most:
                    yield self._finding(flags, f"have the keys {', '.join(keys) or '(none)'}, not {', '.join(most)}")
        for key, kinds in self.types.items():
            usual = max(kinds, key=lambda kind: len(kinds[kind]))
            if len(kinds[usual]) >= 0.9 * sum(map(len, kinds.values())):
                for kind, flags in kinds.items():
                    if kind != usual:
                        yield self._finding(flags, f"have a {kind} as {key}, where the others have a {usual}")

    def _finding(self, flags: Flags, what: str) -> Finding:
        return flags.finding(
            self.name,
            severity="error",
            message=f"{len(flags)} answers {what}",
            advice="bring them into the form of the others: a model learns the strictness that it sees",
        )


class Labels(DataCheck):
    """Classification labels that are out of balance, or one label spelt in several ways."""

    name = "labels"

    class Config(tutelage.Config):
        """When labels are out of balance."""

        ratio: Annotated[float, msgspec.Meta(gt=1, description="Most frequent over least frequent label.")] = 10.0

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags: dict[str, Flags] = {}
        self.seen = 0

    def look(self, example: Example) -> None:
        """Count the answer as a label, while there are few different ones."""
        self.seen += 1
        if len(self.flags) <= _MOST_LABELS:
            label = label_of(example.answer)
            self.flags.setdefault(label, Flags()).add(example, f"label {label!r}: {example.question}")

    def findings(self) -> Iterable[Finding]:
        """Nothing unless answers are labels: short, few, repeated."""
        if self.seen < 20 or len(self.flags) > min(_MOST_LABELS, self.seen / 5) or max(map(len, self.flags)) > 80:
            return
        counts = Counter({label: len(flags) for label, flags in self.flags.items()})
        yield from self._variants(counts)
        (most, most_count), *_, (least, least_count) = [*counts.most_common(), *counts.most_common()[-1:]]
        if len(counts) == 1 or most_count < self.config.ratio * least_count:
            return
        rare = [label for label, count in counts.items() if count * self.config.ratio <= most_count]
        yield Finding(
            check=self.name,
            severity="warning",
            message=f"labels are out of balance: {most!r} has {most_count} rows, {least!r} {least_count}",
            advice="collect more of the rare labels, or weigh them up in the mix; else they are hardly learnt",
            rows=sorted(row for label in rare for row in self.flags[label].rows),
            evidence=[self.flags[label].evidence[0] for label in rare[:5]],
            figures=dict(counts.most_common(50)),
        )

    def _variants(self, counts: Counter[str]) -> Iterable[Finding]:
        spellings: dict[str, list[str]] = {}
        for label, _ in counts.most_common():
            spellings.setdefault(re.sub(r"[\W_]+", " ", label.casefold()).strip(), []).append(label)
        for usual, *others in spellings.values():
            for label in others:
                yield self.flags[label].finding(
                    self.name,
                    severity="error",
                    message=f"{counts[label]} rows spell the label {usual!r} as {label!r}",
                    advice=f"write {usual!r} everywhere",
                )


_KINDS = {str: "string", int: "number", float: "number", bool: "boolean", list: "list", dict: "object"}
_FENCED = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.DOTALL)


def form_of(answer: str) -> tuple[str, Any]:
    """What an answer is (text, JSON object, JSON list, JSON in a code fence, broken JSON), and what it parses to."""
    fenced = _FENCED.match(answer)
    body = fenced.group(1) if fenced else answer
    if body[:1] not in ("{", "["):
        return "text", None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ("broken JSON" if re.match(r"\{\s*[\"'}]|\[\s*[\[{\"\d\]]", body) else "text"), None
    if fenced:
        return "JSON in a code fence", value
    return ("JSON object" if isinstance(value, dict) else "JSON list"), value


def label_of(answer: str) -> str:
    """The label that an answer is: its text, or the value of a JSON object of a single key."""
    answer = answer.strip()
    if answer.startswith("{") and len(answer) < 200:
        _, value = form_of(answer)
        if isinstance(value, dict) and len(value) == 1:
            (only,) = value.values()
            return str(only)
    return answer[:100]
