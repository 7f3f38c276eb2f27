"""Examples on disk, memory-mapped: a folder with all token ids in one file and an index beside them.

    ids.bin      int32, every example's ids one after another
    learn.bin    bool, which of them are learnt
    offsets.npy  int64 (examples + 1), where each example starts
    weights.npy  int32, learnt tokens that can be predicted, per example
    rows.npy     int64, the line or row in its file that an example comes from
    labels.npy   int32, which of the meta file's labels the row belongs to
    digests.npy  uint64, equal for rows whose tokens are equal
    parts.npy    int32, the lengths of sequences, where examples hold several; else empty
    groups.npy   int64 (examples + 1), where each example's sequences start in it; else empty
    values.npy   float32 (sequences, columns), what the phase says of each sequence; else empty
    meta.json    labels, and what the writer had to say

A store is written beside its place and renamed when whole, so a folder that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tutelage.data.columns import Column, chunks_of, kept, load, mapped, spans
from tutelage.data.rendering import Tokens

SCHEMA = 2
"Part of every key: stores of another layout are never read."

_INDEX = {"offsets": np.int64, "weights": np.int32, "rows": np.int64, "labels": np.int32, "digests": np.uint64}
_GROUPS = {"parts": np.int32, "groups": np.int64, "values": np.float32}


class TokenStore:
    """Examples in a folder, read as they are needed; columns with a value for each of them are mapped, not held."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            ValueError: when the folder is not a whole store.
        """
        self.folder = folder
        self.fingerprint = folder.name
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            index = {name: load(folder / f"{name}.npy") for name in (*_INDEX, *_GROUPS)}
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is not a token store: {error}") from None
        self.starts: npt.NDArray[np.int64] = index["offsets"]
        "Tokens before each example, and at last of all."
        self.weights: npt.NDArray[np.int32] = index["weights"]
        self.rows: npt.NDArray[np.int64] = index["rows"]
        self.labels: npt.NDArray[np.int32] = index["labels"]
        self.digests: npt.NDArray[np.uint64] = index["digests"]
        self._parts = index["parts"]
        self._groups = index["groups"]
        self._values = index["values"]
        total = int(self.starts[-1])
        sizes = {name: (folder / f"{name}.bin").stat().st_size for name in ("ids", "learn")}
        if sizes != {"ids": 4 * total, "learn": total}:
            raise ValueError(f"{folder} is not a whole token store")
        self._ids = mapped(folder / "ids.bin", np.int32, total)
        self._learn = mapped(folder / "learn.bin", np.bool_, total)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Tokens:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        where = slice(int(self.starts[index]), int(self.starts[index + 1]))
        ids, learn = self._ids[where], self._learn[where]
        if not len(self._groups):
            return Tokens(ids, learn)
        group = slice(int(self._groups[index]), int(self._groups[index + 1]))
        return Tokens(ids, learn, self._parts[group], self._values[group])

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per example."""
        found = (np.diff(self.starts[span.start : span.stop + 1]) for span in spans(len(self)))
        return kept(found, np.int64, self.folder.parent)

    @cached_property
    def longest(self) -> npt.NDArray[np.int64]:
        """Tokens of each example's longest sequence."""
        if not len(self._groups):
            return self.lengths
        return kept(map(self._longest, spans(len(self))), np.int64, self.folder.parent)

    def _longest(self, span: slice) -> npt.NDArray[np.int32]:
        groups = self._groups[span.start : span.stop + 1]
        parts = self._parts[int(groups[0]) : int(groups[-1])]
        longest: npt.NDArray[np.int32] = np.maximum.reduceat(parts, groups[:-1] - groups[0])
        return longest

    def ends(self, examples: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The last token of each of some examples."""
        last: npt.NDArray[np.int32] = self._ids[self.starts[examples + 1] - 1]
        return last

    def place(self, index: int) -> str:
        """Where an example comes from, such as `data/train.jsonl line 17`."""
        return f"{self.meta['labels'][self.labels[index]]} {self.rows[index]}"


def _weight(tokens: Tokens) -> int:
    return tokens.weight


class Writer:
    """Writes a store into a folder, example by example, and holds none of them in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._ids = (folder / "ids.bin").open("wb")
        self._learn = (folder / "learn.bin").open("wb")
        self._columns = {name: Column(folder / f"{name}.npy", dtype) for name, dtype in (_INDEX | _GROUPS).items()}
        self._columns["offsets"].append(0)
        self._tokens = self._sequences = 0
        self._grouped: bool | None = None
        self._labels: dict[str, int] = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ids.close()
        self._learn.close()
        for column in self._columns.values():
            column.close()

    def add(self, pieces: Sequence[Tokens], place: str, digest: int, weigh: Callable[[Tokens], int] = _weight) -> None:
        """Add the examples that one row became; `place` ends in the number of its line or row."""
        label, _, number = place.rpartition(" ")
        known = self._labels.setdefault(label, len(self._labels))
        columns = self._columns
        for tokens in pieces:
            self._ids.write(tokens.ids.astype(np.int32, copy=False).tobytes())
            self._learn.write(tokens.learn.astype(np.bool_, copy=False).tobytes())
            self._tokens += len(tokens)
            columns["offsets"].append(self._tokens)
            columns["weights"].append(weigh(tokens))
            columns["rows"].append(int(number))
            columns["labels"].append(known)
            columns["digests"].append(digest)
            self._add_group(tokens.parts, tokens.values)

    def _add_group(self, parts: npt.NDArray[np.int32] | None, values: npt.NDArray[np.float32] | None) -> None:
        if self._grouped is None and parts is not None:
            self._columns["groups"].append(0)
        if self._grouped not in (None, parts is not None):
            raise ValueError("a phase's examples must all be single sequences, or all be groups of them")
        self._grouped = parts is not None
        if parts is None:
            return
        self._sequences += len(parts)
        self._columns["groups"].append(self._sequences)
        self._columns["parts"].extend(parts)
        self._columns["values"].extend(np.zeros((len(parts), 0)) if values is None else values)

    def finish(self, meta: dict[str, Any]) -> None:
        """Make the index whole."""
        for column in self._columns.values():
            column.finish()
        text = json.dumps({**meta, "labels": list(self._labels)})
        (self.folder / "meta.json").write_text(text, encoding="utf-8")


def open_or_write(folder: Path, write: Callable[[Writer], dict[str, Any]]) -> TokenStore:
    """Open the store at `folder`; when there is none, let `write` fill one, which returns what goes into `meta`.

    Of several processes that want the same store, one writes and the others wait for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            try:
                return TokenStore(folder)
            except ValueError:  # left by a crash of the machine before its data reached the disk
                shutil.rmtree(folder)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # the lock is ours, so whoever began it is gone
        try:
            with Writer(partial) as writer:
                meta = write(writer)
                writer.finish(meta)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return TokenStore(folder)


Picks = npt.NDArray[np.int64] | range
"Indices of examples of a store; a range where it is all of them."


class Selection:
    """A selection of examples of one or more stores, in an order of its own; an example may be there several times.

    Its columns are those of the store where it is the whole of one, else they are made when they are asked for; none
    is held in memory.
    """

    def __init__(self, stores: Sequence[TokenStore], picks: Sequence[Picks]) -> None:
        """`picks` holds, for each store (of which there must be one), the indices of the examples taken from it."""
        self._pairs = list(zip(stores, picks, strict=True))
        self._ends = list(accumulate(map(len, picks)))
        whole = len(stores) == 1 and isinstance(picks[0], range)
        self._whole = stores[0] if whole else None
        self.folder = stores[0].folder.parent
        "Where there is room for columns."
        digest = hashlib.blake2b(digest_size=16)
        for store, pick in self._pairs:
            digest.update(store.fingerprint.encode())
            for chunk in chunks_of(pick):
                digest.update(chunk.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Tokens:
        store, example = self._find(index)
        return store[example]

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Tokens before each example, and at last of all."""
        return self._whole.starts if self._whole is not None else kept(_sums(self.lengths), np.int64, self.folder)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per example."""
        return self._column(lambda store: store.lengths, np.int64)

    @cached_property
    def longest(self) -> npt.NDArray[np.int64]:
        """Tokens of each example's longest sequence."""
        return self._column(lambda store: store.longest, np.int64)

    @cached_property
    def weights(self) -> npt.NDArray[np.int32]:
        """What each example counts for: its learnt tokens, where the phase says nothing else."""
        return self._column(lambda store: store.weights, np.int32)

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """The line or row that each example comes from."""
        return self._column(lambda store: store.rows, np.int64)

    @cached_property
    def digests(self) -> npt.NDArray[np.uint64]:
        """A number for each example, equal for rows whose tokens are equal."""
        return self._column(lambda store: store.digests, np.uint64)

    def ends(self) -> Iterator[npt.NDArray[np.int32]]:
        """The last token of each example, some at a time."""
        return (store.ends(chunk) for store, pick in self._pairs for chunk in chunks_of(pick))

    def place(self, index: int) -> str:
        """Where an example comes from, such as `data/train.jsonl line 17`."""
        store, example = self._find(index)
        return store.place(example)

    def _find(self, index: int) -> tuple[TokenStore, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        store, pick = self._pairs[number]
        return store, int(pick[index - self._ends[number] + len(pick)])

    def _column(self, column: Callable[[TokenStore], npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        if self._whole is not None:
            return column(self._whole)
        found = (column(store)[chunk] for store, pick in self._pairs for chunk in chunks_of(pick))
        return kept(found, dtype, self.folder)


def _sums(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """0, and the sums of the first, the first two and so on."""
    done = np.zeros(1, dtype=np.int64)
    yield done
    for chunk in chunks_of(lengths):
        sums = done[-1] + np.cumsum(chunk)
        done = sums[-1:]
        yield sums
