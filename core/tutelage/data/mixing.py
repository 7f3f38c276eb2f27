"""Which examples are held out for evaluation, and how often those of each source are used; the seed alone decides.

Whatever has a value for each row lies in files beside the stores (`kept`), so memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from itertools import repeat as times

import numpy as np
import numpy.typing as npt

from tutelage.data.columns import are_among, chunks_of, kept, marked, nothing_marked, numbers, spans
from tutelage.data.store import Picks, Selection, TokenStore

Mask = npt.NDArray[np.bool_]


def hold_out(stores: Sequence[TokenStore], share: float, seed: int) -> list[Mask]:
    """Choose about `share` of all rows, at least one: a mask of the examples held out, for each store.

    Rows with the same tokens are chosen together, across stores too, so that nothing trained on is evaluated on.

    Raises:
        ValueError: when that would leave nothing to train on.
    """
    folder = stores[0].folder.parent
    digests = kept(
        (store.digests[span][first] for store in stores for span, first in _firsts(store)), np.uint64, folder
    )
    digests.sort()
    begins = kept(_changes(digests), np.int64, folder)  # where each content begins among the sorted digests
    bounds = kept(chain(chunks_of(begins), [np.array([len(digests)])]), np.int64, folder)
    order = numbers(len(begins), folder)
    np.random.default_rng(seed).shuffle(order)
    count = _reached(bounds, order, max(1, round(share * len(digests))))
    if count == len(order):
        raise ValueError("holding out rows for evaluation leaves none to train on")
    chosen = kept((digests[begins[chunk]] for chunk in chunks_of(order[:count])), np.uint64, folder)
    chosen.sort()
    return [kept((are_among(chunk, chosen) for chunk in chunks_of(store.digests)), bool, folder) for store in stores]


def _changes(ascending: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """The indices of values that are not as the one before."""
    for span in spans(len(ascending)):
        changed = np.flatnonzero(np.diff(ascending[max(0, span.start - 1) : span.stop])) + max(1, span.start)
        yield changed if span.start else np.concatenate([[0], changed])


def _reached(bounds: npt.NDArray[np.int64], order: npt.NDArray[np.int64], wanted: int) -> int:
    """How many contents of `order` it takes until their rows are at least `wanted`; all where they are fewer."""
    rows = count = 0
    for chunk in chunks_of(order):
        sums = rows + np.cumsum(bounds[chunk + 1] - bounds[chunk])
        if sums[-1] >= wanted:
            return count + int(np.searchsorted(sums, wanted)) + 1
        rows, count = int(sums[-1]), count + len(chunk)
    return count


def repeat(store: TokenStore, held: Mask | None, weight: float, seed: int) -> Picks:
    """Indices of a source's examples for one epoch: every row that is not held out floor(`weight`) times, and a seeded
    choice of the rest once more, so that weight 2 is every row twice and 0.5 half of the rows once."""
    if held is None and weight == 1:
        return range(len(store))
    folder = store.folder.parent
    examples = range(len(store)) if held is None else marked(held, folder, mark=False)
    whole = chain.from_iterable(map(chunks_of, times(examples, int(weight))))
    return kept(chain(whole, _once_more(store, examples, weight, seed)), np.int64, folder)


def _once_more(store: TokenStore, examples: Picks, weight: float, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Those of `examples` that a weight's fraction takes: all of a row, or none."""
    if weight == int(weight):
        return
    folder = store.folder.parent
    rows = row_of_examples(store)
    taken = nothing_marked(len(rows), folder)
    for chunk in chunks_of(examples):
        taken[rows[chunk]] = True
    kinds = marked(taken, folder)
    np.random.default_rng(seed).shuffle(kinds)
    extra = round((weight - int(weight)) * len(kinds))
    for chunk in chunks_of(kinds[max(1, extra) if weight < 1 else extra :]):
        taken[chunk] = False
    for chunk in chunks_of(examples):
        yield chunk[taken[rows[chunk]]]


def row_of_examples(store: TokenStore) -> npt.NDArray[np.int64]:
    """For every example, the number of its row among all rows of the store; examples split from one row share it."""

    def counted() -> Iterator[npt.NDArray[np.int64]]:
        last = -1
        for _, first in _firsts(store):
            found = last + np.cumsum(first)
            last = int(found[-1])
            yield found

    return kept(counted(), np.int64, store.folder.parent)


def shared(evaluation: Selection, training: Selection) -> int:
    """How many examples of an evaluation are trained on too."""
    asked = kept(chunks_of(evaluation.digests), np.uint64, evaluation.folder)
    asked.sort()
    found = nothing_marked(len(asked), evaluation.folder)  # only the first of equal ones is marked
    for chunk in chunks_of(training.digests):
        found[np.searchsorted(asked, chunk[are_among(chunk, asked)])] = True
    return sum(int(found[np.searchsorted(asked, chunk)].sum()) for chunk in chunks_of(asked))


def _firsts(store: TokenStore) -> Iterator[tuple[slice, Mask]]:
    """Which examples are the first of their row, some at a time."""
    for span in spans(len(store)):
        seen = slice(max(0, span.start - 1), span.stop)
        changed = (np.diff(store.rows[seen]) != 0) | (np.diff(store.labels[seen]) != 0)
        yield span, changed if span.start else np.concatenate([[True], changed])
