"""What sequences have in common at their beginning, so that it is computed once for all of them.

Answers to one prompt, and conversations under one system prompt, begin with the same tokens. Under causal attention
these have the same hidden states in each, so a packed row need hold them but once: sequences become a tree of segments,
each of which sees the segments on its way to the root, and then itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORTH = 16
"Tokens that a shared segment must spare, over all sequences, to be worth the products that it adds."


@dataclass
class Segment:
    """Tokens `start` to `end` of a sequence, and of all others that go through this segment."""

    sequence: int
    start: int
    end: int
    parent: int = -1
    "The shared segment that comes before, or -1."


@dataclass
class Tree:
    """Sequences as segments: what several share, parents first, and what each has to itself, in their order."""

    shared: list[Segment] = field(default_factory=list)
    own: list[Segment] = field(default_factory=list)


def prefix_tree(sequences: Sequence[NDArray[np.int32]], sharable: Sequence[int]) -> Tree:
    """The tree of sequences' common beginnings.

    Args:
        sequences: token ids of each, (length,).
        sharable: how many of each one's first tokens may be shared; fewer than it has.
    """
    tree = Tree(own=[Segment(index, 0, len(ids)) for index, ids in enumerate(sequences)])
    waiting = [(list(range(len(sequences))), 0, -1)]
    while waiting:
        members, start, parent = waiting.pop()
        common = _agreement(sequences, sharable, members, start)
        if (common - start) * (len(members) - 1) >= WORTH:
            tree.shared.append(Segment(members[0], start, common, parent))
            start, parent = common, len(tree.shared) - 1
            for index in members:
                tree.own[index].start, tree.own[index].parent = start, parent
        branches: dict[int, list[int]] = {}
        for index in members:
            if sharable[index] > common:
                branches.setdefault(int(sequences[index][common]), []).append(index)
        waiting += [(branch, start, parent) for branch in branches.values() if len(branch) > 1]
    return tree


def _agreement(
    sequences: Sequence[NDArray[np.int32]], sharable: Sequence[int], members: Sequence[int], start: int
) -> int:
    """Up to where all members are alike, at least from `start` on, and may be shared."""
    first = sequences[members[0]]
    end = min(sharable[index] for index in members)
    for index in members[1:]:
        differs = np.flatnonzero(first[start:end] != sequences[index][start:end])
        end = start + int(differs[0]) if len(differs) else end
    return max(start, end)
