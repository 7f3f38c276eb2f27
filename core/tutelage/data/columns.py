"""Columns with a value for every row of the data: they lie in files, and memory holds what the system has room for.

Nothing here holds more than a chunk of a column, so that memory does not grow with the rows.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 14
"Values that are handled at a time."

Array = npt.NDArray[Any]

_HEADER = 128
"Bytes of a `.npy` file before its values: enough for any shape, and a multiple of 64 as the format wants."


class Column:
    """A `.npy` file that is written as its values come; until it is closed it can't be read."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._held = array("Q" if self._dtype.kind == "u" else "q")
        self._shape: tuple[int, ...] = (0,)
        self._file = path.open("wb")
        self._file.write(bytes(_HEADER))

    def append(self, value: int) -> None:
        """Add one value."""
        self._held.append(value)
        if len(self._held) == CHUNK:
            self._write_held()

    def extend(self, values: Array) -> None:
        """Add many values, or rows of values.

        Raises:
            ValueError: when rows are not as wide as those before.
        """
        if self._shape[0] and values.shape[1:] != self._shape[1:]:
            raise ValueError(f"rows of {values.shape[1:]} values follow rows of {self._shape[1:]}")
        self._file.write(values.astype(self._dtype, copy=False).tobytes())
        self._shape = (self._shape[0] + len(values), *values.shape[1:])

    def finish(self) -> None:
        """Write the header, which makes the file whole, and close it."""
        self._write_held()
        self._file.seek(0)
        self._file.write(_header(self._dtype, self._shape))
        self.close()

    def close(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def _write_held(self) -> None:
        if self._held:
            self.extend(np.array(self._held))
            del self._held[:]


def load(path: Path) -> Array:
    """A `.npy` file, mapped.

    Raises:
        ValueError, OSError: when it is not whole.
    """
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def mapped(path: Path, dtype: npt.DTypeLike, count: int) -> Array:
    """A file of nothing but `count` values, mapped."""
    if count == 0:  # an empty file can't be mapped
        return np.zeros(0, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))


def kept(chunks: Iterable[Array], dtype: npt.DTypeLike, folder: Path) -> Array:
    """What `chunks` hold, one after another: an array that may be written to, in a file in `folder`.

    The file has no name and goes with the array, so a process that is killed leaves nothing.

    Raises:
        OSError: when there is no room for it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for chunk in chunks:
            file.write(np.asarray(chunk, dtype=dtype).tobytes())
        count = file.tell() // np.dtype(dtype).itemsize
        file.flush()
        return np.asarray(np.memmap(file, dtype=dtype, mode="r+", shape=(count,))) if count else np.zeros(0, dtype)


def spans(count: int) -> Iterator[slice]:
    """The slices that `count` values are handled in."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def chunks_of(values: Array | range) -> Iterator[Array]:
    """The values in their order, some at a time."""
    for span in spans(len(values)):
        yield np.arange(span.start, span.stop) + values.start if isinstance(values, range) else values[span]


def numbers(count: int, folder: Path) -> npt.NDArray[np.int64]:
    """0, 1 and so on to before `count`, to be shuffled."""
    return kept(chunks_of(range(count)), np.int64, folder)


def nothing_marked(count: int, folder: Path) -> npt.NDArray[np.bool_]:
    """A mask of `count` values, to be set."""
    return kept((np.zeros(span.stop - span.start) for span in spans(count)), np.bool_, folder)


def marked(mask: npt.NDArray[np.bool_], folder: Path, *, mark: bool = True) -> npt.NDArray[np.int64]:
    """The indices at which a mask is set, or at which it is not."""
    return kept((np.flatnonzero(mask[span] == mark) + span.start for span in spans(len(mask))), np.int64, folder)


def are_among(values: Array, known: Array) -> npt.NDArray[np.bool_]:
    """Which of `values` are among `known`, which ascends."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    found: npt.NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return found


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The start of a `.npy` file, format 1.0 (numpy.lib.format)."""
    about = repr({"descr": dtype.str, "fortran_order": False, "shape": shape}).encode()
    room = _HEADER - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + about.ljust(room - 1) + b"\n"
