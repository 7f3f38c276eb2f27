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
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tutelage.data.rendering import Tokens

SCHEMA = 2
"Part of every key: stores of another layout are never read."

_INDEX = {"offsets": np.int64, "weights": np.int32, "rows": np.int64, "labels": np.int32, "digests": np.uint64}
_GROUPS = {"parts": np.int32, "groups": np.int64, "values": np.float32}


class TokenStore:
    """Examples in a folder, read as they are needed."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            ValueError: when the folder is not a whole store.
        """
        self.folder = folder
        self.fingerprint = folder.name
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            index = {name: _loaded(folder / f"{name}.npy") for name in (*_INDEX, *_GROUPS)}
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is not a token store: {error}") from None
        self._offsets = index["offsets"]
        self.weights = index["weights"]
        self.rows = index["rows"]
        self.labels = index["labels"]
        self.digests = index["digests"]
        self._parts = index["parts"]
        self._groups = index["groups"]
        self._values = index["values"]
        total = int(self._offsets[-1])
        sizes = {name: (folder / f"{name}.bin").stat().st_size for name in ("ids", "learn")}
        if sizes != {"ids": 4 * total, "learn": total}:
            raise ValueError(f"{folder} is not a whole token store")
        self._ids = _mapped(folder / "ids.bin", np.int32, total)
        self._learn = _mapped(folder / "learn.bin", np.bool_, total)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        where = slice(int(self._offsets[index]), int(self._offsets[index + 1]))
        ids, learn = self._ids[where], self._learn[where]
        if not len(self._groups):
            return Tokens(ids, learn)
        group = slice(int(self._groups[index]), int(self._groups[index + 1]))
        return Tokens(ids, learn, self._parts[group], self._values[group])

    @property
    def longest(self) -> npt.NDArray[np.int64]:
        """Tokens of each example's longest sequence."""
        if not len(self._groups) or not len(self):
            return self.lengths
        longest: npt.NDArray[np.int64] = np.maximum.reduceat(self._parts, self._groups[:-1]).astype(np.int64)
        return longest

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per example."""
        lengths: npt.NDArray[np.int64] = np.diff(self._offsets)
        return lengths

    @property
    def ends(self) -> npt.NDArray[np.int32]:
        """The last token of each example."""
        last: npt.NDArray[np.int32] = self._ids[self._offsets[1:] - 1]
        return last

    def place(self, index: int) -> str:
        """Where an example comes from, such as `data/train.jsonl line 17`."""
        return f"{self.meta['labels'][self.labels[index]]} {self.rows[index]}"


def _weight(tokens: Tokens) -> int:
    return tokens.weight


class Writer:
    """Writes a store into a folder, example by example; only the index is held in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._ids = (folder / "ids.bin").open("wb")
        self._learn = (folder / "learn.bin").open("wb")
        self._index = {name: array("Q" if name == "digests" else "q") for name in _INDEX}
        self._index["offsets"].append(0)
        self._parts = array("i")
        self._groups = array("q")
        self._values: list[npt.NDArray[np.float32]] = []
        self._labels: dict[str, int] = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ids.close()
        self._learn.close()

    def add(self, pieces: Sequence[Tokens], place: str, digest: int, weigh: Callable[[Tokens], int] = _weight) -> None:
        """Add the examples that one row became; `place` ends in the number of its line or row."""
        label, _, number = place.rpartition(" ")
        known = self._labels.setdefault(label, len(self._labels))
        index = self._index
        for tokens in pieces:
            self._ids.write(tokens.ids.astype(np.int32, copy=False).tobytes())
            self._learn.write(tokens.learn.astype(np.bool_, copy=False).tobytes())
            index["offsets"].append(index["offsets"][-1] + len(tokens))
            index["weights"].append(weigh(tokens))
            index["rows"].append(int(number))
            index["labels"].append(known)
            index["digests"].append(digest)
            if bool(self._groups) != (tokens.parts is not None) and len(index["weights"]) > 1:
                raise ValueError("a phase's examples must all be single sequences, or all be groups of them")
            if tokens.parts is not None:
                self._add_group(tokens.parts, tokens.values)

    def _add_group(self, parts: npt.NDArray[np.int32], values: npt.NDArray[np.float32] | None) -> None:
        if not self._groups:
            self._groups.append(0)
        self._parts.extend(parts.tolist())
        self._groups.append(self._groups[-1] + len(parts))
        self._values.append(np.zeros((len(parts), 0), dtype=np.float32) if values is None else values)

    def finish(self, meta: dict[str, Any]) -> None:
        """Write the index."""
        for name, dtype in _INDEX.items():
            np.save(self.folder / f"{name}.npy", np.array(self._index[name], dtype=dtype), allow_pickle=False)
        values = np.concatenate(self._values) if self._values else np.zeros((0, 0))
        for name, content in (("parts", self._parts), ("groups", self._groups), ("values", values)):
            np.save(self.folder / f"{name}.npy", np.array(content, dtype=_GROUPS[name]), allow_pickle=False)
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


class Selection:
    """A selection of examples of one or more stores, in an order of its own; an example may be there several times."""

    def __init__(self, stores: Sequence[TokenStore], picks: Sequence[npt.NDArray[np.int64]]) -> None:
        """`picks` holds, for each store, the indices of the examples taken from it."""
        self._stores = list(stores)
        self._store = np.repeat(np.arange(len(picks), dtype=np.int32), [len(pick) for pick in picks])
        self._index = np.concatenate(picks) if picks else np.zeros(0, dtype=np.int64)
        pairs = list(zip(stores, picks, strict=True))
        self.lengths: npt.NDArray[np.int64] = _joined([store.lengths[pick] for store, pick in pairs], np.int64)
        self.longest: npt.NDArray[np.int64] = _joined([store.longest[pick] for store, pick in pairs], np.int64)
        "Tokens of each example's longest sequence."
        self.weights: npt.NDArray[np.int64] = _joined([store.weights[pick] for store, pick in pairs], np.int64)
        self.rows: npt.NDArray[np.int64] = _joined([store.rows[pick] for store, pick in pairs], np.int64)
        self.digests: npt.NDArray[np.uint64] = _joined([store.digests[pick] for store, pick in pairs], np.uint64)
        digest = hashlib.blake2b(digest_size=16)
        for store, pick in pairs:
            digest.update(store.fingerprint.encode())
            digest.update(pick.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Tokens:
        return self._stores[int(self._store[index])][int(self._index[index])]

    @property
    def ends(self) -> npt.NDArray[np.int32]:
        """The last token of each example."""
        stores = range(len(self._stores))
        return _joined([self._stores[store].ends[self._index[self._store == store]] for store in stores], np.int32)

    def place(self, index: int) -> str:
        """Where an example comes from, such as `data/train.jsonl line 17`."""
        return self._stores[int(self._store[index])].place(int(self._index[index]))


def _loaded(path: Path) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _mapped(path: Path, dtype: Any, count: int) -> npt.NDArray[Any]:
    if count == 0:  # an empty file can't be mapped
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def _joined(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)
