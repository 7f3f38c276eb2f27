"""Insults, threats, slurs and profanity, by lists of English words: plain cases only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tutelage.datacheck import DataCheck, Example, Finding, Flags, Severity
from tutelage_advisor.audit.lexicons import INSULT_WORDS, INSULTS, PROFANITY, SLURS

if TYPE_CHECKING:
    from collections.abc import Iterable


class Toxicity(DataCheck):
    """Slurs, threats and insults, and profanity in answers."""

    name = "toxicity"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.slurs, self.profanity, self.triggers = frozenset(SLURS), frozenset(PROFANITY), frozenset(INSULT_WORDS)
        self.insults = re.compile(r"\b(?:" + "|".join(INSULTS) + r")\b")
        self.flags = {name: Flags() for name in ("slurs", "threats or insults", "profanity")}

    def look(self, example: Example) -> None:
        """Look at the words of the row; each row is named once, under the worst of what it holds."""
        words = example.words
        if slurs := self.slurs & words:
            self.flags["slurs"].add(example, ", ".join(f"{word[0]}***" for word in sorted(slurs)))
        elif not self.triggers.isdisjoint(words) and (match := self.insults.search(example.lower)):
            self.flags["threats or insults"].add(example, match.group())
        elif not self.profanity.isdisjoint(words):
            said = self.profanity.intersection(re.findall(r"\w+", " ".join(example.answers).lower()))
            if said:
                self.flags["profanity"].add(example, ", ".join(f"{word[0]}***" for word in sorted(said)))

    def findings(self) -> Iterable[Finding]:
        """One finding for each kind."""
        severities: dict[str, Severity] = {"slurs": "error", "threats or insults": "warning", "profanity": "warning"}
        for kind, flags in self.flags.items():
            if flags:
                yield flags.finding(
                    self.name,
                    severity=severities[kind],
                    message=f"{len(flags)} rows hold {kind} (by a list of English words)",
                    advice="leave them out, unless the model must learn to answer such text",
                    figures={"kind": kind},
                )
