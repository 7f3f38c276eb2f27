"""Text as one stream that is cut into full windows: what pretraining learns from.

The rows of a selection follow each other in their order, each document closed by its end-of-text token. Windows
overlap by one token, so that every token but the stream's first has one before it to be predicted from and is learnt
once an epoch. Nothing is held in memory: where rows start and a window's tokens are read from the mapped store when
their turn comes, and where a run stands in the stream follows from the number of its step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tutelage.data.columns import chunks_of, kept
from tutelage.data.rendering import Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tutelage.data.store import Selection


class Windows:
    """Windows of `length` tokens (the last may be shorter) over all rows of a selection."""

    def __init__(
        self,
        rows: Selection,
        length: int,
        *,
        apart: int | None = None,
        text_bytes: Callable[[list[NDArray[np.int32]]], int] = lambda _: 0,
    ) -> None:
        """Cut a selection.

        Args:
            length: tokens in a window, at least 2.
            apart: the id of the token that ends a document, where a document must not see those before it: each
                window is then several sequences, and the first token of a document is not learnt. None lets attention
                go across.
            text_bytes: counts the bytes of the text that a few rows' ids stand for.
        Raises:
            ValueError: when there are fewer than two tokens.
        """
        self.rows = rows
        self._length = length
        self._starts = rows.starts
        self._total = int(self._starts[-1])
        if self._total < 2:
            raise ValueError("there is no text to learn from")
        self._count = -(-(self._total - 1) // (length - 1))
        self._text_bytes = text_bytes
        self._documents = np.zeros(0, dtype=np.int64)
        "Where in the stream documents start, the first left out; empty where attention goes across."
        if apart is not None:
            self._documents = kept(self._begun(apart), np.int64, rows.folder)

    def _begun(self, apart: int) -> Iterator[NDArray[np.int64]]:
        """Where documents start: after each row that ends in `apart`, but for the last."""
        row = 0
        for ends in self.rows.ends():
            after = self._starts[row + 1 : row + 1 + len(ends)]
            row += len(ends)
            yield after[(ends == apart) & (np.arange(row - len(ends), row) < len(self.rows) - 1)]

    def _bounds(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the stream windows start and stop."""
        first = windows * (self._length - 1)
        return first, np.minimum(first + self._length, self._total)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window."""
        bounds = map(self._bounds, chunks_of(range(len(self))))
        return kept((stop - first for first, stop in bounds), np.int64, self.rows.folder)

    @property
    def longest(self) -> NDArray[np.int64]:
        """Tokens of each window's longest sequence, or more."""
        return self.lengths

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """Learnt tokens of each window: all but the first of each of its sequences."""
        return kept(map(self._learnt, chunks_of(range(len(self)))), np.int64, self.rows.folder)

    def _learnt(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        first, stop = self._bounds(windows)
        begun = np.searchsorted(self._documents, stop) - np.searchsorted(self._documents, first + 1)
        learnt: NDArray[np.int64] = stop - first - 1 - begun
        return learnt

    @cached_property
    def bytes(self) -> int:
        """The bytes of all the text (UTF-8), end-of-text tokens left out."""
        step = 1024
        return sum(
            self._text_bytes([self.rows[row].ids for row in range(start, min(start + step, len(self.rows)))])
            for start in range(0, len(self.rows), step)
        )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tokens:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * (self._length - 1)
        stop = min(start + self._length, self._total)
        ids = self._between(start, stop)
        cuts = self._documents[slice(*np.searchsorted(self._documents, [start + 1, stop]))] - start
        parts = np.diff(np.concatenate([[0], cuts, [len(ids)]])).astype(np.int32) if len(cuts) else None
        return Tokens(ids, np.ones(len(ids), dtype=bool), parts)

    def place(self, index: int) -> str:
        """The row in which a window starts."""
        return self.rows.place(self._row_at(index * (self._length - 1)))

    def _row_at(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def _between(self, start: int, stop: int) -> NDArray[np.int32]:
        """The ids of the stream from `start` to before `stop`."""
        pieces = []
        for row in range(self._row_at(start), self._row_at(stop - 1) + 1):
            before = int(self._starts[row])
            pieces.append(self.rows[row].ids[max(0, start - before) : stop - before])
        return np.concatenate(pieces)
