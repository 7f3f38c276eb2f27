"""Texts as vectors of hashed, idf-weighted words: how diverse a set is, its clusters, how far two sets are apart.

No model is needed: words are hashed to signed coordinates (Weinberger et al., 2009), which keeps inner products.
"""

from __future__ import annotations

from random import Random
from typing import Any
from zlib import crc32

DIMENSIONS = 256
_BINS = 1 << 18
_WORDS = 200


class Sample:
    """Up to `size` texts of a stream, each equally likely (reservoir sampling, Vitter 1985), as hashed words."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self.words: list[Any] = []
        self.labels: list[Any] = []
        self._random = Random(0)

    def add(self, words: list[str], label: Any = None) -> None:
        """Take the next text; only its first 200 words count."""
        self.seen += 1
        at = len(self.words) if len(self.words) < self.size else self._random.randrange(self.seen)
        if at >= self.size:
            return
        import numpy as np

        hashed = np.array([crc32(word.encode("utf-8", "replace")) for word in words[:_WORDS]], dtype=np.uint32)
        self.words[at : at + 1] = [hashed]
        self.labels[at : at + 1] = [label]


def vectors(*samples: Sample) -> list[Any]:
    """A matrix (texts, 256) of unit rows for each sample; the weights of words come from all samples together."""
    import numpy as np

    texts = [words for sample in samples for words in sample.words]
    owner = np.repeat(np.arange(len(texts)), [words.size for words in texts])
    words = np.concatenate([*texts, np.zeros(0, np.uint32)])
    pairs, counts = np.unique((owner.astype(np.uint64) << np.uint64(32)) | words, return_counts=True)
    owner, words = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    bins = words % np.uint32(_BINS)
    documents = np.bincount(bins, minlength=_BINS)
    weights = np.sqrt(counts) * np.log((1 + len(texts)) / (1 + documents[bins]))
    mixed = (words * np.uint32(0x9E3779B1)) >> np.uint32(8)
    sign = np.where(mixed & np.uint32(1 << 20), 1.0, -1.0)
    flat = np.bincount(
        owner * DIMENSIONS + mixed % np.uint32(DIMENSIONS), weights=weights * sign, minlength=len(texts) * DIMENSIONS
    )
    matrix = flat.reshape(len(texts), DIMENSIONS).astype(np.float32)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)
    return np.split(matrix, np.cumsum([len(sample.words) for sample in samples])[:-1])


def effective_number(matrix: Any) -> float:
    """How many different texts a set is worth: the Vendi score (Friedman and Dieng, 2023, eq. 2).

    It is exp of the entropy of the eigenvalues of K/n, which are those of the smaller X'X/n; at most 256 here.
    """
    import numpy as np

    values = np.linalg.eigvalsh(matrix.T.astype(np.float64) @ matrix / max(1, len(matrix)))
    values = values[values > 1e-12] / max(values.sum(), 1e-12)
    return float(np.exp(-(values * np.log(values)).sum()))


def centres(matrix: Any, count: int) -> Any:
    """Centres (count, 256) of clusters by spherical k-means (Dhillon and Modha, 2001), the same every time."""
    import numpy as np

    random = np.random.default_rng(0)
    chosen = [int(random.integers(len(matrix)))]
    nearest = matrix @ matrix[chosen[0]]
    while len(chosen) < min(count, len(matrix)):
        distance = np.maximum(1 - nearest, 0) ** 2
        total = distance.sum()
        pick = int(random.choice(len(matrix), p=distance / total)) if total > 0 else int(random.integers(len(matrix)))
        chosen.append(pick)
        nearest = np.maximum(nearest, matrix @ matrix[pick])
    found = matrix[chosen]
    for _ in range(10):
        owner = (matrix @ found.T).argmax(axis=1)
        sums = np.zeros_like(found)
        np.add.at(sums, owner, matrix)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        found = np.where(norms > 1e-9, sums / np.maximum(norms, 1e-9), found)
    return found


def nearest(matrix: Any, others: Any, same: bool = False) -> Any:
    """Each row's greatest cosine with a row of `others`; with `same`, its own row doesn't count."""
    import numpy as np

    best = np.empty(len(matrix), dtype=np.float32)
    for start in range(0, len(matrix), 1000):
        cosines = matrix[start : start + 1000] @ others.T
        if same:
            at = np.arange(len(cosines))
            cosines[at, start + at] = -1
        best[start : start + 1000] = cosines.max(axis=1)
    return best
