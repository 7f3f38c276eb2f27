"""Rows in another language than the rest (identified by py3langid, which knows 97)."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Evidence, Example, Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

_READ = 200
"Characters of the answer that are read: enough to tell languages apart, and quick."


class Languages(DataCheck):
    """Answers in another language than most."""

    name = "languages"

    class Config(tutelage.Config):
        """When a row's language counts."""

        certainty: Annotated[float, msgspec.Meta(gt=0, lt=1, description="How sure the identification must be.")] = 0.95
        letters: Annotated[int, msgspec.Meta(ge=10, description="Fewer letters than this are not judged.")] = 30

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.names: list[str] = []
        self.known: dict[str, int] = {}
        self.found = array("H")
        self.seen: list[tuple[int, str]] = []
        self.identifier: Any = None

    def look(self, example: Example) -> None:
        """Identify the language of the answer's prose; code, data and labels are not judged."""
        text = example.answer[:_READ]
        if (
            text[:1] in "{[<"
            or "```" in text
            or sum(map(str.isalpha, text)) < max(self.config.letters, 0.6 * len(text))
        ):
            return
        if self.identifier is None:
            self.identifier = _identifier()
        language, certainty = self.identifier.classify(text)
        if certainty < self.config.certainty:
            return
        if language not in self.known:
            self.known[language] = len(self.names)
            self.names.append(language)
        self.found.append(self.known[language])
        self.seen.append((example.number, example.place))

    def findings(self) -> Iterable[Finding]:
        """One finding for all rows that are not in the most frequent language."""
        counts = Counter(self.found)
        if len(counts) < 2:
            return
        (most, count), *_ = counts.most_common()
        others = [at for at, language in enumerate(self.found) if language != most]
        yield Finding(
            check=self.name,
            severity="warning" if count > 0.8 * len(self.found) else "note",
            message=f"{len(others)} answers are in another language than {self.names[most]}, which {count} are in",
            advice="if they are not meant, leave them out; if they are, have enough of each language",
            rows=[self.seen[at][0] for at in others],
            evidence=[Evidence(*self.seen[at], f"language {self.names[self.found[at]]}") for at in others[:5]],
            figures={self.names[language]: count for language, count in counts.most_common(20)},
        )


def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
