"""Lengths: rows far outside the rest, and what `max_length` would cut."""

from __future__ import annotations

from array import array
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Evidence, Example, Finding, Flags
from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from collections.abc import Iterable

BYTES_A_TOKEN = 4.0
"About 4 characters of English make a token (OpenAI, 'What are tokens and how to count them', help pages, 2023)."
TURN_TOKENS = 4
"What a chat template adds to a turn: its marks of role and end."


class OutlyingLengths(DataCheck):
    """Rows far longer or shorter than the rest."""

    name = "outlying-lengths"

    class Config(tutelage.Config):
        """How far is far."""

        deviations: Annotated[
            float, msgspec.Meta(gt=0, description="Robust deviations (of the logarithm of words) from the median.")
        ] = 5.0

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.words = array("I")
        self.seen: list[tuple[int, str]] = []

    def look(self, example: Example) -> None:
        """Count the words of question and answer."""
        self.words.append(len(example.question_words) + len(example.answer_words))
        self.seen.append((example.number, example.place))

    def findings(self) -> Iterable[Finding]:
        """Modified z-scores over 5 (Iglewicz and Hoaglin, 1993, propose 3.5 for the normal case), on a log scale."""
        import numpy as np

        if len(self.words) < 20:
            return
        words = np.frombuffer(self.words, dtype=np.uint32)
        logs = np.log1p(words)
        median = np.median(logs)
        # Sets of nearly equal lengths would flag every row; a deviation below 15% is nothing.
        spread = max(float(np.median(np.abs(logs - median))), 0.15)
        far = np.flatnonzero(0.6745 * np.abs(logs - median) / spread > self.config.deviations).tolist()
        if far:
            yield Finding(
                check=self.name,
                severity="note",
                message=f"{len(far)} rows are far longer or shorter than the median of {int(np.median(words))} words",
                advice="read them: they are often pages pasted whole, or stubs",
                rows=[self.seen[at][0] for at in far],
                evidence=[Evidence(*self.seen[at], f"{words[at]} words") for at in far[:5]],
                figures={"median_words": int(np.median(words)), "longest_words": int(words.max())},
            )


class TooLong(DataCheck):
    """Rows that `max_length` would drop or cut."""

    name = "too-long"

    class Config(tutelage.Config):
        """The limit, and how tokens are counted."""

        max_length: Annotated[int, msgspec.Meta(ge=8, description="As in the recipe's trainer.")] = 1024
        tokenizer: Annotated[
            str,
            msgspec.Meta(description="A tokenizer.json, or a folder with one; by default 4 bytes count as a token."),
        ] = ""

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.tokens = array("Q")
        self.flags = Flags()

    def look(self, example: Example) -> None:
        """Count the row's tokens."""
        count = self._count(example)
        self.tokens.append(count)
        if count > self.config.max_length:
            self.flags.add(example, f"{'' if self.config.tokenizer else 'about '}{count} tokens")

    def findings(self) -> Iterable[Finding]:
        """One finding, which says how tokens were counted."""
        import numpy as np

        if not self.flags:
            return
        counts = np.frombuffer(self.tokens, dtype=np.uint64)
        how = (
            f"by {self.config.tokenizer}"
            if self.config.tokenizer
            else "counted as 4 bytes a token; give --tokenizer to be exact"
        )
        fits = 2 ** int(np.ceil(np.log2(np.quantile(counts, 0.99))))
        yield self.flags.finding(
            self.name,
            severity="warning",
            message=f"{len(self.flags)} rows exceed max_length {self.config.max_length} and are dropped or cut ({how})",
            advice=f"shorten or split them, or raise trainer.max_length (99% of rows fit {fits})",
            figures={
                "counted": self.config.tokenizer or "4 bytes a token",
                "median_tokens": int(np.median(counts)),
                "p95_tokens": int(np.quantile(counts, 0.95)),
                "longest_tokens": int(counts.max()),
            },
        )

    def _count(self, example: Example) -> int:
        around = TURN_TOKENS * len(example.turns)
        if self.config.tokenizer:
            return around + len(self._tokenizer.encode(example.text, add_special_tokens=False))
        return around + round(len(example.text.encode("utf-8", "replace")) / BYTES_A_TOKEN)

    @cached_property
    def _tokenizer(self) -> Any:
        path = Path(self.config.tokenizer)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise TutelageError.at(
                self.config.tokenizer, "no such tokenizer", "give a tokenizer.json or a folder with one"
            )
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise TutelageError.at("--tokenizer", "needs the package tokenizers", "pip install tokenizers") from None
        try:
            return Tokenizer.from_file(str(path))
        except Exception:
            raise TutelageError.at(str(path), "is not a tokenizer", "give the tokenizer.json of the model") from None
