"""Sequences as a tree of segments: nothing is lost, nothing is shared that must not be, and what can be spared is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batches import collate
from tutelage.data.rendering import Tokens, together
from tutelage.data.sharing import WORTH, Segment, prefix_tree


class Store(list):
    lengths = weights = np.zeros(0, dtype=np.int64)

    def place(self, index: int) -> str:
        return str(index)


def example(ids, learnt_from: int) -> Tokens:
    ids = np.array(ids, dtype=np.int32)
    return Tokens(ids, np.arange(len(ids)) >= learnt_from)


@st.composite
def families(draw):
    """Sequences of few different tokens that grow out of each other, so that they agree in many ways."""
    made = [draw(st.lists(st.integers(0, 1), min_size=1, max_size=60))]
    for _ in range(draw(st.integers(0, 7))):
        old = draw(st.sampled_from(made))
        kept = old[: draw(st.integers(0, len(old)))]
        made.append([*kept, *draw(st.lists(st.integers(0, 1), min_size=1, max_size=20))])
    return [(ids, draw(st.integers(0, len(ids) - 1))) for ids in made]


def way(tree, segment: Segment) -> list[Segment]:
    return ([] if segment.parent < 0 else way(tree, tree.shared[segment.parent])) + [segment]


@given(families())
def test_each_sequence_is_the_way_to_its_leaf(family):
    sequences = [np.array(ids, dtype=np.int32) for ids, _ in family]
    tree = prefix_tree(sequences, [most for _, most in family])
    assert [leaf.sequence for leaf in tree.own] == list(range(len(sequences)))
    for leaf, ids, (_, most) in zip(tree.own, sequences, family, strict=True):
        path = way(tree, leaf)
        found = np.concatenate([sequences[each.sequence][each.start : each.end] for each in path])
        assert np.array_equal(found, ids)
        assert leaf.start <= most
        assert leaf.end > leaf.start
        assert [each.start for each in path] == [0, *(each.end for each in path[:-1])]
    for number, segment in enumerate(tree.shared):
        assert segment.parent < number
        through = sum(any(segment is each for each in way(tree, leaf)) for leaf in tree.own)
        assert (segment.end - segment.start) * (through - 1) >= WORTH


@given(families(), families())
def test_a_batch_holds_the_same_learnt_tokens_behind_the_same_tokens(one, other):
    store = Store(example(ids, learnt_from) for ids, learnt_from in one)
    store.append(together([example(ids, learnt_from) for ids, learnt_from in other], [[0.0]] * len(other)))
    plain, shared = (
        collate(store, range(len(store)), packed=True, filler=0, shares=shares) for shares in (False, True)
    )
    assert shared.sequences == plain.sequences
    assert shared.ids.numel() <= plain.ids.numel()
    if shared.keys is not None:
        assert shared.ids.numel() <= plain.ids.numel() - WORTH
        assert len(shared.sequence_bounds) == shared.sequences + 1
    assert behind(shared) == behind(plain)


def behind(batch) -> list[tuple[int, ...]]:
    """Of each learnt token, all tokens that are seen where it is predicted, and itself, with their positions."""
    keys = np.arange(batch.ids.numel()) if batch.keys is None else batch.keys.numpy()
    bounds = batch.bounds.numpy()
    ends = (bounds if batch.key_bounds is None else batch.key_bounds.numpy())[1:]
    starts = (bounds if batch.key_bounds is None else batch.key_bounds.numpy())[:-1]
    seen_of = []
    for begin, finish, first, last in zip(bounds, bounds[1:], starts, ends, strict=False):
        for token in range(begin, finish):
            if batch.targets[0, token]:
                assert token > begin  # what predicts it stands before it, in the same segment
                seen = keys[first : last - (finish - token) + 1]
                assert batch.positions[0, seen].tolist() == list(range(len(seen)))
                seen_of.append(tuple(batch.ids[0, seen].tolist()))
    return seen_of


def test_one_beginning_and_the_beginnings_within_it():
    begin, question = list(range(100, 130)), list(range(200, 220))
    rows = [begin + question + [1, 2, 3], begin + question + [1, 5], [*begin, 7, 8], [*begin[:3], 9, 9]]
    tree = prefix_tree([np.array(row, dtype=np.int32) for row in rows], [51, 51, 31, 4])
    assert tree.shared == [Segment(0, 0, 30), Segment(0, 30, 51, 0)]
    assert tree.own == [Segment(0, 51, 53, 1), Segment(1, 51, 52, 1), Segment(2, 30, 32, 0), Segment(3, 0, 5)]


def test_a_segment_is_not_worth_less_than_it_adds():
    few = [np.array([1] * 15 + [2 + each], dtype=np.int32) for each in range(3)]
    assert prefix_tree(few[:2], [15, 15]).shared == []
    assert prefix_tree(few, [15, 15, 15]).shared == [Segment(0, 0, 15)]
