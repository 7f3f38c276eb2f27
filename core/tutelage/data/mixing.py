"""Which examples are held out for evaluation, and how often those of each source are used; the seed alone decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tutelage.data.store import TokenStore

Mask = npt.NDArray[np.bool_]


def hold_out(stores: Sequence[TokenStore], share: float, seed: int) -> list[Mask]:
    """Choose about `share` of all rows, at least one: a mask of the examples held out, for each store.

    Rows with the same tokens are chosen together, across stores too, so that nothing trained on is evaluated on.

    Raises:
        ValueError: when that would leave nothing to train on.
    """
    digests = [store.digests[_first_examples(store)] for store in stores]
    contents, counts = np.unique(np.concatenate(digests), return_counts=True)
    order = np.random.default_rng(seed).permutation(len(contents))
    wanted = max(1, round(share * int(counts.sum())))
    chosen = contents[order[: int(np.searchsorted(counts[order].cumsum(), wanted)) + 1]]
    if len(chosen) == len(contents):
        raise ValueError("holding out rows for evaluation leaves none to train on")
    return [np.isin(store.digests, chosen) for store in stores]


def repeat(store: TokenStore, usable: Mask, weight: float, seed: int) -> npt.NDArray[np.int64]:
    """Indices of a source's examples for one epoch: every usable row floor(`weight`) times, and a seeded choice of the
    rest once more, so that weight 2 is every row twice and 0.5 half of the rows once."""
    examples = np.flatnonzero(usable)
    rows = row_of_examples(store)[examples]
    kinds = np.unique(rows)
    whole = int(weight)
    extra = round((weight - whole) * len(kinds))
    if whole == 0 and len(kinds):
        extra = max(1, extra)
    chosen = np.random.default_rng(seed).permutation(kinds)[:extra]
    return np.concatenate([np.tile(examples, whole), examples[np.isin(rows, chosen)]])


def row_of_examples(store: TokenStore) -> npt.NDArray[np.int64]:
    """For every example, the number of its row among all rows of the store; examples split from one row share it."""
    numbers = np.zeros(len(store), dtype=np.int64)
    numbers[_first_examples(store)] = 1
    return np.cumsum(numbers) - 1


def _first_examples(store: TokenStore) -> npt.NDArray[np.int64]:
    """The index of the first example of every row."""
    if len(store) == 0:
        return np.zeros(0, dtype=np.int64)
    changes = (np.diff(store.rows) != 0) | (np.diff(store.labels) != 0)
    return np.flatnonzero(np.concatenate(([True], changes)))
