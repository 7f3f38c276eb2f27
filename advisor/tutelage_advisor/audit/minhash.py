"""Near-equal texts among many, by MinHash (Broder, 1997) and banding (Leskovec, Rajaraman, Ullman: Mining of Massive
Datasets, section 3.4), checked by the exact Jaccard similarity of word pairs."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

_PERMUTATIONS = 64
_BAND = 4
"Rows a band: 16 bands of 4 find a pair of similarity 0.75 with probability 0.998, one of 0.3 with 0.12."
_TEMPLATE_SHARE = 0.05
_TEMPLATE_LEAST = 20
_LARGEST_BUCKET = 50
_CHUNK = 2_000_000


class Shingles:
    """Word pairs of many texts as 32-bit hashes (4 bytes a word), and the pairs of texts that share most of them.

    Pairs of words that stand in over 5% of all texts (and in more than 20) are a template, not content, and count only
    for texts that are made of nothing else. Two texts whose numbers differ say different things.
    """

    def __init__(self) -> None:
        self._words = array("I")
        self._ends = array("Q", [0])
        self._numbers: dict[int, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, words: list[str]) -> None:
        """Take the next text."""
        self._words.extend([crc32(word.encode("utf-8", "replace")) for word in words])
        numbers = frozenset(word for word in words if word.isdigit())
        if numbers:
            self._numbers[len(self)] = numbers
        self._ends.append(len(self._words))

    def similar(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Pairs (earlier, later, similarity) of texts that are at least this similar, by order of the later."""
        import numpy as np

        sets, ends = self._content()
        candidates = np.array(sorted(_candidates(_signatures(sets, ends))), dtype=np.int64).reshape(-1, 2)
        for later, earlier in candidates.tolist():
            one, other = sets[ends[earlier] : ends[earlier + 1]], sets[ends[later] : ends[later + 1]]
            common = np.intersect1d(one, other, assume_unique=True).size
            similarity = common / (one.size + other.size - common)
            if similarity >= threshold and self._same_numbers(earlier, later):
                yield earlier, later, similarity

    def _same_numbers(self, one: int, other: int) -> bool:
        first, second = self._numbers.get(one, frozenset()), self._numbers.get(other, frozenset())
        return not (first or second) or len(first & second) / len(first | second) >= 0.5

    def _content(self) -> tuple[Any, Any]:
        """Each text's distinct word pairs without those of templates, and where each text ends."""
        import numpy as np

        words = np.frombuffer(self._words, dtype=np.uint32)
        ends = np.frombuffer(self._ends, dtype=np.uint64).astype(np.int64)
        found, sizes = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
        for first, last in _portions(ends):
            pairs, counts = _distinct_pairs(words[ends[first] : ends[last]], np.diff(ends[first : last + 1]))
            found.append(pairs)
            sizes.append(counts)
        pairs, counts = np.concatenate(found), np.concatenate(sizes)
        owner = np.repeat(np.arange(len(self), dtype=np.int32), counts)
        shift = np.uint32(32 - min(24, max(12, pairs.size.bit_length() + 4)))  # bins enough that few pairs share one
        often = np.bincount(pairs >> shift) > max(_TEMPLATE_LEAST, _TEMPLATE_SHARE * len(self))
        template = often[pairs >> shift]
        own = np.bincount(owner[~template], minlength=len(self))
        kept = ~template | (own == 0)[owner]
        return pairs[kept], np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(self)))])


def _portions(ends: Any) -> Iterator[tuple[int, int]]:
    """Runs of texts (first, last + 1) of about two million words each, so that what is computed of them stays small."""
    import numpy as np

    first, texts = 0, len(ends) - 1
    while first < texts:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + _CHUNK, side="right")) - 1)
        yield first, min(last, texts)
        first = last


def _distinct_pairs(words: Any, lengths: Any) -> tuple[Any, Any]:
    """The distinct pairs of following words of some texts, text by text, and how many each has."""
    import numpy as np

    owner = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    # A word stands for the pair that it opens; a text's last word pairs with a fixed end mark.
    following = np.full(words.size, 0x9E3779B9, dtype=np.uint32)
    inside = owner[1:] == owner[:-1]
    following[:-1][inside] = words[1:][inside]
    keys = (owner << np.uint64(32)) | ((words * np.uint32(0x85EBCA6B)) ^ (following * np.uint32(0xC2B2AE35)))
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])[: keys.size]]
    counts = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(lengths))
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), counts


def _signatures(sets: Any, ends: Any) -> Any:
    """MinHash signatures, shape (texts, permutations); a text without words gets values that nothing else has."""
    import numpy as np

    random = np.random.default_rng(0)
    multiply = random.integers(1, 2**63, _PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    add = random.integers(0, 2**63, _PERMUTATIONS, dtype=np.uint64)
    texts = len(ends) - 1
    signatures = np.empty((texts, _PERMUTATIONS), dtype=np.uint32)
    for first, last in _portions(ends):
        part = first + np.flatnonzero(np.diff(ends[first : last + 1]))
        if part.size:
            values = sets[ends[first] : ends[last]].astype(np.uint64)
            for column in range(_PERMUTATIONS):
                hashed = (values * multiply[column] + add[column]) >> np.uint64(32)
                signatures[part, column] = np.minimum.reduceat(hashed, ends[part] - ends[first])
    empty = np.flatnonzero(np.diff(ends) == 0)
    signatures[empty] = empty[:, None]
    return signatures


def _candidates(signatures: Any) -> set[tuple[int, int]]:
    """Pairs (later, earlier) that share a band. In a bucket of many each text is paired with the first ones only."""
    import numpy as np

    pairs: set[tuple[int, int]] = set()
    for start in range(0, _PERMUTATIONS, _BAND):
        band = np.ascontiguousarray(signatures[:, start : start + _BAND])
        keys = band.view(np.dtype((np.void, band.dtype.itemsize * _BAND))).ravel()
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1, [keys.size]])
        for bucket in np.flatnonzero(np.diff(starts) > 1).tolist():
            members = order[starts[bucket] : starts[bucket + 1]].tolist()
            for at, later in enumerate(members[1:], 1):
                pairs.update((later, earlier) for earlier in members[: min(at, _LARGEST_BUCKET)])
    return pairs
